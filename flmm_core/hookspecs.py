"""The hooks that a plugin may implement; each has one meaning.

A plugin is a module named in the entry-point group `flmm`. It marks its functions with
`flmm_core.hookimpl`, and importing it must be cheap: no torch, no network, no files.
"""

from __future__ import annotations

import pluggy

from flmm_core.spec import BackboneSpec

PROJECT = "flmm"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def flmm_backbones() -> list[BackboneSpec]:  # type: ignore[empty-body]
    """The backbones that this plugin brings, as data: nothing is built or loaded here."""
