"""Weights are made, and measured, by one command each, which goes on where it was stopped."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from flmm_core.config.resolve import load_config
from flmm_core.evaluation.rows_from_masks import intersection_union
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.plugins import load_backbones
from recipes import aligning, make, pretrain, referring
from recipes.figures import Figure, chosen, figures, main
from recipes.figures import make as make_figure
from recipes.limits import coverage_logits, fits_its_own
from recipes.muon import Muon


def test_muon_is_torchs_without_its_rounding() -> None:
    torch.manual_seed(0)
    start = [torch.randn(size) for size in ((24, 8), (8, 24), (8, 8), (3, 3))]
    ours, theirs = ([torch.nn.Parameter(one.clone()) for one in start] for _ in range(2))
    both = (
        Muon(ours, 0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="original"),
    )
    for _ in range(4):
        for one, other in zip(ours[:3], theirs[:3], strict=True):  # the last has no gradient
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in both:
            optimizer.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert (one - other).norm() <= 0.03 * moved  # bfloat16
    assert torch.equal(ours[3], start[3])
    assert not torch.equal(ours[0], start[0])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All recipes with two steps of few small scenes."""
    stages = [
        replace(stage, steps=2, batch=2, horizon=2) for stage in pretrain.STAGES["deepseek_vl"][-2:]
    ]
    monkeypatch.setitem(pretrain.STAGES, "deepseek_vl", tuple(stages))
    monkeypatch.setitem(aligning.STEPS, "deepseek_vl", 2)
    monkeypatch.setitem(aligning.BATCH, "deepseek_vl", 2)
    monkeypatch.setitem(referring.RECOVERY, "deepseek_vl", 2)
    monkeypatch.setitem(referring.PARTS, "deepseek_vl", [referring.Part(2), referring.Part(2, 0.7)])
    for name, value in {"BATCH": 4, "SCENES": 6}.items():
        monkeypatch.setattr(referring, name, value)


def test_a_model_is_made_from_the_start_in_parts_that_are_not_done_twice(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refer = referring.refer

    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(referring, "refer", stopped)
    with pytest.raises(KeyboardInterrupt):
        make.make("deepseek_vl", tmp_path)
    assert (tmp_path / "named/model.safetensors").exists()
    assert not (tmp_path / "taught").exists()
    monkeypatch.setattr(referring, "refer", refer)
    for part in ((pretrain, "pretrain"), (aligning, "align")):
        monkeypatch.setattr(*part, stopped)
    made = make.make("deepseek_vl", tmp_path)
    weights = [
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tmp_path / "named", made)
    ]
    assert weights[0].keys() == weights[1].keys()
    changed = {name for name, one in weights[0].items() if not torch.equal(one, weights[1][name])}
    assert any("q_proj" in name for name in changed)
    monkeypatch.setattr(referring, "refer", stopped)
    assert make.make("deepseek_vl", tmp_path) == made
    # the part that knows names may be given
    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        make.make("deepseek_vl", other, tmp_path / "named")
    assert not (other / "captions").exists()


def printing(text: str) -> tuple[str, ...]:
    return sys.executable, "-c", text


def test_a_figure_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("")
    more = f"import pathlib; f = pathlib.Path({str(count)!r}); f.write_text(f.read_text() + '1');"
    figure = Figure("one", printing(f"{more} print(f.read_text())"))
    for _ in range(2):
        make_figure(figure, tmp_path)
        assert (tmp_path / "one.txt").read_text() == "1\n"


def test_what_failed_is_no_figure_and_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begin = (
        f"import pathlib, sys; print(sys.argv[1:]); f = pathlib.Path({str(run)!r});"
        "begun = f.exists(); (f / 'checkpoints/step-1').mkdir(parents=True, exist_ok=True);"
        "sys.exit(not begun)"
    )
    figure = Figure("one", printing(begin), run)
    with pytest.raises(CalledProcessError):
        make_figure(figure, tmp_path)
    assert not (tmp_path / "one.txt").exists()
    make_figure(figure, tmp_path)
    assert (tmp_path / "one.txt").read_text() == "['--resume']\n"


def test_only_some_figures_and_what_they_need(tmp_path: Path) -> None:
    every = figures("qwen", tmp_path / "model", tmp_path, quick=False)
    assert chosen(every, []) == every
    assert [one.name for one in chosen(every, ["flat"])] == ["draw", "learned", "flat"]
    assert [one.name for one in chosen(every, ["control"])] == ["draw", "blank", "control"]
    places = {figure.name: place for place, figure in enumerate(every)}
    for figure in every:
        assert all(places[name] < places[figure.name] for name in figure.needs)


def test_heads_are_trained_with_the_settings_of_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recipes.figures.make", lambda figure, output: None)
    (tmp_path / "model").mkdir()
    main(["qwen", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    assert "learned" in capsys.readouterr().out.split()
    tiny, _ = load_config(None, {"backbone": "qwen"}, load_backbones().get)
    given = {"backbone": "qwen", "model": str(tmp_path / "model"), "data": ["shapes@train"]}
    ours, _ = load_config(tmp_path / "out/toy.yaml", given, load_backbones().get)
    left = {"model", "output"}
    assert ours.model_dump(exclude=left) == tiny.model_dump(exclude=left)


def test_a_mask_is_right_if_it_fits_no_other_thing_better() -> None:
    truth = torch.zeros(3, 8, 8, dtype=torch.bool)
    truth[0, :4], truth[1, 4:, :4], truth[2, 4:, 4:] = True, True, True
    masks = truth.clone()
    assert fits_its_own(masks, truth) == [True, True, True]
    masks[1], masks[2, 6:] = truth[0], False  # of another thing; half of the right one
    assert fits_its_own(masks, truth) == [True, False, True]
    assert fits_its_own(torch.zeros_like(masks), truth) == [False] * 3


def test_better_coarse_masks_are_as_good_as_their_cells_allow() -> None:
    truth = torch.zeros(2, 24, 36, dtype=torch.bool)
    truth[0, 6:18, 12:24] = True  # whole cells
    truth[1, 7:9, 1:3] = True  # a small part of one cell
    logits = coverage_logits(truth, (4, 6), (4, 6))
    assert torch.equal(MaskLogits(logits, (4, 6)).masks()[0], truth[0, ::6, ::6])
    assert not (logits[1] > 0).any()
    assert logits[1].argmax() == 6  # the second row's first cell
    finer = coverage_logits(truth, (4, 6), (24, 36))
    assert finer.shape == truth.shape
    counts = intersection_union(finer > 0, truth)
    assert counts[0][0] / counts[1][0] >= 0.9
