"""The benchmark command, at tiny size: what it compares agrees, and what it writes can be read."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from bench import arithmetic, real_models, refining, report
from bench.__main__ import main
from bench.cases import ORIGINAL, OURS, CaseSpec
from bench.recording import RecordingCase
from bench.refining import RefiningCase
from bench.sentences import APART, SEVERAL, WAYS, SentencesCase
from bench.training import TrainingCase


@pytest.mark.parametrize("family", ["qwen", "deepseek_vl", "llava_next"])
def test_the_originals_way_and_ours_read_the_same(family: str) -> None:
    case = RecordingCase(CaseSpec("recording", family))
    traces = {}
    for way in (OURS, ORIGINAL):
        case.prepare(way)
        traces[way] = case._work(way, case.sample)
    for ours, theirs in zip(
        (traces[OURS].attention, traces[OURS].hidden),
        (traces[ORIGINAL].attention, traces[ORIGINAL].hidden),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_step_of_training_has_the_same_loss_both_ways() -> None:
    losses = []
    for way in (OURS, ORIGINAL):
        case = TrainingCase(CaseSpec("training", "qwen", phrases=2, pictures=2))
        case.prepare(way)
        case.optimizer.zero_grad()
        losses.append(case.run(way)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_masks_are_the_same_one_at_a_time() -> None:
    case = RefiningCase(CaseSpec("refining", "tiny", phrases=5))
    case.run(OURS)
    ours = case.logits
    for way in refining.WAYS:
        case.prepare(way)
        case.run(way)
        torch.testing.assert_close(case.logits, ours, atol=1e-4, rtol=1e-4)


def test_sentences_are_compared_with_and_without_a_shared_prompt() -> None:
    case = SentencesCase(CaseSpec("sentences", "qwen", phrases=3))
    assert [case.run(way)["sentences"] for way in WAYS] == [1, 3, 3, 1, 3]
    assert case.batches[SEVERAL].backbone.captions is not None
    assert case.batches[APART].backbone.captions is None


def test_what_must_be_kept_is_counted_from_shapes() -> None:
    facts = {
        "tokens": 10, "rows": 2, "phrases": 1, "image_tokens": 6, "layers": 3, "heads": 4,
        "key_heads": 2, "head_size": 8, "hidden_size": 32, "decoder_parameters": 1000,
        "vision_parameters": 100, "patches": 24,
    }  # fmt: skip
    must = arithmetic.recording(facts, "bfloat16")
    assert must.returned_bytes == 4 * (3 * 4 * 1 * 6 + 3 * 2 * 32)
    assert must.eager_bytes == 2 * 3 * (4 * 100 + 10 * 32)
    assert must.row_flops == 2 * 3 * 4 * 8 * 2 * 10
    assert must.forward_flops == 2 * (1000 * 10 + 100 * 24) + 3 * 4 * 8 * 2 * 100


@pytest.mark.parametrize(
    ("name", "billions"),
    # the 3B model ties its output head, which random weights here do not
    [("qwen2.5-vl-3b", 4.07), ("qwen2.5-vl-7b", 8.29), ("llava-next-7b", 7.06)],
)
def test_real_sizes_are_the_published_ones(name: str, billions: float) -> None:
    config, _ = real_models.parts(name)
    with torch.device("meta"):
        vlm = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    assert sum(value.numel() for value in vlm.parameters()) / 1e9 == pytest.approx(billions, 0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is refused without a GPU only")
def test_real_sizes_are_refused_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == 3
    assert capsys.readouterr().err.startswith("Real sizes need a GPU.\n")


def test_a_page_that_is_missing_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["refining", "--docs", str(tmp_path / "none.md")]) == 2
    assert "none.md' is no file" in capsys.readouterr().err


def test_only_what_is_between_its_marks_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nafter\n")
    assert report.rewrite(page, "a", "new")
    assert page.read_text() == "before\n<!-- bench:a -->\nnew\n<!-- /bench:a -->\nafter\n"
    assert not report.rewrite(page, "b", "new")


def test_every_measurement_has_a_place_in_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "performance.md").read_text()
    names = ("recording", "training", "refining", "sentences", "cache", "loading", "gpu")
    for name in names:
        assert all(page.count(mark.format(name=name)) == 1 for mark in report.MARKS), name


@pytest.mark.slow
def test_the_command_measures_in_processes_of_their_own_and_writes_tables(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "recording", "--size", "tiny", "--repeats", "1"]
    subprocess.run([*command, "--output", str(tmp_path)], check=True, capture_output=True)
    found = json.loads((tmp_path / "recording.json").read_text())
    assert {"torch", "machine", "cpus"} <= found["environment"].keys()
    models = [row["case"]["model"] for row in found["recording"]]
    assert models == ["qwen", "deepseek_vl", "llava_next"]
    for row in found["recording"]:
        assert row["ways"].keys() == {"bare", "ours", "original-way"}
        assert all(way["median"] > 0 and way["peak_bytes"] >= 0 for way in row["ways"].values())
    assert "| ours / bare |" in (tmp_path / "recording.md").read_text()
