"""Facts of plugins: remembered, or found out now."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint

from flmm_core.plugin_facts.facts import Facts
from flmm_core.plugin_facts.remembered import recall, remember, stamp


def facts_of(entries: Sequence[tuple[str, EntryPoint]], seconds: float) -> list[Facts]:
    """The facts of each plugin, given as (its distribution's name and version, entry point).

    Those that are not known yet are imported by another process; all together may take so many
    seconds.
    """
    stamps = [stamp(entry, owner) for owner, entry in entries]
    known: dict[str, Facts | None] = {each: recall(each, seconds) for each in stamps}
    unknown = {
        each: entry for each, (_, entry) in zip(stamps, entries, strict=True) if known[each] is None
    }
    if unknown:
        from flmm_core.plugin_facts.examine import examine  # seldom needed

        asked = [(entry.name, entry.value) for entry in unknown.values()]
        found = dict(zip(unknown, examine(asked, seconds), strict=True))
        remember(found, stamps)
        known.update(found)
    return [facts for each in stamps if (facts := known[each]) is not None]
