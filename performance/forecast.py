"""What `flmm train` says a run will take, beside what the run then takes."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from flmm_core.config import load_config
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.training.forecast import forecast, peak_memory
from flmm_core.training.preflight import check_run
from flmm_core.training.run_folder import RunFolder
from flmm_core.training.train import evaluate_head, prepare
from flmm_core.world import World
from performance.tables import mib, ratio, seconds, table
from recipes.twins import PARTS

COLUMNS = (
    "| backbone | model | forecast, s | run, s | run / forecast "
    "| forecast, MiB | run, MiB | run / forecast |"
)
MEDIUM: Mapping[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""The language model of a medium model; of a tiny one: 128 wide, 4 layers."""
IMAGES = {"train": 60, "val": 8, "test": 12}
STEPS = 40
CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}
"""On a machine that others use, only the time that a process computes can be foretold."""


@dataclass(frozen=True)
class Run:
    """A run and its forecast: seconds from the first step to the end, and bytes of memory."""

    backbone: str
    model: str
    forecast_seconds: float
    run_seconds: float
    forecast_bytes: int
    run_bytes: int


def measure(size: str, repeats: int, until: float, clock: str = "cpu") -> tuple[list[Run], str]:
    """The figures, and their table; each run in its own process."""
    runs = []
    for backbone in load_backbones().specs:
        if backbone not in PARTS or time.monotonic() > until:
            continue
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", __name__, backbone, size, folder, clock]
                line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(Run(**json.loads(line)))
            print(line, end="", file=sys.stderr, flush=True)
    lines = [
        (
            run.backbone,
            run.model,
            seconds(run.forecast_seconds),
            seconds(run.run_seconds),
            ratio(run.run_seconds / run.forecast_seconds),
            mib(run.forecast_bytes),
            mib(run.run_bytes),
            ratio(run.run_bytes / run.forecast_bytes),
        )
        for run in runs
    ]
    return runs, table(COLUMNS, lines)


def write_medium(backbone: str, folder: Path) -> Path:
    """A model of the same architecture as the tiny one, wider and deeper, with random weights."""
    config, processor = PARTS[backbone]()
    for key, value in MEDIUM.items():
        setattr(config.text_config, key, value)
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = ["full_attention"] * MEDIUM["num_hidden_layers"]
    if hasattr(config.text_config, "head_dim"):
        config.text_config.head_dim = MEDIUM["hidden_size"] // MEDIUM["num_attention_heads"]
    if hasattr(config.vision_config, "out_hidden_size"):
        config.vision_config.out_hidden_size = MEDIUM["hidden_size"]
        rope = config.text_config.rope_parameters
        config.text_config.rope_parameters = {**rope, "mrope_section": [8, 12, 12]}
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(backbone: str, size: str, folder: Path, clock: str) -> Run:
    """One forecast and the run that follows it, in this process."""
    sources = {}
    for seed, (split, count) in enumerate(IMAGES.items(), start=1):
        scenes = FORMATS["refcoco"].write(
            folder / split, draw_images(count, seed=seed, kinds=("plain", "relation"))
        )
        sources[split] = [f"refcoco:{scenes}@train"]
    values = {
        "backbone": backbone,
        "model": "tiny" if size == "tiny" else str(write_medium(backbone, folder / "model")),
        "data": sources["train"],
        "val_data": sources["val"],
        "eval_data": sources["test"],
        "output": folder / "run",
        "steps": STEPS,
        "batch_size": 4,
        "save_every": STEPS // 2,
        "head.base_channels": 16,
        "head.enlarge_to": 32,
        "device": "cpu",
    }
    config, spec = load_config(None, values, load_backbones().get)
    data = check_run(config, spec, Progress())
    run_folder = RunFolder(config.output, config.save_every, config.steps)
    with run_folder.opened(config):
        loop = prepare(config, config, spec, data, run_folder, Progress(), World())
        told = forecast(loop, data.held_out, clock=CLOCKS[clock])
        started = CLOCKS[clock]()
        loop.run()
        evaluate_head(loop, data.held_out)
        taken = CLOCKS[clock]() - started
    return Run(backbone, size, told.seconds, taken, told.host_bytes, peak_memory())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("backbone", "size", "folder", "clock"):
        parser.add_argument(name)
    given = parser.parse_args()
    found = run(given.backbone, given.size, Path(given.folder), given.clock)
    print(json.dumps(asdict(found)))
