"""The hooks that a plugin may implement: one or several.

A plugin is a module named in the entry-point group `flmm`. It marks its functions with
`flmm_core.hookimpl`. Importing it must be cheap: no torch, no network, no files.
"""

from __future__ import annotations

import pluggy

from flmm_core.spec import BackboneSpec, PhraseFinderSpec, RefinerSpec

PROJECT = "flmm"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def flmm_backbones() -> list[BackboneSpec]:  # type: ignore[empty-body]
    """The plugin's backbones, as data: nothing is built or loaded here."""


@hookspec
def flmm_refiners() -> list[RefinerSpec]:  # type: ignore[empty-body]
    """The plugin's refiners, as data: nothing is built or loaded here."""


@hookspec
def flmm_phrase_finders() -> list[PhraseFinderSpec]:  # type: ignore[empty-body]
    """The plugin's phrase finders, as data: nothing is built or loaded here."""
