"""Which words of a text to ground. The core's own finders, declared as any plugin's are."""

from __future__ import annotations

from pydantic import Field

from flmm_core.hookspecs import hookimpl
from flmm_core.spec import PhraseFinderOptions, PhraseFinderSpec

HERE = __name__


class KeywordOptions(PhraseFinderOptions):
    """How sure the keyword selector has to be."""

    threshold: float = Field(
        0.5, ge=0, le=1, description="Probability from which a word begins or continues a phrase."
    )


class VlmOptions(PhraseFinderOptions):
    """How long the model's list may be."""

    max_new_tokens: int = Field(128, ge=1, description="Most tokens of the model's list.")


class SpacyOptions(PhraseFinderOptions):
    """Which pipeline."""

    pipeline: str = Field("en_core_web_sm", description="An installed pipeline, or its folder.")


SPECS = [
    PhraseFinderSpec(
        name="keywords",
        target=f"{HERE}.keywords:KeywordFinder",
        summary="what the head's keyword selector chooses; trained with --head-keywords",
        options=KeywordOptions,
        shorthand="threshold",
    ),
    PhraseFinderSpec(
        name="rules",
        target=f"{HERE}.rules:RuleFinder",
        summary="English noun phrases by a small grammar",
    ),
    PhraseFinderSpec(
        name="spacy",
        target=f"{HERE}.spacy:SpacyFinder",
        summary="noun chunks of a spaCy pipeline",
        options=SpacyOptions,
        shorthand="pipeline",
    ),
    PhraseFinderSpec(
        name="vlm",
        target=f"{HERE}.vlm:VlmFinder",
        summary="what the model lists when it is asked which things its answer names",
        options=VlmOptions,
    ),
]


@hookimpl
def flmm_phrase_finders() -> list[PhraseFinderSpec]:
    return SPECS
