"""What layers give to their attention beside queries, keys and a mask: computed or refused.

The classes are transformers' own, the reference is their own eager pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLTextModel

from flmm_core.errors import UsageError
from flmm_core.pipeline.backbone import eager
from flmm_core.pipeline.backbone.load_check import Witness
from flmm_core.pipeline.backbone.recorder import AttentionRecorder

EXACT = {"atol": 1e-5, "rtol": 0.0}
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 8, **SMALL}
WINDOWS = {f"swa_{name}": HEADS[name] for name in ("num_attention_heads", "num_key_value_heads")}
INKLING = {
    **HEADS,
    **WINDOWS,
    "num_hidden_layers": 1,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 16,
    "moe_intermediate_size": 16,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "layer_types": ["hybrid"],
}
ROWS, COLUMNS = torch.tensor([7, 19, 12]), torch.arange(5, 15)
LAYERS = {"full": ["full_attention"] * 2, "window": ["sliding_attention", "full_attention"]}


def capped(kind: str, layers: str = "full", cap: float | None = 0.3) -> Any:
    """A language model that soft-caps its attention, with weights large enough for that to show."""
    config = getattr(hf, f"{kind}Config")(
        **HEADS,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=cap,
        layer_types=LAYERS[layers],
        sliding_window=9,
    )
    torch.manual_seed(0)
    model = getattr(hf, f"{kind}ForCausalLM")(config).eval()
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            nn.init.normal_(weight, std=0.3)
    return model


def inputs() -> dict[str, Tensor]:
    """Two sequences, the second shorter."""
    ids = torch.randint(3, 50, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def own(model: Any, **given: Any) -> Tensor:
    """(L, B, N, S, S), by the model's own eager attention."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return torch.stack(plain(**given, use_cache=False, output_attentions=True).attentions)


@pytest.mark.parametrize("kind", ["Gemma2", "VaultGemma"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("padded", [True, False])
def test_soft_capped_rows_equal_the_models_own(kind: str, layers: str, padded: bool) -> None:
    model, given = capped(kind, layers), inputs()
    if not padded:
        del given["attention_mask"]
    expected, other = own(model, **given), own(capped(kind, layers, None), **given)
    assert (expected - other).abs().max() > 0.01, "the cap changes nothing"
    with torch.no_grad():
        plain = model(**given, use_cache=False).logits
        with AttentionRecorder(model.model).record([ROWS] * 2, [COLUMNS] * 2) as recording:
            recorded = model(**given, use_cache=False).logits
    assert torch.equal(recorded, plain)
    for b in range(2):
        rows = expected[:, b][:, :, ROWS][..., COLUMNS]
        torch.testing.assert_close(recording.attention[b], rows, **EXACT)


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_soft_capped_rows_while_the_model_writes(implementation: str, cache: str) -> None:
    """However the model attends by itself: while it is recorded, it has its own eager attention."""
    model, new = capped("Gemma2"), 4
    ids = inputs()["input_ids"][:1]
    how: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    if cache == "static":
        how |= {"cache_implementation": "static", "disable_compile": True}
    plain = model.generate(ids, **how)
    model.config._attn_implementation = implementation
    rows = torch.tensor([ids.shape[1] - 1, ids.shape[1], ids.shape[1] + new - 2])
    recorder = AttentionRecorder(model.model)
    with recorder.record([rows], [COLUMNS]) as recording:
        answer = model.generate(ids, **how)
    assert answer.equal(plain)
    expected = own(model, input_ids=answer[:, :-1])[:, 0]
    torch.testing.assert_close(recording.attention[0], expected[:, :, rows][..., COLUMNS], **EXACT)
    if cache == "dynamic":  # as `Backbone.reply` keeps rows
        with recorder.follow(ids.shape[1]) as followed:
            model.generate(ids, **how)
        found = followed.attention([row[None] for row in rows[1:]], COLUMNS)
        torch.testing.assert_close(found, expected[:, :, rows[1:]][..., COLUMNS], **EXACT)


def sinks() -> Any:
    config = hf.GptOssConfig(**HEADS, num_local_experts=2, num_experts_per_tok=1)
    return hf.GptOssModel(config)


def sparse() -> Any:
    config = hf.DeepseekV32Config(
        **{**SMALL, "num_key_value_heads": 4},
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=2,
        num_experts_per_tok=1,
        first_k_dense_replace=2,
        index_head_dim=8,
        index_n_heads=2,
        index_topk=4,
    )
    return hf.DeepseekV32Model(config)


def sparse_blocks() -> Any:
    config = MiniMaxM3VLTextConfig(
        **HEADS,
        dense_intermediate_size=32,
        mlp_layer_types=["dense"] * 2,
        layer_types=["minimax_m3_sparse"] * 2,
        index_head_dim=8,
        index_n_heads=2,
        rotary_dim=4,
    )
    return MiniMaxM3VLTextModel(config)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "s_aux": (sinks, "attention sinks"),
    "sinks": (
        lambda: hf.Inkling2TextModel(
            hf.Inkling2TextConfig(**INKLING, n_layers_per_attn_res_block=1)
        ),
        "attention sinks",
    ),
    "position_bias": (
        lambda: hf.InklingTextModel(hf.InklingTextConfig(**INKLING, mlp_layer_types=["dense"])),
        "a learned position bias",
    ),
    "indices": (sparse, "sparse attention"),
    "block_indices": (sparse_blocks, "sparse attention"),
    "is_causal": (
        lambda: hf.GemmaModel(hf.GemmaConfig(**HEADS, use_bidirectional_attention=True)),
        "attention to later tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_is_not_computed_is_refused(name: str) -> None:
    make, what = REFUSED[name]
    model = make().eval()
    record = AttentionRecorder(model).record([ROWS], [COLUMNS])
    with torch.no_grad(), pytest.raises(UsageError, match=f"It has {what}"), record:
        model(input_ids=inputs()["input_ids"][:1], use_cache=False)


@pytest.mark.parametrize("value", [torch.ones(1), 2.0], ids=["tensor", "number"])
def test_an_argument_that_nobody_knows_is_refused(value: Any) -> None:
    """A newer transformers may pass it; its names of settings, which are no numbers, do no harm."""
    model = hf.LlamaModel(hf.LlamaConfig(**SMALL)).eval()
    given = {"input_ids": inputs()["input_ids"][:1], "use_cache": False}
    record = AttentionRecorder(model).record([ROWS], [COLUMNS])
    with torch.no_grad(), pytest.raises(UsageError, match="'strength', which is not known"), record:
        model(**given, strength=value)
    with torch.no_grad(), AttentionRecorder(model).record([ROWS], [COLUMNS]):
        model(**given, strength=True, output_router_logits=False)


class TestAtLoad:
    """The check at load compares with the eager attention that the family's file has."""

    def faults(self, model: Any) -> list[str]:
        witness = Witness(ROWS)
        recorder = AttentionRecorder(model)
        with torch.no_grad(), witness.watching(model), recorder.record([ROWS], [COLUMNS]):
            model(input_ids=inputs()["input_ids"][:1], use_cache=False)
        return witness.faults(torch.float32)

    def test_soft_capping_is_no_fault(self) -> None:
        assert self.faults(capped("Gemma2", "window").model) == []

    def test_a_model_whose_eager_attention_does_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As gpt-oss reads its sinks from the layer: no argument tells it."""
        model = hf.LlamaModel(hf.LlamaConfig(**SMALL)).eval()
        assert self.faults(model) == []
        module = hf.models.llama.modeling_llama
        theirs = hf.models.gpt_oss.modeling_gpt_oss.eager_attention_forward
        for layer in model.layers:
            layer.self_attn.sinks = nn.Parameter(torch.ones(4))
        monkeypatch.setattr(module, eager.NAME, theirs)
        assert [fault.partition(";")[0] for fault in self.faults(model)] == [
            "attention: what the model used is not the causal attention that is recorded"
        ]
