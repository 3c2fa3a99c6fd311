"""`rules`: English noun phrases by a small grammar and closed lists of words.

A phrase is `[determiner] [number] [adverb] [adjective ...] noun ...`, for example "the very large
red ring", "two parked cars", "a black and white dog", "the man's hat", "a traffic light":

* determiners, adjectives and possessives belong to it; a clause or preposition behind it does not
* "of" ends it, but behind amounts and containers: "a group of people", but "the lid", "the box"
* what is joined by "and", "or" or a comma are several phrases
* pronouns, the image itself ("this photo") and mere places ("the top left") are none
* words that are not in Latin letters end a phrase

Unknown words are taken for nouns, unless their place and ending tell a verb or a participle.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import zip_longest
from typing import NamedTuple

from flmm_core.pipeline.conversation.phrases import english
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, PhraseFinder, Range

_LETTERS = r"(?:[^\W_][\u0300-\u036f]*)+"
_WORD = re.compile(rf"{_LETTERS}(?:(?:['’\-‐‑&]|(?<=\d)[.,](?=\d)){_LETTERS})*")
_CLASSES = {
    "pronoun": english.PRONOUNS,
    "preposition": english.PREPOSITIONS,
    "conjunction": english.CONJUNCTIONS,
    "auxiliary": english.AUXILIARIES,
    "determiner": english.DETERMINERS,
    "number": english.NUMBERS,
}
MODIFIERS = "adjective", "participle", "adverb"
_NAMES_NOTHING = english.PLACES | english.THE_IMAGE | english.NO_THING


class Word(NamedTuple):
    """A word, its class, and what stands between it and the next one."""

    text: str
    kind: str
    start: int
    end: int
    gap: str

    @property
    def is_near(self) -> bool:
        """Whether only spaces part it from the next word."""
        return not self.gap.strip() and "\n" not in self.gap


class Phrase(NamedTuple):
    """Words `first` to `last`; `noun` is the one that names it, `end` its last character + 1."""

    first: int
    noun: int
    last: int
    end: int


class RuleFinder(PhraseFinder):
    """Finds noun phrases in an English text."""

    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        return noun_phrases(text)


def noun_phrases(text: str) -> list[Range]:
    """The noun phrases of a text, in order, without overlaps."""
    words, place = _words(text), 0
    found: list[Range] = []
    while place < len(words):
        phrase = _phrase(words, place)
        if phrase is None:
            place += 1
            continue
        while (more := _behind_of(words, phrase)) is not None:
            phrase = more
        if _names_a_thing(words, phrase):
            found.append((words[phrase.first].start, phrase.end))
        place = phrase.last + 1
    return found


def _words(text: str) -> list[Word]:
    matches = list(_WORD.finditer(text))
    found = []
    for match, following in zip_longest(matches, matches[1:]):
        end = following.start() if following else len(text)
        word, gap = match[0].lower().replace("’", "'"), text[match.end() : end]
        kind = _kind(word)
        if kind == "noun" and word.endswith("s") and re.fullmatch(r"['’] +", gap):
            kind = "possessive"  # "the dogs' bowls"
        found.append(Word(word, kind, match.start(), match.end(), gap))
    return found


def _kind(word: str) -> str:
    """The class of a lower-case word, whatever stands around it."""
    if any(c.isalpha() and not unicodedata.name(c, "").startswith("LATIN") for c in word):
        return "foreign"
    for kind, members in _CLASSES.items():
        if word in members:
            return kind
    if word[0].isdigit():
        return "number" if re.fullmatch(r"[\d.,]+\D{0,2}", word) else "noun"
    if english.is_adjective(word):
        return "adjective"
    if word in english.VERBS:
        return "verb"
    if english.is_adverb(word):
        return "adverb"
    if english.is_participle(word):
        return "participle"
    return "possessive" if word.endswith(("'s", "s'")) else "noun"


def _phrase(words: list[Word], first: int) -> Phrase | None:
    """The phrase that begins at a word; None if none does."""
    noun = last = -1
    for place in range(first, len(words)):
        if place > first and not _continues(words, place, noun == place - 1):
            break
        kind = _role(words, first, place, noun)
        if kind in ("noun", "possessive"):
            noun = last = place
        elif kind is None:
            break
        if kind == "possessive":  # the noun is still to come
            noun = -1
    if last < 0:
        return None
    end = words[last].end
    if noun < 0:  # a possessive with nothing behind it: "the man's sitting"
        noun, end = last, end - (2 if words[last].text.endswith("'s") else 0)
    elif (verb := _is_verb(words, first, last)) is not None:
        noun, end = verb, words[verb].end
    return Phrase(first, noun, last, end)


def _continues(words: list[Word], place: int, after_noun: bool) -> bool:
    """Whether what parts a word from the one before leaves both in one phrase."""
    before = words[place - 1]
    if before.is_near or (before.kind == "possessive" and not before.gap.strip(" '’")):
        return True
    if not before.gap.strip():  # a line end
        return not after_noun
    lists = before.kind, words[place].kind
    return before.gap.strip() == "," and lists[0] == "adjective" and lists[1] in MODIFIERS


def _role(words: list[Word], first: int, place: int, noun: int) -> str | None:
    """What a word is in a phrase that has got as far as to it; None if it is not in it.

    `noun` is the place of the noun that the phrase has so far, or -1.
    """
    word, named = words[place], noun >= 0
    kind, following = word.kind, words[place + 1].kind if place + 1 < len(words) else ""
    following = following if word.is_near else ""
    begun = place > first
    before = words[place - 1] if place and words[place - 1].is_near else None
    if kind in ("noun", "possessive"):
        return None if not begun and kind == "noun" and _is_subject(before, word) else kind
    if word.text in english.NOUNS_TOO and (named or begun) and following not in (
        "noun", "adjective", "participle", "number", "possessive", "verb",
    ):  # fmt: skip
        return "noun"
    if named:
        return None
    if kind == "determiner":
        return kind if not begun or words[place - 1].kind == "determiner" else None
    if kind in ("number", "adjective"):
        return kind
    if kind == "adverb" or (kind == "conjunction" and word.text in ("and", "or")):
        if kind == "conjunction" and words[place - 1].kind != "adjective":
            return None
        return kind if begun and following in MODIFIERS else None
    if kind == "participle":
        return kind if _modifies(words, first, place, following) else None
    if kind == "verb" and before is not None:  # may be a noun: "the ride", "with leaves"
        leads = ("determiner", "adjective") if begun else ("preposition", "participle")
        return "noun" if before.kind in leads and before.text != "to" else None
    return None


def _is_subject(before: Word | None, word: Word) -> bool:
    """Whether a pronoun before a word makes it a verb: "it rains", "that jumps"."""
    if before is None:
        return False
    return before.kind == "pronoun" or (before.text == "that" and word.text.endswith("s"))


def _modifies(words: list[Word], first: int, place: int, following: str) -> bool:
    """Whether a participle stands before its noun: "a parked car", "with painted walls"."""
    if following not in ("noun", "adjective", "participle", "possessive"):
        return False
    if place > first:
        return True
    before = words[place - 1] if place and words[place - 1].is_near else None
    verb = before is not None and before.kind in ("noun", "pronoun", "auxiliary", "adverb")
    return words[place].text.endswith("ed") and not verb


def _is_verb(words: list[Word], first: int, last: int) -> int | None:
    """The place of the noun before `last`, if that is a verb: "the dog chases | the cat"."""
    if last - 1 <= first or last + 1 >= len(words) or not words[last].is_near:
        return None
    word, before, after = words[last], words[last - 1], words[last + 1]
    looks = word.text.endswith("s") and not word.text.endswith(("ss", "us", "'s"))
    both = word.kind == before.kind == "noun"
    return last - 1 if both and looks and after.kind in ("determiner", "pronoun") else None


def _behind_of(words: list[Word], phrase: Phrase) -> Phrase | None:
    """The phrase with what follows its "of", if its noun is an amount or a container."""
    of = phrase.last + 1
    if of + 1 >= len(words) or words[of].text != "of" or not words[of].is_near:
        return None
    if words[phrase.last].text not in english.OF_WORDS or not words[phrase.last].is_near:
        return None
    content = _phrase(words, of + 1)
    return content and content._replace(first=phrase.first)


def _names_a_thing(words: list[Word], phrase: Phrase) -> bool:
    """Whether a phrase can be seen in an image, as far as its words tell."""
    members = words[phrase.first : phrase.last + 1]
    nouns = [word.text for word in members if word.kind in ("noun", "verb", "possessive")]
    nouns.append(words[phrase.noun].text)
    if all(word in _NAMES_NOTHING | english.INTERJECTIONS for word in nouns):
        return False
    bare = members[0].kind not in ("determiner", "number", "possessive")
    before = words[phrase.first - 1] if phrase.first else None
    if bare and before is not None and before.is_near and before.text in english.COPULAS:
        there = phrase.first > 1 and words[phrase.first - 2].text == "there"
        return there or words[phrase.noun].text.endswith("s")  # else "is wood": says how it is
    return True
