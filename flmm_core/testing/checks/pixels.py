"""What the model sees of an image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.backbone.conversation import user_turns
from flmm_core.testing.probes import LARGE_SHAPES, SHAPES, picture, prepared, readings
from flmm_core.testing.promise import require, require_equal, require_near
from flmm_core.testing.reference import decoder_embeds, reference


def check_pixels(backbone: Backbone) -> None:
    """The tensors of an RGB image are those that the processor in the model's folder gives.

    So are order of channels, scale, mean, deviation, size and tiles.
    """
    stored = reference(backbone)
    for height, width in (*SHAPES, *LARGE_SHAPES):
        image = picture(height, width)
        expected = stored.encode(user_turns(backbone.prompt, backbone.system), [image]).tensors
        where = f"image of {width} x {height}"
        _require_same(
            dict(prepared(backbone, image, where).prefix.image),
            {k: v for k, v in expected.items() if v.shape != expected["input_ids"].shape},
            where,
        )


def check_shrunk_images(backbone: Backbone) -> None:
    """An image that `shrunk` makes smaller gives the processor's tensors of the whole one."""
    for height, width in ((1200, 1700), (1333, 500), (611, 2101)):
        image = Image.effect_noise((width, height), 80).convert("RGB")
        whole, given = (
            backbone.processor(text=[backbone.rendered_prompt()], images=[one], return_tensors="pt")
            for one in (image, backbone.shrunk(image))
        )
        _require_same(dict(given), dict(whole), f"noise of {width} x {height}, shrunk")


def check_image_kinds(backbone: Backbone) -> None:
    """Gray, palette, 16-bit, transparent and turned images are seen as upright RGB on white."""
    for name, given, upright in readings(picture(90, 150)):
        expected = prepared(backbone, upright, "RGB image")
        found = prepared(backbone, given, f"{name} image")
        require_equal(found.image_hw, (upright.height, upright.width), f"image_hw, {name} image")
        _require_same(dict(found.prefix.image), dict(expected.prefix.image), f"{name} image")
        if "chat" in backbone.spec.capabilities:
            (seen,) = backbone.reply(given, "?", record=False, max_new_tokens=1).images
            same = seen.image.size == upright.size and seen.image.tobytes() == upright.tobytes()
            what = f"{name} image in a conversation"
            require(same, what, expected="upright RGB on white", found="other pixels")


def check_image_features(backbone: Backbone) -> None:
    """The language model receives the image features that the model's own forward gives it."""
    stored = reference(backbone)
    for height, width in (*SHAPES, (400, 600)):
        image = picture(height, width, seed=2)
        given = stored.encode(user_turns(backbone.prompt, backbone.system), [image]).tensors
        is_image = given["input_ids"][0] == backbone.image_token_id
        found = decoder_embeds(backbone.vlm, to_vlm(backbone.vlm, given))[0, is_image]  # (M, D)
        expected = decoder_embeds(stored.vlm, given)[0, is_image]
        require_near(found, expected, f"image features, image of {width} x {height}")


def _require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    require_equal(sorted(found), sorted(expected), f"tensors of the {where}")
    for key, value in expected.items():
        other = found[key]
        require_equal(tuple(other.shape), tuple(value.shape), f"shape of {key}, {where}")
        if torch.equal(other, value):
            continue
        if not value.is_floating_point():
            require_equal(other.tolist(), value.tolist(), f"{key}, {where}")
        require_near(other, value, f"{key}, {where}{_channels(other, value)}")


def _channels(found: Tensor, expected: Tensor) -> str:
    """A word about pixels (..., 3, h, w) whose channels are in another order."""
    reverse = expected.ndim >= 3 and expected.shape[-3] == 3
    if reverse and torch.allclose(found, expected.flip(-3), atol=1e-3):
        return " (it is BGR)"
    return ""
