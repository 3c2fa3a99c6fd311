"""What `flmm ground` does from the prompt to the mask file, and what comes after it in a process.

Each run is a process of its own, in which what loads is loaded one after the other, and beside it
one that runs the command itself. Seconds are the processor's; those of the clock, which stand below
the table and in the JSON file, mean something only on a machine that nothing else uses.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flmm_core.cli.sooner import postpone_imports
from flmm_core.spec import TOY_DEFAULTS

COLUMNS = "| | CPU, s | why |"
STAGES = {
    "the command line": "settings, from which options are made",
    "torch": "",
    "transformers": "reads all of its files to learn what they offer",
    "torchvision": "for transforms, of transformers and of segment-anything",
    "model classes": "of transformers, for the model and its processor, with torch's DTensor",
    "flmm": "",
    "loading": "model and head, with all checks; `--no-check` leaves out a look at a drawn image",
    "first image": "with its files",
}
AS_TRAINED: dict[str, Any] = {
    "base_channels": TOY_DEFAULTS["head.base_channels"],
    "enlarge_to": TOY_DEFAULTS["head.enlarge_to"],
    "refiner_options": {"text": TOY_DEFAULTS["refiner_options.text"]},
    "pool": TOY_DEFAULTS["head.pool"],
    "presence": True,
}
"""The head that `flmm train --backbone qwen` trains for the tiny model."""
COMMAND = "`flmm ground`"
IMAGE, PHRASE = "every further image", "every further phrase of an image"
WARM = {IMAGE: "with its files", PHRASE: "with its files, asked of the running command"}
TEXT = "a red ring"
AGAIN = {"tiny": 5, "medium": 40}
"""How many of these; the median counts."""
MOST_PHRASES = 5
"""The overlay shows all phrases so far, and takes longer with each."""


@dataclass(frozen=True)
class Starting:
    """Of each stage, the command, a further image and phrase: (CPU, clock) seconds of each run."""

    stages: dict[str, list[tuple[float, float]]]

    def median(self, name: str) -> tuple[float, float]:
        """(CPU, clock)."""
        cpu, clock = (statistics.median(column) for column in zip(*self.stages[name], strict=True))
        return cpu, clock


def measure(size: str, repeats: int, until: float) -> tuple[list[Starting], str]:
    """The figures, and their table."""
    from PIL import Image

    from flmm_core.data.drawn.scenes import make_scene, paint
    from performance.serving import fresh_head
    from performance.tables import seconds, table

    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head, image = fresh_head("qwen", folder, **AS_TRAINED), folder / "image.png"
        Image.fromarray(paint(make_scene((1, 1), "plain"))[0]).save(image)
        for number in range(repeats):
            if number and time.monotonic() > until:
                break
            given = [str(image), str(head), str(folder / f"out-{number}"), str(AGAIN[size])]
            for way in WAYS:
                parts = [sys.executable, "-m", "performance.starting", way, *given]
                done = subprocess.run(parts, check=True, capture_output=True, text=True)
                for stage, taken in json.loads(done.stdout.splitlines()[-1]).items():
                    found.setdefault(stage, []).append(tuple(taken))
    row = Starting(found)
    why = {**STAGES, COMMAND: "", **WARM}
    lines = [
        (f"**{stage}**" if stage == COMMAND else stage, seconds(row.median(stage)[0]), text)
        for stage, text in why.items()
    ]
    clock = ", ".join(f"{each} took {seconds(row.median(each)[1])} s" for each in (COMMAND, *WARM))
    return [row], f"{table(COLUMNS, lines)}\n\nBy the clock, {clock}."


class Watch:
    """Notes what each stage takes, from the process's own beginning."""

    def __init__(self) -> None:
        import psutil

        self.found: dict[str, tuple[float, float]] = {}
        self.last = 0.0, psutil.Process().create_time()

    def note(self, name: str) -> None:
        """The end of a stage."""
        now = time.process_time(), time.time()
        self.found[name] = now[0] - self.last[0], now[1] - self.last[1]
        self.last = now


def stages(image: str, head: str, output: str, again: str) -> dict[str, tuple[float, float]]:
    """One after the other, in this process."""
    watch = Watch()
    import_module("flmm_core.cli.ground")
    watch.note("the command line")
    gc.disable()  # as the command does
    import_module("torch")
    watch.note("torch")
    postpone_imports()
    watch.note("transformers")
    import_module("torchvision")
    watch.note("torchvision")
    from flmm_core.plugins import load_backbones, load_class

    load_class(load_backbones().get("qwen"))
    watch.note("model classes")
    for module in ("flmm_core.annotate.folder", "flmm_core.pipeline.refiners.sam"):
        import_module(module)
    watch.note("flmm")
    from flmm_core import Grounder

    grounder = Grounder.from_pretrained(head)
    watch.note("loading")
    gc.freeze()
    gc.enable()
    from flmm_core.data.images import read_image
    from flmm_core.pipeline.result_files import write_result

    def ground() -> None:
        write_result(grounder.ground(read_image(Path(image)), [TEXT]), Path(output))

    ground()
    watch.note("first image")
    every = []
    for _ in range(int(again)):
        ground()
        watch.note(IMAGE)
        every.append(watch.found[IMAGE])
    cpu, clock = (statistics.median(column) for column in zip(*every, strict=True))
    return {**watch.found, IMAGE: (cpu, clock)}


def command(image: str, head: str, output: str, again: str) -> dict[str, tuple[float, float]]:
    """The command itself, in this process."""
    watch = Watch()
    from flmm_core.cli import main

    if code := main(["ground", image, TEXT, "--head", head, "--output", output]):
        raise SystemExit(code)
    watch.note(COMMAND)
    return watch.found


def phrases(image: str, head: str, output: str, again: str) -> dict[str, tuple[float, float]]:
    """The command in another process, which is asked for phrase after phrase of one image."""
    import psutil

    parts = ["-m", "flmm_core", "ground", image, "--head", head, "--output", output]
    process = psutil.Popen([sys.executable, *parts], stdin=-1, stdout=-1, text=True)

    def ask() -> float:
        """Seconds from the phrase to its mask."""
        begin = time.perf_counter()
        process.stdin.write(f"{TEXT}\n")
        process.stdin.flush()
        if not process.stdout.readline().startswith(output):
            raise SystemExit(f"{parts} ended")
        return time.perf_counter() - begin

    ask()
    before = sum(process.cpu_times()[:2])
    every = [ask() for _ in range(min(int(again), MOST_PHRASES))]
    cpu = sum(process.cpu_times()[:2]) - before
    process.communicate()
    return {PHRASE: (cpu / len(every), statistics.median(every))}


WAYS = {"stages": stages, "command": command, "phrases": phrases}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for argument in ("way", "image", "head", "output", "again"):
        parser.add_argument(argument)
    given = vars(parser.parse_args())
    print(json.dumps(WAYS[given.pop("way")](**given)))
