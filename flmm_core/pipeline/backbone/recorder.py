"""Keeps only the wanted rows of each layer's attention while the VLM runs, with sdpa.

transformers lets a model name the function that computes its attention. We register one that
shows queries and keys, as they are after rotary positions and the KV cache, to an armed recording
and then returns sdpa's output untouched. The recording computes the few rows that it wants anew:
no eager attention, no S x S of it, and one code for every architecture.

What is wanted is worked out on the CPU and goes to each device once a forward: no layer waits for
the device. A layer keeps nothing but its rows' probabilities and, of them, what is returned.

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
from torch import Tensor, nn

from flmm_core.errors import RunError, UsageError
from flmm_core.pipeline.backbone.attention_rows import Precision, attention_rows, pool_rows

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
    groups: Tensor  # (T,) the phrase that each row is pooled into
    phrases: int  # P
    weights: Tensor  # (T,) 1 / number of the phrase's rows
    seen: Tensor  # (L, T) bool, which rows' attention each layer has run
    mixed: Tensor  # (L, T) bool, which rows' hidden states are in the weighted sum

    def within(self, start: int, count: int) -> Tensor:
        """(t,) which rows are among `count` tokens from `start` on."""
        return ((self.rows >= start) & (self.rows < start + count)).nonzero().flatten()


@dataclass
class _Share:
    """Those of a sample's wanted rows that one forward runs, on the device that runs them.

    `slots` alone is on the CPU; a layer on another device has its own share.
    """

    slots: Tensor  # (t,) which of the rows
    places: Tensor  # (t,) of the queries among the keys
    local: Tensor  # (t,) of the queries among this forward's tokens
    kept: Tensor  # (t,) `slots` again
    groups: Tensor  # (t,) the phrase of each
    mean: Tensor  # (P, t) float32, what pools the rows of a phrase by their mean
    columns: Tensor  # (M,) places of the keys that there are
    columns_at: Tensor | None  # (M,) where they go in the result, None: everywhere in order

    @classmethod
    def of(
        cls, want: _Wanted, slots: Tensor, start: int, keys: int, device: torch.device
    ) -> _Share:
        groups = want.groups[slots]
        mean = torch.zeros(want.phrases, len(slots))
        mean[groups, torch.arange(len(slots))] = want.weights[slots]
        # in chunked prefill an image token may lie beyond the keys so far: it gets nothing
        there = (want.columns < keys).nonzero().flatten()
        return cls(
            slots=slots,
            places=want.rows[slots].to(device),
            local=(want.rows[slots] - start).to(device),
            kept=slots.to(device),
            groups=groups.to(device),
            mean=mean.to(device),
            columns=want.columns[there].to(device),
            columns_at=None if len(there) == len(want.columns) else there.to(device),
        )


class Recording:
    """What one `record` block has seen; complete when the block has ended.

    Attributes:
        attention: Per sample, (L, N, P, M) float32 probabilities pooled by phrase, or
            (L, N, T, M) by row without groups.
        hidden: Per sample, (L, T, D) float32, without gradient; the last is after the final norm.
            With weights for the layers, (1, T, D): their weighted sum.
    """

    def __init__(
        self,
        wanted: list[_Wanted],
        pool: Pool,
        precision: Precision,
        layer_weights: Sequence[float] | None,
    ) -> None:
        self.attention: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self._wanted = wanted
        self._pool = pool
        self._precision = precision
        self._layer_weights = layer_weights
        self._start = 0
        self._shares: dict[tuple[int, int, int, torch.device], _Share] = {}

    def _begin(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before layer 0: the place of this forward's first token."""
        given = (*args, *kwargs.values())
        past = next((value for value in given if hasattr(value, "get_seq_length")), None)
        self._start = 0 if past is None else int(past.get_seq_length())
        self._shares.clear()

    def _share(self, b: int, count: int, keys: int, device: torch.device) -> _Share:
        """What this forward of `count` tokens runs of sample b, the same for every layer."""
        key = (b, count, keys, device)
        if key not in self._shares:
            want = self._wanted[b]
            slots = want.within(self._start, count)
            self._shares[key] = _Share.of(want, slots, self._start, keys, device)
        return self._shares[key]

    @torch.no_grad()
    def _see_hidden(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """After a layer or the final norm: keep the wanted rows of (B, q, D)."""
        states: Tensor = output[0] if isinstance(output, tuple) else output
        mixed = self._layer_weights is not None
        if not self.hidden:
            sizes = [((1 if mixed else len(w.seen)), len(w.rows)) for w in self._wanted]
            self.hidden = [states.new_zeros(*n, states.shape[2]).float() for n in sizes]
        for b, (want, kept, sample) in enumerate(
            zip(self._wanted, self.hidden, states, strict=True)
        ):
            share = self._share(b, len(sample), self._start + len(sample), sample.device)
            rows = sample[share.local].to(kept)  # (t, D)
            slots = share.kept.to(kept.device)
            if self._layer_weights is None:
                kept[index, slots] = rows
                continue
            fresh = ~want.mixed[index, share.slots]
            want.mixed[index, share.slots] = True
            if not fresh.all():  # this layer runs again
                rows, slots = rows[fresh], slots[fresh]
            kept[0].index_add_(0, slots, rows, alpha=self._layer_weights[index])

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
                    *(len(w.seen), query.shape[1], w.phrases, len(w.columns)), device=query.device
                )
                for w in self._wanted
            ]
        keys = key.shape[2]
        for b, (want, total) in enumerate(zip(self._wanted, self.attention, strict=True)):
            share = self._share(b, query.shape[2], keys, query.device)
            seen = want.seen[index, share.slots]
            if seen.any():  # this layer runs again; rarely only some of its rows do
                left = share.slots[~seen]
                share = _Share.of(want, left, self._start, keys, query.device)
            if not len(share.slots):
                continue
            want.seen[index, share.slots] = True
            bias = None if mask is None else mask[b % len(mask)][:, share.local, :keys]
            probs = attention_rows(
                query[b][:, share.local], key[b], bias, share.places, scale, self._precision
            )  # (N, t, K)
            if self._pool == "mean":
                # pooled over all keys first: copying columns of P rows is cheaper than of t
                rows = pool_rows(share.mean, probs)[..., share.columns].to(
                    total.device
                )  # (N, P, M)
                _add(total[index], rows, share.columns_at)
            else:
                rows = probs[..., share.columns].to(total.device)  # (N, t, M)
                if share.columns_at is not None:
                    spread = rows.new_zeros(*rows.shape[:2], len(want.columns))
                    rows = spread.index_copy_(2, share.columns_at.to(rows.device), rows)
                groups = share.groups.to(total.device)[None, :, None].expand_as(rows)
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
        layer_weights: Sequence[float] | None = None,
    ) -> Iterator[Recording]:
        """Record what the model computes within the block.

        Args:
            rows: Per sample, (T,) places of the wanted queries in the padded sequence.
            columns: Per sample, (M,) places of the wanted keys.
            groups: Per sample, (T,) the phrase 0..P-1 of each row; without it, rows stay apart.
            names: Per sample, its name in messages.
            pool: "mean" or "max" over the rows of a phrase; None keeps rows apart.
            precision: "fp32" never rounds; "model" rounds where eager attention would.
            layer_weights: L numbers: hidden states are summed with them while the model runs,
                instead of kept.

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
                groups=g.cpu(),
                phrases=len(g.unique()),
                weights=1 / g.cpu().bincount()[g.cpu()],
                seen=torch.zeros(len(layers), len(r), dtype=torch.bool),
                mixed=torch.zeros(len(layers), len(r), dtype=torch.bool),
            )
            for name, r, c, g in zip(names, rows, columns, groups, strict=True)
        ]
        recording = Recording(wanted, pool or "mean", precision, layer_weights)
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


def _add(total: Tensor, rows: Tensor, columns: Tensor | None) -> None:
    """Add rows (N, P, m) to (N, P, M) in place, at some columns or at all."""
    if columns is None:
        total.add_(rows)
    else:
        total.index_add_(2, columns.to(total.device), rows)


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
