"""What every backbone must hold to: one plain function a promise.

Each function takes a loaded backbone, says in its docstring what it promises, and raises
AssertionError with what was expected and what was found. `CHECKS` is the list in order.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.batch import place_rows
from flmm_core.pipeline.types import BackboneBatch, BackboneInputs, Trace
from flmm_core.plugins import load_class
from flmm_core.segment import Segment
from flmm_core.spec import BackboneOptions
from flmm_core.testing.probes import CAPTION, aims, answers, decoder_inputs, picture

Check = Callable[[Backbone], None]

TOLERANCE = 1e-4
"""How far two ways to compute the same may differ, as a share of the largest value, in float32."""

SHAPES = ((96, 144), (300, 60), (131, 133), (200, 120), (60, 300))
"""(H, W) of the images that the checks show: wide, tall, odd, and as long as 5:1."""


def require(kept: object, otherwise: str) -> None:
    """Raise AssertionError unless the promise is kept; unlike `assert`, under `python -O` too."""
    if not kept:
        raise AssertionError(otherwise)


def check_spec(backbone: Backbone) -> None:
    """The spec names a Backbone class, its models say where they come from and their licence."""
    spec = backbone.spec
    found = load_class(spec)
    require(issubclass(found, Backbone), f"target {spec.target!r} is no subclass of Backbone")
    require(isinstance(backbone, found), f"{spec.target} did not make {type(backbone).__name__}")
    require(spec.summary.strip(), "summary is empty; lists show it")
    require(issubclass(spec.options, BackboneOptions), "options must subclass BackboneOptions")
    spec.options()  # every option has a default
    for alias, model in spec.models.items():
        require(model.source.strip(), f"model {alias!r} has no source")
        require(model.licence.strip(), f"model {alias!r} does not say the licence of its weights")
    require(backbone.model_types, "model_types is empty: weights of another family would be loaded")
    names = backbone.view_names
    require(len(set(names)) == len(names) > 0, f"view_names must differ from each other: {names}")


def check_spec_without_torch(backbone: Backbone) -> None:
    """Importing the plugin, as every `flmm` command does, loads neither torch nor transformers."""
    package = backbone.spec.target.partition(":")[0].partition(".")[0]
    code = f"import sys, {package}\nprint(*({{'torch', 'transformers'}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    require(ran.returncode == 0, f"import {package} failed:\n{ran.stderr}")
    require(not ran.stdout.strip(), f"import {package} loads {ran.stdout.strip()}")


def check_loads_frozen(backbone: Backbone) -> None:
    """The VLM is in evaluation mode, needs no gradient, and its sizes are told right."""
    require(
        not isinstance(backbone, torch.nn.Module),
        "a backbone must not be an nn.Module: its weights could reach an optimizer",
    )
    trainable = [n for n, p in backbone.vlm.named_parameters() if p.requires_grad]
    require(not trainable, f"weights that need a gradient: {trainable[:3]}")
    training = [n for n, m in backbone.vlm.named_modules() if m.training]
    require(not training, f"modules in training mode: {training[:3]}")
    sizes = backbone.num_layers, backbone.num_heads, backbone.hidden_size
    require(min(sizes) > 0, f"layers, heads, hidden size are {sizes}")
    channels = backbone.num_layers * backbone.num_heads * len(backbone.view_names)
    require(
        backbone.attention_channels == channels,
        f"attention_channels is {backbone.attention_channels}, layers x heads x views {channels}",
    )


def check_views_cover_image_tokens(backbone: Backbone) -> None:
    """Cells and declared separators are all image tokens, each once, in every shape of image."""
    for height, width in SHAPES:
        inputs = backbone.prepare(picture(height, width), CAPTION)
        where = f"image {width} x {height}"
        require(
            tuple(v.name for v in inputs.views) == backbone.view_names,
            f"{where}: views {[v.name for v in inputs.views]}, declared {backbone.view_names}",
        )
        require(inputs.image_hw == (height, width), f"{where}: image_hw {inputs.image_hw}")
        cells = torch.cat([v.token_index.flatten() for v in inputs.views])
        require(len(cells.unique()) == len(cells), f"{where}: a token belongs to two cells")
        is_image = backbone.vision_token_mask(inputs)
        require(is_image[cells].all(), f"{where}: a cell points at a token that is no image token")
        separators = backbone._separator_tokens(inputs.views)
        require(
            len(cells) + separators == int(is_image.sum()),
            f"{where}: {int(is_image.sum())} image tokens, but {len(cells)} cells "
            f"and {separators} separators",
        )
        for view in inputs.views:
            y0, x0, y1, x1 = view.image_box
            require(y0 < y1 and x0 < x1, f"{where}: {view.name} has the box {view.image_box}")
            require(
                min(y1, x1) > 0 and max(y0, x0) < 1,
                f"{where}: {view.name} lies beside the image, at {view.image_box}",
            )


def check_repainted_spot(backbone: Backbone) -> None:
    """When one spot of the image is repainted, the token of the cell there changes most.

    This is what shows that rows, columns, order and box of every view are right. Three spots of
    four must answer exactly: a trained vision tower may move a rare one.
    """
    for height, width in ((240, 360), (400, 160), (230, 233)):
        image = picture(height, width)
        for number, name in enumerate(backbone.view_names):
            view = backbone.prepare(image, CAPTION).views[number]
            wanted = aims(view, (height, width), count=8, seed=height)
            require(wanted, f"view {name}: no cell lies within an image of {width} x {height}")
            cells = answers(backbone, image, number, [aim.spot for aim in wanted])
            pairs = [(aim.cell, cell) for aim, cell in zip(wanted, cells, strict=True)]
            wrong = [(cell, found) for cell, found in pairs if cell != found]
            require(
                len(wrong) <= len(wanted) // 4,
                f"view {name}, image {width} x {height}: {len(wrong)} of {len(wanted)} spots "
                f"changed another cell most; (repainted, changed): {wrong}",
            )


def check_prepare_repeats(backbone: Backbone) -> None:
    """`prepare` gives the same twice, in another process too, and what it gives can be pickled."""
    image = picture(96, 144)
    first = backbone.prepare(image, CAPTION, name="a")
    worker: Backbone = pickle.loads(pickle.dumps(backbone))
    for other, how in (
        (backbone.prepare(image, CAPTION, name="a"), "a second time"),
        (pickle.loads(pickle.dumps(first)), "pickled"),
        (worker.prepare(image, CAPTION, name="a"), "in a DataLoader worker"),
    ):
        _require_same_inputs(first, other, how)
    elsewhere = [k for k, v in first.tensors.items() if v.device.type != "cpu"]
    require(not elsewhere, f"prepare gave tensors that are not on the CPU: {elsewhere}")


def _require_same_inputs(first: BackboneInputs, other: BackboneInputs, how: str) -> None:
    require(first.tensors.keys() == other.tensors.keys(), f"{how}: other tensors")
    for key, value in first.tensors.items():
        require(torch.equal(value, other.tensors[key]), f"{how}: {key!r} differs")
    for one, two in zip(first.views, other.views, strict=True):
        require(torch.equal(one.token_index, two.token_index), f"{how}: view {one.name} differs")
        require(one.image_box == two.image_box, f"{how}: the box of {one.name} differs")
    require(all(map(torch.equal, first.phrase_rows, other.phrase_rows)), f"{how}: rows differ")


def check_phrases_are_found(backbone: Backbone) -> None:
    """The rows of a phrase are the tokens of its words, and nothing but them."""
    inputs = backbone.prepare(picture(96, 144), CAPTION)
    ids = inputs.tensors["input_ids"]
    for number, rows in enumerate(inputs.phrase_rows):
        words = backbone.tokenizer.decode(ids[rows]).strip()
        expected = next(s.text for s in CAPTION if s.phrase == number).strip()
        require(words == expected, f"phrase {number}: rows hold {words!r}, not {expected!r}")


def check_control_words_are_text(backbone: Backbone) -> None:
    """Control tokens that a user writes are read as text: no second image, no early end."""
    words = [*backbone.tokenizer.all_special_tokens, backbone.processor.image_token]
    image = picture(96, 144)
    plain = backbone.prepare(image, CAPTION)
    control = set(backbone.tokenizer.all_special_ids) | {backbone.image_token_id}
    for word in words:
        inputs = backbone.prepare(image, [Segment(f"the {word}{word} circle", 0)])
        caption = inputs.tensors["input_ids"][inputs.prompt_length :].tolist()
        require(not control & set(caption), f"{word!r} in a caption became a control token")
        before, after = (int(backbone.vision_token_mask(i).sum()) for i in (plain, inputs))
        require(before == after, f"{word!r} in a caption changed {before} image tokens to {after}")


def check_trace_shapes(backbone: Backbone) -> None:
    """A trace has the shapes and ranges of its docstring."""
    inputs = backbone.prepare(picture(96, 144), CAPTION)
    (trace,) = backbone.trace(backbone.collate([inputs]))
    cells = sum(v.token_index.numel() for v in inputs.views)
    rows = sum(len(r) for r in inputs.phrase_rows)
    layers, heads = backbone.num_layers, backbone.num_heads
    expected = (layers, heads, len(inputs.phrase_rows), cells)
    found = tuple(trace.attention.shape)
    require(found == expected, f"attention has the shape {found}, not {expected}")
    require(
        tuple(trace.hidden.shape) == (layers, rows, backbone.hidden_size),
        f"hidden states have the shape {tuple(trace.hidden.shape)}",
    )
    require(trace.attention.dtype == torch.float32, f"attention is {trace.attention.dtype}")
    require(not trace.hidden.requires_grad, "hidden states drag the graph of the VLM along")
    total = trace.attention.sum(-1)
    require(trace.attention.min() >= 0 and total.max() <= 1 + 1e-4, "rows are no probabilities")
    require(total.min() > 0, "a phrase sees no image token")


def check_trace_equals_eager(backbone: Backbone) -> None:
    """Recorded attention and hidden states are those of eager attention.

    Needs a model in float32: two passes in half precision differ by their rounding.
    """
    batch = _mixed_batch(backbone)
    given = decoder_inputs(backbone, batch)
    decoder = backbone.vlm.get_decoder()
    usual = decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            told = {**given, "output_attentions": True, "output_hidden_states": True}
            eager = decoder(**told)
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


def check_companions_do_not_matter(backbone: Backbone) -> None:
    """A sample's trace is the same alone and among others, padded on either side."""
    mixed = _mixed_batch(backbone)
    alone = [backbone.trace(backbone.collate([sample]))[0] for sample in mixed.samples]
    for side in ("right", "left"):
        batch = backbone.collate(mixed.samples, side=side)
        for b, (one, among) in enumerate(zip(alone, backbone.trace(batch), strict=True)):
            _require_near_traces(among, one, f"sample {b} of a batch padded on the {side}")


def check_shared_prompts(backbone: Backbone) -> None:
    """Captions about one image give behind one pass of their prompt what each gives alone."""
    image = picture(*SHAPES[0])
    first = backbone.prepare(image, CAPTION, name="a")
    other = backbone.prepare(image, [Segment("it", 0)], name="b", like=first)
    together = backbone.trace(backbone.collate([first, other]))
    for one, among in zip((first, other), together, strict=True):
        (alone,) = backbone.trace(backbone.collate([one]))
        _require_near_traces(among, alone, f"sample {one.name} behind a shared prompt")


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
    """The largest difference, as a share of the largest value."""
    require(found.shape == expected.shape, f"{what}: {found.shape}, expected {expected.shape}")
    worst = float((found.float() - expected.float()).abs().max() / expected.abs().max())
    require(worst <= TOLERANCE, f"{what}: differs by {worst:.1e} of it, allowed {TOLERANCE:.0e}")


def check_answers(backbone: Backbone) -> None:
    """With the capability "chat": it answers about an image, the same twice, in plain text."""
    if "chat" not in backbone.spec.capabilities:
        return
    image, token = picture(96, 144), backbone.processor.image_token
    first = backbone.generate(image, "What is this?", max_new_tokens=8)
    require(isinstance(first, str), f"generate gave {type(first).__name__}")
    again = backbone.generate(image, "What is this?", max_new_tokens=8)
    require(again == first, f"greedy answers differ: {first!r}, {again!r}")
    backbone.generate(image, f"What is {token}?", max_new_tokens=1)  # no second image


def check_vlm_stays_unchanged(backbone: Backbone) -> None:
    """Tracing, answering and a loss behind them leave the VLM's weights bit for bit."""
    before = backbone.weights_digest()
    batch = _mixed_batch(backbone)
    weight = torch.ones(backbone.num_layers, requires_grad=True)
    mixed = torch.einsum("l,ltd->td", weight, backbone.trace(batch)[0].hidden)
    mixed.sum().backward()
    require(weight.grad is not None, "a trace cannot feed a trained head")
    if "chat" in backbone.spec.capabilities:
        backbone.generate(picture(96, 144), max_new_tokens=4)
    require(all(p.grad is None for p in backbone.vlm.parameters()), "a gradient reached the VLM")
    require(backbone.weights_digest() == before, "the VLM's weights changed")


CHECKS: tuple[Check, ...] = (
    check_spec,
    check_spec_without_torch,
    check_loads_frozen,
    check_views_cover_image_tokens,
    check_repainted_spot,
    check_prepare_repeats,
    check_phrases_are_found,
    check_control_words_are_text,
    check_trace_shapes,
    check_trace_equals_eager,
    check_companions_do_not_matter,
    check_shared_prompts,
    check_answers,
    check_vlm_stays_unchanged,
)
