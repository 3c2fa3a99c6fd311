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
from typing import Any, Generic, NamedTuple, TypeVar

import pluggy
from pydantic import ValidationError

from flmm_core import hookspecs
from flmm_core.errors import ConfigError, MissingExtraError, UsageError, did_you_mean
from flmm_core.spec import (
    API_VERSION,
    BackboneSpec,
    PhraseFinderSpec,
    PluginOptions,
    PluginSpec,
    RefinerSpec,
    plural,
)

KINDS: tuple[type[PluginSpec], ...] = BackboneSpec, RefinerSpec, PhraseFinderSpec
HOOKS = tuple(f"flmm_{plural(kind.kind)}" for kind in KINDS)
SpecT = TypeVar("SpecT", bound=PluginSpec)


class Plugin(NamedTuple):
    """One entry point of the group `flmm`, and how many seconds its import took.

    `label` is distribution and version ("flmm-foo 0.1"), and the entry point's name where the
    distribution has several.
    """

    label: str
    seconds: float


class Failure(NamedTuple):
    """A plugin, or one of its specs, that cannot be used, and why (one line)."""

    plugin: Plugin
    reason: str

    def __str__(self) -> str:
        return f"{self.plugin.label} ({self.reason})"


@dataclass(frozen=True)
class Registry(Generic[SpecT]):
    """All backbones, all refiners or all phrase finders of the installed plugins.

    Attributes:
        kind: "backbone", "refiner" or "phrase finder".
        specs: By name, sorted; `plugins` says which one provides it.
        failures: What did not load.
    """

    kind: str
    specs: Mapping[str, SpecT]
    plugins: Mapping[str, Plugin]
    failures: tuple[Failure, ...]

    def get(self, name: str) -> SpecT:
        """The spec of that name; UsageError if there is none."""
        if name in self.specs:
            return self.specs[name]
        asked = f"Unknown {self.kind} '{name}'. {did_you_mean(name, self.specs)}".rstrip()
        found = f"Installed: {', '.join(self.specs) or 'none'}."
        if self.failures:
            found += f"\nNot loaded: {', '.join(map(str, self.failures))}."
        raise UsageError(asked, found=found)


def load_backbones(
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> Registry[BackboneSpec]:
    """Import every plugin, one by one, and ask each for its backbones.

    `entry_points` are used instead of the installed ones of the group `flmm`.
    """
    return _load(BackboneSpec, entry_points)


def load_refiners(
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> Registry[RefinerSpec]:
    """`load_backbones` for refiners."""
    return _load(RefinerSpec, entry_points)


def load_phrase_finders(
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> Registry[PhraseFinderSpec]:
    """`load_backbones` for phrase finders."""
    return _load(PhraseFinderSpec, entry_points)


def _load(
    spec_type: type[SpecT], entry_points: Iterable[metadata.EntryPoint] | None
) -> Registry[SpecT]:
    if entry_points is None:
        entry_points = metadata.entry_points(group=hookspecs.PROJECT)
    # Our own distribution comes first, so that no other can take a name away from it.
    found = sorted(
        ((_owner(entry), entry) for entry in entry_points),
        key=lambda pair: (pair[0].split()[0] != hookspecs.PROJECT, pair[0], pair[1].name),
    )
    entries_of = Counter(owner for owner, _ in found)
    specs: dict[str, SpecT] = {}
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
                offered = _offered(module, spec_type)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even raise SystemExit
            plugin = Plugin(label, time.perf_counter() - start)
            failures.append(Failure(plugin, _one_line(error)))
            continue
        for spec in offered:
            if spec.name in specs:
                other = plugins[spec.name].label
                reason = f"{spec.kind} '{spec.name}' is already provided by {other}"
                failures.append(Failure(plugin, reason))
            else:
                specs[spec.name], plugins[spec.name] = spec, plugin
    return Registry(spec_type.kind, dict(sorted(specs.items())), plugins, tuple(failures))


def load_class(spec: PluginSpec) -> type[Any]:
    """Import the class that `spec.target` names.

    Raises:
        MissingExtraError: A package that it needs is not installed, or too old.
        UsageError: There is no such module or class.
    """
    asked = f"{spec.kind.capitalize()} '{spec.name}' cannot be loaded from '{spec.target}'."
    module_name, class_name = spec.target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        itself = f"{module_name}.".startswith(f"{error.name}.")
        if isinstance(error, ModuleNotFoundError) and itself:
            raise UsageError(asked, found=f"There is no module '{error.name}'.") from error
        raise MissingExtraError(
            asked,
            found=f"A package that it needs is missing or too old ({_one_line(error)}).",
            repair="Install what the plugin's documentation asks for.",
        ) from error
    loaded = getattr(module, class_name, None)
    if not isinstance(loaded, type):
        raise UsageError(asked, found=f"Module '{module_name}' has no class '{class_name}'.")
    return loaded


def parse_options(spec: PluginSpec, options: Mapping[str, Any] | PluginOptions | None) -> Any:
    """The validated `spec.options`, with defaults for what is not given.

    Raises:
        ConfigError: Lists all unknown keys and invalid values, and the options that exist.
    """
    if isinstance(options, spec.options):
        return options
    given = options.model_dump() if isinstance(options, PluginOptions) else dict(options or {})
    fields = spec.options.model_fields
    try:
        return spec.options(**given)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"])) or "options"
            if problem["type"] == "extra_forbidden":
                problems.append(f"Unknown option '{key}'. {did_you_mean(key, fields)}".rstrip())
            else:
                problems.append(f"Option '{key}' = {problem['input']!r}: {problem['msg']}.")
        raise ConfigError(
            f"The options of {spec.kind} '{spec.name}' are invalid.",
            found="\n".join(problems),
            repair=f"Its options: {', '.join(fields) or 'none'}.",
        ) from error


def _offered(module: object, spec_type: type[SpecT]) -> list[SpecT]:
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


def _owner(entry: metadata.EntryPoint) -> str:
    """Name and version of the distribution that registered the entry point ("flmm-foo 0.1")."""
    try:
        return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    except Exception:  # metadata of a half-removed distribution
        return entry.value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def package_version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
