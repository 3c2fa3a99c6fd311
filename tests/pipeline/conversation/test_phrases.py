"""Which words of a text are grounded: what all finders promise, and the ways to choose one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flmm_core.cli import main
from flmm_core.errors import ConfigError, UsageError
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, PhraseFinder, Range, tidied
from flmm_core.pipeline.conversation.phrases.choose import find_phrases, open_finder
from flmm_core.pipeline.conversation.phrases.lookup import occurrences
from flmm_core.pipeline.conversation.phrases.marks import marked_in_answer, strip_marks
from flmm_core.pipeline.conversation.phrases.rules import RuleFinder
from tests.pipeline.conversation.promises import check_promises

WORDS = ["a", "the", "red", "ring", "rings", "of", "group", "dog's", "dogs'", "and", "is", "image"]
ENGLISH = st.lists(st.sampled_from([*WORDS, ",", ".", "\n", "[[", "]]", "İ", "é"])).map(" ".join)
TEXTS = st.one_of(ENGLISH, st.text())
RULES = RuleFinder(None)


def shown(text: str, ranges: list[Range]) -> list[str]:
    return [text[start:end] for start, end in ranges]


@given(TEXTS)
@example("the dogs' ")
@example("a group of")
def test_rules_keep_the_promises_on_any_text(text: str) -> None:
    check_promises(text, find_phrases(text, RULES))


@given(TEXTS, st.lists(st.tuples(st.integers(-3, 40), st.integers(-3, 40))))
def test_any_ranges_are_tidied(text: str, ranges: list[Range]) -> None:
    kept = tidied(text, ranges)
    check_promises(text, kept)
    assert tidied(text, kept) == kept


@given(TEXTS, st.lists(TEXTS.filter(str.strip), max_size=3))
@example("a red ring, red", ["red", "red ring"])
@example("İx ẞ ss", ["x", "SS"])
def test_looked_up_phrases_are_those_of_the_text(text: str, phrases: list[str]) -> None:
    found = occurrences(text, phrases)
    check_promises(text, found)
    wanted = {" ".join(phrase.lower().split()) for phrase in phrases}
    wanted |= {" ".join(phrase.upper().split()) for phrase in phrases}
    for words in shown(text, found):
        assert {" ".join(words.lower().split()), " ".join(words.upper().split())} & wanted


@pytest.mark.parametrize(
    ("text", "phrases", "expected"),
    [
        ("A ring on a string; the ring.", ["ring"], ["ring", "ring"]),
        ("A RED  ring and a red ring", ["red ring", "ring"], ["RED  ring", "red ring"]),
        ("cafe\u0301 cafe", ["cafe"], ["cafe"]),
        ("一只猫在桌子上", ["猫", "桌子"], ["猫", "桌子"]),
        ("a+b (c) c++", ["+b", "(c)", "c++"], ["+b", "(c)", "c++"]),
        ("nothing", ["ring"], []),
        ("anything", [], []),
    ],
)
def test_whole_words_are_looked_up(text: str, phrases: list[str], expected: list[str]) -> None:
    assert shown(text, find_phrases(text, open_finder(phrases))) == expected


@given(TEXTS)
def test_marks_that_are_stripped_leave_the_words(text: str) -> None:
    try:
        marked = strip_marks(text)
    except UsageError:
        assert "[[" in text or "]]" in text
        assert marked_in_answer(text) == []
        return
    check_promises(marked.text, marked.ranges)
    assert marked.text == text.replace("[[", "").replace("]]", "")
    assert shown(marked.text, marked.ranges) == shown(text, marked_in_answer(text))


def test_marked_phrases_win() -> None:
    text = "the [[ red ring ]] and [[stars]]: a cat"
    marked = strip_marks(text)
    assert marked.text == "the  red ring  and stars: a cat"
    assert shown(marked.text, marked.ranges) == ["red ring", "stars"]
    assert shown(text, find_phrases(text, open_finder("rules"))) == ["red ring", "stars"]
    assert strip_marks("a cat").ranges == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a [[red ring and more",
            "'[[' is not closed.\nAt character 2: 'a ' here '[[red ring and ",
        ),
        ("a ring]] here", "']]' closes nothing.\nAt character 6: 'a ring' here ']] here'"),
        ("[[a [[b]] c]]", "'[[' stands within another '[['.\nAt character 4: '[[a ' here"),
        ("so [[ ]] it", "no words are marked.\nAt character 3: 'so ' here"),
    ],
)
def test_unbalanced_marks_show_the_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        strip_marks(text)
    assert message in str(caught.value)
    assert find_phrases(text, open_finder([])) == []  # an answer is not the user's to repair


def test_a_function_chooses() -> None:
    finder = open_finder(lambda text: [(4, 8), (-5, 3), (3, 9)])
    assert shown("the red ring", find_phrases("the red ring", finder)) == ["the", "red r"]


@pytest.mark.parametrize("returned", [None, 3, [1, 2], ["ab"], [(1, 2, 3)]])
def test_a_function_that_returns_no_ranges_is_refused(returned: object) -> None:
    finder = open_finder(lambda text: returned)  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="returns no ranges"):
        find_phrases("a red ring", finder)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ("rulse", "^Unknown phrase finder 'rulse'. Did you mean 'rules'?\nInstalled: "),
        ("rules:x", "The phrase finder 'rules' takes no 'x'."),
        (["a", " "], "A phrase to look up is empty"),
        (["a", None], "A phrase to look up is empty"),
        (3, "3 does not say which phrases to ground"),
    ],
)
def test_what_names_no_finder_is_refused(phrases: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_finder(phrases)  # type: ignore[arg-type]
    assert message.removeprefix("^") in str(caught.value)


PAGE = Path(__file__).parents[3] / "docs" / "phrases.md"


def test_a_plugin_brings_a_finder(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    (plugin,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    install("flmm-letters", "0.1", flmm_letters=plugin)
    text = "a red ring, a star"
    assert find_phrases(text, open_finder("letters:r")) == [(2, 3), (6, 7), (17, 18)]
    assert find_phrases(text, open_finder("letters:letter=s")) == [(14, 15)]
    assert shown(text, find_phrases(text, open_finder("letters"))) == ["a", "a", "a"]
    with pytest.raises(ConfigError, match="Option 'letter' = 'st'"):
        open_finder("letters:st")
    assert main(["finders"]) == 0
    assert "letters   single letters\n" in capsys.readouterr().out
    assert main(["finders", "show", "letters"]) == 0
    shown_options = capsys.readouterr().out
    assert "Options (--phrases NAME:KEY=VALUE):\n  letter  str  What phrases" in shown_options
    assert main(["finders", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    named = {each["name"]: each["plugin"] for each in facts["phrase_finders"]}
    assert named["letters"] == "flmm-letters 0.1"
    assert "rules" in named
    assert facts["not_loaded"] == []


def test_a_finder_by_itself_is_taken_as_it_is() -> None:
    class Last(PhraseFinder):
        def find(self, text: str, context: PhraseContext) -> list[Range]:
            return [(len(text) - 4, len(text))]

    finder = Last(None)
    assert open_finder(finder) is finder
    assert shown("a red ring", find_phrases("a red ring", finder)) == ["ring"]
