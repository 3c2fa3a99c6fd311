"""Keeps only the wanted rows of each layer's attention while the VLM runs, with sdpa.

transformers lets a model name the function that computes its attention. We register one that
shows queries and keys, as they are after rotary positions and the KV cache, to an armed recording
and then returns sdpa's output untouched. The recording computes the few rows that it wants anew:
no eager attention, no S x S of it, and one code for every architecture.

Rows and columns are absolute places in the padded sequence. Where a forward's first token stands
is read off the KV cache, so prefill, chunked prefill, decoding and a static cache share one path,
and a layer that gradient checkpointing runs again adds nothing. The last token that `generate`
makes is never fed back and so has no row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_core.errors import RunError, UsageError
from flmm_core.pipeline.attention_rows import Precision, attention_rows

Pool = Literal["mean", "max"]

# transformers treats names with "flash", "sdpa", "flex_attention", "paged|" or "/" specially.
NAME = "flmm_recorder"
TAP = "_flmm_tap"
UNSUPPORTED = {
    "softcap": "soft-capping",
    "s_aux": "attention sinks",
    "position_bias": "a learned position bias",
    "cache": "a paged cache",
}


@cache
def _register() -> None:
    """Make the recording attention known to transformers under our own name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        tap = getattr(module, TAP, None)
        if tap is not None:
            tap(query, key, mask, **kwargs)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(NAME, attend)
    # without a mask function of the same name padding would silently be ignored
    AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass
class _Wanted:
    """What is wanted of one sample (on the CPU: choosing rows must not synchronise)."""

    name: str
    rows: Tensor  # (T,) places of the queries
    columns: Tensor  # (M,) places of the keys
    reach: int  # the place after the last of them
    groups: Tensor  # (T,) the phrase that each row is pooled into
    weights: Tensor  # (T,) 1 / number of the phrase's rows
    seen: Tensor  # (L, T) bool, which rows each layer has run

    def within(self, start: int, count: int) -> Tensor:
        """(t,) which rows are among `count` tokens from `start` on."""
        return ((self.rows >= start) & (self.rows < start + count)).nonzero().flatten()


class Recording:
    """What one `record` block has seen; complete when the block has ended.

    Attributes:
        attention: Per sample, (L, N, P, M) float32 probabilities pooled by phrase, or
            (L, N, T, M) by row without groups.
        hidden: Per sample, (L, T, D) float32, without gradient; the last is after the final norm.
    """

    def __init__(self, wanted: list[_Wanted], pool: Pool, precision: Precision) -> None:
        self.attention: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self._wanted = wanted
        self._pool = pool
        self._precision = precision
        self._start = 0

    def _begin(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before layer 0: the place of this forward's first token."""
        given = (*args, *kwargs.values())
        past = next((value for value in given if hasattr(value, "get_seq_length")), None)
        self._start = 0 if past is None else int(past.get_seq_length())

    def _see_hidden(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """After a layer or the final norm: keep the wanted rows of (B, q, D)."""
        states: Tensor = output[0] if isinstance(output, tuple) else output
        if not self.hidden:
            size = states.shape[2]
            self.hidden = [states.new_zeros(*w.seen.shape, size).float() for w in self._wanted]
        for want, kept, sample in zip(self._wanted, self.hidden, states.detach(), strict=True):
            slots = want.within(self._start, len(sample))
            rows = sample[(want.rows[slots] - self._start).to(sample.device)]  # (t, D)
            kept[index, slots.to(kept.device)] = rows.to(kept)

    @torch.no_grad()
    def _see_attention(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        *,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the wanted rows of one layer: query (B, N, q, d), key (B, N_kv, K, d)."""
        _refuse(len(self._wanted), self._start, query, key, mask, kwargs)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if not self.attention:
            self.attention = [
                torch.zeros(
                    *(len(w.seen), query.shape[1], len(w.groups.unique()), len(w.columns)),
                    device=query.device,
                )
                for w in self._wanted
            ]
        for b, (want, total) in enumerate(zip(self._wanted, self.attention, strict=True)):
            slots = want.within(self._start, query.shape[2])
            slots = slots[~want.seen[index, slots]]
            if not len(slots):
                continue
            want.seen[index, slots] = True
            places = want.rows[slots].to(query.device)
            local = places - self._start
            bias = None if mask is None else mask[b % len(mask)][:, local, : key.shape[2]]
            probs = attention_rows(
                query[b][:, local], key[b], bias, places, scale, self._precision
            )  # (N, t, K)
            # in chunked prefill an image token may lie beyond the keys so far: it gets nothing
            probs = F.pad(probs, (0, max(0, want.reach - key.shape[2])))
            rows = probs[..., want.columns.to(probs.device)].to(total.device)  # (N, t, M)
            groups = want.groups[slots].to(total.device)
            if self._pool == "mean":
                rows = rows * want.weights[slots].to(total.device)[:, None]
                total[index].index_add_(1, groups, rows)
            else:
                groups = groups[None, :, None].expand_as(rows)
                total[index].scatter_reduce_(1, groups, rows, "amax")

    def _finish(self) -> None:
        """Check that every layer ran every row."""
        for want in self._wanted:
            for layer, slot in (~want.seen).nonzero()[:1].tolist():
                raise RunError(
                    f"The attention of sample '{want.name}' was not recorded.",
                    found=f"Row {slot} (phrase {int(want.groups[slot])}) is token "
                    f"{int(want.rows[slot])}, which layer {layer} never ran; "
                    f"{int((~want.seen[layer]).sum())} of {len(want.rows)} rows are missing.",
                    repair="Rows must lie within the tokens that are fed to the model; "
                    "the last generated token never is.",
                )


class AttentionRecorder:
    """Records the attention of a transformers language model.

    Args:
        decoder: `vlm.get_decoder()`, the language model; the vision tower is left alone.

    Raises:
        UsageError: The model is built so that its attention cannot be recorded.
    """

    def __init__(self, decoder: nn.Module) -> None:
        _register()
        self._decoder: Any = decoder
        layers = getattr(decoder, "layers", None)
        if layers is None or not all(hasattr(layer, "self_attn") for layer in layers):
            raise _unsupported("layers without self-attention")
        if not hasattr(decoder, "norm"):
            raise _unsupported("no final norm")
        if getattr(self._decoder.config, "attn_logit_softcapping", None) is not None:
            raise _unsupported(UNSUPPORTED["softcap"])

    @contextmanager
    def record(
        self,
        rows: Sequence[Tensor],
        columns: Sequence[Tensor],
        groups: Sequence[Tensor] | None = None,
        *,
        names: Sequence[str] | None = None,
        pool: Pool | None = "mean",
        precision: Precision = "fp32",
    ) -> Iterator[Recording]:
        """Record what the model computes within the block.

        Args:
            rows: Per sample, (T,) places of the wanted queries in the padded sequence.
            columns: Per sample, (M,) places of the wanted keys.
            groups: Per sample, (T,) the phrase 0..P-1 of each row; without it, rows stay apart.
            names: Per sample, its name in messages.
            pool: "mean" or "max" over the rows of a phrase; None keeps rows apart.
            precision: "fp32" never rounds; "model" rounds where eager attention would.

        Raises:
            RunError: A row was never reached, the batch has another size, or the KV cache has
                dropped keys.
            RuntimeError: The model is being recorded already.
        """
        layers, norm = self._decoder.layers, self._decoder.norm
        config = self._decoder.config  # the language model's own; all its layers share it
        if config._attn_implementation == NAME:
            raise RuntimeError("the attention of this model is being recorded already")
        if pool is None or groups is None:
            groups = [torch.arange(len(r)) for r in rows]
        names = [str(b) for b in range(len(rows))] if names is None else names
        wanted = [
            _Wanted(
                name=name,
                rows=r.cpu(),
                columns=c.cpu(),
                reach=max(c.tolist(), default=-1) + 1,
                groups=g.cpu(),
                weights=1 / g.cpu().bincount()[g.cpu()],
                seen=torch.zeros(len(layers), len(r), dtype=torch.bool),
            )
            for name, r, c, g in zip(names, rows, columns, groups, strict=True)
        ]
        recording = Recording(wanted, pool or "mean", precision)
        see_attention = torch.compiler.disable(recording._see_attention)
        with ExitStack() as undo:
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = NAME
            hook = layers[0].register_forward_pre_hook(recording._begin, with_kwargs=True)
            undo.callback(hook.remove)
            # layers 0..L-2 and the norm: the last hidden state is the one after it
            for index, (layer, source) in enumerate(zip(layers, [*layers[:-1], norm], strict=True)):
                setattr(layer.self_attn, TAP, partial(see_attention, index))
                undo.callback(delattr, layer.self_attn, TAP)
                hook = source.register_forward_hook(partial(recording._see_hidden, index))
                undo.callback(hook.remove)
            yield recording
        recording._finish()


def _refuse(
    samples: int,
    start: int,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    """Stop at attention that the rows would not be exact for."""
    for name, what in UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise _unsupported(what)
    if mask is None and kwargs.get("is_causal") is False:
        raise _unsupported("attention to later tokens")
    if len(query) != samples:
        raise RunError(
            f"The attention of {samples} samples was to be recorded.",
            found=f"The model ran {len(query)} sequences.",
            repair="Give rows for each sequence; beam search cannot be recorded.",
        )
    if key.shape[2] < start + query.shape[2]:
        raise RunError(
            "The attention cannot be recorded: the KV cache has dropped keys.",
            found=f"{key.shape[2]} of {start + query.shape[2]} are left (a sliding window).",
            repair="Use a cache that keeps them all, or shorter sequences.",
        )


def _unsupported(what: str) -> UsageError:
    return UsageError(
        "The attention of this model cannot be recorded.",
        found=f"It has {what}.",
        repair="Choose a model with ordinary causal attention.",
    )
