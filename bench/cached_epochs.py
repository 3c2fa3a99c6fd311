"""Epochs an hour of training from a cache of features, against training without one.

python -m bench.cached_epochs                    # a medium Qwen2.5-VL with random weights
python -m bench.cached_epochs --size tiny        # seconds
python -m bench.cached_epochs --tokens 676 --pictures 16 --rounds 5

Both ways run the same loop (`flmm_core.training.loop.TrainingLoop`) over the same drawn
scenes, in turns in one process; the medians are compared. Building the cache is timed beside
them: after how many epochs it has paid is said too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from flmm_core.config import RunConfig, load_config
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats.refcoco import write_refcoco
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source
from flmm_core.feature_cache.build import BuildRequest, build_cache
from flmm_core.feature_cache.store import shards, size_on_disk
from flmm_core.pipeline.head_folder import Grounder
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec
from flmm_core.training.loop import TrainingLoop, build_from_config, facts_of, open_from_config
from flmm_core.training.run_folder import RunFolder
from recipes.twins import qwen_parts

SIZES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128},
    "medium": {"hidden_size": 1024, "num_hidden_layers": 12, "intermediate_size": 2816},
}
HEADS = {"tiny": (4, 2, [2, 3, 3]), "medium": (16, 2, [8, 12, 12])}
PIXELS_A_TOKEN = 16


def build_model(folder: Path, size: str, tokens: int) -> Path:
    """A Qwen2.5-VL with random weights whose images have about so many tokens."""
    config, processor = qwen_parts(round(tokens**0.5) * PIXELS_A_TOKEN)
    heads, shared, sections = HEADS[size]
    text = config.text_config
    for name, value in SIZES[size].items():
        setattr(text, name, value)
    text.num_attention_heads, text.num_key_value_heads = heads, shared
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    text.rope_parameters = {**text.rope_parameters, "mrope_section": sections}
    text.max_position_embeddings = 8192
    config.vision_config.out_hidden_size = text.hidden_size
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run_config(
    options: argparse.Namespace, folder: Path, **more: Any
) -> tuple[RunConfig, BackboneSpec]:
    """One epoch over the scenes."""
    settings = {
        "backbone": "qwen",
        "model": str(folder / "model"),
        "data": [f"refcoco:{folder / 'scenes'}@train"],
        "eval_data": [],
        "val_data": [],
        "output": folder / "run",
        "steps": max(1, options.pictures // options.batch_size),
        "batch_size": options.batch_size,
        "save_every": 10**6,
        "dtype": "float32" if options.device == "cpu" else "auto",
        "device": options.device,
        **more,
    }
    return load_config(None, settings, load_backbones().get)


def epoch(config: RunConfig, grounder: Grounder, samples: Sequence[Sample], scratch: Path) -> float:
    """Seconds of one epoch; its checkpoint at the end is part of it."""
    loop = TrainingLoop(config, grounder, samples, (), RunFolder(scratch, 1), Progress())
    scratch.mkdir(exist_ok=True)
    started = time.perf_counter()
    loop.run()
    return time.perf_counter() - started


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is printed."""
    build_model(folder / "model", options.size, options.tokens)
    scenes = draw_images(options.pictures, seed=5, kinds=("plain",))
    write_refcoco(folder / "scenes", scenes)
    plain, spec = run_config(options, folder)
    samples = open_source(plain.data[0], plain.train_protocol)
    whole = build_from_config(plain, spec)
    cache = folder / "cache"
    request = BuildRequest(cache, facts_of(plain, spec), maps=options.maps)
    started = time.perf_counter()
    forecast = build_cache(request, lambda: whole, samples)
    building = time.perf_counter() - started
    cached_config, _ = run_config(options, folder, cache=cache)
    cached = open_from_config(cached_config, spec)
    cached.expect(samples, Progress())
    seconds: dict[str, list[float]] = {"without": [], "cached": []}
    for round_ in range(options.rounds + 1):
        for name, config, grounder in (
            ("without", plain, whole),
            ("cached", cached_config, cached),
        ):
            taken = epoch(config, grounder, samples, folder / "run")
            if round_:  # the first one warms up
                seconds[name].append(taken)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    saved = medians["without"] - medians["cached"]
    return {
        "size": options.size,
        "image_tokens": options.tokens,
        "pictures": options.pictures,
        "phrases": sum(len(sample.phrases) for sample in samples),
        "batch_size": options.batch_size,
        "maps": options.maps,
        "device": options.device,
        "epochs_per_hour": {name: round(3600 / value, 2) for name, value in medians.items()},
        "times_as_many": round(medians["without"] / medians["cached"], 2),
        "seconds": {name: [round(value, 3) for value in times] for name, times in seconds.items()},
        "building_seconds": round(building, 3),
        "pays_after_epochs": round(building / saved, 2) if saved > 0 else None,
        "forecast_bytes": forecast.total,
        "bytes": size_on_disk(shards(cache)),
        "versions": {name: __import__(name).__version__ for name in ("torch", "transformers")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Time epochs from a cache and without one.")
    parser.add_argument("--size", choices=tuple(SIZES), default="medium")
    parser.add_argument("--tokens", type=int, default=1521, help="image tokens of an image")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--maps", choices=("float32", "float16", "uint8"), default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.size == "tiny":
        options.tokens = min(options.tokens, 49)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(options, Path(name)), indent=2))


if __name__ == "__main__":
    main()
