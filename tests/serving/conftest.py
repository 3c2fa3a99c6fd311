from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from flmm_core.pipeline.grounder import Grounder
from tests.flows import assemble
from tests.models import build
from tests.serving.running import running


@pytest.fixture(scope="session")
def grounder() -> Grounder:
    """A toy model and a random head."""
    return assemble(build("qwen"))


@pytest.fixture(scope="session")
def client(grounder: Grounder) -> Iterator[httpx.Client]:
    """A client of a server with the usual limits."""
    with running(grounder) as client:
        yield client
