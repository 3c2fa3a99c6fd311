"""Masks kept at the resolution that they were decided at, and what is summed over their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from flmm_core.pipeline.mask_logits import Canvas, MaskLogits, judge, portions
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding
from tests.heads import SMALL_SAM, small_sam


def blobs(p: int, h: int, w: int, seed: int = 0) -> Tensor:
    coarse = torch.randn(p, 1, 4, 5, generator=torch.Generator().manual_seed(seed)) * 4
    return F.interpolate(coarse, (h, w), mode="bicubic")[:, 0]


def test_a_canvas_is_enlarged_as_segment_anything_does() -> None:
    parts = small_sam()
    sam = Sam(parts.image_encoder, parts.prompt_encoder, parts.mask_decoder)
    low = blobs(3, 32, 32)
    ours = MaskLogits(low, (40, 60), Canvas(SMALL_SAM.image_size, (43, 64))).full()
    theirs = sam.postprocess_masks(low[:, None], (43, 64), (40, 60))[:, 0]
    assert torch.equal(ours, theirs)
    trained = MaskLogits(low.requires_grad_(), (40, 60), Canvas(SMALL_SAM.image_size, (43, 64)))
    torch.testing.assert_close(trained.full(), theirs, rtol=1e-5, atol=1e-5)


def test_what_covers_the_image_is_enlarged_as_pillow_does() -> None:
    low = blobs(2, 9, 12)
    for ours, given in zip(MaskLogits(low, (90, 70)).full(), low, strict=True):
        theirs = Image.fromarray(given.numpy()).resize((70, 90), Image.Resampling.BILINEAR)
        assert np.abs(ours.numpy() - np.asarray(theirs)).max() <= 1e-4
    assert MaskLogits(low).full() is low


def test_portions_hold_every_mask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flmm_core.pipeline.mask_logits.PORTION", 1000)
    for size, most in (((10, 10), 10), ((30, 30), 1), ((90, 90), 1), ((0, 5), 1000)):
        parts = [list(range(23))[part] for part in portions(23, size)]
        assert [number for part in parts for number in part] == list(range(23))
        assert max(map(len, parts)) <= most
    assert list(portions(0, (9, 9))) == []


def judged_whole(coarse: Tensor, logits: Tensor) -> tuple[list[float], list[float]]:
    """Scores and evidence from whole arrays, by numpy and Pillow."""
    scores, evidence = [], []
    for rough, fine in zip(coarse.numpy(), logits.numpy().astype(np.float64), strict=True):
        fine = 1 / (1 + np.exp(-fine))
        small = Image.fromarray(1 / (1 + np.exp(-rough)))
        large = np.asarray(small.resize(fine.shape[::-1], Image.Resampling.BILINEAR))
        inside = fine[fine > 0.5]
        scores.append(inside.mean() if len(inside) else 0.0)
        evidence.append(scores[-1] * 2 * (large * fine).sum() / (large + fine).sum())
    return scores, evidence


@pytest.mark.parametrize("band", [1, 500, 1 << 20])
def test_what_is_summed_in_bands_is_the_sum(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse, low = blobs(4, 12, 16), blobs(4, 32, 32, seed=1)
    low[2] = -3.0
    for refined in (MaskLogits(low, (90, 121)), MaskLogits(low, (90, 121), Canvas(64, (43, 64)))):
        logits = refined.full()
        with monkeypatch.context() as patch:
            patch.setattr("flmm_core.pipeline.mask_logits.PORTION", band)
            parts = list(refined.bands())
            scores, evidence = judge(coarse, refined)
            masks = refined.masks()
        assert len(parts) == {1: 90, 500: 90, 1 << 20: 1}[band]
        assert (torch.cat([rows for _, rows in parts], dim=1) - logits).abs().max() <= 1e-5
        assert torch.equal(masks, logits > 0)
        compare(coarse, logits, scores, evidence)


def compare(coarse: Tensor, logits: Tensor, scores: Tensor, evidence: Tensor) -> None:
    wanted_scores, wanted_evidence = judged_whole(coarse, logits)
    assert scores.tolist() == pytest.approx(wanted_scores, abs=1e-6)
    assert evidence.tolist() == pytest.approx(wanted_evidence, abs=1e-6)
    assert scores[2] == evidence[2] == 0


def test_no_masks_have_no_scores() -> None:
    none = judge(torch.zeros(0, 4, 4), MaskLogits(torch.zeros(0, 8, 8), (9, 9)))
    assert [part.shape for part in none] == [(0,), (0,)]
    assert MaskLogits(torch.zeros(0, 8, 8), (9, 9)).masks().shape == (0, 9, 9)


def test_a_grounding_in_portions_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = AttentionMaps(torch.zeros(5, 1, 2, 2), WHOLE_IMAGE)
    coarse, refined = blobs(5, 12, 16), MaskLogits(blobs(5, 32, 32, seed=1), (90, 121))
    whole = Grounding(coarse, refined, maps)
    wanted = [*whole.scores.tolist(), *whole.evidence.tolist()]
    monkeypatch.setattr("flmm_core.pipeline.mask_logits.PORTION", 2 * 90 * 121)
    again = Grounding(coarse, refined, maps)
    assert [*again.scores.tolist(), *again.evidence.tolist()] == pytest.approx(wanted)
    assert torch.equal(again.masks, whole.masks)
