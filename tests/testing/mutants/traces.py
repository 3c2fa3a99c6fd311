"""Faults of what is recorded, and of how samples meet in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.testing.mutants.mutant import Make, method, mutant

SHAPES, EAGER, OPTIONS, BATCH, PREFIX = (
    "check_trace_shapes",
    "check_trace_equals_eager",
    "check_trace_options",
    "check_batch_independence",
    "check_shared_prefixes",
)


def traced(**changes: Callable[[Tensor], Tensor]) -> Make:
    """Attention or hidden states that are changed after they are recorded."""

    def wrong(self: Any, right: Any, batch: Any, **kwargs: Any) -> Any:
        return tuple(
            replace(t, **{key: change(getattr(t, key)) for key, change in changes.items()})
            for t in right(batch, **kwargs)
        )

    return method("trace", wrong)


mutant(SHAPES, "attention of one head only")(traced(attention=lambda a: a[:, :1]))
mutant(SHAPES, "attention in half precision")(traced(attention=Tensor.half))
mutant(SHAPES, "attention before softmax")(traced(attention=Tensor.log))
mutant(SHAPES, "attention in percent")(traced(attention=lambda a: a * 100))
mutant(SHAPES, "hidden states with a graph")(traced(hidden=lambda h: h.requires_grad_()))
mutant(SHAPES, "one layer too many")(traced(hidden=lambda h: torch.cat([h[:1], h])))
mutant(SHAPES, "one row for each phrase")(traced(hidden=lambda h: h[:, :2]))

for name, change in {
    "0.1 % too large": lambda a: a * 1.001,
    "normalized over the image tokens": lambda a: a / a.sum(-1, True),
    "with two heads swapped": lambda a: a[:, [1, 0, *range(2, a.shape[1])]],
    "with its heads in reverse": lambda a: a.flip(1),
    "with its layers in reverse": lambda a: a.flip(0),
    "one layer late": lambda a: a.roll(1, 0),
    "averaged over the heads": lambda a: a.mean(1, True).expand_as(a).contiguous(),
    "averaged over the layers": lambda a: a.mean(0, True).expand_as(a).contiguous(),
    "with its columns in reverse": lambda a: a.flip(-1),
    "one column late": lambda a: a.roll(1, -1),
    "with the phrases swapped": lambda a: a.flip(2),
    "rounded to bfloat16": lambda a: a.bfloat16().float(),
    "sharpened": lambda a: a**1.01,
}.items():
    mutant(EAGER, f"attention {name}")(traced(attention=change))
for name, change in {
    "one layer late": lambda h: h.roll(1, 0),
    "with layers in reverse": lambda h: h.flip(0),
    "rounded to bfloat16": lambda h: h.bfloat16().float(),
    "with its rows in reverse": lambda h: h.flip(1),
    "normalized twice": lambda h: torch.nn.functional.layer_norm(h, h.shape[-1:]),
}.items():
    mutant(EAGER, f"hidden states {name}")(traced(hidden=change))


@contextmanager
def hooked(module: Any, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def masked(allow: Callable[[Any, Tensor, Tensor], Tensor]) -> Make:
    """Another mask in `trace` only: `allow(batch, query, key)` is added to or cut from causal."""

    def wrong(self: Any, right: Any, batch: Any, **kwargs: Any) -> Any:
        def hook(_: Any, args: Any, given: Any) -> Any:
            length = given["inputs_embeds"].shape[1]
            places = torch.arange(length)
            mask = allow(batch, places[:, None], places)
            mask = mask.expand(len(given["inputs_embeds"]), 1, length, length)
            return args, {**given, "attention_mask": mask.contiguous()}

        with hooked(self.vlm.get_decoder(), hook):
            return right(batch, **kwargs)

    return method("trace", wrong)


def of_image(batch: Any, query: Tensor, key: Tensor) -> Tensor:
    """Causal, and among image tokens in both directions."""
    cells = torch.cat([v.token_index.flatten() for v in batch.samples[0].views])
    is_image = torch.zeros(len(key), dtype=torch.bool)
    is_image[cells] = True
    return (key <= query) | (is_image[:, None] & is_image)


mutant(EAGER, "image tokens see later ones, in trace only")(masked(of_image))
mutant(EAGER, "every token sees every other, in trace only")(
    masked(lambda batch, query, key: (key >= 0).expand(len(query), -1))
)
mutant(EAGER, "a window of 64 tokens, in trace only")(
    masked(lambda batch, query, key: (key <= query) & (key > query - 64))
)


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Make:
    """Other tensors for the model, in `trace` only."""
    return method(
        "trace",
        lambda self, right, batch, **kw: right(
            replace(batch, tensors=change(dict(batch.tensors))), **kw
        ),
    )


mutant(EAGER, "a black image, in trace only")(
    tensors(lambda t: {**t, "pixel_values": torch.zeros_like(t["pixel_values"])})
)
mutant(EAGER, "positions in one dimension, in trace only", "qwen")(
    tensors(lambda t: {key: value for key, value in t.items() if key != "mm_token_type_ids"})
)


def dropping(self: Any, right: Any, batch: Any, **kwargs: Any) -> Any:
    layers = self.vlm.get_decoder().layers
    handles = [
        layer.mlp.register_forward_hook(lambda _, args, out: torch.dropout(out, 0.1, True))
        for layer in layers
    ]
    try:
        return right(batch, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


mutant(EAGER, "dropout in trace")(method("trace", dropping))
mutant(EAGER, "phrases pooled by their maximum")(
    method("trace", lambda self, right, b, pool="max", **kw: right(b, pool=pool, **kw))
)

mutant(OPTIONS, "pool ignored")(
    method("trace", lambda self, right, batch, pool="mean", **kw: right(batch, **kw))
)
mutant(OPTIONS, "last tokens ignored")(
    method("trace", lambda self, right, batch, ends=0, **kw: right(batch, **kw))
)
mutant(OPTIONS, "last tokens in reverse")(
    method(
        "trace",
        lambda self, right, batch, ends=0, **kw: tuple(
            replace(trace, ends=trace.ends if trace.ends is None else trace.ends.flip(3))
            for trace in right(batch, ends=ends, **kw)
        ),
    )
)
mutant(OPTIONS, "captions ignored")(
    method("trace", lambda self, right, batch, captions=False, **kw: right(batch, **kw))
)


def evenly(self: Any, right: Any, batch: Any, layer_weights: Any = None, **kwargs: Any) -> Any:
    even = None if layer_weights is None else [1.0] * len(layer_weights)
    return right(batch, layer_weights=even, **kwargs)


mutant(OPTIONS, "weights of layers ignored")(method("trace", evenly))
mutant(OPTIONS, "weights of layers in reverse")(
    method(
        "trace",
        lambda self, right, batch, layer_weights=None, **kw: right(
            batch, layer_weights=layer_weights and layer_weights[::-1], **kw
        ),
    )
)


def collated(change: Callable[[Any], dict[str, Any]]) -> Make:
    """Batches of several samples that are put together otherwise."""

    def wrong(self: Any, right: Any, samples: Any, **kwargs: Any) -> Any:
        batch = right(samples, **kwargs)
        return replace(batch, **change(batch)) if len(samples) > 1 else batch

    return method("collate", wrong)


def whole_mask(batch: Any) -> dict[str, Any]:
    mask = torch.ones_like(batch.tensors["attention_mask"])
    return {"tensors": {**batch.tensors, "attention_mask": mask}}


def first_image(batch: Any) -> dict[str, Any]:
    return {"tensors": {**batch.tensors, "pixel_values": batch.tensors["pixel_values"].flip(0)}}


mutant(BATCH, "padding not masked")(collated(whole_mask))
mutant(BATCH, "padding on the left not counted")(
    collated(lambda batch: {"offsets": (0,) * len(batch.offsets)})
)
mutant(BATCH, "images of a batch in reverse")(collated(first_image))
mutant(BATCH, "traces of a batch in reverse")(
    method("trace", lambda self, right, batch, **kw: right(batch, **kw)[::-1])
)
mutant(BATCH, "every trace the first sample's")(
    method("trace", lambda self, right, batch, **kw: (right(batch, **kw)[0],) * len(batch.samples))
)
mutant(BATCH, "samples of a batch in reverse")(
    method("collate", lambda self, right, samples, **kw: right(samples[::-1], **kw))
)
mutant(BATCH, "traces of one sample of a batch only")(
    method("trace", lambda self, right, batch, **kw: right(batch, **kw)[:1])
)


def joined(change: Callable[[Any], Any]) -> Make:
    """Captions that are read after their prefixes otherwise."""
    return collated(lambda b: {"captions": change(b.captions)} if b.captions is not None else {})


mutant(PREFIX, "captions that begin elsewhere")(
    joined(lambda c: replace(c, input_ids=c.input_ids.roll(1, 1)))
)
mutant(PREFIX, "captions after another's prefix")(
    joined(lambda c: replace(c, prefix=c.prefix.flip(0)))
)
mutant(PREFIX, "captions in reverse order")(
    joined(lambda c: replace(c, input_ids=c.input_ids.flip(0)))
)


def restarted(self: Any, right: Any, batch: Any, **kwargs: Any) -> Any:
    """Positions that begin anew after the prefix."""

    def hook(_: Any, args: Any, given: Any) -> Any:
        past = next((v for v in given.values() if hasattr(v, "get_seq_length")), None)
        if past is None or past.get_seq_length() == 0:
            return None
        count = given["inputs_embeds"].shape[1]
        positions = torch.arange(count).expand(len(given["inputs_embeds"]), count)
        return args, {**given, "position_ids": positions}

    if batch.captions is None:
        return right(batch, **kwargs)
    with hooked(self.vlm.get_decoder(), hook):
        return right(batch, **kwargs)


mutant(PREFIX, "positions that begin anew after the prefix")(method("trace", restarted))
