from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS


@pytest.fixture(scope="module")
def config(random_twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of settings: four checkpoints, each validated; one is removed."""
    folder = tmp_path_factory.mktemp("runs")
    drawn = FORMATS["refcoco"].write(folder / "drawn", draw_images(2, seed=5, kinds=("plain",)))
    settings = {
        "backbone": "qwen",
        "model": str(random_twin),
        "data": [f"refcoco:{drawn}@train"],
        "val_data": [f"refcoco:{drawn}@train"],
        "eval_data": [f"refcoco:{drawn}@train"],
        "train_protocol": "standard",
        "refiner": "sam:tiny",
        "refiner_options": {"text": False},
        "steps": 7,
        "batch_size": 2,
        "save_every": 2,
        "log_every": 1,
        "pictures": 2,
        "workers": 0,
        "learning_rate": 3e-3,
        "head": {"base_channels": 4, "enlarge_to": 16, "pool": "learned"},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
