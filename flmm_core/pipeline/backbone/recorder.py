"""Records only the wanted rows of each layer's attention while the VLM runs with sdpa.

transformers lets a model name the function that computes its attention. We register one that
passes queries and keys, after rotary embedding and KV cache, to an armed recording and then
returns sdpa's output unchanged; where a family soft-caps its logits, which sdpa cannot, that of
the family's own eager attention. The recording recomputes the few rows that it wants: no eager
attention, no S x S matrix, and the same code for every architecture.

Index tensors are built on the CPU and copied to each device once per forward, so no layer
synchronizes with the device.

Rows and columns are positions in the padded sequence. The position of a forward's first token is
read from the KV cache, so prefill, chunked prefill, decoding and a static cache share one path.
Where a layer runs a row again, the row is the mean of its runs: gradient checkpointing changes
nothing, and a model that passes over its tokens twice is recorded in both passes. The last token
that `generate` produces is never fed back and so has no row. `follow` keeps what the rows of all
later tokens can be computed from, where it is not known yet which are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flmm_core.errors import RunError
from flmm_core.pipeline.backbone.eager import is_causal, own_eager
from flmm_core.pipeline.backbone.following import Following
from flmm_core.pipeline.backbone.rows import (
    Scores,
    attention_rows,
    check_attention,
    pool_rows,
    pooling_weights,
    split_ends,
    unsupported,
)

Pool = Literal["mean", "max"]

# transformers treats names with "flash", "sdpa", "flex_attention", "paged|" or "/" specially.
NAME = "flmm_recorder"
TAP, WITNESS = "_flmm_tap", "_flmm_witness"


@cache
def _register() -> None:
    """Register the recording attention in transformers under our own name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        kwargs["is_causal"] = is_causal(module, kwargs)
        tap = getattr(module, TAP, None)
        if tap is not None:
            tap(query, key, mask, **kwargs)
        if kwargs.get("softcap") is None:
            output = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        elif (eager := own_eager(module)) is not None:  # sdpa cannot
            output = eager(module, query, key, value, mask, **kwargs)[0], None
        else:
            raise unsupported("soft-capping without an eager attention of its own")
        witness = getattr(module, WITNESS, None)  # set only by the checks at load
        if witness is not None:
            witness(module, query, key, value, mask, output[0], **kwargs)
        return output

    AttentionInterface.register(NAME, attend)
    # without a mask function of the same name, padding would silently be ignored
    AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass
class _Wanted:
    """What to record of one sample; on the CPU, because selecting rows must not synchronize."""

    name: str
    rows: Tensor  # (T,) positions of the queries
    columns: Tensor  # (M,) positions of the keys
    groups: Tensor  # (T,) the phrase that each row is pooled into
    phrases: int  # P
    pooling: Tensor  # (P * (1 + K), T), see `pooling_weights`
    seen: Tensor  # (L, T) how often each layer has recorded a row's attention
    passed: Tensor  # (L, T) how often it has recorded a row's hidden state


@dataclass
class _Share:
    """The wanted rows of a sample that one forward runs, on the device that runs them.

    Only `slots` and `columns_at` are on the CPU; a layer on another device has its own share.
    """

    slots: Tensor  # (t,) indices of the rows
    positions: Tensor  # (t,) of the queries among the keys
    local: Tensor  # (t,) of the queries among this forward's tokens
    kept: Tensor  # (t,) `slots` on the device
    groups: Tensor  # (t,) the phrase of each row
    pooling: Tensor  # (P * (1 + K), t) float32, averages the rows of a phrase
    phrases: int  # P
    columns: Tensor  # (m,) positions of the keys so far
    columns_at: Tensor | slice  # (m,) their indices in the result

    @classmethod
    def of(
        cls, want: _Wanted, slots: Tensor, start: int, keys: int, device: torch.device
    ) -> _Share:
        # in chunked prefill an image token may lie beyond the keys so far: its attention is 0
        there = (want.columns < keys).nonzero().flatten()
        return cls(
            slots=slots,
            positions=want.rows[slots].to(device),
            local=(want.rows[slots] - start).to(device),
            kept=slots.to(device),
            groups=want.groups[slots].to(device),
            pooling=want.pooling[:, slots].to(device),
            phrases=want.phrases,
            columns=want.columns[there].to(device),
            columns_at=slice(None) if len(there) == len(want.columns) else there,
        )

    def pool(self, probs: Tensor, pool: Pool) -> Tensor:
        """(N, t, S) -> (N, P * (1 + K), m): the rows pooled, at the wanted columns."""
        if pool == "mean":  # first: selecting the columns of P rows is cheaper than those of t
            return pool_rows(self.pooling, probs, self.phrases)[..., self.columns]
        rows = probs[..., self.columns]  # (N, t, m)
        pooled = rows.new_zeros(len(rows), len(self.pooling), len(self.columns))
        groups = self.groups[None, :, None].expand_as(rows)
        return pooled.scatter_reduce_(1, groups, rows, "amax")


class Recording:
    """What one `record` block has recorded; complete when the block has ended.

    Attributes:
        attention: Per sample, (L, N, P, M) float32 probabilities pooled by phrase, or
            (L, N, T, M) by row without groups.
        ends: Per sample, (L, N, P, K, M), the rows of each phrase's last K tokens, the very last
            first, where there are fewer its mean; None for K = 0.
        hidden: Per sample, (L, T, D) float32, without gradient; the last is after the final norm.
            With layer weights, their weighted sum (1, T, D).
    """

    def __init__(
        self, wanted: list[_Wanted], pool: Pool, layer_weights: Sequence[float] | None
    ) -> None:
        self.attention: list[Tensor] = []
        self.ends: list[Tensor | None] = [None] * len(wanted)
        self.hidden: list[Tensor] = []
        self._wanted = wanted
        self._pool = pool
        self._layer_weights = layer_weights
        self._start = 0
        self._shares: dict[tuple[int, int, int, torch.device], _Share] = {}

    def begin(self, start: int) -> None:
        """Before a forward whose first token is at this position."""
        self._start = start
        self._shares.clear()

    def _share(self, b: int, count: int, keys: int, device: torch.device) -> _Share:
        """The rows of sample b in this forward of `count` tokens, the same for every layer."""
        key = (b, count, keys, device)
        if key not in self._shares:
            want, start = self._wanted[b], self._start
            slots = ((want.rows >= start) & (want.rows < start + count)).nonzero().flatten()
            self._shares[key] = _Share.of(want, slots, start, keys, device)
        return self._shares[key]

    @torch.no_grad()
    def see_hidden(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """After a layer or the final norm: record the wanted rows of (B, q, D)."""
        states: Tensor = output[0] if isinstance(output, tuple) else output
        mixed = self._layer_weights is not None
        if not self.hidden:
            sizes = [((1 if mixed else len(w.seen)), len(w.rows)) for w in self._wanted]
            self.hidden = [states.new_zeros(*n, states.shape[2]).float() for n in sizes]
        wanted = zip(self._wanted, self.hidden, states, strict=True)
        for b, (want, kept, sample) in enumerate(wanted):
            share = self._share(b, len(sample), self._start + len(sample), sample.device)
            rows, slots = sample[share.local].to(kept), share.kept.to(kept.device)  # (t, D), (t,)
            want.passed[index, share.slots] += 1
            if self._layer_weights is None:
                kept[index].index_add_(0, slots, rows)
            else:
                kept[0].index_add_(0, slots, rows, alpha=self._layer_weights[index])

    @torch.no_grad()
    def see_attention(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> None:
        """Record the wanted rows of one layer: query (B, N, q, d), key (B, N_kv, K, d)."""
        check_attention(query, key, mask, kwargs, self._start, len(self._wanted))
        scores = Scores.of(query, kwargs)
        if not self.attention:
            n = query.shape[1]
            sizes = [(len(w.seen), n, len(w.pooling), len(w.columns)) for w in self._wanted]
            self.attention = [torch.zeros(size, device=query.device) for size in sizes]
        keys = key.shape[2]
        for b, (want, total) in enumerate(zip(self._wanted, self.attention, strict=True)):
            share = self._share(b, query.shape[2], keys, query.device)
            if not len(share.slots):
                continue
            want.seen[index, share.slots] += 1
            bias = None if mask is None else mask[b % len(mask)][:, share.local, :keys]
            rows = query[b][:, share.local]
            probs = attention_rows(rows, key[b], bias, share.positions, scores)  # (N, t, K)
            pooled = share.pool(probs, self._pool).to(total.device)
            merge = torch.add if self._pool == "mean" else torch.maximum
            at = share.columns_at
            total[index][..., at] = merge(total[index][..., at], pooled)

    def finish(self) -> None:
        """Check that every layer recorded every row; rows that ran several times become means."""
        for b, want in enumerate(self._wanted):
            for layer, slot in (want.seen == 0).nonzero()[:1].tolist():
                raise RunError(
                    f"The attention of sample '{want.name}' was not recorded.",
                    found=f"Row {slot} (phrase {int(want.groups[slot])}) is token "
                    f"{int(want.rows[slot])}, which layer {layer} never ran; "
                    f"{int((want.seen[layer] == 0).sum())} of {len(want.rows)} rows are missing.",
                    repair="Rows must be tokens that are fed to the model; "
                    "the last generated token never is.",
                )
            if (want.seen > 1).any() or (want.passed > 1).any():
                self._average(want, b)
            if self.attention:
                self.attention[b], self.ends[b] = split_ends(self.attention[b], want.phrases)

    def _average(self, want: _Wanted, b: int) -> None:
        """Sums over several runs -> means."""
        runs, passed = want.seen, want.passed  # (L, T)
        mixed = self._layer_weights is not None
        by_phrase = torch.zeros(len(runs), want.phrases)  # (L, P)
        by_phrase.scatter_reduce_(1, want.groups.expand_as(runs), runs.float(), "amax")
        even = bool((by_phrase.gather(1, want.groups.expand_as(runs)) == runs).all())
        if not even or (mixed and (passed != passed[0]).any()):
            raise RunError(
                f"The attention of sample '{want.name}' was recorded unevenly.",
                found="Layers ran some of its rows more often than others: "
                f"{int(runs.min())} to {int(runs.max())} times.",
                repair="Run whole sequences within one recording.",
            )
        if self._pool == "mean":  # the highest of all runs is the highest of one
            runs_of = by_phrase.repeat(1, len(want.pooling) // max(1, want.phrases))
            self.attention[b] /= runs_of[:, None, :, None].to(self.attention[b].device)
        divisor = (passed[:1] if mixed else passed).clamp(min=1)[..., None]
        self.hidden[b] /= divisor.to(self.hidden[b].device)


class AttentionRecorder:
    """Records the attention of `vlm.get_decoder()`; the vision tower is not affected.

    Raises:
        UsageError: The model's architecture is not supported.
    """

    def __init__(self, decoder: nn.Module) -> None:
        _register()
        self._decoder: Any = decoder
        layers = getattr(decoder, "layers", None)
        if layers is None or not all(hasattr(layer, "self_attn") for layer in layers):
            raise unsupported("layers without self-attention")
        if not hasattr(decoder, "norm"):
            raise unsupported("no final norm")

    @contextmanager
    def record(
        self,
        rows: Sequence[Tensor],
        columns: Sequence[Tensor],
        groups: Sequence[Tensor] | None = None,
        *,
        names: Sequence[str] | None = None,
        pool: Pool = "mean",
        ends: int = 0,
        layer_weights: Sequence[float] | None = None,
    ) -> Iterator[Recording]:
        """Record what the model computes within the block.

        Args:
            rows: Per sample, (T,) positions of the wanted queries in the padded sequence.
            columns: Per sample, (M,) positions of the wanted keys.
            groups: Per sample, (T,) the phrase 0..P-1 of each row; by default every row its own.
            names: Per sample, its name in messages.
            pool: Over the rows of a phrase.
            ends: K, how many last tokens of each phrase are kept apart, too; with "mean" only.
            layer_weights: L numbers, to sum the hidden states with instead of keeping them.

        Raises:
            RunError: A row was never reached, the batch size differs, or the KV cache has
                dropped keys.
            RuntimeError: The model is already being recorded.
        """
        layers = self._decoder.layers
        if groups is None:
            groups = [torch.arange(len(r)) for r in rows]
        names = [str(b) for b in range(len(rows))] if names is None else names
        if ends and pool != "mean":
            raise ValueError("the last tokens can be kept apart beside the mean only")
        counts = [len(g.unique()) for g in groups]
        wanted = [
            _Wanted(
                name=name,
                rows=r.cpu(),
                columns=c.cpu(),
                groups=g.cpu(),
                phrases=count,
                pooling=pooling_weights(g.cpu(), count, ends),
                seen=torch.zeros(len(layers), len(r), dtype=torch.int64),
                passed=torch.zeros(len(layers), len(r), dtype=torch.int64),
            )
            for name, r, c, g, count in zip(names, rows, columns, groups, counts, strict=True)
        ]
        recording = Recording(wanted, pool, layer_weights)
        with self._watched_by(recording):
            yield recording
        recording.finish()

    @contextmanager
    def follow(self, first: int) -> Iterator[Following]:
        """Keep what is needed of every token from position `first` on, of one sequence.

        Raises:
            UsageError: The attention cannot be computed again.
            RunError: Several sequences run, or the KV cache has dropped keys.
            RuntimeError: The model is already being recorded.
        """
        following = Following(len(self._decoder.layers), first)
        with self._watched_by(following):
            yield following

    @contextmanager
    def _watched_by(self, watcher: Recording | Following) -> Iterator[None]:
        layers = self._decoder.layers
        config = self._decoder.config  # the language model's own; all its layers share it
        if config._attn_implementation == NAME:
            raise RuntimeError("the attention of this model is already being recorded")
        see_attention = torch.compiler.disable(watcher.see_attention)
        with ExitStack() as undo:
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = NAME
            begin = partial(_begin, watcher)
            undo.callback(layers[0].register_forward_pre_hook(begin, with_kwargs=True).remove)
            # the last hidden state is the one after the norm
            sources = [*layers[:-1], self._decoder.norm]
            for index, (layer, source) in enumerate(zip(layers, sources, strict=True)):
                setattr(layer.self_attn, TAP, partial(see_attention, index))
                undo.callback(delattr, layer.self_attn, TAP)
                hook = source.register_forward_hook(partial(watcher.see_hidden, index))
                undo.callback(hook.remove)
            yield


def _begin(
    watcher: Recording | Following, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Before layer 0: the position of this forward's first token."""
    given = (*args, *kwargs.values())
    past = next((value for value in given if hasattr(value, "get_seq_length")), None)
    watcher.begin(0 if past is None else int(past.get_seq_length()))
