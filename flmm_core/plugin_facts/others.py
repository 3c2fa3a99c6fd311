"""The plugins of other distributions, examined on first use."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Generic, NamedTuple, TypeVar

from flmm_core.errors import UsageError, one_line, plain
from flmm_core.plugin_facts.offers import offered
from flmm_core.spec import PluginSpec

SpecT = TypeVar("SpecT", bound=PluginSpec)
log = logging.getLogger(__name__)

SECONDS = 1.0
"""What plugins of other distributions may take to import the first time, all together."""
PATIENT_SECONDS = 20.0
"""The same for those that take longer, once a name is asked for that no other plugin offers."""


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


class Entry(NamedTuple):
    """An entry point, name and version of its distribution, and whether that has several."""

    owner: str
    entry: metadata.EntryPoint
    is_one_of_several: bool

    @property
    def label(self) -> str:
        name = f", entry point '{plain(self.entry.name)}'" if self.is_one_of_several else ""
        return self.owner + name


class Others(Generic[SpecT]):
    """What other distributions offer, examined on first use."""

    def __init__(
        self, spec_type: type[SpecT], entries: Sequence[Entry], taken: Mapping[str, Plugin]
    ) -> None:
        self._type, self._entries, self._taken = spec_type, entries, dict(taken)
        self._contents: _Contents[SpecT] | None = None

    @property
    def specs(self) -> Mapping[str, SpecT]:
        return self._examined().specs

    @property
    def plugins(self) -> Mapping[str, Plugin]:
        return self._examined().plugins

    @property
    def failures(self) -> Sequence[Failure]:
        return self._examined().failures

    @property
    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return self._examined().schemas

    def find(self, name: str) -> bool:
        """Whether there is a spec of this name; plugins that are slow to import are waited for."""
        contents = self._examined()
        if name not in contents.specs and contents.slow:
            log.warning(
                "Waiting up to %g s for plugins that are slow to import: %s.",
                *(PATIENT_SECONDS, ", ".join(contents.slow)),
            )
            contents = self._contents = self._examine(PATIENT_SECONDS)
        return name in contents.specs

    def imported(self, name: str) -> SpecT:
        """Import the plugin of a spec; UsageError if it now fails."""
        each = self._examined().entries[name]
        asked = f"{self._type.kind.capitalize()} '{name}' of {each.label} cannot be used."
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = offered(each.entry.load(), self._type)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise UsageError(asked, found=one_line(error)) from error
        for spec in found:
            if spec.name == name:
                return spec
        raise UsageError(
            asked, found="The plugin does not offer it any more.", repair="Run the command again."
        )

    def _examined(self) -> _Contents[SpecT]:
        if self._contents is None:
            self._contents = self._examine(SECONDS)
        return self._contents

    def _examine(self, seconds: float) -> _Contents[SpecT]:
        from flmm_core.plugin_facts.facts import Offer, from_data
        from flmm_core.plugin_facts.find import facts_of

        contents: _Contents[SpecT] = _Contents()
        known = facts_of([(each.owner, each.entry) for each in self._entries], seconds)
        for each, facts in zip(self._entries, known, strict=True):
            plugin = Plugin(each.label, facts.seconds)
            offer = facts.offers.get(self._type.kind, Offer())
            if facts.waited:
                reason = f"its import had not ended after {facts.waited:g} s"
                if facts.waited < PATIENT_SECONDS:
                    contents.slow.append(each.label)
                    reason += f"; whoever names what it offers waits {PATIENT_SECONDS:g} s"
                contents.failures.append(Failure(plugin, reason))
            elif error := facts.error or offer.error:
                contents.failures.append(Failure(plugin, error))
            for declared in offer.declared:
                spec = from_data(self._type, declared)
                other = self._taken.get(spec.name) or contents.plugins.get(spec.name)
                if other:
                    contents.failures.append(taken(spec, plugin, other))
                    continue
                contents.specs[spec.name] = spec
                contents.plugins[spec.name] = plugin
                contents.entries[spec.name] = each
                contents.schemas[spec.name] = declared.options
        return contents


@dataclass
class _Contents(Generic[SpecT]):
    specs: dict[str, SpecT] = field(default_factory=dict)
    plugins: dict[str, Plugin] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    schemas: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


def taken(spec: PluginSpec, plugin: Plugin, other: Plugin) -> Failure:
    reason = f"{spec.kind} '{spec.name}' is already provided by {other.label}"
    return Failure(plugin, reason)
