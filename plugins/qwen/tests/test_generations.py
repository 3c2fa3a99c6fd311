"""Qwen2-VL and Qwen3-VL: what differs from Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from flmm_core import Backbone
from flmm_core.pipeline.backbone.batch import place_rows
from flmm_core.testing import load_for_checks
from flmm_core.testing.probes import CAPTION, picture
from flmm_qwen import SPEC
from recipes.twins import build_twin

SIZES = [(480, 640), (200, 1000), (1000, 200), (333, 517), (60, 60), (1080, 1920), (3, 300)]


def test_the_class_is_that_of_the_files(other_generation: Path) -> None:
    vlm = load_for_checks(SPEC, other_generation).vlm
    kind = transformers.AutoConfig.from_pretrained(other_generation).model_type
    assert vlm.config.model_type == kind
    assert type(vlm).__name__.lower() == f"{kind}ForConditionalGeneration".replace("_", "").lower()


@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_the_grid_is_that_of_the_resized_image(
    other_full_size: Backbone, hw: tuple[int, int]
) -> None:
    """transformers' own function says the size, and 2 x 2 patches make a token."""
    settings = other_full_size.processor.image_processor
    limits = settings.size["shortest_edge"], settings.size["longest_edge"]
    cell = 2 * settings.patch_size
    height, width = smart_resize(*hw, cell, *limits)
    inputs = other_full_size.prepare(picture(*hw), CAPTION)
    (view,) = inputs.views
    assert view.token_index.shape == (height // cell, width // cell)
    places = other_full_size.vision_token_mask(inputs).nonzero().flatten()
    assert torch.equal(view.token_index.flatten(), places)


def test_attention_is_that_of_the_whole_model(other_generation: Path) -> None:
    """Qwen3-VL adds features of the image within the decoder: its input alone does not tell."""
    backbone = load_for_checks(SPEC, other_generation)
    inputs = backbone.prepare(picture(120, 200), CAPTION)
    (trace,) = backbone.trace(backbone.collate([inputs]))
    (rows,), (columns,), (groups,) = place_rows(backbone.collate([inputs]))
    attention, hidden = eager(other_generation, backbone, inputs.tokens["input_ids"])
    picked = attention[:, :, rows][..., columns]  # (L, N, T, M)
    expected = torch.stack([picked[:, :, groups == p].mean(2) for p in (0, 1)], 2)
    torch.testing.assert_close(trace.attention, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(trace.hidden, hidden[:, rows], atol=1e-5, rtol=1e-4)


def test_features_that_the_decoder_adds_count(tmp_path: Path) -> None:
    """Otherwise the test above would not notice that they are missing."""
    folder = build_twin("qwen3_vl", tmp_path)
    backbone = load_for_checks(SPEC, folder)
    batch = backbone.collate([backbone.prepare(picture(120, 200), CAPTION)])
    (before,) = backbone.trace(batch)
    for merger in backbone.vlm.model.visual.deepstack_merger_list:
        merger.linear_fc2.weight.zero_()
        merger.linear_fc2.bias.zero_()
    (after,) = backbone.trace(batch)
    change = (after.attention - before.attention).abs().amax((1, 2, 3))
    assert change[0] == 0  # they are added after the first layer
    assert change[1:].min() > 1e-5


def eager(
    folder: Path, backbone: Backbone, input_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, N, S, S) attention and (L, S, D) hidden states of a second model, from transformers'
    own inputs.
    """
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{}"}]}]
    turns[0]["content"][1]["text"] = backbone.prompt
    said = "".join(segment.text for segment in CAPTION)
    turns.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    text = backbone.processor.apply_chat_template(turns, continue_final_message=True)
    given = backbone.processor(
        text=text, images=picture(120, 200), add_special_tokens=False, return_tensors="pt"
    )
    assert torch.equal(given["input_ids"][0], input_ids)
    with torch.no_grad():
        out = model(**given, output_attentions=True, output_hidden_states=True)
    return torch.cat(out.attentions), torch.cat(out.hidden_states[1:])
