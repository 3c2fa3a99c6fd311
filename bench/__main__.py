"""Measure speed and memory: ours beside the bare VLM and beside the original's way.

python -m bench recording                    # what recording costs beside a bare forward
python -m bench training --repeats 1         # a step of training
python -m bench refining                     # the masks of one image through SAM
python -m bench sentences                    # three sentences about an image against one
python -m bench cache|loading                # training from a cache; reading images
python -m bench gpu                          # real sizes; needs CUDA
python -m bench all --docs docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench import real_models, recording, refining, report, sentences, tables, training
from bench.cases import ORIGINAL, CaseSpec
from bench.side_by_side import side_by_side
from flmm_core.pipeline.refiners.sam_model import OFFICIAL

OTHERS = {"cache": "bench.cached_epochs", "loading": "bench.loading"}
"""Measurements that are programs of their own and print JSON."""

SLOW = 2000
"""From so many tokens on, the original's way runs once: it takes minutes on a CPU."""

QUICK = 5
"""So many times as many runs of what takes milliseconds."""


@dataclass(frozen=True)
class Kind:
    """A kind of case: where its cases, its ways and its table are."""

    module: ModuleType
    table: Callable[[Sequence[tables.Row]], str]


KINDS = {
    "recording": Kind(recording, tables.recording),
    "training": Kind(training, tables.training),
    "refining": Kind(refining, tables.refining),
    "sentences": Kind(sentences, tables.sentences),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("what", choices=(*KINDS, *OTHERS, "gpu", "all"))
    parser.add_argument("--size", choices=("tiny", "medium"), help="by default both")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="a folder")
    parser.add_argument("--docs", type=Path, help="rewrite the tables of this page")
    options = parser.parse_args(arguments)
    if options.what == "gpu" and (refusal := real_models.refusal()):
        print(refusal, file=sys.stderr)
        return 3
    if options.docs and not options.docs.is_file():
        print(f"'{options.docs}' is no file whose tables could be rewritten.", file=sys.stderr)
        return 2
    names = [*KINDS, *OTHERS] if options.what == "all" else [options.what]
    missed = False
    for name in names:
        started = time.monotonic()
        if name in OTHERS:
            result, text = _other(name, options.size)
        else:
            result, text = _measure(name, options.size, options.repeats)
        report.write(options.output, name, result, text)
        print(f"\n{text}\n\n{name}: {time.monotonic() - started:.0f} s", flush=True)
        if options.docs and not report.rewrite(options.docs, name, text):
            print(f"{options.docs} has no place for '{name}'", file=sys.stderr)
            missed = True
    return 2 if missed else 0


def _measure(name: str, size: str | None, repeats: int) -> tuple[dict[str, object], str]:
    facts = report.environment()
    parts, results = [report.where(facts)], {}
    kinds = KINDS if name == "gpu" else {name: KINDS[name]}
    for kind_name, kind in kinds.items():
        rows = []
        for spec in _specs(name, kind_name, size):
            print(f"{kind_name}: {spec.model} {spec.dtype} {spec.tokens or ''}", file=sys.stderr)
            found, ceilings = side_by_side(spec, _rounds(kind.module.WAYS, spec, repeats))
            rows.append(tables.Row(spec, found, ceilings))
        results[kind_name] = [row.to_dict() for row in rows]
        parts.append(kind.table(rows))
    return {"environment": facts, **results}, "\n\n".join(parts)


def _specs(name: str, kind: str, size: str | None) -> list[CaseSpec]:
    if name == "gpu":
        return real_models.specs(kind)
    sizes = (size,) if size else ("tiny", "medium")
    return [spec for each in sizes for spec in KINDS[kind].module.specs(each)]


def _rounds(ways: Sequence[str], spec: CaseSpec, repeats: int) -> dict[str, int]:
    """How often each way runs."""
    on_cpu = spec.device == "cpu"
    if spec.model in OFFICIAL and on_cpu:  # SAM's encoder alone takes many seconds
        rounds = dict.fromkeys(refining.BEHIND, repeats)
        return {way: rounds.get(way, 1) for way in ways if way != refining.ALONE}
    if not spec.tokens:
        return dict.fromkeys(ways, repeats * QUICK)
    slow = on_cpu and spec.tokens >= SLOW
    return {way: 1 if slow and way == ORIGINAL else repeats for way in ways}


def _other(name: str, size: str | None) -> tuple[dict[str, object], str]:
    sized = ["--size", size] if size and name == "cache" else []
    command = [sys.executable, "-m", OTHERS[name], *sized]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    text = f"{report.where(report.environment())}\n\n```json\n{printed.strip()}\n```"
    return {"result": json.loads(printed)}, text


if __name__ == "__main__":
    sys.exit(main())
