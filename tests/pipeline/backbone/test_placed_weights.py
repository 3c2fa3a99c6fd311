"""Recording when weights are not simply in memory: offloaded layers, 8- and 4-bit weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.batch import place_rows
from flmm_core.pipeline.backbone.identity import differences
from flmm_core.plugins import load_backbones, load_class
from tests.models import parts, samples

FAMILIES = ("qwen", "deepseek_vl", "llava_next")


def load(family: str, **pass_through: Any) -> Backbone:
    spec = load_backbones().get(family)
    return load_class(spec).load(spec, **pass_through)


def read(backbone: Backbone, **how: Any) -> tuple[Tensor, Tensor]:
    """Attention and hidden states of two images of different shapes, one after the other."""
    traces = backbone.trace(backbone.collate(samples(backbone)), **how)
    return (
        torch.cat([trace.attention.flatten() for trace in traces]),
        torch.cat([trace.hidden.flatten() for trace in traces]),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", [None, "fixed"])
def test_layers_in_memory_and_on_disk(family: str, weights: str | None, tmp_path: Path) -> None:
    plain = load(family)
    size = sum(value.nbytes for value in plain.vlm.parameters())
    placed = load(
        family,
        dtype="float32",
        device_map="auto",
        max_memory={"cpu": size // 2},
        offload_folder=str(tmp_path),
    )
    assert differences(plain.identity(), placed.identity()) == []
    where = {value.device.type for value in placed.vlm.parameters()}
    assert where == {"cpu", "meta"}
    how = {"layer_weights": [1 / plain.num_layers] * plain.num_layers} if weights else {}
    for ours, theirs in zip(read(placed, **how), read(plain, **how), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2.5-VL of widths that 4-bit kernels support: multiples of 64."""
    config, processor = parts("qwen")
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_attention_heads = 256, 512, 4
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    config.vision_config.out_hidden_size = text.hidden_size
    made = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(made)
    processor.save_pretrained(made)
    return made


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights(bits: int, folder: Path) -> None:
    config = BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )
    backbone = load("qwen", model=str(folder), dtype="float32", quantization_config=config)
    layer = backbone.vlm.get_decoder().layers[0]
    plain = load("qwen", model=str(folder))
    assert differences(plain.identity(), backbone.identity()) == []
    assert differences(backbone.identity(), plain.identity()) == []
    with torch.no_grad():
        plain.vlm.get_input_embeddings().weight.mul_(1.1)
    assert any("weights: " in text for text in differences(plain.identity(), backbone.identity()))
    kinds = {type(module).__name__ for module in layer.modules() if isinstance(module, nn.Linear)}
    assert kinds == {"Linear8bitLt" if bits == 8 else "Linear4bit"}
    batch = backbone.collate(samples(backbone)[:1])
    (ours,) = backbone.trace(batch)
    (rows,), (columns,), (groups,) = place_rows(batch)
    with torch.no_grad():  # recording does not change what the model computes
        bare = backbone.vlm.model(**batch.tensors, use_cache=False, output_hidden_states=True)
    assert torch.equal(ours.hidden, torch.stack([h[0, rows] for h in bare.hidden_states[1:]]))

    backbone.vlm.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        eager = backbone.vlm.model(**batch.tensors, use_cache=False, output_attentions=True)
    full = torch.stack([layer[0][:, rows][..., columns] for layer in eager.attentions])
    phrases = [full[:, :, groups == phrase].mean(2) for phrase in groups.unique()]
    theirs = torch.stack(phrases, 2)  # (L, N, P, M)
    # 8-bit weights round activations too: what differs in the last digit differs by a step behind
    same = 1 if bits == 8 else len(theirs)
    torch.testing.assert_close(ours.attention[:same], theirs[:same], atol=5e-5, rtol=0)
    torch.testing.assert_close(ours.attention, theirs, atol=0.01, rtol=0)
