"""Find, load and look up plugins; a broken one is reported, never fatal."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING

import pluggy

from flmm_core import hookspecs
from flmm_core.errors import MissingExtraError, UsageError, did_you_mean
from flmm_core.spec import BackboneOptions, BackboneSpec

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone

HOOK = hookspecs.flmm_backbones.__name__


@dataclass(frozen=True)
class Plugin:
    """One entry point of the group `flmm`.

    Attributes:
        label: Distribution and version ("flmm-foo 0.1"), and the entry point's name where the
            distribution has several.
        seconds: How long importing it took.
    """

    label: str
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A plugin, or one of its backbones, that cannot be used, and why (one line)."""

    plugin: Plugin
    reason: str

    def __str__(self) -> str:
        return f"{self.plugin.label} ({self.reason})"


@dataclass(frozen=True)
class Registry:
    """What the installed plugins offer.

    Attributes:
        specs: Backbone by name, sorted.
        plugins: By backbone name, the plugin that brought it.
        failures: What did not load.
    """

    specs: Mapping[str, BackboneSpec]
    plugins: Mapping[str, Plugin]
    failures: tuple[Failure, ...]

    def get(self, name: str) -> BackboneSpec:
        """The backbone of that name; UsageError if there is none."""
        if name in self.specs:
            return self.specs[name]
        asked = f"Unknown backbone '{name}'. {did_you_mean(name, self.specs)}".rstrip()
        found = f"Installed: {', '.join(self.specs) or 'none'}."
        if self.failures:
            found += f"\nNot loaded: {', '.join(map(str, self.failures))}."
        raise UsageError(asked, found=found)


def load_backbones(entry_points: Iterable[metadata.EntryPoint] | None = None) -> Registry:
    """Import every installed plugin, one by one, and ask each for its backbones.

    Args:
        entry_points: Instead of the installed ones of the group `flmm`.
    """
    if entry_points is None:
        entry_points = metadata.entry_points(group=hookspecs.PROJECT)
    # The core's own distribution comes first, so that no other can take a name away from it.
    found = sorted(
        ((_owner(entry), entry) for entry in entry_points),
        key=lambda pair: (pair[0].split()[0] != hookspecs.PROJECT, pair[0], pair[1].name),
    )
    entries_of = Counter(owner for owner, _ in found)
    specs: dict[str, BackboneSpec] = {}
    plugins: dict[str, Plugin] = {}
    failures: list[Failure] = []
    for owner, entry in found:
        label = f"{owner}, entry point '{entry.name}'" if entries_of[owner] > 1 else owner
        start = time.perf_counter()
        try:
            # What a plugin prints must not end up in the output of `--json`.
            with contextlib.redirect_stdout(sys.stderr):
                module = entry.load()
                plugin = Plugin(label, time.perf_counter() - start)
                offered = _backbones_of(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even raise SystemExit
            plugin = Plugin(label, time.perf_counter() - start)
            failures.append(Failure(plugin, _one_line(error)))
            continue
        for spec in offered:
            if spec.name in specs:
                other = plugins[spec.name].label
                failures.append(
                    Failure(plugin, f"backbone '{spec.name}' is already provided by {other}")
                )
            else:
                specs[spec.name], plugins[spec.name] = spec, plugin
    return Registry(MappingProxyType(dict(sorted(specs.items()))), plugins, tuple(failures))


def load_class(spec: BackboneSpec) -> type[Backbone]:
    """Import the class that `spec.target` names.

    Raises:
        MissingExtraError: A package that it needs is not installed, or too old.
        UsageError: There is no such module or class.
    """
    asked = f"Backbone '{spec.name}' cannot be loaded from '{spec.target}'."
    module_name, class_name = spec.target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        ):
            raise UsageError(asked, found=f"There is no module '{error.name}'.") from error
        raise MissingExtraError(
            asked,
            found=f"Something that it needs is missing or too old ({_one_line(error)}).",
            repair="Install what the plugin's documentation asks for.",
        ) from error
    loaded = getattr(module, class_name, None)
    if not isinstance(loaded, type):
        raise UsageError(asked, found=f"Module '{module_name}' has no class '{class_name}'.")
    return loaded


def _backbones_of(module: object) -> list[BackboneSpec]:
    """What the plugin's hook returns, checked; any exception says what is wrong with it."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    hooks = manager.get_hookcallers(module) or []
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = next(hook.name for hook in hooks if not hook.has_spec())
        hint = did_you_mean(unknown, [HOOK])
        raise ValueError(f"it implements an unknown hook '{unknown}'. {hint}".rstrip()) from error
    if not hooks:
        raise ValueError(f"it has no function '{HOOK}' marked with @hookimpl")
    offered = next(iter(manager.hook.flmm_backbones()), None)
    if not isinstance(offered, list) or not all(isinstance(s, BackboneSpec) for s in offered):
        raise TypeError(f"{HOOK}() must return a list of BackboneSpec, not {offered!r:.80}")
    for spec in offered:
        if not (isinstance(spec.options, type) and issubclass(spec.options, BackboneOptions)):
            raise TypeError(f"options of backbone '{spec.name}' must subclass BackboneOptions")
        spec.options()  # its defaults must be valid by themselves
    return offered


def _owner(entry: metadata.EntryPoint) -> str:
    """Name and version of the distribution that registered the entry point ("flmm-foo 0.1")."""
    try:
        return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    except Exception:  # metadata of a half-removed distribution
        return entry.value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
