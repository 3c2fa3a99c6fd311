"""Backbones × methods × data sets, every item once, through any stop.

    DIR/benchmark.json          what is run, and on what
    DIR/heads/BACKBONE          a run of `flmm train`, where no head was given
    DIR/cells/NAME/begun.json   what a cell is measured with; gone when it is finished
                   rows-*.jsonl what is measured so far (`flmm_core.benchmark.rows`); likewise
                   items.jsonl, result.json    the finished cell
    DIR/report.html, ...        the report

The same call goes on where the last one stopped. Which samples go through the flow together is
fixed by the batch size alone, so that rows do not depend on stops or on the number of processes.
Several processes (`torchrun`, `accelerate launch`) must see one DIR.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from flmm_core.benchmark.facts import cell_facts
from flmm_core.benchmark.plan import (
    BEGUN,
    Cell,
    Plan,
    System,
    check_begun,
    check_head,
    check_plan,
    file_name,
    held,
    labelled_systems,
)
from flmm_core.benchmark.rows import RowFiles, SampleRows
from flmm_core.config import RunConfig, Workers, load_config
from flmm_core.data.protocols import ImageSamples
from flmm_core.data.sources import open_source, open_sources
from flmm_core.errors import RunError, UsageError
from flmm_core.evaluation.baselines import Method as Flow
from flmm_core.evaluation.baselines import make_method
from flmm_core.evaluation.confidence import check_can_abstain, chosen_threshold, read_confidence
from flmm_core.evaluation.evaluate import Evaluation, Measured, measure_batches
from flmm_core.evaluation.phrase_rows import (
    BENCHMARK,
    CELLS,
    RESULT,
    BenchmarkFacts,
    CellFacts,
    Item,
    Method,
    read_cell,
    source_label,
    write_facts,
    write_items,
)
from flmm_core.loader.dataset import fixed_batches
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.head_folder import Grounder, find_head, read_recipe
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.report.build import build_report
from flmm_core.report.table import Report
from flmm_core.spec import BackboneSpec
from flmm_core.training.loop import build_from_config, train
from flmm_core.training.run_folder import RunFolder, environment, write_json


class BenchmarkRun:
    """One call of a benchmark, in one process or in one of several.

    Args:
        plan: What to measure.
        output: The benchmark's folder.
        config_file: The YAML file of the heads that are trained.
        max_skipped: Most samples of a source that may be left out because they cannot be scored.
        device: "auto" takes the first accelerator, several processes one each.
        refiner_weights: SAM's own file, where heads were trained with an official SAM.
        workers: Processes that read images, for each process; see `count_workers`.
        progress: Is told how far it is, in the first process.
    """

    def __init__(
        self,
        plan: Plan,
        output: Path,
        *,
        config_file: Path | None = None,
        max_skipped: int = 0,
        device: str = "auto",
        refiner_weights: Path | None = None,
        workers: Workers = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.plan = plan
        self.output = output
        self.config_file = config_file
        self.max_skipped = max_skipped
        self.refiner_weights = refiner_weights
        self.workers = workers
        self.processes = _join(device)
        self.is_first = bool(self.processes.is_main_process)
        several = self.processes.num_processes > 1
        self.device = str(self.processes.device) if several and device == "auto" else device
        self.progress = progress if progress and self.is_first else Progress()

    def run(self) -> tuple[Report, list[Path]] | None:
        """Measure what is not measured yet, then write the report.

        Returns:
            The report and its files; None in all processes but the first.

        Raises:
            UsageError: The folder holds another benchmark or is being written, or the plan cannot
                be carried out.
            RunError: Too many samples were skipped.
            FlmmError: Data or weights are missing or broken.
        """
        if self.plan.abstain:
            check_can_abstain(self.plan.methods)
        sources = {text: open_source(text, self.plan.protocol) for text in self.plan.data}
        for text, samples in sources.items():
            self._check_skipped(text, [s.reason for s in samples.skipped])
        with held(self.output) if self.is_first else nullcontext():
            self._begin()
            for system in self._systems():
                self._measure_system(self._cells(system, sources))
            done = build_report(self.output) if self.is_first else None
        self.processes.destroy_process_group()
        return done

    def _begin(self) -> None:
        """Take the folder, or see that it is this plan's."""
        if (self.output / BENCHMARK).is_file():
            check_plan(self.plan, self.output)
        self.processes.wait_for_everyone()
        if self.is_first and not (self.output / BENCHMARK).is_file():
            facts = environment()
            write_facts(
                self.output,
                BenchmarkFacts(
                    created=_now(),
                    command=facts.pop("command"),
                    versions={"python": facts.pop("python"), **facts.pop("packages")},
                    machine=facts,
                    seed=0,
                    protocol=self.plan.protocol,
                    **{"plan": self.plan.model_dump(mode="json")},
                ),
            )
        self.processes.wait_for_everyone()

    # --- systems ------------------------------------------------------------------------------

    def _systems(self) -> list[System]:
        """Every backbone with its head, trained now if there is none."""
        heads: dict[str, list[Path]] = {}
        for text in self.plan.heads:
            place = find_head(text)
            heads.setdefault(read_recipe(place)[0].backbone, []).append(place)
        wanted = self.plan.backbones or tuple(heads)
        for backbone, folders in heads.items():
            if backbone not in wanted:
                raise UsageError(
                    f"The head '{folders[0]}' is for a backbone that is not measured.",
                    found=f"It was trained with {backbone}; --backbone has {', '.join(wanted)}.",
                    repair=f"Add --backbone {backbone}, or leave the head out.",
                )
        found: list[tuple[str, str, Path | None]] = []
        for backbone in wanted:
            given: list[Path | None] = [*heads.get(backbone, ())]
            for folder in given or [self._trained(backbone)]:
                config = self._config(backbone)[0]
                model = config.model if folder is None else read_recipe(folder)[0].model
                found.append((backbone, model, folder))
        systems = list(labelled_systems(found))
        return [self._abstaining(one) for one in systems] if self.plan.abstain else systems

    def _abstaining(self, system: System) -> System:
        """The same with the threshold that its head's training chose."""
        assert system.head is not None  # without one there are only methods without training
        below = chosen_threshold(read_confidence(system.head), str(system.head))
        return replace(system, abstain_below=below)

    def _trained(self, backbone: str) -> Path | None:
        """A head that is trained in the benchmark's folder; None if no method needs one."""
        if "head" not in self.plan.methods:
            return None
        config, spec = self._config(backbone)
        if self.is_first and not (config.output / "summary.json").is_file():
            last = RunFolder(config.output, config.save_every).last()
            if last is None and config.output.exists():
                shutil.rmtree(config.output)  # a run of ours that was stopped before it saved
            self.progress.say(f"Training a head for {backbone} in {config.output}")
            train(config.model_copy(update={"resume": last is not None}), spec, self.progress)
        self.processes.wait_for_everyone()
        return find_head(config.output)

    def _config(self, backbone: str) -> tuple[RunConfig, BackboneSpec]:
        settings = {
            "eval_data": [],
            "protocol": self.plan.protocol,
            "device": self.device,
            "refiner_weights": self.refiner_weights,
            **self.plan.training,
            "backbone": backbone,
            "output": self.output / "heads" / backbone,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return load_config(self.config_file, given, load_backbones().get)

    def _load(self, system: System) -> Grounder:
        self.progress.say(f"Loading {system.backbone}, model {system.model}")
        if system.head is None:
            return build_from_config(*self._config(system.backbone))
        return Grounder.from_pretrained(
            system.head, device=self.device, refiner_weights=self.refiner_weights
        )

    def _flow(self, method: Method, grounder: Grounder) -> Flow:
        if method == "head":
            return grounder
        texts = self.plan.method_data or grounder.facts.get("data") or ("shapes@train",)
        labelled = open_sources(texts, self.plan.protocol)
        return make_method(method, grounder, labelled, refiner_weights=self.refiner_weights)

    # --- cells --------------------------------------------------------------------------------

    def _cells(self, system: System, sources: dict[str, ImageSamples]) -> Iterator[Cell]:
        labels = [source_label(text) for text in sources]
        for method in self.plan.methods:
            for number, (text, samples) in enumerate(sources.items()):
                label = labels[number]
                name = f"{system.label}--{label}" + f"-{number + 1}" * (labels.count(label) > 1)
                name += f"--{method}" * (len(self.plan.methods) > 1)
                folder = self.output / CELLS / file_name(name)
                total = min(self.plan.limit or len(samples), len(samples))
                yield Cell(folder, system, method, text, samples, total)

    def _measure_system(self, cells: Iterator[Cell]) -> None:
        """Measure the cells of one system; its model is loaded if one is not finished."""
        grounder: Grounder | None = None
        flow: tuple[Method, Flow] | None = None
        for cell in cells:
            if (cell.folder / RESULT).is_file():
                check_head(read_cell(cell.folder).head_sha256, cell)
                self.progress.say(f"{cell.title}: measured already")
                continue
            if grounder is None:
                grounder = self._load(cell.system)
                grounder.eval()
                digest = grounder.backbone.weights_digest()
            if flow is None or flow[0] != cell.method:
                flow = cell.method, self._flow(cell.method, grounder)
            facts = cell_facts(self.plan, cell, grounder, flow[1], digest)
            self._measure(cell, grounder, flow[1], facts)

    def _measure(self, cell: Cell, grounder: Grounder, flow: Flow, facts: CellFacts) -> None:
        rows = RowFiles(cell.folder, cell.total)
        check_begun(cell.folder / BEGUN, facts)
        self.processes.wait_for_everyone()
        if self.is_first:
            cell.folder.mkdir(parents=True, exist_ok=True)
            write_json(cell.folder / BEGUN, facts.model_dump(mode="json"))
            rows.mend()
        self.processes.wait_for_everyone()
        rows.scan()
        rank, processes = self.processes.process_index, self.processes.num_processes
        missing = rows.missing(fixed_batches(cell.total, self.plan.batch_size))
        self.processes.wait_for_everyone()  # nobody writes before all have read
        throughput = Throughput()
        batches = measure_batches(
            grounder,
            cell.samples,
            missing[rank::processes],
            flow=flow,
            workers=self.workers,
            throughput=throughput,
            calibrate=grounder.confidence if flow is grounder else None,
            abstain_below=cell.system.abstain_below,
        )
        skipped = [s.reason for s in cell.samples.skipped]
        left = cell.total - rows.done
        with (
            rows.path(rank, processes).open("ab") as file,
            self.progress.stage(cell.title, cell.total, done=rows.done) as stage,
        ):
            for batch in batches:
                new = [one for one in batch if not rows.has(one.index)]
                for one in new:
                    file.write(_line(one))
                    skipped += [_why(one)] if one.error else []
                file.flush()
                self._check_skipped(cell.title, skipped)
                left -= (shown := min(left, len(new) * processes))
                stage.advance(shown, **throughput.figures())  # as if all were as far
        self.processes.wait_for_everyone()
        if self.is_first:
            rows.scan()
            self._finish(cell, rows, facts)
        self.processes.wait_for_everyone()

    def _finish(self, cell: Cell, rows: RowFiles, facts: CellFacts) -> None:
        """Put a cell's rows in order, and say what they are."""
        if rows.done + len(rows.skipped) < cell.total:
            raise RunError(
                f"Rows of {cell.title} are missing.",
                found=f"{cell.total} samples, {rows.done} of them measured, "
                f"{len(rows.skipped)} skipped.",
                repair="Another process may have stopped; run the same command again.",
            )
        left_out = [{"item": one.name, "reason": one.reason} for one in cell.samples.skipped]
        left_out += [
            {"item": f"sample {place} of {cell.source}", "reason": why}
            for place, why in rows.skipped.items()
        ]
        self._check_skipped(cell.title, [one["reason"] for one in left_out])
        scores, seconds = Evaluation(skipped=len(left_out)), 0.0

        def items() -> Iterator[Item]:
            nonlocal seconds
            for sample in rows.in_order():
                scores.add(sample.rows)
                seconds += sum(row.seconds for row in sample.rows)
                yield from sample.rows

        write_items(cell.folder, items())
        scores.seconds = seconds
        about = environment()
        more = {
            "created": _now(),
            "command": about["command"],
            "versions": about["packages"],
            "processes": self.processes.num_processes,
            "seconds": round(seconds, 3),
            "seconds_per_phrase": seconds / scores.refined.masks if scores.refined.masks else None,
            "skipped": left_out,
            "scores": scores.to_dict(),
        }
        write_facts(cell.folder, CellFacts(**(facts.model_dump() | more)))
        rows.remove()
        (cell.folder / BEGUN).unlink()
        self.progress.say(
            f"{cell.title}, {self.plan.protocol}: cIoU {scores.refined.ciou:.4f}, "
            f"mIoU {scores.refined.miou:.4f} ({scores.refined.masks} phrases)"
        )

    def _check_skipped(self, name: str, reasons: Sequence[str]) -> None:
        """RunError if more was left out than is allowed."""
        if len(reasons) > self.max_skipped:
            raise RunError(
                f"{len(reasons)} samples of {name} cannot be scored, {self.max_skipped} may.",
                found=f"The last one: {reasons[-1]}",
                repair="Repair the data, or allow for it with --max-skipped; what is measured is "
                "kept.",
            )


def _join(device: str) -> PartialState:
    """This process among its fellows, if it was started with some."""
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    # Fellows may train a head, or have slower images: waiting is no fault.
    return PartialState(cpu=on_cpu, timeout=timedelta(days=7))


def _line(one: Measured) -> bytes:
    why = _why(one) if one.error else None
    return SampleRows(sample=one.index, rows=one.rows, skipped=why).to_line()


def _why(one: Measured) -> str:
    return " ".join(str(one.error).splitlines())


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
