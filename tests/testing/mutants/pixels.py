"""Faults of what the model sees."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageOps

from tests.testing.mutants.mutant import Make, Wrapped, loading, method, mutant

PIXELS, KINDS, SHRUNK, FEATURES = (
    "check_pixels",
    "check_image_kinds",
    "check_shrunk_images",
    "check_image_features",
)


def seen(change: Callable[[Image.Image], Image.Image]) -> Make:
    """Images that are changed on their way to the processor."""
    return loading(lambda vlm, processor: Wrapped(processor, before=change))


def made(change: Callable[[Any], None]) -> Make:
    """Tensors that are changed on their way from the processor."""
    return loading(lambda vlm, processor: Wrapped(processor, after=change))


def setting(**changes: Any) -> Make:
    """Other settings of the image processor."""

    def change(vlm: Any, processor: Any) -> None:
        for key, value in changes.items():
            setattr(processor.image_processor, key, value)

    return loading(change)


def bgr(image: Image.Image) -> Image.Image:
    return Image.merge("RGB", image.split()[::-1])


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def thumbnail(image: Image.Image, side: int = 64) -> Image.Image:
    image = image.copy()
    image.thumbnail((side, side))
    return image


def stretched(image: Image.Image) -> Image.Image:
    return thumbnail(image).resize(image.size)


def cropped(image: Image.Image) -> Image.Image:
    w, h = image.size
    return image.crop((w // 10, h // 10, w - w // 10, h - h // 10))


def black_if_large(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size) if max(image.size) > 1000 else image


def halved(encoded: Any) -> None:
    encoded["pixel_values"] = encoded["pixel_values"].half().float()


def scaled(encoded: Any) -> None:
    encoded["pixel_values"] = encoded["pixel_values"] * 1.01


def tiles_turned(encoded: Any) -> None:
    pixels = encoded["pixel_values"]
    encoded["pixel_values"] = torch.cat([pixels[:, :1], pixels[:, 1:].flip(1)], 1)


def sizes_turned(encoded: Any) -> None:
    encoded["image_sizes"] = encoded["image_sizes"].flip(1)


for name, image_change in {
    "BGR": bgr,
    "gray": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "inverted": ImageOps.invert,
    "a thumbnail": thumbnail,
    "a thumbnail at the image's size": stretched,
    "cropped to its middle": cropped,
    "compressed as JPEG": jpeg,
    "of 16 colors": lambda image: image.quantize(16).convert("RGB"),
}.items():
    mutant(PIXELS, f"image {name}")(seen(image_change))
mutant(PIXELS, "another mean")(setting(image_mean=[0.1, 0.2, 0.3]))
mutant(PIXELS, "another deviation")(setting(image_std=[0.2, 0.25, 0.3]))
mutant(PIXELS, "pixels not rescaled")(setting(do_rescale=False))
mutant(PIXELS, "pixels not normalized")(setting(do_normalize=False))
mutant(PIXELS, "resized to the nearest pixel")(setting(resample=Image.Resampling.NEAREST))
mutant(PIXELS, "pixels in half precision")(made(halved))
mutant(PIXELS, "pixels 1 % too bright")(made(scaled))
mutant(PIXELS, "tiles in another order", "llava_next")(made(tiles_turned))
mutant(PIXELS, "image_sizes are (width, height)", "llava_next")(made(sizes_turned))
mutant(PIXELS, "a smaller limit of pixels", "qwen")(
    setting(size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64})
)


def reading(change: Callable[[Image.Image], Image.Image]) -> Make:
    """Images that `prepare` reads in its own way."""
    return method(
        "prepare", lambda self, right, image, *args, **kw: right(change(image), *args, **kw)
    )


def without_exif(image: Image.Image) -> Image.Image:
    turned = image.getexif().get(0x0112)
    return Image.fromarray(__import__("numpy").asarray(image)) if turned else image


def only(mode: str, change: Callable[[Image.Image], Image.Image]) -> Make:
    return reading(lambda image: change(image) if image.mode == mode else image)


def on_black(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(ground, image).convert("RGB")


def turned_twice(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).rotate(180) if image.getexif().get(0x0112) else image


mutant(PIXELS, "image black above 1,000 px")(reading(black_if_large))
mutant(KINDS, "RGBA without its opacity")(only("RGBA", lambda image: image.convert("RGB")))
mutant(KINDS, "RGBA on black")(only("RGBA", on_black))
mutant(KINDS, "LA without its opacity")(only("LA", lambda image: image.convert("L")))
mutant(KINDS, "palette read as gray")(
    only("P", lambda image: Image.frombytes("L", image.size, image.tobytes()))
)
mutant(KINDS, "gray read as red")(
    only("L", lambda i: Image.merge("RGB", [i, Image.new("L", i.size), Image.new("L", i.size)]))
)
mutant(KINDS, "16 bits cut off at 255")(only("I;16", lambda image: image.convert("RGB")))
mutant(KINDS, "EXIF orientation ignored")(reading(without_exif))
mutant(KINDS, "EXIF orientation taken for another")(reading(turned_twice))
mutant(KINDS, "EXIF orientation ignored in conversations")(
    method("reply", lambda self, right, image, *args, **kw: right(without_exif(image), *args, **kw))
)
mutant(KINDS, "black and white inverted")(
    only("1", lambda image: ImageOps.invert(image.convert("L")))
)

mutant(SHRUNK, "shrunk to the nearest pixel")(
    method("shrunk", lambda self, right, i: i.resize((i.width // 2, i.height // 2), 0))
)
mutant(SHRUNK, "shrunk to a thumbnail")(method("shrunk", lambda self, right, i: thumbnail(i)))
mutant(SHRUNK, "shrunk above 1,000 px only")(
    method("shrunk", lambda self, right, i: thumbnail(i, 900) if max(i.size) > 1000 else right(i))
)


def features(change: Callable[[Any], Any]) -> Make:
    """Image features that are changed on their way into the language model."""

    def install(vlm: Any, processor: Any) -> None:
        token = getattr(vlm.config, "image_token_id", None) or vlm.config.image_token_index
        ids: list[Any] = []
        vlm.model.register_forward_pre_hook(
            lambda _, args, kwargs: ids.append(kwargs.get("input_ids")), with_kwargs=True
        )

        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            given, embeds = (ids[-1] if ids else None), kwargs.get("inputs_embeds")
            if given is None or embeds is None or given.shape != embeds.shape[:2]:
                return None
            embeds = embeds.clone()
            for sample, which in zip(embeds, given == token, strict=True):
                if which.any():
                    sample[which] = change(sample[which])
            return args, {**kwargs, "inputs_embeds": embeds}

        vlm.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)

    return loading(install)


mutant(FEATURES, "features 1 % too large")(features(lambda f: f * 1.01))
mutant(FEATURES, "features in reverse order")(features(lambda f: f.flip(0)))
mutant(FEATURES, "features one token late")(features(partial(torch.roll, shifts=1, dims=0)))
mutant(FEATURES, "features all zero")(features(torch.zeros_like))
mutant(FEATURES, "features all their mean")(features(lambda f: f.mean(0, True).expand_as(f)))


def layer(vlm: Any, processor: Any) -> None:
    vlm.config.vision_feature_layer = -1


mutant(FEATURES, "features of another vision layer", "llava_next", "minimal")(loading(layer))


def thinner(vlm: Any, processor: Any) -> None:
    """Leave out the last layer of the vision encoder."""
    blocks = next(
        m
        for n, m in vlm.named_modules()
        if isinstance(m, torch.nn.ModuleList) and ("vision" in n or "visual" in n) and len(m) > 1
    )
    del blocks[-1]


mutant(FEATURES, "a vision encoder without its last layer", "qwen", "deepseek_vl")(loading(thinner))
