"""`spacy`: the noun chunks of an installed spaCy pipeline, of any language that has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flmm_core.errors import MissingExtraError, UsageError
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, PhraseFinder, Range


class SpacyFinder(PhraseFinder):
    """Chunks whose head is a pronoun are left out."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        asked = f"The phrase finder 'spacy' needs spaCy's pipeline '{options.pipeline}'."
        installs = (
            "Install both: pip install 'flmm[spacy]', and then the pipeline, which is not on PyPI: "
            f"python -m spacy download {options.pipeline}. spacy:PIPELINE names another one, or "
            "its folder."
        )
        try:
            import spacy
        except ImportError as error:
            found = f"The package spacy cannot be imported ({error})."
            raise MissingExtraError(asked, found=found, repair=installs) from error
        try:
            self._nlp = spacy.load(options.pipeline, exclude=["ner"])
        except (OSError, ValueError) as error:
            found = f"spaCy {spacy.__version__} cannot load it: {str(error).splitlines()[0]}"
            raise MissingExtraError(asked, found=found, repair=installs) from error

    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        doc = self._nlp(text)
        try:
            chunks = list(doc.noun_chunks)
        except (ValueError, NotImplementedError) as error:
            raise UsageError(
                f"spaCy's pipeline '{self.options.pipeline}' finds no noun chunks.",
                found=" ".join(str(error).split()),
                repair="Give one with a parser, for a language with noun chunks, for example "
                "spacy:en_core_web_sm.",
            ) from error
        return [(chunk.start_char, chunk.end_char) for chunk in chunks if chunk.root.pos_ != "PRON"]
