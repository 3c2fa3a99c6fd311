"""`Grounder.ground` on toy models of the real transformers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from flmm_core.data.images import read_image
from flmm_core.errors import UsageError
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.observer import Observer
from flmm_core.pipeline.types import Segment
from tests.flows import assemble, flow
from tests.models import build, picture


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return assemble(build("qwen"))


def test_each_phrase_is_grounded_alone(grounder: Grounder) -> None:
    image = picture(48, 24)
    result = grounder.ground(image, ["a red ring", " the star "])
    assert result.phrases == ("a red ring", "the star")
    assert result.logits.shape == result.masks.shape == (2, 24, 48)
    assert result.coarse_logits.shape[0] == 2
    assert not result.logits.requires_grad
    for index, phrase in enumerate(result.phrases):
        sample = grounder.observer.prepare(image, [Segment(phrase, 0), Segment(".")])
        (grounding,) = flow(grounder, [sample])
        assert (grounding.logits[0] - result.logits[index]).abs().max() <= 1e-3
        alone = grounder.ground(image, phrase)
        assert (alone.logits[0] - result.logits[index]).abs().max() <= 1e-3


def test_a_result_is_made_of_usual_tensors_and_the_head_can_be_trained_afterwards(
    grounder: Grounder,
) -> None:
    image = picture(48, 24)
    result = grounder.ground(image, ["a red ring", "the star"])
    for name in ("logits", "masks", "coarse_logits", "scores", "boxes", "probabilities", "there"):
        assert not getattr(result, name).is_inference(), name
    assert not result.refined.low.is_inference()
    assert not result.heat.maps.is_inference()
    result.logits.mul_(2)
    observer, head = grounder.observer, grounder.head
    batch = observer.collate(grounder.prepare(image, ["a red ring"]).samples)
    with torch.enable_grad():
        (grounding,) = head(observer.observe(batch))
        (grounding.coarse_logits.sum() + grounding.logits.sum()).backward()
    trained = [weight for weight in head.parameters() if weight.requires_grad]
    assert trained
    assert all(weight.grad is not None for weight in head.mask_head.parameters())
    head.zero_grad(set_to_none=True)


def test_together_later_phrases_see_earlier_ones(grounder: Grounder) -> None:
    image = picture(48, 24)
    alone = grounder.ground(image, ["a red ring", "the star"])
    together = grounder.ground(image, ["a red ring", "the star"], together=True)
    caption = [Segment("a red ring", 0), Segment(". "), Segment("the star", 1), Segment(".")]
    (wanted,) = flow(grounder, [grounder.observer.prepare(image, caption)])
    # not bit for bit: some processors round by where in memory a tensor begins
    assert (together.coarse_logits - wanted.coarse_logits).abs().max() <= 1e-5
    assert (together.logits - wanted.logits).abs().max() <= 1e-3
    assert (together.coarse_logits[0] - alone.coarse_logits[0]).abs().max() <= 1e-4
    assert (together.coarse_logits[1] - alone.coarse_logits[1]).abs().max() > 1e-3


def test_phrases_go_through_in_portions(
    grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    collate = Observer.collate
    monkeypatch.setattr(
        Observer,
        "collate",
        lambda self, s, **seen: (sizes.append(len(s)), collate(self, s, **seen))[1],
    )
    image, phrases = picture(48, 24), ["one", "two", "three"]
    whole = grounder.ground(image, phrases)
    portions = grounder.ground(image, phrases, batch_size=2)
    assert (whole.logits - portions.logits).abs().max() <= 1e-3
    assert sizes == [3, 2, 1]


def test_an_image_is_encoded_once_for_all_phrases(
    grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encoder: Any = grounder.observer.encoder
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda x: (seen.append(len(x)), encode(x))[1])
    grounder.ground(picture(48, 24), ["one", "two", "three"])
    assert seen == [1]


def test_a_prompt_is_used_once_and_not_kept(grounder: Grounder) -> None:
    image, own = picture(48, 24), grounder.backbone.prompt
    usual = grounder.ground(image, ["it"])
    other = grounder.ground(image, ["it"], "What is this?")
    assert grounder.backbone.prompt == own
    assert (usual.coarse_logits - other.coarse_logits).abs().max() > 1e-4
    assert torch.equal(grounder.ground(image, ["it"]).logits, usual.logits)


def test_no_phrases_give_an_empty_result(grounder: Grounder) -> None:
    for together in (False, True):
        result = grounder.ground(picture(48, 24), [], together=together)
        assert len(result) == 0
        assert result.masks.shape == (0, 24, 48)
        assert result.boxes.shape == (0, 4)
        assert result.scores.shape == (0,)
        assert result.to_coco() == []
        assert result.overlay().size == (48, 24)  # no legend, as there is nothing to name


@pytest.mark.parametrize("size", [(240, 48), (48, 240), (30, 1), (1, 30)])
def test_narrow_images_give_masks_of_their_size(grounder: Grounder, size: tuple[int, int]) -> None:
    result = grounder.ground(picture(*size), ["it"])
    assert result.logits.shape == (1, size[1], size[0])
    assert result.logits.isfinite().all()
    assert result.scores.isfinite().all()


@pytest.mark.parametrize("phrases", [[""], ["a", "  "], [3]])
def test_an_empty_phrase_is_refused(grounder: Grounder, phrases: Any) -> None:
    with pytest.raises(UsageError, match=f"Phrase {len(phrases) - 1} is empty"):
        grounder.ground(picture(48, 24), phrases)


@pytest.mark.parametrize("missing", [None, b"ring.png", [1, 2]])
def test_what_is_no_image_is_refused(grounder: Grounder, missing: Any) -> None:
    with pytest.raises(UsageError, match="There is no image to ground in"):
        grounder.ground(missing, ["it"])


def test_a_file_is_read_the_same_however_it_is_given(grounder: Grounder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    path = tmp_path / "photo.png"
    picture(48, 24).save(path, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    wanted = grounder.ground(upright, ["it"])
    assert wanted.logits.shape == (1, 48, 24)
    for given in (path, str(path), Image.open(path), read_image(path), torch.tensor(upright)):
        result = grounder.ground(given, ["it"])
        assert np.array_equal(np.asarray(result.image), upright)
        assert torch.equal(result.logits, wanted.logits)
