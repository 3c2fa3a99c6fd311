"""Images with their masks painted on them, one panel per object."""

from __future__ import annotations

from PIL import Image

from flmm_core.data import rle
from flmm_core.data.images import read_image
from flmm_core.data.sample import AnnotatedImage, caption_text
from flmm_core.painting import draw_panels, fade, mask_color, paint_mask, scale_to

SIDE, COLUMNS = 280, 4
IGNORED = (60, 60, 60)


def draw_preview(picture: AnnotatedImage) -> Image.Image:
    """The image with its caption, and one panel per object: its mask in color, ignored pixels dark.

    Below each panel stand the object's phrases and tags, "(not there)" if its mask is empty.
    """
    image = read_image(picture.path, image_hw=picture.image_hw, as_stored=picture.as_stored)
    large = scale_to(image, 2 * SIDE)
    caption = caption_text(picture.caption)
    faded, panels = fade(large), [(large, caption or picture.file_name)]
    for number, thing in enumerate(picture.objects):
        mask, painted = rle.decode(thing.read_mask()), faded
        words = " | ".join(thing.sentences)
        words += f" [{', '.join(sorted(thing.tags))}]" if thing.tags else ""
        if thing.ignore is not None:
            painted = paint_mask(painted, rle.decode(thing.ignore), IGNORED, opacity=0.7)
            words += " (dark: ignored)"
        painted = paint_mask(painted, mask, mask_color(number))
        panels.append((painted, words + ("" if mask.any() else " (not there)")))
    return draw_panels(panels, COLUMNS, SIDE, lines=6)
