"""What the module of a plugin offers, asked through its hooks and checked."""

from __future__ import annotations

from typing import TypeVar

import pluggy

from flmm_core import hookspecs
from flmm_core.errors import did_you_mean
from flmm_core.spec import (
    API_VERSION,
    BackboneSpec,
    PhraseFinderSpec,
    PluginSpec,
    RefinerSpec,
    plural,
)

KINDS: tuple[type[PluginSpec], ...] = BackboneSpec, RefinerSpec, PhraseFinderSpec
HOOKS = tuple(f"flmm_{plural(kind.kind)}" for kind in KINDS)
SpecT = TypeVar("SpecT", bound=PluginSpec)


def offered(module: object, spec_type: type[SpecT]) -> list[SpecT]:
    """The checked specs of a plugin's hook; any exception says what is wrong with the plugin."""
    wanted = getattr(module, "API_VERSION", API_VERSION)
    if wanted != API_VERSION:
        raise ValueError(
            f"it is written for version {wanted!r} of flmm's plugin API, and this flmm has "
            f"{API_VERSION}: install a version of the plugin or of flmm that fits"
        )
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    hooks = manager.get_hookcallers(module) or []
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = next(hook.name for hook in hooks if not hook.has_spec())
        hint = did_you_mean(unknown, HOOKS)
        raise ValueError(f"it implements an unknown hook '{unknown}'. {hint}".rstrip()) from error
    if not hooks:
        names = f"{', '.join(HOOKS[:-1])} or {HOOKS[-1]}"
        raise ValueError(f"it has no function {names} marked with @hookimpl")
    name = f"flmm_{plural(spec_type.kind)}"
    if name not in {hook.name for hook in hooks}:
        return []
    offered = next(iter(getattr(manager.hook, name)()), None)
    if not isinstance(offered, list) or not all(isinstance(spec, spec_type) for spec in offered):
        raise TypeError(f"{name}() must return a list of {spec_type.__name__}, not {offered!r:.80}")
    for spec in offered:
        base = spec_type.options
        if not (isinstance(spec.options, type) and issubclass(spec.options, base)):
            where = f"options of {spec.kind} '{spec.name}'"
            raise TypeError(f"{where} must subclass {base.__name__}")
        spec.options()  # its defaults must be valid by themselves
    return offered
