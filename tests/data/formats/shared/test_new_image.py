from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flmm_core.data import rle
from flmm_core.data.formats import FORMATS
from flmm_core.data.formats.shared.new_image import plain_caption


def test_a_plain_caption_names_every_object(drawn_images: Any) -> None:
    one, two = drawn_images[0].objects
    text = "".join(piece.text for piece in plain_caption([one, two, one]))
    assert text == "This picture shows the red square, a ring and the red square."
    assert [piece.phrase for piece in plain_caption([one])] == [None, 0, None]


def test_what_a_format_cannot_say_is_refused(tmp_path: Path, drawn_images: Any) -> None:
    new = drawn_images[0]
    square, ring = new.objects
    nothing = replace(ring, mask=rle.empty(20, 30))
    with pytest.raises(ValueError, match=r"1.png: LabelMe has no empty shapes"):
        FORMATS["labelme"].write(tmp_path, [new._replace(objects=[square, nothing])])
    everywhere = replace(ring, mask=rle.encode(~rle.decode(ring.read_mask())))
    with pytest.raises(ValueError, match=r"1.png: two segments overlap"):
        FORMATS["png"].write(tmp_path, [new._replace(objects=[square, everywhere])])
    with pytest.raises(ValueError, match=r"1.png: a narrative is of one split"):
        FORMATS["png"].write(tmp_path, [new._replace(objects=[square, replace(ring, split="val")])])
    assert not list(tmp_path.rglob("*.json"))
