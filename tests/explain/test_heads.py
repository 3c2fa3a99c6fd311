"""The heads that localize are found on drawn scenes, once, and point at what words name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_fill_holes

from flmm_core.data.drawn.narrations import narration
from flmm_core.data.drawn.scenes import make_scene, paint
from flmm_core.explain import heads
from flmm_core.explain.heads import labeled_nouns, localization_heads
from flmm_core.explain.make import explain
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment, caption_text
from recipes.explaining import center, named
from tests.models import build


@pytest.mark.parametrize("family", ["qwen", "deepseek_vl", "llava_next"])
def test_nouns_point_at_what_they_name_and_points_at_their_nouns(family: str) -> None:
    spec = load_backbones().get(family)
    tiny, hits = load_class(spec).load(spec), []
    for number in range(24):
        scene = make_scene((31, number), "plain")
        pixels, masks, _ = paint(scene)
        text = caption_text(narration(scene, np.random.default_rng((31, number))))
        found = explain(tiny, Image.fromarray(pixels), text=text)
        for word, thing in (nouns := named(found, scene)):
            x, y = found.peak(word)
            own = {one.word for one in nouns if one.thing == thing}
            first = found.words_at(center(masks[thing]))[0]
            inside = binary_fill_holes(masks[thing])  # the middle of a ring is a hole
            hits.append((inside[int(y), int(x)], first.word in own))
    pointed, named_first = np.mean(hits, axis=0)
    # `recipes.explaining` measures 0.90 and more on 579 nouns; of these 101, it may be 0.06 less.
    assert pointed >= 0.84
    assert named_first >= 0.9


def test_each_noun_s_maps_come_with_the_mask_of_what_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone, said = build("qwen"), []
    prepare = backbone.prepare

    def noted(image: Image.Image, segments: Sequence[Segment], **more: Any) -> Any:
        said.append(segments)
        return prepare(image, segments, **more)

    monkeypatch.setattr(backbone, "prepare", noted)
    scene = make_scene((31, 0), "plain")
    masks = dict(zip((one.kind for one in scene.shapes), paint(scene)[1], strict=True))
    found = list(labeled_nouns(backbone, scene))
    captions = said[-len(found) :]
    assert len(found) == len(masks)
    assert any(len(truth) == 2 for _, truth in found)
    for (maps, truth), caption in zip(found, captions, strict=True):
        texts = [one.text for one in caption]
        places = [place for place, one in enumerate(caption) if one.phrase is not None]
        kinds = [(texts[place - 1].split()[-1], texts[place]) for place in places]
        assert len(set(kinds)) == len(kinds) == len(maps.maps) == len(truth)
        for kind, mask in zip(kinds, truth.numpy(), strict=True):
            np.testing.assert_array_equal(mask, masks[kind])


def test_heads_are_found_once_per_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build("qwen")
    first = localization_heads(backbone, scenes=2)
    assert sorted(first.best(12)) == list(range(12))
    assert [first.shares[c] for c in first.best(12)] == sorted(first.shares, reverse=True)
    assert 0 < first.area < 0.3
    (kept,) = (tmp_path / "cache" / "localization-heads").iterdir()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("looked for again")

    with monkeypatch.context() as patch:
        patch.setattr(heads, "find_heads", refused)
        assert localization_heads(build("qwen"), scenes=2) == first
        with pytest.raises(AssertionError, match="again"):
            localization_heads(build("qwen", seed=1), scenes=2)  # other weights
    for damage in (b"", b"{}", b'{"shares": [1.0], "area": 0.1}', b"\xff"):
        kept.write_bytes(damage)
        assert localization_heads(build("qwen"), scenes=2) == first
    assert localization_heads(build("qwen"), scenes=2) == first
