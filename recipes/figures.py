"""All figures of a tiny model that the docs give, in one command, before it ships.

    OMP_NUM_THREADS=1 nohup python -m recipes.figures qwen FOLDER --output build/qwen-figures &

FOLDER is a model of that family (`recipes.make`). Each figure is a file in the output folder, and
`summary.md` has the scores of all heads. The same command goes on where it was stopped; a figure
that is there is not made again. `--only` makes some, and what they need. `--quick` shows in a few
minutes that all of it works; its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_core.config.yaml_files import dump_yaml
from flmm_core.spec import TOY_DEFAULTS
from recipes.twins import PARTS

HERE = (sys.executable, "-m")
HEADS = ("learned", "mean", "control")


@dataclass(frozen=True)
class Figure:
    """What a command prints; it may also make a folder, and read what others made."""

    name: str
    command: tuple[str, ...]
    made: Path | None = None
    needs: tuple[str, ...] = ()


def figures(family: str, model: Path, output: Path, quick: bool) -> list[Figure]:
    """All of them, each behind those it needs."""

    def recipe(name: str, *arguments: str, **few: int) -> tuple[str, ...]:
        less = [f"--{option}={count}" for option, count in few.items() if quick]
        return *HERE, f"recipes.{name}", *arguments, *less

    def flmm(*arguments: str) -> tuple[str, ...]:
        return *HERE, "flmm_core", *arguments

    def train(name: str, *more: str, needs: tuple[str, ...] = ()) -> Figure:
        command = flmm(
            "train", f"--backbone={family}", f"--config={output}/toy.yaml",
            f"--output={output}/{name}", *more, *(("--steps=3",) if quick else ()),
        )  # fmt: skip
        return Figure(name, command, output / name, needs)

    def evaluate(data: str, *more: str) -> tuple[str, ...]:
        less = ("--limit=4",) if quick else ()
        return flmm("eval", run, f"--data={data}", "--json", *more, *less)

    run, blank, flat = (str(output / name) for name in ("learned", "blank", "flat"))
    own, behind = (family, f"--model={model}"), f"--model={model}"
    few = (f"--data=refcoco:{flat}@test", f"--eval-data=refcoco:{flat}@test")
    drawn = few if quick else ("--data=shapes@train",)
    narrated = "--data=shapes@narrated", "--val-data=shapes@narrated-val"
    flat_scenes = "--kind=flat", "--seed=3", "--split=test", f"--pictures={4 if quick else 100}"
    head = ("learned",)
    return [
        Figure("draw", flmm("data", "draw", flat, *flat_scenes), output / "flat"),
        Figure("captions", recipe("measure", *own, scenes=4)),
        Figure("two", recipe("of_two", *own, scenes=4)),
        train("learned", behind, *drawn, needs=("draw",)),
        train("mean", behind, "--head-pool=mean", *drawn, needs=("draw",)),
        Figure("blank", recipe("twins", family, blank, "--seed=1"), output / "blank"),
        train("control", f"--model={blank}", *drawn, needs=("draw", "blank")),
        Figure("flat", evaluate(f"refcoco:{flat}@test"), needs=("draw", *head)),
        Figure("absent", evaluate("shapes@absent", "--abstain"), needs=head),
        Figure("limits", recipe("limits", run, limit=4), needs=head),
        Figure("explaining", recipe("explaining", *own, scenes=4)),
        Figure("order", recipe("reading_order", *own, scenes=4)),
        Figure("talking", recipe("talking", run, prompts=2, scenes=2), needs=head),
        Figure("second_look", recipe("second_look", run, questions=1), needs=head),
        train(
            "keywords", behind, f"--init-head={run}", "--head-keywords",
            "--train=keywords", "--steps=150", *narrated, "--eval-data=shapes@narrated-test",
            needs=head,
        ),
    ]  # fmt: skip


def make(figure: Figure, output: Path) -> None:
    """Run a figure's command and keep what it prints, if that is not there yet.

    Raises:
        CalledProcessError: The command failed; `NAME.log` says why.
    """
    printed = output / f"{figure.name}.txt"
    if printed.exists():
        return
    command = figure.command
    if figure.made is not None and any((figure.made / "checkpoints").glob("*")):
        command = (*command, "--resume")
    elif figure.made is not None:
        shutil.rmtree(figure.made, ignore_errors=True)
    unfinished = printed.with_suffix(".new")
    with unfinished.open("w") as out, printed.with_suffix(".log").open("a") as log:
        subprocess.run(command, stdout=out, stderr=log, check=True)
    unfinished.replace(printed)


def chosen(every: Sequence[Figure], only: Sequence[str]) -> list[Figure]:
    """The figures of these names, all if there are none, and what they need, in their order."""
    wanted = set(only)
    for figure in reversed(every):
        if figure.name in wanted:
            wanted |= {*figure.needs}
    return [figure for figure in every if not only or figure.name in wanted]


def scores(output: Path) -> Iterator[str]:
    """The lines of a Markdown table: cIoU of the heads that are there, coarse and refined."""
    yield "| scenes | head | coarse | refined |"
    yield "|---|---|--:|--:|"
    for head in HEADS:
        if (summary := output / head / "summary.json").exists():
            for source, found in json.loads(summary.read_text())["evaluations"].items():
                yield from rows(source, head, found)
    for name in ("flat", "absent"):
        if (printed := output / f"{name}.txt").exists():
            for found in json.loads(printed.read_text())["data"].values():
                yield from rows(name, "learned", found)


def rows(source: str, head: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Those of a data source, and of its parts."""
    coarse, refined = found["coarse"], found["refined"]
    pairs = {"all": (coarse, refined)}
    pairs |= {part: (one, refined["slices"][part]) for part, one in coarse["slices"].items()}
    for part, (first, last) in pairs.items():
        yield f"| {source}, {part} | {head} | {first['ciou']:.3f} | {last['ciou']:.3f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the figures, and print the table."""
    parser = argparse.ArgumentParser(description="Make all figures of a tiny model.")
    parser.add_argument("family", choices=sorted(PARTS))
    parser.add_argument("model", type=Path, help="its folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    if not given.model.is_dir():
        parser.error(f"there is no folder {given.model}")
    output = given.output.absolute()
    every = figures(given.family, given.model.absolute(), output, given.quick)
    names = [figure.name for figure in every]
    if unknown := [name for name in given.only if name not in names]:
        parser.error(f"--only: no figure {unknown[0]!r}; there are {', '.join(names)}")
    output.mkdir(parents=True, exist_ok=True)
    (output / "toy.yaml").write_text(dump_yaml(TOY_DEFAULTS))
    for figure in chosen(every, given.only):
        print(figure.name, flush=True)
        make(figure, output)
    table = "\n".join(scores(output))
    (output / "summary.md").write_text(f"{table}\n")
    print(table)


if __name__ == "__main__":
    main()
