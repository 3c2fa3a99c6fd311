"""Runs with learned pooling: the same head from any source of features, and from a mean's head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flmm_core.errors import UsageError
from flmm_core.feature_cache.store import Store
from tests.cached import Runs, weights

LEARNED = {"head__pool": "learned", "head__pool_ends": 2}


@pytest.fixture(scope="module")
def runs(random_twin: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(random_twin, drawn, tmp_path_factory.mktemp("pooling"))
    made.settings |= {"pictures": 0, "refiner": "none", "steps": 3}
    return made


@pytest.fixture(scope="module")
def exact(runs: Runs) -> Path:
    return runs.train("exact", exact=True, **LEARNED)


@pytest.fixture(scope="module")
def mean(runs: Runs) -> Path:
    return runs.train("mean", exact=True)


def test_it_is_trained_and_the_same_from_memory_and_from_a_cache(
    runs: Runs, exact: Path, mean: Path
) -> None:
    learned = load_file(exact / "last" / "model.safetensors")["pooling.toward"]
    assert learned.shape == (2, 16)
    assert (np.abs(learned) > 1e-4).mean() > 0.9
    assert weights(runs.train("kept", cache_memory=1.0, **LEARNED)) == weights(exact)
    forecast = runs.build(**LEARNED)
    plain = runs.build(forecast_only=True)
    assert weights(runs.train("stored", cache=runs.cache, **LEARNED)) == weights(exact)
    # what is stored for more last tokens serves heads that read fewer, or none
    assert plain.samples == 0
    one = {**LEARNED, "head__pool_ends": 1}
    first = weights(runs.train("first", exact=True, **one))
    assert weights(runs.train("first-stored", cache=runs.cache, **one)) == first != weights(exact)
    assert weights(runs.train("mean-stored", cache=runs.cache)) == weights(mean)
    store = Store(runs.cache)
    sizes = {
        ends: sum(
            tensor.nbytes
            for key in store.samples
            for tensor in store.features(key, ends=ends).maps.tensors
        )
        for ends in (True, False)
    }
    assert sizes[True] == 3 * sizes[False] == forecast.maps


def test_a_cache_without_last_tokens_is_refused(runs: Runs, tmp_path: Path) -> None:
    few = Runs.__new__(Runs)
    few.__dict__.update(vars(runs), folder=tmp_path, cache=tmp_path / "cache")
    few.build()
    for ask in (few.build, lambda **more: few.train("no", cache=few.cache, **more)):
        with pytest.raises(UsageError, match="last tokens: cache 0, run 2"):
            ask(**LEARNED)


def test_it_begins_with_a_head_of_the_mean_and_not_the_other_way_round(
    runs: Runs, exact: Path, mean: Path
) -> None:
    run = runs.train("begun", init_head=str(mean), learning_rate=1e-30, **LEARNED)
    before, after = (load_file(each / "last" / "model.safetensors") for each in (mean, run))
    assert after.keys() - before.keys() == {"pooling.toward"}
    assert np.abs(after["pooling.toward"]).max() < 1e-20
    assert all(np.allclose(value, after[name], atol=1e-20) for name, value in before.items())
    with pytest.raises(UsageError, match="--head-pool: learned there, mean here"):
        runs.train("other", init_head=str(exact))
