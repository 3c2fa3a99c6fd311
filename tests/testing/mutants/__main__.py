from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from pathlib import Path

import transformers

from flmm_core.testing import CHECKS, run_checks
from flmm_core.testing.promise import BrokenPromiseError
from tests.testing.mutants import MUTANTS, good

BY_NAME = {check.__name__: check for check in CHECKS}


def caught(name: str, family: str, folder: Path) -> str:
    """What the meant check says of a mutant: "" if nothing."""
    fault = MUTANTS[name]
    spec, model = good.make(family, folder, seed=0)
    kind = good.kind_of(spec)
    try:
        backbone = good.load(fault.of(kind), spec, model)
        BY_NAME[fault.check](backbone)
    except BrokenPromiseError as broken:
        return str(broken)
    except Exception as error:
        return f"CRASH {type(error).__name__}: {error}"
    return ""


def all_mutants(names: list[str], families: list[str], folder: Path) -> int:
    counts: Counter[str] = Counter()
    survivors = []
    for name in names:
        fault = MUTANTS[name]
        for family in fault.families or families:
            if family not in families:
                continue
            said = caught(name, family, folder)
            result = "crash" if said.startswith("CRASH") else "caught" if said else "MISSED"
            counts[result] += 1
            survivors += [name] * (result == "MISSED")
            print(
                f"{result:7} {family:12} {fault.check:35} {name}: {' '.join(said.split())[:200]}",
                flush=True,
            )
    print(f"{len(names)} mutants, {sum(counts.values())} with families: {dict(counts)}")
    print(f"missed: {sorted(set(survivors))}")
    return len(survivors)


def no_false_alarm(seeds: int, families: list[str], folder: Path) -> int:
    alarms = runs = 0
    for family in families:
        for seed in range(seeds):
            spec, model = good.make(family, folder, seed)
            backbone = good.load(good.kind_of(spec), spec, model)
            outcomes = list(run_checks(backbone, seed=seed))
            runs += len(outcomes)
            for one in outcomes:
                if one.problem:
                    alarms += 1
                    print(f"ALARM {family} {seed} {one.check}: {one.problem}", flush=True)
            seconds = sum(one.seconds for one in outcomes)
            print(f"{family} seed {seed}: {len(outcomes)} checks, {seconds:.1f} s", flush=True)
    print(f"{alarms} false alarms in {runs} checks of {len(families)} families x {seeds} seeds")
    return alarms


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.testing.mutants")
    parser.add_argument("names", nargs="*", help="mutants or checks; by default all")
    parser.add_argument(
        "--family", action="append", choices=[*good.GOOD, *good.OTHERS], metavar="NAME"
    )
    parser.add_argument("--good", type=int, metavar="SEEDS", help="look for false alarms instead")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    families = given.family or list(good.GOOD if given.good else good.FAMILIES)
    with tempfile.TemporaryDirectory() as folder:
        if given.good:
            return no_false_alarm(given.good, families, Path(folder))
        names = [n for n, m in MUTANTS.items() if not given.names or {n, m.check} & {*given.names}]
        return all_mutants(names, families, Path(folder))


if __name__ == "__main__":
    raise SystemExit(main() > 0)
