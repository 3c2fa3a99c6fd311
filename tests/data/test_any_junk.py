"""Whatever stands in a file, a check reports it or reads on; it never fails."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS, writable_formats
from flmm_core.data.tools.check import check_source

JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 7, 10**12, 0.5, float("nan"), "", "x", "\0", "~" * 300, [], [[]], {}, [1],
    {"a": 1}, [None], 10**400, -(10**18), 1e300, "\ud800", "\udcff.png", [[[[[[[[]]]]]]]],
    [[1, 2, 3, 4]], [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]], [[1, 1], [2, 2]],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    new = copy.copy(value)
    new[path[0]] = changed(value[path[0]], path[1:], junk)
    return new


@pytest.mark.parametrize("form", writable_formats())
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_changed_value_never_stops_a_check(form: str, tmp_path: Path, data: Any) -> None:
    if not any(tmp_path.iterdir()):
        FORMATS[form].write(tmp_path, draw_images(1, 3, extras=FORMATS[form].extras))
    files = sorted(tmp_path.rglob("*.json*"))
    file = data.draw(st.sampled_from(files))
    whole = file.read_text()
    path = data.draw(st.sampled_from(list(places(json.loads(whole)))))
    junk = data.draw(st.sampled_from(JUNK))
    try:
        file.write_text(json.dumps(changed(json.loads(whole), path, junk)))
        report = check_source(f"{form}:{tmp_path}@train")
        assert all(str(fault) for fault in report.faults)
    finally:
        file.write_text(whole)
