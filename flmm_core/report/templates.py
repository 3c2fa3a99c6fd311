"""The templates of the pages, and how they write figures and facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from flmm_core.progress import duration
from flmm_core.report import charts, formats, table


def template(name: str, room: str = "report") -> jinja2.Template:
    """A template by its file name; what it is not given is an error.

    `room` is the folder of flmm_core that it lies in; what all pages share is in this one.
    """
    rooms = [jinja2.PackageLoader("flmm_core", folder) for folder in (room, "report")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(rooms),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        table.percent, table.interval, table.signed, table.said_p, formats.seconds, duration, fact,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals["marker"] = charts.marker
    return environment.get_template(name)


def fact(value: Any) -> str:
    """A fact of the provenance as text."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {fact(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(fact, value))
    return str(value)
