"""`vlm` and `spacy`: finders that ask another program, or the model itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flmm_core.errors import MissingExtraError, UsageError
from flmm_core.pipeline.conversation.phrases.base import PhraseContext
from flmm_core.pipeline.conversation.phrases.choose import find_phrases, open_finder
from flmm_core.pipeline.conversation.phrases.vlm import listed_in
from flmm_core.plugins import load_backbones, load_class

TEXT = "The Red Ring lies left of a star; the ring is small."


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("red ring\na star", ["Red Ring", "a star"]),
        ("1. The red ring\n2) a star.\n(3) the moon", ["The Red Ring", "a star"]),
        ("- **the ring**\n* `star`\n• “Red Ring”", ["Red Ring", "star", "the ring"]),
        ('["star", "ring", 3, null]', ["Ring", "star", "ring"]),
        ("The ring, a star; the sea", ["a star", "the ring"]),
        ("Red Ring\r\n\r\nstars\r\n", ["Red Ring"]),
    ],
)
def test_of_a_models_list_only_what_is_in_the_text_is_kept(reply: str, expected: list[str]) -> None:
    assert [TEXT[start:end] for start, end in listed_in(TEXT, reply)] == expected


@pytest.mark.parametrize("reply", ["", "...", "[]", '{"a": 1}', "I see nothing.", "[" * 3, "- \n-"])
def test_a_malformed_list_gives_nothing_and_a_warning(
    reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert listed_in(TEXT, reply) == []
    assert "the model lists none that are in it: '" in caplog.text


def test_the_model_itself_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    spec = load_backbones().get("qwen")
    backbone = load_class(spec).load(spec, "tiny")
    finder = open_finder("vlm:max_new_tokens=8")
    context = PhraseContext([Image.new("RGB", (96, 96), "white")], backbone)
    finder.check(context)
    ranges = find_phrases(TEXT, finder, context)
    assert ranges or "the model lists none" in caplog.text  # as toy models do
    assert find_phrases(" \n", finder, context) == []
    with pytest.raises(UsageError, match="There is no model to be asked which things"):
        finder.check(PhraseContext())


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline on disk whose parser knows two sentences by heart, word by word."""
    import spacy
    from spacy.language import Language
    from spacy.tokens import Doc

    known: dict[str, tuple[str, str, int]] = {  # part of speech, dependency, place of its head
        "A": ("DET", "det", 1), "man": ("NOUN", "nsubj", 2), "holds": ("VERB", "ROOT", 2),
        "two": ("NUM", "nummod", 5), "red": ("ADJ", "amod", 5), "dogs": ("NOUN", "dobj", 2),
        "It": ("PRON", "nsubj", 2),
    }  # fmt: skip

    @Language.component("by_heart")
    def by_heart(doc: Doc) -> Doc:
        words, spaces = [t.text for t in doc], [bool(t.whitespace_) for t in doc]
        pos, deps, heads = zip(*(known[word] for word in words), strict=True)
        return Doc(doc.vocab, words, spaces, pos=pos, deps=deps, heads=heads)

    nlp = spacy.blank("en")
    nlp.add_pipe("by_heart")
    nlp.to_disk(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_spacy_finds_the_noun_chunks_of_a_pipeline(pipeline: Path) -> None:
    text = "A man holds two red dogs"
    found = find_phrases(text, open_finder(f"spacy:{pipeline}"))
    assert [text[start:end] for start, end in found] == ["A man", "two red dogs"]


def test_spacy_leaves_pronouns_out(pipeline: Path) -> None:
    text = "It man holds two red dogs"
    found = find_phrases(text, open_finder(f"spacy:{pipeline}"))
    assert "It" not in [text[start:end] for start, end in found]
    assert text[slice(*found[-1])] == "two red dogs"


def test_a_pipeline_without_a_parser_is_refused(tmp_path: Path) -> None:
    import spacy

    spacy.blank("en").to_disk(tmp_path / "blank")
    finder = open_finder(f"spacy:{tmp_path / 'blank'}")
    with pytest.raises(UsageError, match=r"finds no noun chunks\.\n.*\nGive one with a parser"):
        find_phrases("A man", finder)


@pytest.mark.parametrize("missing", ["package", "pipeline"])
def test_what_is_missing_names_both_installs(missing: str, monkeypatch: Any) -> None:
    name = "en_core_web_sm" if missing == "package" else "xx_not_there"
    if missing == "package":
        monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingExtraError) as caught:
        open_finder("spacy" if missing == "package" else f"spacy:{name}")
    asked, found, repair = str(caught.value).split("\n")
    assert asked == f"The phrase finder 'spacy' needs spaCy's pipeline '{name}'."
    assert ("The package spacy cannot be imported" in found) == (missing == "package")
    assert "pip install 'flmm[spacy]'" in repair
    assert f"python -m spacy download {name}" in repair
