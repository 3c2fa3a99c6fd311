"""One run of a benchmark: heads, measurements, report.

The same command resumes what an earlier one left. The batch size alone decides which samples share
a batch, so rows depend neither on stops nor on the number of processes. All processes (`torchrun`,
`accelerate launch`) must see the same folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from re import sub
from typing import Any

import torch
from accelerate import PartialState

from flmm_core.benchmark.checks import is_trained, open_checked
from flmm_core.benchmark.plan import (
    Job,
    Plan,
    System,
    check_measurement,
    check_plan,
    with_labels,
)
from flmm_core.benchmark.rows import RowFiles, SampleRows
from flmm_core.config import MAX_SKIPPED, RunConfig, SkipLimit, Workers, load_config
from flmm_core.config.resume import CONFIG
from flmm_core.data.left_out import LeftOut
from flmm_core.data.protocols import ImageSamples
from flmm_core.errors import RunError, UsageError
from flmm_core.evaluation.baselines import MaskMethod
from flmm_core.evaluation.benchmark_folder import (
    BENCHMARK,
    MEASUREMENTS,
    RESULT,
    BenchmarkFacts,
    MeasurementFacts,
    source_label,
    write_facts,
)
from flmm_core.evaluation.evaluate import check_can_abstain, measure_batches, open_method
from flmm_core.evaluation.phrase_rows import ITEMS, PhraseRow, write_rows
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.files import hold, write_json
from flmm_core.loader.samplers import fixed_batches
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.build import build_from_config, recipe_of
from flmm_core.pipeline.confidence import chosen_threshold, read_confidence
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import WEIGHTS, HeadInfo, find_head, read_info
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.report.page import build_report
from flmm_core.report.table import BenchmarkReport
from flmm_core.spec import Attention, BackboneSpec, DeviceMap
from flmm_core.training.run_folder import environment
from flmm_core.training.train import train

BEGUN = "begun.json"


@dataclass
class BenchmarkRun:
    """One run of a benchmark, in one process or in one of several.

    Attributes:
        output: Folder of the benchmark.
        config_file: YAML file of the heads to train.
        max_skipped: How much of a source may be left out because it cannot be used.
        dtype: Of the VLM's weights; None is "auto", or that of `config_file`.
        device: "auto" takes the first accelerator; with several processes, one for each.
        device_map: Spread the VLM over devices; see `Backbone.load`. So for `attention`.
        refiner_weights: The refiner's own weights file, where training needed one.
        workers: DataLoader workers per process.
        force: Accept another VLM than a head was trained behind.
        strict: See `Grounder.from_pretrained`; so for `check`.
    """

    plan: Plan
    output: Path
    _: KW_ONLY
    config_file: Path | None = None
    max_skipped: str = MAX_SKIPPED
    dtype: str | None = None
    device: str = "auto"
    device_map: DeviceMap = "none"
    attention: Attention = "auto"
    refiner_weights: Path | None = None
    workers: Workers = "auto"
    force: bool = False
    strict: bool = False
    check: bool = True
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._limit = SkipLimit.given(self.max_skipped)
        on_cpu = self.device == "cpu" or not torch.cuda.is_available()
        # The others may train a head, or read larger images: a long wait is no fault.
        self.processes = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
        self.is_first = bool(self.processes.is_main_process)
        if self.processes.num_processes > 1 and self.device == "auto":
            self.device = str(self.processes.device)
        if not self.is_first:
            self.progress = Progress()

    def run(self) -> tuple[BenchmarkReport, list[Path]] | None:
        """Measure what has not been measured yet, then write the report.

        Returns:
            The report and its files; None in all processes but the first.

        Raises:
            UsageError: The folder holds another benchmark, another process is writing it, or the
                plan cannot be carried out.
            DataError: Too much of a source cannot be used.
        """
        if self.plan.abstain:
            check_can_abstain(self.plan.methods)
        sources = open_checked(self.plan, self._limit, self._config, **self._placement())
        with hold(self.output, "measuring into") if self.is_first else nullcontext():
            self._begin()
            for system in self._systems():
                self._measure_system(self._jobs(system, sources))
            done = build_report(self.output) if self.is_first else None
        self.processes.destroy_process_group()
        return done

    def _begin(self) -> None:
        """Write `benchmark.json`, or check that the folder belongs to the same plan."""
        begun = (self.output / BENCHMARK).is_file()
        if begun:
            check_plan(self.plan, self.output)
        self.processes.wait_for_everyone()
        if self.is_first and not begun:
            machine = environment()
            facts = {
                "created": _now(),
                "command": machine.pop("command"),
                "versions": {"python": machine.pop("python"), **machine.pop("packages")},
                "machine": machine,
                "seed": 0,
                "protocol": self.plan.protocol,
                "plan": self.plan.model_dump(mode="json"),
            }
            write_facts(self.output, BenchmarkFacts.model_validate(facts))
        self.processes.wait_for_everyone()

    # --- systems ------------------------------------------------------------------------------

    def _systems(self) -> list[System]:
        """Each backbone with its heads; a missing head is trained now."""
        heads: dict[str, list[Path | None]] = {}
        for text in self.plan.heads:
            folder = find_head(text)
            heads.setdefault(read_info(folder).recipe.backbone, []).append(folder)
        backbones = self.plan.backbones or tuple(heads)
        for name, folders in heads.items():
            if name not in backbones:
                raise UsageError(
                    f"The head '{folders[0]}' is for a backbone that is not measured.",
                    found=f"It was trained with {name}; --backbone has {', '.join(backbones)}.",
                    repair=f"Add --backbone {name}, or leave the head out.",
                )
        systems = [
            self._system(name, head)
            for name in backbones
            for head in heads.get(name) or [self._trained(name)]
        ]
        return list(with_labels(systems))

    def _system(self, backbone: str, head: Path | None) -> System:
        if head is None:
            return System(backbone, backbone, self._config(backbone)[0].model)
        model = read_info(head).recipe.model
        digest = hashlib.sha256((head / WEIGHTS).read_bytes()).hexdigest()
        below = chosen_threshold(read_confidence(head), str(head)) if self.plan.abstain else None
        return System(backbone, backbone, model, head, digest, below)

    def _trained(self, backbone: str) -> Path | None:
        """The head trained in the benchmark's folder; None if no method needs one."""
        if "head" not in self.plan.methods:
            return None
        config, spec = self._config(backbone)
        if self.is_first and not is_trained(config.output):
            begun = (config.output / CONFIG).is_file()
            self.progress.say(f"Training a head for {backbone} in {config.output}")
            train(config.model_copy(update={"resume": begun}), spec, self.progress)
        self.processes.wait_for_everyone()
        return find_head(config.output)

    def _placement(self) -> dict[str, Any]:
        """How the models are loaded, whatever the head."""
        names = "device", "device_map", "attention", "refiner_weights"
        return {name: getattr(self, name) for name in names}

    def _config(self, backbone: str) -> tuple[RunConfig, BackboneSpec]:
        settings = {
            "eval_data": [],
            "protocol": self.plan.protocol,
            "dtype": self.dtype,
            "max_skipped": self.max_skipped,
            **self._placement(),
            "check": self.check,
            "prompt": self.plan.prompt,
            "system": self.plan.system,
            **self.plan.training,
            "backbone": backbone,
            "output": self.output / "heads" / backbone,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return load_config(self.config_file, given, load_backbones().get)

    def _load(self, system: System) -> Grounder:
        self.progress.say(f"Loading {system.backbone}, model {system.model}")
        if system.head is None:
            config, spec = self._config(system.backbone)
            observer, head = build_from_config(config, spec)
            return Grounder(observer, head, HeadInfo(recipe_of(config), observer.vlm))
        return Grounder.from_pretrained(
            system.head,
            prompt=self.plan.prompt,
            system=self.plan.system,
            dtype=self.dtype or "auto",
            **self._placement(),
            force=self.force,
            strict=self.strict,
            check=self.check,
        )

    # --- measurements -------------------------------------------------------------------------

    def _jobs(self, system: System, sources: Mapping[str, ImageSamples]) -> Iterator[Job]:
        labels = [source_label(text) for text in sources]
        for method in self.plan.methods:
            for number, (text, samples) in enumerate(sources.items()):
                name = f"{system.label}--{labels[number]}"
                name += f"-{number + 1}" if labels.count(labels[number]) > 1 else ""
                name += f"--{method}" if len(self.plan.methods) > 1 else ""
                folder = self.output / MEASUREMENTS / sub(r"[^\w.@+-]+", "_", name)
                total = min(self.plan.limit or len(samples), len(samples))
                yield Job(folder, system, method, text, samples, total)

    def _measure_system(self, jobs: Iterator[Job]) -> None:
        """Do the jobs of one system; its model is loaded only if one is not finished."""
        grounder: Grounder | None = None
        method: MaskMethod | None = None
        for job in jobs:
            if (job.folder / RESULT).is_file():
                if job.method == "head":
                    head = {"head_sha256": job.system.head_sha256}
                    check_measurement(job.folder, RESULT, head)
                self.progress.say(f"{job.title}: measured already")
                continue
            if grounder is None:
                grounder = self._load(job.system)
                digest = grounder.backbone.weights_digest()
            if method is None or method.name != job.method:
                data = self.plan.method_data or grounder.info.facts.get("data")
                method = open_method(
                    job.method,
                    grounder,
                    data or ("shapes@train",),
                    self.plan.protocol,
                    self.refiner_weights,
                    job.system.abstain_below,
                )
            self._measure(job, method, self._facts(job, grounder, method, digest))

    def _facts(
        self, job: Job, grounder: Grounder, method: MaskMethod, digest: str
    ) -> MeasurementFacts:
        """What a measurement is made with; rows of different facts are never mixed."""
        system, with_head = job.system, job.method == "head"
        vlm, recipe = grounder.backbone.vlm, grounder.info.recipe
        return MeasurementFacts.model_validate(
            {
                "backbone": system.backbone,
                "model": system.model,
                "revision": getattr(vlm.config, "_commit_hash", None),
                "weights_sha256": digest,
                "head": str(system.head) if with_head else None,
                "head_sha256": system.head_sha256 if with_head else None,
                "method": job.method,
                "source": job.source,
                "pictures": str(job.samples.folder),
                "protocol": self.plan.protocol,
                "dtype": str(next(iter(vlm.parameters())).dtype).removeprefix("torch."),
                "device": grounder.backbone.device.type,
                "steps": grounder.info.facts.get("steps") if with_head else None,
                "trainable_parameters": grounder.head.trainable_parameters if with_head else None,
                "refiner": recipe.refiner,
                "refiner_options": dict(recipe.refiner_options),
                "prompt": recipe.prompt,
                "reads": grounder.backbone.rendered_prompt(),
                "settings": dict(method.settings),
                "samples": job.total,
                "batch_size": self.plan.batch_size,
                "abstain_below": system.abstain_below,
                "seed": 0,
            }
        )

    def _measure(self, job: Job, method: MaskMethod, facts: MeasurementFacts) -> None:
        """Measure this process's share of the samples that have no rows yet."""
        rank, processes = self.processes.process_index, self.processes.num_processes
        if (job.folder / BEGUN).is_file():
            # Rows do not depend on the device, or on where the images are.
            known = facts.model_dump(mode="json", exclude={"device", "pictures"})
            check_measurement(job.folder, BEGUN, known)
        rows = RowFiles(job.folder, job.total)
        missing = rows.missing(fixed_batches(job.total, self.plan.batch_size))
        self.processes.wait_for_everyone()  # before anyone writes
        if self.is_first:
            write_json(job.folder / BEGUN, facts.model_dump(mode="json"))
        self.processes.wait_for_everyone()
        throughput = Throughput()
        batches = measure_batches(
            method,
            job.samples,
            missing[rank::processes],
            workers=self.workers,
            throughput=throughput,
        )
        left_out = LeftOut(job.samples, self._limit, used=job.total)
        left = job.total - rows.done
        with (
            rows.open(rank, processes) as file,
            self.progress.stage(job.title, job.total, done=rows.done) as stage,
        ):
            for batch in batches:
                new = [SampleRows.of(one) for one in batch if not rows.has(one.index)]
                file.writelines(one.to_line() for one in new)
                file.flush()
                for one in new:
                    if one.skipped is not None:
                        left_out.add(one.sample, one.skipped)
                left -= (shown := min(left, len(new) * processes))
                stage.advance(shown, **throughput.figures())  # as if all were equally far
        self.processes.wait_for_everyone()
        if self.is_first:
            self._finish(job, RowFiles(job.folder, job.total), facts)
        self.processes.wait_for_everyone()

    def _finish(self, job: Job, rows: RowFiles, facts: MeasurementFacts) -> None:
        if rows.done + len(rows.skipped) < job.total:
            raise RunError(
                f"Rows of {job.title} are missing.",
                found=f"{job.total} samples: {rows.done} measured, {len(rows.skipped)} skipped.",
                repair="Another process may have stopped; run the same command again.",
            )
        left_out = LeftOut(job.samples, self._limit, used=job.total)
        for index, reason in rows.skipped.items():
            left_out.add(index, reason)
        skipped = left_out.to_list()
        scores = Evaluation(skipped=len(skipped), protocol=self.plan.protocol)

        def in_order() -> Iterator[PhraseRow]:
            for sample in rows.in_order():
                scores.add(sample.rows)
                scores.seconds += sum(row.seconds for row in sample.rows)
                yield from sample.rows

        write_rows(job.folder / ITEMS, in_order())
        machine, seconds, phrases = environment(), scores.seconds, scores.phrases
        result = {
            "created": _now(),
            "command": machine["command"],
            "versions": machine["packages"],
            "processes": self.processes.num_processes,
            "seconds": round(seconds, 3),
            "seconds_per_phrase": seconds / phrases if phrases else None,
            "skipped": skipped,
            "scores": scores.to_dict(),
        }
        write_facts(job.folder, facts.model_copy(update=result))
        rows.remove()
        (job.folder / BEGUN).unlink()
        self.progress.say(
            f"{job.title}, {self.plan.protocol}: cIoU {scores['ciou']:.4f}, "
            f"mIoU {scores['miou']:.4f} ({phrases} phrases)"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
