from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flmm_core.data import rle
from flmm_core.data.findings import Skipped
from flmm_core.data.protocols import PROTOCOLS, ImageSamples
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Phrase, Sample
from flmm_core.errors import UsageError
from flmm_core.segment import Segment, pieces_of

ORIGINAL = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "reference" / "data_transforms.json").read_text()
)
"""What the original pipeline makes of two objects, with one token a byte: byte + 3."""


def image(name: str, *objects: tuple[str, ...]) -> AnnotatedImage:
    things = []
    for index, sentences in enumerate(objects):
        mask = np.zeros((4, 5), dtype=bool)
        mask[:, index] = True
        things.append(
            GroundedObject(rle.encode(mask), sentences, f"c{index}", f"s{index}", name="7")
        )
    return AnnotatedImage(name, Path("images") / name, (4, 5), tuple(things))


def tokens(sample: Sample) -> tuple[list[int], list[list[int]]]:
    """Token ids of the caption, and [position, phrase] of every token that names a mask."""
    ids: list[int] = []
    named: list[list[int]] = []
    for segment in pieces_of(sample.segments, "pieces"):
        for byte in segment.text.encode():
            if segment.phrase is not None:
                named.append([ORIGINAL["prompt_len"] + len(ids), segment.phrase])
            ids.append(byte + 3)
    return ids, named


def test_flmm_paper_gives_the_originals_tokens() -> None:
    texts = ORIGINAL["refcoco_text"]
    (sample,) = ImageSamples(
        [image("dogs.jpg", (texts[0], "never said"), (texts[1],))], "flmm-paper"
    )
    ids, named = tokens(sample)
    original = ORIGINAL["refcoco_concat"]
    last_of_prompt = 1  # the fixture's list begins with the prompt's last token
    assert ids == original["input_ids_after_prompt"][last_of_prompt:]
    assert ORIGINAL["prompt_len"] + len(ids) == original["n"]
    assert named == original["mask_ids_nonneg"]


def test_standard_gives_the_originals_tokens_of_split_captions() -> None:
    texts = ORIGINAL["refcoco_text"]
    samples = ImageSamples([image("dogs.jpg", (texts[0],), (texts[1],))], "standard")
    for sample, original in zip(samples, ORIGINAL["refcoco_split"], strict=True):
        ids, named = tokens(sample)
        assert ORIGINAL["prompt_len"] + len(ids) == original["n"]
        assert named == original["mask_ids_nonneg"]


@pytest.fixture
def images() -> list[AnnotatedImage]:
    return [image("a.jpg", ("one", "two"), ("three",)), image("b.jpg", ("four",))]


def test_standard_takes_every_sentence_alone(images: list[AnnotatedImage]) -> None:
    samples = ImageSamples(images, "standard", "refcoco@val")
    assert [sample.caption for sample in samples] == ["one.", "two.", "three.", "four."]
    assert [sample.name for sample in samples] == [
        "refcoco@val/a.jpg#7/0",
        "refcoco@val/a.jpg#7/1",
        "refcoco@val/a.jpg#7/0",
        "refcoco@val/b.jpg#7/0",
    ]
    assert samples[2] == Sample(
        "refcoco@val/a.jpg#7/0",
        Path("images/a.jpg"),
        (4, 5),
        (Segment("three", 0), Segment(".")),
        (Phrase("three", images[0].objects[1].mask, "c1", "s1", distractors=0),),
    )


def test_flmm_paper_takes_all_objects_of_a_image(images: list[AnnotatedImage]) -> None:
    samples = ImageSamples(images, "flmm-paper")
    assert [sample.caption for sample in samples] == ["one. three.", "four."]
    assert [sample.name for sample in samples] == ["a.jpg", "b.jpg"]
    first = samples[0]
    assert [phrase.mask for phrase in first.phrases] == [t.mask for t in images[0].objects]
    assert [phrase.slice for phrase in first.phrases] == ["s0", "s1"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_samples_behave_like_any_sequence(images: list[AnnotatedImage], protocol: str) -> None:
    samples = ImageSamples(images, protocol)
    everything = list(samples)
    assert len(everything) == len(samples) == {"standard": 4, "flmm-paper": 2}[protocol]
    assert samples[-1] == everything[-1]
    assert samples[::-1] == tuple(reversed(everything))
    for outside in (len(samples), -len(samples) - 1):
        with pytest.raises(IndexError, match=f"sample {outside} of {len(samples)}"):
            samples[outside]


def test_nothing_has_no_samples() -> None:
    for protocol in PROTOCOLS:
        assert list(ImageSamples([], protocol)) == []


def test_an_unknown_protocol() -> None:
    with pytest.raises(UsageError) as caught:
        ImageSamples([], "flmm-papper")
    assert str(caught.value) == (
        "Unknown protocol 'flmm-papper'. Did you mean 'flmm-paper'?\n"
        "Protocols: flmm-paper, standard.\n"
        "'standard' scores every sentence alone; 'flmm-paper' puts the first sentence of each "
        "object of an image into one caption."
    )


@pytest.mark.parametrize(
    "segments", [(Segment("a"),), (Segment("a", 0), Segment("b", 1)), (Segment("a", 1),)]
)
def test_a_sample_whose_segments_and_phrases_differ(segments: tuple[Segment, ...]) -> None:
    phrase = Phrase("a", rle.encode(np.ones((2, 2), dtype=bool)))
    with pytest.raises(ValueError, match="sample 'x': its segments name the phrases"):
        Sample("x", Path("a"), (2, 2), segments, (phrase,))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_caption_of_its_own_is_one_sample_under_either_protocol(
    images: list[AnnotatedImage], protocol: str
) -> None:
    pieces = (Segment("Here "), Segment("one", 0), Segment(" or "), Segment(" three", 1))
    told = replace(images[0], caption=pieces, name="5")
    samples = ImageSamples([told, images[1]], protocol, "png@val", [Skipped("x", "why")])
    assert samples[0].name == "png@val/a.jpg#5"
    assert len(samples) == 2
    assert samples[0].segments == pieces
    assert [phrase.text for phrase in samples[0].phrases] == ["one", "three"]
    assert samples[1].caption == "four."
    assert samples.skipped == (Skipped("x", "why"),)


def test_tags_and_ignored_pixels_reach_the_phrases(images: list[AnnotatedImage]) -> None:
    thing = images[1].objects[0]
    marked = replace(thing, tags=frozenset({"thing"}), ignore=thing.read_mask())
    (sample,) = ImageSamples([replace(images[1], objects=(marked,))], "standard")
    assert sample.phrases[0].tags == {"thing"}
    assert sample.phrases[0].ignore == thing.mask
