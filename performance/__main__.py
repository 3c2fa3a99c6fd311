"""Measure speed and memory.

python -m performance recording             what recording attention adds to the VLM's forward
python -m performance training              one training step
python -m performance refining              the masks of one image through SAM
python -m performance sentences             several sentences about one image
python -m performance answering             what recording attention adds to writing an answer
python -m performance pooling               what learned pooling adds: time and memory
python -m performance cache                 training epochs with and without a feature cache
python -m performance loading               reading images with DataLoader workers
python -m performance serving               `flmm serve`: one client and 64, for a minute
python -m performance starting              `flmm ground` from the prompt to the mask file
python -m performance forecast              what a run says it will take, and what it takes
python -m performance overflow              values in float16: do they overflow, is it noticed
python -m performance gpu                   the first four and overflow at published sizes, with
                                            random weights in bfloat16; needs CUDA
python -m performance gpu --size tiny       the same on a CPU with tiny models, as a rehearsal

Prints Markdown tables, and writes every run to OUTPUT/NAME.json.

gpu takes at most 8 minutes (it starts no case after 7) and downloads nothing. It needs flmm and
what flmm needs. For a machine without a network that has torch, torchvision, transformers and
pluggy, collect the rest here (3.12 is its Python version):

    pip wheel -w wheels --no-deps . segment-anything
    pip download -d wheels --only-binary=:all: --python-version 3.12 --no-deps accelerate click \
        platformdirs psutil pycocotools pydantic pydantic-core annotated-types rich scipy tabulate \
        typing-inspection

and there, in the repository:

    pip install --no-index --no-deps wheels/*.whl && python -m performance gpu
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch

from performance import tables

ON_GPU = ("recording", "training", "refining", "sentences", "overflow")
MEASUREMENTS = (
    *ON_GPU,
    "answering",
    "pooling",
    "cache",
    "loading",
    "serving",
    "starting",
    "forecast",
)
GPU_SECONDS = 7 * 60
NO_GPU = f"""Published sizes need a GPU.
torch {torch.__version__} sees no CUDA device here.
Run it on a machine with one (80 GB); here, `python -m performance gpu --size tiny` rehearses it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m performance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=(*MEASUREMENTS, "gpu"))
    parser.add_argument(
        "--size",
        choices=("tiny", "medium"),
        help="default: medium; gpu: published sizes, or tiny for a rehearsal on a CPU",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs in each way (default 3)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/performance"), help="folder for the JSON files"
    )
    options = parser.parse_args(arguments)
    real = "gpu" in options.names and options.size is None
    if real and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr, end="")
        return 3
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        facts = tables.environment()
        print(f"\n## {name}\n\n{tables.where(facts)}", flush=True)
        on_gpu = name == "gpu"
        size = options.size or ("real" if on_gpu else "medium")
        until = time.monotonic() + GPU_SECONDS if on_gpu else math.inf
        found: dict[str, object] = {"environment": facts}
        for part in ON_GPU if on_gpu else (name,):
            module = import_module(f"performance.{part}")  # only what is asked for, see the help
            rows, text = module.measure(size, options.repeats, until)
            print(f"\n{text}", flush=True)
            found[part] = [asdict(row) for row in rows]
            path = options.output / f"{name}.json"
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
