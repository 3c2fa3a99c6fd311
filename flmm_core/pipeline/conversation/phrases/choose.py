"""From what a user says about phrases (`phrases=`) to the ranges of a text to ground."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flmm_core.errors import UsageError, shortened
from flmm_core.pipeline.conversation.phrases.base import (
    PhraseContext,
    PhraseFinder,
    Range,
    tidied,
)
from flmm_core.pipeline.conversation.phrases.lookup import occurrences
from flmm_core.pipeline.conversation.phrases.marks import Marked, marked_in_answer, strip_marks
from flmm_core.plugins import load_class, load_phrase_finders, parse_options

Phrases = str | Callable[[str], Iterable[Range]] | Sequence[str] | PhraseFinder
"""A finder's name ("rules", "keywords:0.6"), a function from a text to ranges, or the phrases."""

NOTHING = PhraseContext()


def open_finder(phrases: Phrases) -> PhraseFinder:
    """The finder that `phrases` names or describes, loaded.

    "NAME" is an installed finder (`flmm finders`); "NAME:VALUE" sets its shorthand option,
    "NAME:KEY=VALUE,..." any of its options. A list of strings is looked up in the text.

    Raises:
        UsageError: There is no such finder, or it cannot be loaded.
        ConfigError: An option is unknown or has a wrong value.
        MissingExtraError: A package that the finder needs is not installed.
    """
    if isinstance(phrases, PhraseFinder):
        return phrases
    if isinstance(phrases, str):
        return _named(phrases)
    if callable(phrases):
        return _Called(phrases)
    if isinstance(phrases, Iterable):
        return _Listed(list(phrases))
    raise UsageError(
        f"{shortened(repr(phrases))} does not say which phrases to ground.",
        found="Expected the name of a phrase finder, a list of strings, or a function.",
        repair=f"Names: {', '.join(load_phrase_finders().specs)}.",
    )


def find_phrases(text: str, finder: PhraseFinder, context: PhraseContext = NOTHING) -> list[Range]:
    """The phrases of an answer to ground, sorted, without overlaps or edge spaces.

    What the answer itself marks as `[[phrase]]` wins over the finder. Of a text that a user gives,
    `strip_marks` takes the marks away first, and says what was marked.
    """
    return marked_in_answer(text) or tidied(text, finder.find(text, context))


def without_marks(messages: object, finder: PhraseFinder) -> tuple[object, PhraseFinder]:
    """A conversation without the marks in what its last message gives the answer to begin with.

    Returns:
        What the VLM reads; and a finder of what was marked there, or `finder` if nothing was.

    Raises:
        UsageError: The marks are not balanced.
    """
    if not isinstance(messages, list | tuple) or not messages:
        return messages, finder
    last = messages[-1]
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return messages, finder
    content = last.get("content")
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple):
        return messages, finder  # whoever reads the messages refuses it
    given = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
    marked = strip_marks("".join(text for text in given if isinstance(text, str)))
    if not marked.ranges:
        return messages, finder
    return [*messages[:-1], {**last, "content": marked.text}], _Marked(marked)


def _named(phrases: str) -> PhraseFinder:
    name, _, given = phrases.partition(":")
    spec = load_phrase_finders().get(name)
    options: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not equals and not spec.shorthand:
            raise UsageError(
                f"The phrase finder '{name}' takes no '{part}'.",
                found=f"Its options: {', '.join(spec.options.model_fields) or 'none'}.",
                repair=f"Write {name}, or {name}:KEY=VALUE.",
            )
        options[key.strip() if equals else spec.shorthand] = value if equals else part
    finder: PhraseFinder = load_class(spec)(parse_options(spec, options))
    return finder


class _Called(PhraseFinder):
    """A user's function."""

    def __init__(self, function: Callable[[str], Iterable[Range]]) -> None:
        super().__init__(None)
        self.function = function

    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        ranges = self.function(text)
        try:
            return [(int(start), int(end)) for start, end in ranges]
        except (TypeError, ValueError) as error:
            raise UsageError(
                "The function that was given as `phrases` returns no ranges.",
                found=f"It returned {shortened(repr(ranges))}.",
                repair="Return pairs (start, end) of characters of the text, end exclusive.",
            ) from error


class _Marked(PhraseFinder):
    """What was marked in the beginning of an answer."""

    def __init__(self, marked: Marked) -> None:
        super().__init__(None)
        self.marked = marked

    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        given, ranges = self.marked.text, self.marked.ranges
        if text.startswith(given.strip()):
            before = len(given) - len(given.lstrip())
            return [(start - before, end - before) for start, end in ranges]
        return occurrences(text, [given[start:end] for start, end in ranges])


class _Listed(PhraseFinder):
    """Phrases that are looked up."""

    def __init__(self, phrases: Sequence[str]) -> None:
        super().__init__(None)
        self.phrases = phrases
        occurrences("", phrases)  # raises before a text is written

    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        return occurrences(text, self.phrases)
