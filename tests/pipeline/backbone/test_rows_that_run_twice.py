"""A layer that runs the same rows again: gradient checkpointing, and models of several passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flmm_core.errors import RunError
from flmm_core.pipeline.backbone.recorder import AttentionRecorder
from tests.models import build, samples
from tests.pipeline.backbone.test_recorder import EXACT, wanted


def test_gradient_checkpointing_counts_a_layer_once() -> None:
    backbone = build("llava_next")
    tensors = backbone.collate(samples(backbone)).tensors
    rows, columns = wanted(tensors["attention_mask"])
    groups = [torch.zeros(len(r), dtype=torch.int64) for r in rows]
    recorder = AttentionRecorder(backbone.vlm.get_decoder())
    with torch.no_grad(), recorder.record(rows, columns, groups) as once:
        backbone.vlm.model(**tensors, use_cache=False)
    backbone.vlm.train().requires_grad_(True)
    backbone.vlm.gradient_checkpointing_enable()
    runs = []
    attend = backbone.vlm.get_decoder().layers[0].self_attn
    attend.register_forward_hook(lambda *_: runs.append(1))
    with recorder.record(rows, columns, groups) as twice:
        backbone.vlm.model(**tensors, use_cache=False).last_hidden_state.sum().backward()
    assert len(runs) == 2, "checkpointing must have run the layer again"
    for b in range(2):
        torch.testing.assert_close(twice.attention[b], once.attention[b], **EXACT)
        assert not twice.hidden[b].requires_grad


@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.3]])
def test_rows_that_run_twice_are_the_mean_of_both_passes(weights: list[float] | None) -> None:
    backbone = build("llava_next")
    tensors = backbone.collate(samples(backbone)).tensors
    rows, columns = wanted(tensors["attention_mask"])
    groups = [torch.arange(len(r)) // 2 for r in rows]
    recorder = AttentionRecorder(backbone.vlm.get_decoder())
    passes = [tensors, {**tensors, "pixel_values": tensors["pixel_values"].flip(-1) + 0.5}]

    def recorded(inputs: list[dict[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        with (
            torch.no_grad(),
            recorder.record(rows, columns, groups, layer_weights=weights) as found,
        ):
            for each in inputs:
                backbone.vlm.model(**each, use_cache=False)
        return found.attention, found.hidden

    one, other = (recorded([each]) for each in passes)
    assert (one[0][0] - other[0][0]).abs().max() > 1e-3, "the passes must differ"
    for same, joined in ((one, recorded(passes[:1] * 2)), (other, recorded(passes[1:] * 2))):
        for alone, twice in zip((*same[0], *same[1]), (*joined[0], *joined[1]), strict=True):
            torch.testing.assert_close(twice, alone, **EXACT)
    joined = recorded(passes)
    for part in range(2):
        for first, second, both in zip(one[part], other[part], joined[part], strict=True):
            torch.testing.assert_close(both, (first + second) / 2, **EXACT)


def test_rows_that_run_unevenly_are_refused() -> None:
    backbone = build("llava_next")
    tensors = backbone.collate(samples(backbone)).tensors
    rows, columns = wanted(tensors["attention_mask"])
    groups = [torch.zeros(len(r), dtype=torch.int64) for r in rows]
    decoder = backbone.vlm.get_decoder()
    begun = tensors["input_ids"].clamp(max=9)[:, : int(rows[0].max())]

    def record() -> None:
        with torch.no_grad(), AttentionRecorder(decoder).record(rows, columns, groups):
            backbone.vlm.model(**tensors, use_cache=False)
            decoder(input_ids=begun, use_cache=False)

    with pytest.raises(RunError, match="was recorded unevenly"):
        record()
