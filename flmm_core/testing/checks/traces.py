"""What is recorded of the model: attention and hidden states of the phrases' tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.conversation import user_turns
from flmm_core.pipeline.types import BackboneBatch, Trace
from flmm_core.segment import Segment, caption_text
from flmm_core.testing.probes import CAPTION, CAPTIONS, SHAPES, picture
from flmm_core.testing.promise import require, require_equal, require_near
from flmm_core.testing.reference import Reference, Run, reference

SAMPLES = tuple(zip(((96, 144), (300, 60), (200, 280)), CAPTIONS, strict=True))
"""(shape of an image, caption), with S up to a few hundred."""


class _Eager(NamedTuple):
    """What the model's own forward does with one sample: rows and columns of the kit's making."""

    run: Run
    rows: list[list[int]]

    @classmethod
    def of(
        cls, stored: Reference, backbone: Backbone, image: Image.Image, caption: tuple[Segment, ...]
    ) -> _Eager:
        words, turns = caption_text(caption), user_turns(backbone.prompt, backbone.system)
        encoded = stored.encode(turns, [image], words)
        return cls(stored.run(encoded.tensors), stored.phrase_rows(encoded, caption))

    def attention(self, columns: Tensor) -> list[Tensor]:
        """Per phrase, (L, N, T_p, M) at the image tokens of the views."""
        return [self.run.attention[:, :, rows][..., columns] for rows in self.rows]


def _columns(trace: Trace) -> Tensor:
    return torch.cat([view.token_index.flatten() for view in trace.views])  # (M,)


def check_trace_shapes(backbone: Backbone) -> None:
    """A trace has the documented shapes and ranges."""
    inputs = backbone.prepare(picture(96, 144), CAPTION)
    (trace,) = backbone.trace(backbone.collate([inputs]))
    cells = sum(v.token_index.numel() for v in inputs.views)
    rows = sum(len(r) for r in inputs.phrase_rows)
    layers, heads = backbone.num_layers, backbone.num_heads
    for what, found, expected in (
        ("attention", trace.attention, (layers, heads, len(inputs.phrase_rows), cells)),
        ("hidden states", trace.hidden, (layers, rows, backbone.hidden_size)),
    ):
        require_equal(tuple(found.shape), expected, f"shape of {what}")
    require_equal(trace.attention.dtype, torch.float32, "dtype of attention")
    no_graph = not trace.hidden.requires_grad
    require(no_graph, "hidden states", expected="no graph", found="the autograd graph of the VLM")
    total = trace.attention.sum(-1)
    least, most = float(trace.attention.min()), float(total.max())
    what = "attention"
    require(least >= 0, what, expected="probabilities", found=f"the value {least:.3g}")
    require(most <= 1 + 1e-4, what, expected="a sum of at most 1", found=f"{most:.6g}")
    if backbone.requirements.sliding_window:
        return  # a phrase far behind the image attends to none of it
    least = float(total.min())
    require(least > 0, what, expected="some on the image for each phrase", found=f"{least:.3g}")


def check_trace_equals_eager(backbone: Backbone) -> None:
    """Attention and hidden states equal those of the whole model's own forward, run eagerly.

    That forward has the tensors of the processor in the model's folder, and builds masks and
    positions itself.
    """
    stored = reference(backbone)
    for (height, width), caption in SAMPLES:
        image = picture(height, width, seed=height)
        where = f"image of {width} x {height}, {caption_text(caption)!r}"
        (trace,) = backbone.trace(backbone.collate([backbone.prepare(image, caption)]))
        eager = _Eager.of(stored, backbone, image, caption)
        pooled = [rows.mean(2) for rows in eager.attention(_columns(trace))]
        require_near(trace.attention, torch.stack(pooled, 2), f"attention, {where}")
        rows = [row for phrase in eager.rows for row in phrase]
        require_near(trace.hidden, eager.run.hidden[:, rows], f"hidden states, {where}")


def check_image_attention(backbone: Backbone) -> None:
    """Image tokens attend to later tokens of their image if the spec says so, and only then."""
    stored, needs = reference(backbone), backbone.requirements
    encoded = stored.encode(user_turns(backbone.prompt, backbone.system), [picture(96, 144)])
    places = (encoded.tensors["input_ids"][0] == backbone.image_token_id).nonzero().flatten()
    among = stored.run(encoded.tensors).attention[:, :, places][..., places]  # (L, N, M, M)
    require_equal(
        bool(among.triu(1).any()),
        needs.bidirectional_image or needs.bidirectional_prefix,
        "whether an image token attends to a later one",
    )


def check_trace_options(backbone: Backbone) -> None:
    """`pool`, `ends`, `layer_weights` and `captions` do what they say."""
    stored, ((height, width), caption) = reference(backbone), SAMPLES[0]
    image = picture(height, width, seed=height)
    batch = backbone.collate([backbone.prepare(image, caption)])
    eager = _Eager.of(stored, backbone, image, caption)
    (trace,) = backbone.trace(batch, pool="max")
    pooled = [rows.amax(2) for rows in eager.attention(_columns(trace))]
    require_near(trace.attention, torch.stack(pooled, 2), "attention with pool='max'")
    (trace,) = backbone.trace(batch, ends=2)
    given = trace.ends is not None
    require(given, "a trace with ends=2", expected="the last two tokens' attention", found="none")
    assert trace.ends is not None
    every = eager.attention(_columns(trace))
    for place in range(2):
        last = [
            rows[:, :, rows.shape[2] - 1 - place] if place < rows.shape[2] else rows.mean(2)
            for rows in every
        ]
        require_near(trace.ends[:, :, :, place], torch.stack(last, 2), "attention with ends=2")
    weights = torch.arange(1.0, backbone.num_layers + 1)
    (trace,) = backbone.trace(batch, layer_weights=weights.tolist())
    states = eager.run.hidden[:, [row for phrase in eager.rows for row in phrase]]  # (L, T, D)
    mixed = torch.einsum("l,ltd->td", weights, states)[None]
    require_near(trace.hidden, mixed, "hidden states with layer_weights")
    (trace,) = backbone.trace(batch, captions=True)
    given = trace.caption is not None
    require(given, "a trace with captions=True", expected="the caption's states", found="none")
    assert trace.caption is not None
    states = eager.run.hidden[:, batch.samples[0].start :]
    require_near(trace.caption.hidden, states, "hidden states of the caption")


def check_batch_independence(backbone: Backbone) -> None:
    """A sample's trace is the same alone and in a batch, padded on either side."""
    mixed = mixed_batch(backbone)
    alone = [backbone.trace(backbone.collate([sample]))[0] for sample in mixed.samples]
    for side in ("right", "left"):
        batch = backbone.collate(mixed.samples, side=side)
        found = backbone.trace(batch)
        require_equal(len(found), len(alone), f"traces of a batch padded on the {side}")
        for b, (one, among) in enumerate(zip(alone, found, strict=True)):
            _require_near_traces(among, one, f"sample {b} of a batch padded on the {side}")


def check_shared_prefixes(backbone: Backbone) -> None:
    """Captions that share one pass of their prefix give the same traces as each alone."""
    samples = []
    for height, width in SHAPES[:2]:
        image = picture(height, width)
        samples.append(backbone.prepare(image, CAPTION, name=f"{width} x {height}"))
        samples.append(backbone.prepare(image, [Segment("it", 0)], name="it", like=samples[-1]))
    together = backbone.trace(backbone.collate(samples))
    for one, among in zip(samples, together, strict=True):
        (alone,) = backbone.trace(backbone.collate([one]))
        what = f"caption of {one.image_hw[1]} x {one.image_hw[0]} after a shared prefix"
        _require_near_traces(among, alone, what)


def check_vlm_stays_unchanged(backbone: Backbone) -> None:
    """Tracing, generating and backpropagation do not change the VLM's weights by a bit."""
    before = backbone.weights_digest()
    weight = torch.ones(backbone.num_layers, requires_grad=True)
    hidden = backbone.trace(mixed_batch(backbone))[0].hidden
    torch.einsum("l,ltd->td", weight, hidden).sum().backward()
    flows = weight.grad is not None
    require(flows, "gradient from a trace to a trained head", expected="some", found="none")
    if "chat" in backbone.spec.capabilities:
        backbone.generate(picture(96, 144), max_new_tokens=4)
    reached = [name for name, p in backbone.vlm.named_parameters() if p.grad is not None]
    require(not reached, "weights of the VLM with a gradient", expected="none", found=reached[:3])
    same = backbone.weights_digest() == before
    require(same, "the VLM's weights after use", expected="those before", found="others")


def mixed_batch(backbone: Backbone) -> BackboneBatch:
    """Three samples whose images and captions differ in size."""
    captions = (CAPTION, (Segment("it", 0),), CAPTION[:1])
    return backbone.collate(
        [
            backbone.prepare(picture(*shape, seed=b), caption, name=f"sample {b}")
            for b, (shape, caption) in enumerate(zip(SHAPES, captions, strict=False))
        ]
    )


def _require_near_traces(found: Trace, expected: Trace, what: str) -> None:
    require_equal(found.image_hw, expected.image_hw, f"image_hw, {what}")
    require_near(found.attention, expected.attention, f"attention, {what}")
    require_near(found.hidden, expected.hidden, f"hidden states, {what}")
