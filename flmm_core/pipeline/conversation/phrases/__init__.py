"""Which words of a text to ground. The core's own finders, declared as any plugin's are."""

from __future__ import annotations

from flmm_core.hookspecs import hookimpl
from flmm_core.spec import PhraseFinderSpec

HERE = __name__

SPECS = [
    PhraseFinderSpec(
        name="rules",
        target=f"{HERE}.rules:RuleFinder",
        summary="English noun phrases by a small grammar",
    ),
]


@hookimpl
def flmm_phrase_finders() -> list[PhraseFinderSpec]:
    return SPECS
