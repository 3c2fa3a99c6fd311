"""What the model reads: prompt and caption as tokens, and the rows of phrases."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.conversation import common_length, user_turns
from flmm_core.pipeline.backbone.probe import misread_phrases
from flmm_core.pipeline.types import BackboneInputs
from flmm_core.segment import Segment, caption_text
from flmm_core.testing.probes import CAPTION, CAPTIONS, picture, prepared
from flmm_core.testing.promise import BrokenPromiseError, NotPromised, require, require_equal
from flmm_core.testing.reference import Reference, reference

PROMPTS = ("Please describe it.", "What is on the left, and what is at the top?")
SYSTEM = "You answer in one sentence."


def check_prompt(backbone: Backbone) -> None:
    """Prompt and system message reach the model, as its chat template shows them.

    All tokens before the caption are those that the processor in the model's folder gives for the
    rendered conversation, control tokens included.
    """
    stored, image = reference(backbone), picture(96, 144)
    reads = copy.copy(backbone)  # as a DataLoader worker has it
    for setting, given in ((PROMPTS[0], None), (PROMPTS[0], PROMPTS[1]), (PROMPTS[1], None)):
        reads.prompt = setting
        expected = stored.encode(user_turns(given or setting, backbone.system), [image])
        what = f"prompt {given or setting!r}"
        _require_same(reads.prepare(image, CAPTION, prompt=given), expected.tensors, stored, what)
    reads.system = SYSTEM
    try:
        shown = stored.encode(user_turns(PROMPTS[1], SYSTEM), [image])
    except NotPromised:
        return
    inputs = reads.prepare(image, CAPTION)
    _require_same(inputs, shown.tensors, stored, f"system message {SYSTEM!r}")


def _require_same(
    inputs: BackboneInputs, expected: dict[str, Tensor], stored: Reference, what: str
) -> None:
    ids = expected["input_ids"][0].tolist()
    found = inputs.prefix.tokens["input_ids"].tolist()
    same = common_length(ids, found)
    if ids != found:
        show = stored.processor.tokenizer.decode
        raise BrokenPromiseError(
            f"{what}, token {same} of {len(ids)}",
            f"{show(ids[max(0, same - 3) : same + 9])!r}",
            f"{show(found[max(0, same - 3) : same + 9])!r} (of {len(found)})",
        )
    shape = expected["input_ids"].shape
    for key, value in expected.items():
        if value.shape == shape and not value.is_floating_point():
            per_token = inputs.prefix.tokens.get(key)
            given = None if per_token is None else per_token.tolist()
            require_equal(given, value[0].tolist(), f"{key}, {what}")


def check_captions_are_answers(backbone: Backbone) -> None:
    """A whole caption has the tokens that the model would write: those of the template's answer."""
    if backbone.caption_mode != "whole":
        raise NotPromised("captions are tokenized in pieces")
    stored, image = reference(backbone), picture(96, 144)
    for caption in CAPTIONS:
        turns = user_turns(backbone.prompt, backbone.system)
        expected = stored.encode(turns, [image], caption_text(caption)).ids
        found = backbone.prepare(image, caption).tokens["input_ids"].tolist()
        same = common_length(expected, found)
        show = stored.processor.tokenizer.decode
        require(
            expected == found,
            f"caption {caption_text(caption)!r}, token {same} of {len(expected)}",
            expected=repr(show(expected[max(0, same - 3) : same + 9])),
            found=f"{show(found[max(0, same - 3) : same + 9])!r} (of {len(found)})",
        )


def check_phrase_rows(backbone: Backbone) -> None:
    """The rows of a phrase are the tokens that cover its words, without the spaces around them."""
    stored, image = reference(backbone), picture(96, 144)
    for caption in CAPTIONS:
        inputs = backbone.prepare(image, caption)
        words = caption_text(caption)
        if backbone.caption_mode == "whole":
            encoded = stored.encode(user_turns(backbone.prompt, backbone.system), [image], words)
            expected = stored.phrase_rows(encoded, caption)
            found = [rows.tolist() for rows in inputs.phrase_rows]
            for number, (right, rows) in enumerate(zip(expected, found, strict=False)):
                show, ids = stored.processor.tokenizer.decode, torch.tensor(encoded.ids)
                there = [row for row in rows if 0 <= row < len(ids)]
                require(
                    rows == right,
                    f"rows of phrase {number} in {words!r}",
                    expected=f"{right} ({show(ids[right])!r})",
                    found=f"{rows} ({show(ids[there])!r})",
                )
            require_equal(len(found), len(expected), f"number of phrases in {words!r}")
        wrong = misread_phrases(backbone, inputs, caption)
        require(not wrong, f"phrases in {words!r}", expected="their words", found="; ".join(wrong))


def check_control_words_are_text(backbone: Backbone) -> None:
    """Control tokens in a user's text are read as text: no second image, no early end."""
    words = [*backbone.tokenizer.all_special_tokens, backbone.image_token]
    image = picture(96, 144)
    plain = backbone.prepare(image, CAPTION)
    control = set(backbone.tokenizer.all_special_ids) | {backbone.image_token_id}
    for word in words:
        caption = [Segment(f"the {word}{word} circle", 0)]
        inputs = prepared(backbone, image, f"{word!r} in a caption", caption)
        became = sorted(control & set(inputs.caption.tolist()))
        require(not became, f"{word!r} in a caption", expected="text", found=f"tokens {became}")
        before, after = (int(backbone.vision_token_mask(i).sum()) for i in (plain, inputs))
        require_equal(after, before, f"number of image tokens with {word!r} in the caption")
        prompt = f"Is {word}{word} there?"
        asked = prepared(backbone, image, f"{word!r} in the prompt", prompt=prompt)
        after = int(backbone.vision_token_mask(asked).sum())
        require_equal(after, before, f"number of image tokens with {word!r} in the prompt")


def check_long_captions(backbone: Backbone) -> None:
    """A phrase beyond the longest sequence is refused; what only follows a phrase may be cut."""
    stored, image = reference(backbone), picture(96, 144)
    limit = getattr(stored.vlm.config.get_text_config(), "max_position_embeddings", None)
    if not limit or limit > 200_000:
        raise NotPromised("the model's configuration states no length")
    room = limit - len(backbone.prepare(image, CAPTION))
    tokens = len(stored.processor.tokenizer(" red" * 100, add_special_tokens=False)["input_ids"])
    most = max(0, room * 100 // tokens - 100)  # words that fit for certain
    fits = [Segment("red" + " red" * most), Segment(" circle", 0)]
    beyond = [Segment("red" + " red" * 2 * (room + 100)), Segment(" circle", 0)]
    after = [Segment("circle", 0), beyond[0]]
    what = f"phrase after {most} words, of {limit} tokens at most"
    for caption, where in ((fits, what), (after, f"phrase before {2 * (room + 100)} words")):
        inputs = prepared(backbone, image, where, caption)
        longest = f"{limit} tokens at most"
        require(len(inputs) <= limit, where, expected=longest, found=len(inputs))
        _require_decodes(backbone, inputs, where)
    try:
        inputs = backbone.prepare(image, beyond)
    except UsageError:
        return
    found = f"a sample of {len(inputs)} tokens with the rows {_ends(inputs)}"
    raise BrokenPromiseError(
        f"phrase after {2 * (room + 100)} words", f"a UsageError, as the limit is {limit}", found
    )


def _ends(inputs: BackboneInputs) -> list[list[int]]:
    return [rows.tolist()[-3:] for rows in inputs.phrase_rows]


def _require_decodes(backbone: Backbone, inputs: BackboneInputs, where: str) -> None:
    ids = inputs.tokens["input_ids"]
    for rows in inputs.phrase_rows:
        inside = len(rows) and int(rows.max()) < len(ids)
        require(inside, f"rows, {where}", expected=f"below {len(ids)}", found=rows.tolist())
        words = backbone.tokenizer.decode(ids[rows]).strip()
        require_equal(words, "circle", f"words of the rows, {where}")


def check_prepare_repeats(backbone: Backbone) -> None:
    """`prepare` is deterministic, in a DataLoader worker too, and its result can be pickled."""
    image = picture(96, 144)
    first = backbone.prepare(image, CAPTION, name="a")
    one = _as_tensors(first)
    elsewhere = [k for k, v in first.tensors.items() if v.device.type != "cpu"]
    require(not elsewhere, "device of the tensors", expected="the CPU", found=elsewhere)
    try:
        worker: Backbone = pickle.loads(pickle.dumps(backbone))
        pickled = pickle.loads(pickle.dumps(first))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BrokenPromiseError("pickling", "no error", str(error)) from error
    try:
        works = worker.prepare(image, CAPTION, name="a")
    except Exception as error:
        what, expected = "prepare in a DataLoader worker, which has no VLM", "a sample"
        raise BrokenPromiseError(what, expected, f"{type(error).__name__}: {error}") from error
    again = backbone.prepare(image, CAPTION, name="a")
    for other, how in (
        (again, "in a second call"),
        (pickled, "pickled"),
        (works, "in a DataLoader worker"),
    ):
        two = _as_tensors(other)
        require_equal(sorted(two), sorted(one), f"tensors {how}")
        for key, value in one.items():
            require(
                torch.equal(value, two[key]), f"{key} {how}", expected="the same", found="others"
            )


def _as_tensors(inputs: BackboneInputs) -> dict[str, Tensor]:
    views = {f"view {view.name}": view.token_index for view in inputs.views}
    boxes = {f"box of {view.name}": torch.tensor(view.image_box) for view in inputs.views}
    rows = {f"rows of phrase {p}": rows for p, rows in enumerate(inputs.phrase_rows)}
    return {**inputs.tensors, **views, **boxes, **rows}
