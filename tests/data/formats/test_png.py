from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.panoptic import read_segment_ids, segment_color
from flmm_core.data.protocols import PROTOCOLS
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError
from flmm_core.segment import Segment, pieces_of
from tests.data.conftest import read

DOG, CAT, GRASS = 3226956, 255, 65536


class Files:
    """A PNG folder as it is distributed, with one image and two narratives of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.narratives_path = root / "annotations" / "png_coco_val2017.json"
        self.panoptic_path = root / "annotations" / "panoptic_val2017.json"
        self.png = root / "annotations" / "panoptic_segmentation" / "val2017" / "000000000139.png"
        self.image = root / "images" / "val2017" / "000000000139.jpg"
        self.ids = np.zeros((4, 6), dtype=np.int64)
        self.ids[0, :3], self.ids[1, 1:4], self.ids[3] = DOG, CAT, GRASS
        self.panoptic: dict[str, Any] = {
            "images": [{"id": 139, "file_name": "000000000139.jpg", "height": 4, "width": 6}],
            "annotations": [
                {
                    "image_id": 139,
                    "file_name": "000000000139.png",
                    "segments_info": [
                        {"id": DOG, "category_id": 18, "area": 3, "bbox": [0, 0, 3, 1]},
                        {"id": CAT, "category_id": 17, "area": 3, "bbox": [1, 1, 3, 1]},
                        {"id": GRASS, "category_id": 193, "area": 6, "bbox": [0, 3, 6, 1]},
                    ],
                }
            ],
            "categories": [
                {"id": 17, "name": "cat", "isthing": 1, "supercategory": "animal"},
                {"id": 18, "name": "dog", "isthing": 1, "supercategory": "animal"},
                {"id": 193, "name": "grass-merged", "isthing": 0, "supercategory": "plant"},
            ],
        }
        self.narratives: list[dict[str, Any]] = [
            self.narrative(
                ("In this image there are ", [], False, False),
                ("two animals", [DOG, CAT], True, True),
                (" on ", [], False, False),
                ("the grass", [GRASS], True, False),
                (" and the sky", [], True, False),
                (".", [], False, False),
            ),
            self.narrative(("Nothing here.", [], False, False)),
            self.narrative(("a dog", [DOG], True, False)),
        ]

    @staticmethod
    def narrative(*pieces: tuple[str, list[int], bool, bool]) -> dict[str, Any]:
        segments = [
            {"utterance": text, "segment_ids": [str(i) for i in ids], "noun": noun, "plural": many}
            for text, ids, noun, many in pieces
        ]
        caption = "".join(piece[0] for piece in pieces)
        return {"annotator_id": 1, "image_id": "139", "caption": caption, "segments": segments}

    def save(self) -> Files:
        for file in (self.narratives_path, self.png, self.image):
            file.parent.mkdir(parents=True, exist_ok=True)
        self.narratives_path.write_text(json.dumps(self.narratives))
        self.panoptic_path.write_text(json.dumps(self.panoptic))
        colors = np.stack(segment_color(self.ids), axis=-1)  # type: ignore[arg-type]
        Image.fromarray(colors.astype(np.uint8)).save(self.png)
        Image.new("RGB", (6, 4)).save(self.image)
        read_segment_ids.cache_clear()
        return self

    def fails(self, split: str = "val") -> str:
        with pytest.raises(DataError) as caught:
            read(f"png:{self.save().root}@{split}")
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_narrative_is_one_sample_joined_with_nothing(files: Files, protocol: str) -> None:
    files.save()
    first, other = open_source(f"png:{files.root}@val", protocol)
    assert first.caption == files.narratives[0]["caption"]
    assert first.segments == (
        Segment("In this image there are "),
        Segment("two animals", 0),
        Segment(" on "),
        Segment("the grass", 1),
        Segment(" and the sky"),
        Segment("."),
    )
    assert first.name == "png@val/000000000139.jpg#0"
    assert other.name == "png@val/000000000139.jpg#2"
    animals, grass = first.phrases
    assert (animals.text, animals.category) == ("two animals", "dog, cat")
    assert animals.tags == {"plural", "thing"}
    assert (grass.text, grass.category) == ("the grass", "grass-merged")
    assert grass.tags == {"singular", "stuff"}
    np.testing.assert_array_equal(rle.decode(animals.mask), (files.ids == DOG) | (files.ids == CAT))
    np.testing.assert_array_equal(rle.decode(grass.mask), files.ids == GRASS)


SPOKEN = "In this image, there are two animals on the grass-field and the sky."


@pytest.mark.parametrize(
    "utterances",
    [
        ("In this image,", "there are", "two animals", "on", "the grass-field", "and the sky."),
        ("In this image, ", "there are ", "two animals ", "on ", "the grass-field ", "and the sky"),
        (
            "In this image",
            " there are",
            " two animals",
            " on",
            " the grass - field",
            " and the sky",
        ),
        (
            "In this image,",
            " ",
            "there are",
            "two  animals",
            "on",
            "the grass",
            "-field and the sky.",
        ),
    ],
    ids=["bare", "spaces after", "spaces before", "mixed"],
)
def test_utterances_are_set_into_their_caption(files: Files, utterances: tuple[str, ...]) -> None:
    named = {"two": [DOG, CAT], "the": [GRASS]}
    files.narratives[0] = files.narrative(
        *[(words, named.get(words.split()[0] if words.strip() else "", []), True, False)
          for words in utterances]
    )  # fmt: skip
    files.narratives[0]["caption"] = SPOKEN
    first = open_source(f"png:{files.save().root}@val")[0]
    assert first.caption == SPOKEN
    grass = "the grass" if "the grass" in utterances else "the grass-field"
    assert [phrase.text for phrase in first.phrases] == ["two animals", grass]
    alone = [piece.text for piece in pieces_of(first.segments, "pieces")]
    assert alone == list(utterances)  # the original joins them as the file has them


@pytest.mark.parametrize("caption", ["In this image there are three animals.", "", "and the sky."])
def test_utterances_that_are_not_the_caption_are_left_out(files: Files, caption: str) -> None:
    files.narratives[0]["caption"] = caption
    found = Findings()
    (kept,) = read(f"png:{files.save().root}@val", found)
    assert kept.name == "2"
    first, _ = found.skipped
    assert first.reason == "its utterances are not the words of its caption"


def test_a_narrative_without_a_mask_is_counted_and_never_replaced(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.save()
    samples = open_source(f"png:{files.root}@val")
    assert len(samples) == 2
    (skipped,) = samples.skipped
    assert skipped.name == f"narrative 1 of {files.narratives_path}"
    assert skipped.reason == "none of its phrases has a segment"
    assert f"png:{files.root}@val: 1 left out, the first is narrative 1 of" in caplog.text


def test_words_that_are_no_noun_name_nothing(files: Files) -> None:
    files.narratives[0]["segments"][3]["noun"] = False
    (first, _) = read(f"png:{files.save().root}@val2017")
    assert [thing.sentences for thing in first.objects] == [("two animals",)]


def test_the_other_places_where_the_files_may_lie(files: Files) -> None:
    files.save()
    root = files.root
    (root / "annotations" / "panoptic_segmentation" / "val2017").rename(root / "panoptic_val2017")
    (root / "images" / "val2017").rename(root / "val2017")
    for name in ("png_coco_val2017.json", "panoptic_val2017.json"):
        (root / "annotations" / name).rename(root / name)
    assert len(read(f"png:{root}@val")) == 2


# --- what can be wrong with them ---------------------------------------------------------------


def test_a_panoptic_png_of_the_wrong_size(files: Files) -> None:
    files.ids = np.zeros((6, 4), dtype=np.int64)
    assert files.fails() == (
        f"The panoptic PNG {files.png} does not have the size of its image.\n"
        "It is 6 x 4, the image 4 x 6 (height x width).\n"
        "Use the PNGs and the images of one release, unscaled."
    )


def test_a_segment_without_a_pixel(files: Files) -> None:
    files.ids[files.ids == CAT] = 0
    first = read(f"png:{files.save().root}@val")[0]
    with pytest.raises(DataError) as caught:
        first.objects[0].read_mask()
    assert str(caught.value) == (
        f"The segment {CAT} has no pixel in {files.png}.\n"
        "The panoptic JSON file says that it is in this image.\n"
        "Use the JSON file and the PNGs of one release."
    )


def test_a_segment_that_no_file_knows(files: Files) -> None:
    files.narratives[2]["segments"][0]["segment_ids"] = ["77"]
    assert files.fails() == (
        f"The segment 77 is not in {files.panoptic_path}.\n"
        f"It is among the segment_ids of segment 0 of narrative 2 of {files.narratives_path}, "
        "which is about image 139.\n"
        "Use narratives and panoptic files of one release."
    )


def test_a_narrative_about_no_image(files: Files) -> None:
    files.narratives[2]["image_id"] = "140"
    assert files.fails() == (
        f"The image_id 140 of narrative 2 of {files.narratives_path} is unknown.\n"
        f"It is not among the 'images' of {files.panoptic_path}.\n"
        "Use files of one release, unchanged."
    )


def test_an_image_that_stands_twice(files: Files) -> None:
    files.panoptic["annotations"] *= 2
    assert files.fails() == (
        f"The annotation image_id 139 occurs twice in {files.panoptic_path}.\n"
        "Ids must be unique; get an unchanged copy of the file."
    )


def test_a_missing_split_lists_those_that_are_there(files: Files) -> None:
    assert files.fails("vol") == (
        "The file png_coco_vol2017.json is missing.\n"
        "Did you mean 'val2017'? There are: val2017. Looked for:\n"
        f"  {files.root}/annotations/png_coco_vol2017.json\n"
        f"  {files.root}/png_coco_vol2017.json\n"
        "Get it from the project's page, or name another split after the '@'."
    )


@pytest.mark.parametrize(("which", "what"), [("png", "panoptic PNG"), ("image", "image")])
def test_missing_files_list_where_they_were_looked_for(files: Files, which: str, what: str) -> None:
    gone: Path = getattr(files.save(), which)
    gone.unlink()
    with pytest.raises(DataError) as caught:
        read(f"png:{files.root}@val")
    assert caught.value.asked == f"The {what} {gone.name} is missing."
    assert f"  {gone if which == 'png' else gone.parent}\n" in caught.value.found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"utterance": " "},
            "Segment 0 of narrative 2 of {path} has ids but no words.",
        ),
        (
            {"segment_ids": ["x"]},
            (
                "Segment 0 of narrative 2 of {path} has 'x' for 'segment_ids'.\n"
                "Expected an id: a whole number."
            ),
        ),
        (
            {"utterance": None},
            ("Segment 0 of narrative 2 of {path} has None for 'utterance'.\nExpected a string."),
        ),
    ],
)
def test_what_is_wrong_with_an_utterance_is_named(
    files: Files, change: dict[str, Any], message: str
) -> None:
    files.narratives[2]["segments"][0] |= change
    assert files.fails() == message.format(path=files.narratives_path)


def test_every_fault_is_collected(files: Files) -> None:
    files.narratives[0]["image_id"] = "140"
    files.narratives[2]["segments"][0]["segment_ids"] = ["77"]
    findings = Findings(keep_on=True)
    assert read(f"png:{files.save().root}@val", findings) == ()
    assert [fault.asked.split()[:3] for fault in findings.faults] == [
        ["The", "image_id", "140"],
        ["The", "segment", "77"],
    ]
    assert len(findings.skipped) == 1
