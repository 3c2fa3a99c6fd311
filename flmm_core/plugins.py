"""Find, load and look up plugins; a broken one is reported, never fatal."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from flmm_core import hookspecs
from flmm_core.errors import (
    ConfigError,
    MissingExtraError,
    UsageError,
    did_you_mean,
    one_line,
    plain,
    shortened,
)
from flmm_core.plugin_facts.offers import offered
from flmm_core.plugin_facts.others import Entry, Others, taken
from flmm_core.plugin_facts.others import Failure as Failure
from flmm_core.plugin_facts.others import Plugin as Plugin
from flmm_core.spec import BackboneSpec, PhraseFinderSpec, PluginOptions, PluginSpec, RefinerSpec

SpecT = TypeVar("SpecT", bound=PluginSpec)


class Registry(Generic[SpecT]):
    """All backbones, all refiners or all phrase finders of the installed plugins.

    Plugins of other distributions are imported by another process to learn what they offer, once
    for each version, when more is asked than for a spec of flmm's own by name.

    Attributes:
        kind: "backbone", "refiner" or "phrase finder".
        specs: By name, sorted; `plugins` says which one provides it. Of other distributions they
            are data: what their options are, only `get` and `schema` know.
        failures: What did not load.
    """

    def __init__(
        self,
        kind: str,
        specs: Mapping[str, SpecT],
        plugins: Mapping[str, Plugin],
        failures: Iterable[Failure] = (),
        others: Others[SpecT] | None = None,
    ) -> None:
        self.kind = kind
        self._specs, self._plugins, self._failures = dict(specs), dict(plugins), tuple(failures)
        self._others = others

    @property
    def specs(self) -> Mapping[str, SpecT]:
        others = self._others.specs if self._others else {}
        return dict(sorted({**others, **self._specs}.items()))

    @property
    def plugins(self) -> Mapping[str, Plugin]:
        return {**(self._others.plugins if self._others else {}), **self._plugins}

    @property
    def failures(self) -> tuple[Failure, ...]:
        return *self._failures, *(self._others.failures if self._others else ())

    def schema(self, name: str) -> Mapping[str, Any]:
        """What JSON schema calls the properties of the options of a spec."""
        if self._others and name not in self._specs:
            return self._others.schemas[name]
        options: type[PluginOptions] = self._specs[name].options
        properties: dict[str, Any] = options.model_json_schema().get("properties", {})
        return properties

    def get(self, name: str) -> SpecT:
        """The spec of that name, whose plugin is now imported; UsageError if there is none."""
        if self._others and name not in self._specs and self._others.find(name):
            self._specs[name] = self._others.imported(name)
            self._plugins[name] = self._others.plugins[name]
        if name in self._specs:
            return self._specs[name]
        asked = f"Unknown {self.kind} '{name}'. {did_you_mean(name, self.specs)}".rstrip()
        found = f"Installed: {', '.join(self.specs) or 'none'}."
        if self.failures:
            found += f"\nNot loaded: {', '.join(map(str, self.failures))}."
        raise UsageError(asked, found=found)


def load_backbones(
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> Registry[BackboneSpec]:
    """Ask every plugin for its backbones.

    `entry_points` are used instead of the installed ones of the group `flmm`, and imported here.
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
    failures: list[Failure] = []
    given = entry_points is not None
    found = metadata.entry_points(group=hookspecs.PROJECT) if entry_points is None else entry_points
    owner = cache(_owner)  # reading a distribution's metadata takes milliseconds
    # Our own distribution comes first, so that no other can take a name away from it.
    owned = sorted(
        ((shortened(plain(owner(entry.dist) or entry.value), 200), entry) for entry in found),
        key=lambda pair: (not is_own(pair[0]), pair[0], pair[1].name),
    )
    entries_of = Counter(owner for owner, _ in owned)
    entries = [Entry(owner, entry, entries_of[owner] > 1) for owner, entry in owned]
    specs: dict[str, SpecT] = {}
    plugins: dict[str, Plugin] = {}
    trusted = [each for each in entries if given or is_own(each.owner)]
    for each in trusted:
        start = time.perf_counter()
        try:
            # What a plugin prints must not end up in the output of `--json`.
            with contextlib.redirect_stdout(sys.stderr):
                module = each.entry.load()
                plugin = Plugin(each.label, time.perf_counter() - start)
                new = offered(module, spec_type)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even raise SystemExit
            plugin = Plugin(each.label, time.perf_counter() - start)
            failures.append(Failure(plugin, one_line(error)))
            continue
        for spec in new:
            if spec.name in specs:
                failures.append(taken(spec, plugin, plugins[spec.name]))
            else:
                specs[spec.name], plugins[spec.name] = spec, plugin
    rest = [each for each in entries if each not in trusted]
    others = Others(spec_type, rest, plugins) if rest else None
    return Registry(spec_type.kind, specs, plugins, failures, others)


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
            found=f"A package that it needs is missing or too old ({one_line(error)}).",
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


def _owner(distribution: metadata.Distribution | None) -> str:
    """Its name and version ("flmm-foo 0.1"); empty where that is not known."""
    if distribution is None:
        return ""
    try:
        facts = distribution.metadata
        return f"{facts['Name']} {facts['Version']}"
    except Exception:  # half removed
        return ""


def is_own(owner: str) -> bool:
    """Whether a plugin is of flmm itself, by the name and version of its distribution."""
    return owner.split()[:1] == [hookspecs.PROJECT]


def package_version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
