"""What the subcommands share."""

from __future__ import annotations

import gc

import pytest

from flmm_core.cli.console import importing


def test_nothing_looks_for_garbage_while_libraries_are_imported() -> None:
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
