"""The contract of a backbone: one function per promise.

Each function takes a loaded backbone, states the promise in its docstring, and raises
AssertionError with what was expected and what was found. `CHECKS` lists them in order.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import DataError
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.batch import place_rows
from flmm_core.pipeline.backbone.conversation import (
    adds_special_tokens,
    answer_text,
    common_length,
)
from flmm_core.pipeline.backbone.probe import CAPTION, decoder_inputs, misread_phrases
from flmm_core.pipeline.backbone.view_check import check_views
from flmm_core.pipeline.types import BackboneBatch, BackboneInputs, Trace
from flmm_core.plugins import load_class
from flmm_core.segment import Segment, caption_text
from flmm_core.spec import BackboneOptions
from flmm_core.testing.probes import ODD_CAPTION, picture, repainted_cells

Check = Callable[[Backbone], None]

TOLERANCE = 1e-4
"""The largest allowed difference in float32, relative to the largest value."""

SHAPES = ((96, 144), (300, 60), (131, 133), (200, 120), (60, 300))
"""(H, W) of the test images: wide, tall, odd, and up to 5:1."""


def require(condition: object, message: str) -> None:
    """Raise AssertionError unless the condition holds; unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def check_spec(backbone: Backbone) -> None:
    """The spec names a Backbone class, and the source and license of every model."""
    spec = backbone.spec
    found = load_class(spec)
    require(issubclass(found, Backbone), f"target {spec.target!r} is not a subclass of Backbone")
    require(isinstance(backbone, found), f"{type(backbone).__name__} is not {spec.target}")
    require(spec.summary.strip(), "summary is empty")
    require(issubclass(spec.options, BackboneOptions), "options must subclass BackboneOptions")
    spec.options()  # every option has a default
    for alias, model in spec.models.items():
        require(model.source.strip(), f"model {alias!r} has no source")
        require(model.license.strip(), f"model {alias!r} does not name the license of its weights")
    known = backbone.model_types or spec.requirements.any_family
    require(known, "model_types is empty: weights of any family would be loaded")
    names = backbone.view_names
    require(len(set(names)) == len(names) > 0, f"view_names must be unique: {names}")


def check_spec_without_torch(backbone: Backbone) -> None:
    """Importing the plugin, as every `flmm` command does, imports no torch or transformers."""
    package = backbone.spec.target.partition(":")[0].partition(".")[0]
    code = f"import sys, {package}\nprint(*({{'torch', 'transformers'}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    require(ran.returncode == 0, f"import {package} failed:\n{ran.stderr}")
    require(not ran.stdout.strip(), f"import {package} imports {ran.stdout.strip()}")


def check_loads_frozen(backbone: Backbone) -> None:
    """The VLM is frozen and in evaluation mode."""
    require(
        not isinstance(backbone, torch.nn.Module),
        "a backbone must not be an nn.Module: its weights could reach an optimizer",
    )
    trainable = [n for n, p in backbone.vlm.named_parameters() if p.requires_grad]
    require(not trainable, f"weights that require gradients: {trainable[:3]}")
    training = [n for n, m in backbone.vlm.named_modules() if m.training]
    require(not training, f"modules in training mode: {training[:3]}")


def check_views_cover_image_tokens(backbone: Backbone) -> None:
    """Cells and separators together are all image tokens, each once, for any image shape."""
    for height, width in SHAPES:
        inputs = backbone.prepare(picture(height, width), CAPTION)
        where = f"image {width} x {height}"
        names = tuple(v.name for v in inputs.views)
        declared = backbone.view_names
        require(names == declared, f"{where}: views {names}, declared {declared}")
        require(inputs.image_hw == (height, width), f"{where}: image_hw {inputs.image_hw}")
        try:
            separators = backbone.separator_tokens(inputs.views)
            is_image = backbone.vision_token_mask(inputs)
            check_views(inputs.views, is_image, separators, (height, width))
        except DataError as error:
            raise AssertionError(f"{where}: {error.asked} {error.found}") from error
        for view in inputs.views:
            y0, x0, y1, x1 = view.image_box
            require(y0 < y1 and x0 < x1, f"{where}: {view.name} has an empty box {view.image_box}")
            require(
                min(y1, x1) > 0 and max(y0, x0) < 1,
                f"{where}: {view.name} lies outside the image, at {view.image_box}",
            )


def check_shrunk_images(backbone: Backbone) -> None:
    """An image that `shrunk` makes smaller gives the processor's tensors of the whole one."""
    for height, width in ((1200, 1700), (1333, 500), (611, 2101)):
        image = Image.effect_noise((width, height), 80).convert("RGB")
        whole, given = (
            backbone.processor(text=[backbone.rendered_prompt()], images=[one], return_tensors="pt")
            for one in (image, backbone.shrunk(image))
        )
        for key, value in whole.items():
            same = torch.equal(torch.as_tensor(value), torch.as_tensor(given[key]))
            require(same, f"image {width} x {height}: {key} changes")


def check_repainted_spot(backbone: Backbone) -> None:
    """When a spot of the image is repainted, the token of the cell there changes most.

    This verifies rows, columns, order and box of every view. Three of four spots must match:
    with a trained vision tower another cell may respond now and then.
    """
    for height, width in ((240, 360), (400, 160), (230, 233)):
        image = picture(height, width)
        for number, name in enumerate(backbone.view_names):
            pairs = repainted_cells(backbone, image, number, seed=height)
            require(pairs, f"view {name}: no cell lies within an image of {width} x {height}")
            wrong = [(painted, changed) for painted, changed in pairs if painted != changed]
            require(
                len(wrong) <= len(pairs) // 4,
                f"view {name}, image {width} x {height}: {len(wrong)} of {len(pairs)} spots "
                f"changed another cell most; (repainted, changed): {wrong}",
            )


def check_prepare_repeats(backbone: Backbone) -> None:
    """`prepare` is deterministic, in a DataLoader worker too, and its result can be pickled."""
    image = picture(96, 144)
    first = backbone.prepare(image, CAPTION, name="a")
    one = _as_tensors(first)
    worker: Backbone = pickle.loads(pickle.dumps(backbone))
    for other, how in (
        (backbone.prepare(image, CAPTION, name="a"), "second call"),
        (pickle.loads(pickle.dumps(first)), "pickled"),
        (worker.prepare(image, CAPTION, name="a"), "in a DataLoader worker"),
    ):
        two = _as_tensors(other)
        require(one.keys() == two.keys(), f"{how}: different tensors")
        for key, value in one.items():
            require(torch.equal(value, two[key]), f"{how}: {key} differs")
    elsewhere = [k for k, v in first.tensors.items() if v.device.type != "cpu"]
    require(not elsewhere, f"prepare returned tensors that are not on the CPU: {elsewhere}")


def _as_tensors(inputs: BackboneInputs) -> dict[str, Tensor]:
    views = {f"view {view.name}": view.token_index for view in inputs.views}
    boxes = {f"box of {view.name}": torch.tensor(view.image_box) for view in inputs.views}
    rows = {f"rows of phrase {p}": rows for p, rows in enumerate(inputs.phrase_rows)}
    return {**inputs.tensors, **views, **boxes, **rows}


def check_phrases_are_found(backbone: Backbone) -> None:
    """The rows of a phrase are exactly the tokens of its words."""
    for caption in (CAPTION, ODD_CAPTION):
        inputs = backbone.prepare(picture(96, 144), caption)
        wrong = misread_phrases(backbone, inputs, caption)
        require(not wrong, "; ".join(wrong))


def check_captions_are_answers(backbone: Backbone) -> None:
    """A whole caption has the tokens that the processor gives for the conversation with it."""
    if backbone.caption_mode != "whole":
        return
    image, processor = picture(96, 144), backbone.processor
    inputs = backbone.prepare(image, CAPTION)
    text, _ = answer_text(processor, inputs.prefix.turns, caption_text(CAPTION))
    special = adds_special_tokens(processor.tokenizer, text)
    encoded = processor(
        text=[text], images=[image], return_tensors="pt", add_special_tokens=special
    )
    expected, found = encoded["input_ids"][0].tolist(), inputs.tokens["input_ids"].tolist()
    same = common_length(expected, found)
    require(
        expected == found,
        f"token {same} of {len(found)} is {found[same : same + 3]}, the processor gives "
        f"{expected[same : same + 3]}: it changes the text otherwise than by image tokens",
    )


def check_control_words_are_text(backbone: Backbone) -> None:
    """Control tokens in a user's text are read as text: no second image, no early end."""
    words = [*backbone.tokenizer.all_special_tokens, backbone.image_token]
    image = picture(96, 144)
    plain = backbone.prepare(image, CAPTION)
    control = set(backbone.tokenizer.all_special_ids) | {backbone.image_token_id}
    for word in words:
        inputs = backbone.prepare(image, [Segment(f"the {word}{word} circle", 0)])
        require(
            not control & set(inputs.caption.tolist()),
            f"{word!r} in a caption became a control token",
        )
        before, after = (int(backbone.vision_token_mask(i).sum()) for i in (plain, inputs))
        require(before == after, f"{word!r} in a caption changed {before} image tokens to {after}")


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
        require(found.shape == expected, f"shape of {what}: {found.shape}, not {expected}")
    require(trace.attention.dtype == torch.float32, f"attention is {trace.attention.dtype}")
    require(not trace.hidden.requires_grad, "hidden states carry the autograd graph of the VLM")
    total = trace.attention.sum(-1)
    require(trace.attention.min() >= 0 and total.max() <= 1 + 1e-4, "rows are not probabilities")
    require(total.min() > 0, "a phrase attends to no image token")


def check_trace_equals_eager(backbone: Backbone) -> None:
    """Recorded attention and hidden states equal those of eager attention, in float32."""
    batch = _mixed_batch(backbone)
    given = decoder_inputs(backbone, batch)
    decoder = backbone.vlm.get_decoder()
    usual = decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            eager = decoder(**{**given, "output_attentions": True, "output_hidden_states": True})
    finally:
        decoder.config._attn_implementation = usual
    placed = place_rows(batch)
    for b, trace in enumerate(backbone.trace(batch)):
        rows, columns = placed.rows[b], placed.columns[b]
        full = torch.stack([a[b][:, rows][..., columns] for a in eager.attentions])  # (L, N, T, M)
        phrases = range(trace.attention.shape[2])
        pooled = [full[:, :, placed.groups[b] == p].mean(2) for p in phrases]
        _require_near(trace.attention, torch.stack(pooled, 2), f"attention, sample {b}")
        hidden = torch.stack([h[b, rows] for h in eager.hidden_states[1:]])  # (L, T, D)
        _require_near(trace.hidden, hidden, f"hidden states, sample {b}")


def check_batch_independence(backbone: Backbone) -> None:
    """A sample's trace is the same alone and in a batch, padded on either side."""
    mixed = _mixed_batch(backbone)
    alone = [backbone.trace(backbone.collate([sample]))[0] for sample in mixed.samples]
    for side in ("right", "left"):
        batch = backbone.collate(mixed.samples, side=side)
        for b, (one, among) in enumerate(zip(alone, backbone.trace(batch), strict=True)):
            _require_near_traces(among, one, f"sample {b} of a batch padded on the {side}")


def check_shared_prefixes(backbone: Backbone) -> None:
    """Captions that share one pass of their prefix give the same traces as each alone."""
    image = picture(*SHAPES[0])
    first = backbone.prepare(image, CAPTION, name="a")
    other = backbone.prepare(image, [Segment("it", 0)], name="b", like=first)
    together = backbone.trace(backbone.collate([first, other]))
    for one, among in zip((first, other), together, strict=True):
        (alone,) = backbone.trace(backbone.collate([one]))
        _require_near_traces(among, alone, f"sample {one.name} after a shared prefix")


def _mixed_batch(backbone: Backbone) -> BackboneBatch:
    captions = (CAPTION, (Segment("it", 0),), CAPTION[:1])
    return backbone.collate(
        [
            backbone.prepare(picture(*shape, seed=b), caption, name=f"sample {b}")
            for b, (shape, caption) in enumerate(zip(SHAPES, captions, strict=False))
        ]
    )


def _require_near_traces(found: Trace, expected: Trace, what: str) -> None:
    _require_near(found.attention, expected.attention, f"attention, {what}")
    _require_near(found.hidden, expected.hidden, f"hidden states, {what}")


def _require_near(found: Tensor, expected: Tensor, what: str) -> None:
    require(found.shape == expected.shape, f"{what}: {found.shape}, expected {expected.shape}")
    worst = float((found.float() - expected.float()).abs().max() / expected.abs().max())
    require(worst <= TOLERANCE, f"{what}: relative difference {worst:.1e}, allowed {TOLERANCE:.0e}")


def check_answers(backbone: Backbone) -> None:
    """With the capability "chat": `generate` answers in text, the same twice."""
    if "chat" not in backbone.spec.capabilities:
        return
    image, token = picture(96, 144), backbone.image_token
    first = backbone.generate(image, "What is this?", max_new_tokens=8)
    require(isinstance(first, str), f"generate returned {type(first).__name__}")
    again = backbone.generate(image, "What is this?", max_new_tokens=8)
    require(again == first, f"greedy answers differ: {first!r}, {again!r}")
    backbone.generate(image, f"What is {token}?", max_new_tokens=1)  # no second image


def check_vlm_stays_unchanged(backbone: Backbone) -> None:
    """Tracing, generating and backpropagation do not change the VLM's weights by a bit."""
    before = backbone.weights_digest()
    batch = _mixed_batch(backbone)
    weight = torch.ones(backbone.num_layers, requires_grad=True)
    mixed = torch.einsum("l,ltd->td", weight, backbone.trace(batch)[0].hidden)
    mixed.sum().backward()
    require(weight.grad is not None, "no gradient flows from a trace to a trained head")
    if "chat" in backbone.spec.capabilities:
        backbone.generate(picture(96, 144), max_new_tokens=4)
    require(all(p.grad is None for p in backbone.vlm.parameters()), "a gradient reached the VLM")
    require(backbone.weights_digest() == before, "the VLM's weights changed")


CHECKS: tuple[Check, ...] = (
    check_spec,
    check_spec_without_torch,
    check_loads_frozen,
    check_views_cover_image_tokens,
    check_shrunk_images,
    check_repainted_spot,
    check_prepare_repeats,
    check_phrases_are_found,
    check_captions_are_answers,
    check_control_words_are_text,
    check_trace_shapes,
    check_trace_equals_eager,
    check_batch_independence,
    check_shared_prefixes,
    check_answers,
    check_vlm_stays_unchanged,
)
