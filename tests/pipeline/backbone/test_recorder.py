"""The recorder against eager attention, which it must never need itself."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from flmm_core.errors import RunError, UsageError
from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.backbone.recorder import NAME, AttentionRecorder, _Share
from flmm_core.pipeline.backbone.rows import Scores, attention_rows, pool_rows
from tests.models import FAMILIES, HEADS, LAYERS, build, samples

EXACT = {"atol": 1e-5, "rtol": 0.0}

shared = functools.cache(build)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Any:
    return shared(request.param)


def eager(vlm: Any, **tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (L, B, N, S, S) and hidden states (L, B, S, D) of a separate eager pass."""
    model = copy.deepcopy(vlm)  # a model shares its config with its copies' recorders otherwise
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.model(
            **tensors, use_cache=False, output_attentions=True, output_hidden_states=True
        )
    return torch.stack(out.attentions), torch.stack(out.hidden_states[1:])


def wanted(mask: Tensor, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Rows in no order, and columns, of each sequence of a padded batch."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = [], []
    for b, row in enumerate(mask):
        real = row.nonzero().flatten()
        order = torch.randperm(len(real), generator=generator)
        rows.append(real[order[: 7 - b]])
        columns.append(real[1 : 30 + 3 * b])
    return rows, columns


@pytest.mark.parametrize("family", [*FAMILIES, "llava_next_window"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_it_agrees_with_an_eager_pass(family: str, side: Any) -> None:
    backbone = shared(family)
    tensors = backbone.collate(samples(backbone), side=side).tensors
    attention, hidden = eager(backbone.vlm, **tensors)
    rows, columns = wanted(tensors["attention_mask"])
    recorder = AttentionRecorder(backbone.vlm.get_decoder())
    with torch.no_grad(), recorder.record(rows, columns) as recording:
        backbone.vlm.model(**tensors, use_cache=False)
    for b, (r, c) in enumerate(zip(rows, columns, strict=True)):
        expected = attention[:, b][:, :, r][..., c]
        assert expected.max() > 0.02, "an attention of zeros would prove nothing"
        torch.testing.assert_close(recording.attention[b], expected, **EXACT)
        torch.testing.assert_close(recording.hidden[b], hidden[:, b][:, r], **EXACT)


def test_a_batch_without_padding_needs_no_mask(backbone: Any) -> None:
    tensors = backbone.collate(samples(backbone)[:1]).tensors
    attention, _ = eager(backbone.vlm, **tensors)
    rows, columns = wanted(tensors["attention_mask"])
    recorder = AttentionRecorder(backbone.vlm.get_decoder())
    with torch.no_grad(), recorder.record(rows, columns) as recording:
        backbone.vlm.model(**tensors, use_cache=False)
    expected = attention[:, 0][:, :, rows[0]][..., columns[0]]
    torch.testing.assert_close(recording.attention[0], expected, **EXACT)


def test_the_models_output_is_untouched(backbone: Any) -> None:
    tensors = backbone.collate(samples(backbone)).tensors
    rows, columns = wanted(tensors["attention_mask"])
    recorder = AttentionRecorder(backbone.vlm.get_decoder())
    with torch.no_grad():
        plain = backbone.vlm(**tensors).logits
        with recorder.record(rows, columns):
            recorded = backbone.vlm(**tensors).logits
    assert torch.equal(plain, recorded)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_rows_are_pooled_by_phrase(pool: Any) -> None:
    backbone = shared("deepseek_vl")
    tensors = backbone.collate(samples(backbone)).tensors
    rows, columns = wanted(tensors["attention_mask"])
    groups = [torch.tensor([0, 1, 0, 2, 2, 1, 0]), torch.tensor([1, 0, 1, 1, 1, 1])]
    recorder = AttentionRecorder(backbone.vlm.get_decoder())
    with torch.no_grad(), recorder.record(rows, columns, groups, pool=pool) as pooled:
        backbone.vlm.model(**tensors, use_cache=False)
    with torch.no_grad(), recorder.record(rows, columns) as apart:
        backbone.vlm.model(**tensors, use_cache=False)
    for b, phrase in enumerate(groups):
        parts = [apart.attention[b][:, :, phrase == p] for p in range(int(phrase.max()) + 1)]
        each = [part.mean(2) if pool == "mean" else part.amax(2) for part in parts]
        torch.testing.assert_close(pooled.attention[b], torch.stack(each, 2))


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_generated_tokens_have_rows(backbone: Any, cache: str) -> None:
    """Prompt rows from the prefill, answer rows from decoding; left padding, as generation has."""
    tensors = backbone.collate(samples(backbone), side="left").tensors
    length, new = tensors["input_ids"].shape[1], 6
    columns = wanted(tensors["attention_mask"])[1]
    # the last generated token is never fed back
    rows = [torch.tensor([length - 3, length, length + new - 2])] * 2
    how: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    if cache == "static":
        how |= {"cache_implementation": "static", "disable_compile": True}
    elif cache == "none":
        how["use_cache"] = False
    recorder = AttentionRecorder(backbone.vlm.get_decoder())
    plain = backbone.vlm.generate(**tensors, **how)
    with recorder.record(rows, columns) as recording:
        answer = backbone.vlm.generate(**tensors, **how)
    assert torch.equal(plain, answer)

    fed = answer[:, :-1]
    longer = {key: value for key, value in tensors.items() if value.shape != (2, length)}
    for key, value in tensors.items():
        if value.shape == (2, length):
            fill = 1 if key == "attention_mask" else 0
            longer[key] = torch.cat([value, value.new_full((2, new - 1), fill)], 1)
    attention, hidden = eager(backbone.vlm, **{**longer, "input_ids": fed})
    for b in range(2):
        expected = attention[:, b][:, :, rows[b]][..., columns[b]]
        torch.testing.assert_close(recording.attention[b], expected, **EXACT)
        torch.testing.assert_close(recording.hidden[b], hidden[:, b][:, rows[b]], **EXACT)


def test_chunked_prefill_is_one_pass_in_pieces() -> None:
    text = shared("llava_next").vlm.get_decoder()
    ids = torch.randint(20, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    rows = [torch.tensor([3, 39, 17]), torch.tensor([25, 0])]
    columns = [torch.arange(2, 30), torch.arange(1, 20)]  # some beyond the first rows' chunk
    recorder = AttentionRecorder(text)
    with torch.no_grad(), recorder.record(rows, columns) as whole:
        text(input_ids=ids, use_cache=False)
    cache = transformers.DynamicCache()
    with torch.no_grad(), recorder.record(rows, columns) as pieces:
        for chunk in ids.split(13, dim=1):
            text(input_ids=chunk, past_key_values=cache, use_cache=True)
    for b in range(2):
        torch.testing.assert_close(pieces.attention[b], whole.attention[b], **EXACT)
        torch.testing.assert_close(pieces.hidden[b], whole.hidden[b], **EXACT)


def test_rows_of_a_bfloat16_model_are_not_rounded() -> None:
    """Within one pass, for two passes differ by more than rounding does."""
    from transformers.masking_utils import eager_mask
    from transformers.models.llama.modeling_llama import eager_attention_forward

    backbone = build("deepseek_vl", dtype=torch.bfloat16)
    tensors = to_vlm(backbone.vlm, backbone.collate(samples(backbone)).tensors)
    seen: list[tuple[Tensor, Tensor]] = []
    real = torch.arange(20, 60)

    def probe(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **kwargs: Any) -> Any:
        output, weights = eager_attention_forward(module, q, k, v, mask, **kwargs)
        rows = attention_rows(
            q[0][:, real], k[0], mask[0][:, real], real, Scores(kwargs["scaling"])
        )
        seen.append((weights[0][:, real].float(), rows))
        return output, weights

    transformers.AttentionInterface.register("probe", probe)
    transformers.AttentionMaskInterface.register("probe", eager_mask)
    backbone.vlm.get_decoder().config._attn_implementation = "probe"
    with torch.no_grad():
        backbone.vlm.model(**tensors, use_cache=False)
    assert len(seen) == LAYERS
    for eager_rows, rows in seen:
        # eager attention rounds the logits, too
        torch.testing.assert_close(rows, eager_rows, rtol=0, atol=0.02)
        torch.testing.assert_close(rows.sum(-1), torch.ones(HEADS, len(real)))
        assert not torch.equal(rows, rows.bfloat16().float())


def test_autocast_does_not_round() -> None:
    query, key = torch.randn(HEADS, 3, 8), torch.randn(2, 12, 8)
    arguments = (query, key, None, torch.tensor([4, 8, 11]), Scores(0.3, 2.0))
    plain = attention_rows(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_rows(*arguments), plain)


def test_a_row_without_any_key_is_not_nan() -> None:
    mask = torch.zeros(1, 1, 12, dtype=torch.bool)
    probs = attention_rows(
        torch.randn(4, 1, 8), torch.randn(2, 12, 8), mask, torch.tensor([5]), Scores(1.0)
    )
    assert torch.isfinite(probs).all()


def test_a_compiled_model_is_recorded_too() -> None:
    text = build("llava_next").vlm.get_decoder()
    ids = torch.arange(20, 60)[None]
    recorder = AttentionRecorder(text)
    rows, columns = [torch.tensor([30, 12])], [torch.arange(10)]
    with torch.no_grad(), recorder.record(rows, columns) as plain:
        text(input_ids=ids, use_cache=False)
    compiled = torch.compile(text, backend="eager")
    with torch.no_grad(), recorder.record(rows, columns) as recording:
        compiled(input_ids=ids, use_cache=False)
    torch.testing.assert_close(recording.attention[0], plain.attention[0])


class TestArming:
    def state(self, vlm: Any) -> tuple[Any, ...]:
        decoder = vlm.get_decoder()
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in decoder.modules()]
        taps = [set(m.__dict__) for m in decoder.modules()]
        return decoder.config._attn_implementation, hooks, taps

    def test_only_the_language_model_is_armed(self) -> None:
        backbone = build("qwen")
        with AttentionRecorder(backbone.vlm.get_decoder()).record([], []):
            assert backbone.vlm.config.text_config._attn_implementation == NAME
            assert backbone.vlm.config.vision_config._attn_implementation == "sdpa"
            assert backbone.vlm.config._attn_implementation == "sdpa"

    def test_all_is_as_before_even_after_an_error(self) -> None:
        backbone = build("deepseek_vl")
        before = self.state(backbone.vlm)
        recorder = AttentionRecorder(backbone.vlm.get_decoder())

        def fail() -> None:
            with recorder.record([torch.tensor([0])], [columns()]):
                assert self.state(backbone.vlm) != before
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert self.state(backbone.vlm) == before

    def test_a_second_recording_is_refused(self) -> None:
        decoder = build("deepseek_vl").vlm.get_decoder()
        first, second = AttentionRecorder(decoder), AttentionRecorder(decoder)
        with (
            pytest.raises(RuntimeError, match="already being recorded"),
            first.record([], []),
            second.record([], []),
        ):
            pass
        assert decoder.config._attn_implementation == "sdpa"


def columns() -> Tensor:
    return torch.arange(4)


class TestRefusals:
    def text(self) -> tuple[Any, Tensor]:
        return build("llava_next_mistral").vlm.get_decoder(), torch.arange(20, 60)[None]

    def test_a_row_that_was_never_reached(self) -> None:
        text, ids = self.text()
        rows = [torch.tensor([3, 39, 40, 41])]
        groups = [torch.tensor([0, 0, 1, 1])]
        record = AttentionRecorder(text).record(rows, [columns()], groups, names=["boat"])
        with pytest.raises(RunError) as error, record:
            text(input_ids=ids, use_cache=False)
        assert str(error.value) == (
            "The attention of sample 'boat' was not recorded.\n"
            "Row 2 (phrase 1) is token 40, which layer 0 never ran; 2 of 4 rows are missing.\n"
            "Rows must be tokens that are fed to the model; "
            "the last generated token never is."
        )

    def test_a_batch_of_another_size(self) -> None:
        text, ids = self.text()
        record = AttentionRecorder(text).record([torch.tensor([3])], [columns()])
        with pytest.raises(RunError, match="The model ran 2 sequences") as error, record:
            text(input_ids=ids.expand(2, -1), use_cache=False)
        assert "beam search" in error.value.repair

    def test_a_cache_that_drops_keys(self) -> None:
        text, ids = self.text()
        text.config.sliding_window = 16
        cache = transformers.DynamicCache(config=text.config)
        with torch.no_grad():
            text(input_ids=ids[:, :39], past_key_values=cache, use_cache=True)
        record = AttentionRecorder(text).record([torch.tensor([39])], [columns()])
        with torch.no_grad(), pytest.raises(RunError, match="16 of 40 are left"), record:
            text(input_ids=ids[:, 39:], past_key_values=cache, use_cache=True)

    def test_a_model_without_layers(self) -> None:
        with pytest.raises(UsageError, match="layers without self-attention"):
            AttentionRecorder(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("family", ["qwen", "llava_next"])
def test_layers_are_summed_while_the_model_runs(family: str) -> None:
    backbone = shared(family)
    batch = backbone.collate(samples(backbone))
    weights = [0.5, 0.2, 0.3]
    kept = backbone.trace(batch)
    summed = backbone.trace(batch, layer_weights=weights)
    for one, other in zip(kept, summed, strict=True):
        expected = torch.einsum("l,ltd->td", torch.tensor(weights), one.hidden)
        assert other.hidden.shape == (1, *expected.shape)
        torch.testing.assert_close(other.hidden[0], expected, **EXACT)
        assert torch.equal(one.attention, other.attention)


def test_no_layer_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer needs is on its device: only the first one sends it there."""
    backbone = shared("qwen")
    batch = backbone.collate(samples(backbone))
    sent: list[int] = []
    made = _Share.of

    def of(*arguments: Any) -> _Share:
        sent.append(1)
        return made(*arguments)

    monkeypatch.setattr(_Share, "of", of)
    backbone.trace(batch)
    assert len(sent) == len(batch)


def test_autocast_does_not_round_what_is_pooled() -> None:
    probs, weights = torch.rand(HEADS, 3, 40), torch.rand(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool_rows(weights, probs, len(weights))
    assert torch.equal(pooled, torch.matmul(weights, probs))
