from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_core.data import rle
from flmm_core.data.findings import Findings, Skipped
from flmm_core.data.formats import FORMATS
from flmm_core.data.formats.refcoco import SPLIT_MAKERS
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.formats.shared.refs import IMAGE_FOLDERS
from flmm_core.data.images import read_image
from flmm_core.errors import DataError
from tests.data.conftest import read


def fails(path: Path, dataset: str, split: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read(f"{dataset}:{path}@{split}")
    return caught.value


# --- files as they are distributed -------------------------------------------------------------


def test_a_distributed_folder_is_read(distributed: Any) -> None:
    distributed.save()
    dogs, people = read(f"refcoco:{distributed.root}@val")
    assert dogs.file_name == "COCO_train2014_000000000009.jpg"
    assert dogs.path == distributed.images / dogs.file_name
    assert dogs.image_hw == (40, 60)
    assert [thing.sentences for thing in dogs.objects] == [
        ("left dog", "the dog on the left"),
        ("a cat",),
    ]
    assert [(t.category, t.name, t.split, t.slice) for t in dogs.objects] == [
        ("dog", "0", "val", ""),
        ("cat", "2", "val", ""),
    ]
    parts = np.zeros((40, 60), dtype=bool)
    parts[3:9, 2:12] = parts[3:9, 20:25] = True
    np.testing.assert_array_equal(rle.decode(dogs.objects[0].mask), parts)
    crowd = np.zeros((50, 30), dtype=bool)
    crowd.T.flat[100:125] = crowd.T.flat[150:175] = True
    np.testing.assert_array_equal(rle.decode(people.objects[0].mask), crowd)


def test_the_folder_itself_or_the_one_above_may_be_given(distributed: Any) -> None:
    distributed.save()
    assert read(f"refcoco:{distributed.root}@testA") == read(f"refcoco:{distributed.folder}@testA")


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_refs_of_every_old_protocol(distributed: Any, protocol: int) -> None:
    distributed.save_refs(distributed.refs, protocol)
    assert len(read(f"refcoco:{distributed.root}@val")) == 2


@pytest.mark.parametrize(
    ("dataset", "maker", "split"),
    [
        ("refcoco", "unc", "val"),
        ("refcoco+", "unc", "val"),
        ("refcocog", "umd", "val"),
        ("refcocog", "google", "google-val"),
    ],
)
def test_every_data_set_has_its_own_refs(
    make_distributed: Callable[..., Any], dataset: str, maker: str, split: str
) -> None:
    made = make_distributed(dataset, maker).save()
    assert len(read(f"{dataset}:{made.root}@{split}")) == 2


def test_each_maker_divides_refcocog_in_its_own_way(make_distributed: Callable[..., Any]) -> None:
    umd, google = make_distributed("refcocog", "umd"), make_distributed("refcocog", "google")
    google.refs[0]["split"], google.refs[3]["split"] = "train", "val"
    umd.save()
    google.save()

    def names(split: str) -> list[str]:
        images = read(f"refcocog:{umd.root}@{split}")
        return sorted(thing.name for image in images for thing in image.objects)

    assert names("val") == names("umd-val") == ["0", "1", "2"]
    assert names("google-val") == ["1", "2", "3"]
    assert names("google-train") == ["0"]


@pytest.mark.parametrize("sub", IMAGE_FOLDERS)
@pytest.mark.parametrize("inside", [False, True])
def test_images_are_found_in_every_usual_folder(distributed: Any, sub: str, inside: bool) -> None:
    sub = sub.format(name="refcoco")
    distributed.images = (distributed.folder if inside else distributed.root) / sub
    distributed.save()
    for image in read(f"refcoco:{distributed.root}@val"):
        assert image.path.parent == distributed.images


@pytest.mark.parametrize("name", ["COCO_train2014_000000000009.jpg", "000000000009.jpg"])
def test_images_are_found_by_their_coco_names(distributed: Any, name: str) -> None:
    distributed.save()
    stored = distributed.images / "COCO_train2014_000000000009.jpg"
    stored.rename(distributed.images / name)
    distributed.instances["images"][0]["file_name"] = "elsewhere.jpg"
    distributed.save(images=False)
    assert read(f"refcoco:{distributed.root}@testA")[0].path.name == name


def test_a_sentence_that_cleaning_emptied_keeps_its_raw_words(distributed: Any) -> None:
    distributed.refs[1]["sentences"][0] |= {"sent": "", "raw": "???"}
    distributed.save()
    assert read(f"refcoco:{distributed.root}@val")[1].objects[0].sentences == ("???",)


# --- what can be wrong with them ---------------------------------------------------------------


def test_a_missing_data_set_lists_where_it_was_looked_for(tmp_path: Path) -> None:
    assert str(fails(tmp_path, "refcoco+", "val")) == (
        f"The data set 'refcoco+' in {tmp_path} is missing.\n"
        f"Looked for:\n  {tmp_path}/refcoco+/instances.json\n  {tmp_path}/instances.json\n"
        "Give the folder that holds 'refcoco+/' with its instances.json."
    )


def test_another_data_sets_folder_is_not_taken_for_the_wanted_one(distributed: Any) -> None:
    distributed.save()
    error = fails(distributed.folder, "refcoco+", "val")
    assert f"  {distributed.folder}/refcoco+/instances.json\nGive" in str(error)


def test_missing_refs_list_the_refs_that_are_there(make_distributed: Callable[..., Any]) -> None:
    made = make_distributed("refcocog", "google").save()
    assert str(fails(made.root, "refcocog", "val")) == (
        "The refs file of refcocog@val is missing.\n"
        f"There are: refs(google).p. Looked for:\n  {made.folder}/refs(umd).p\n"
        "Add the file, or name the maker of another one in the split, "
        "for example '@google-val' for refs(google).p."
    )


def test_an_unknown_split_lists_the_splits(distributed: Any) -> None:
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "testa")) == (
        f"There is no split 'testa' in {distributed.refs_path}. Did you mean 'testA'?\n"
        "Its splits: val (3 refs), testA (1 refs).\n"
        "Name one of them after the '@'."
    )


def test_a_missing_image_lists_every_path_that_was_tried(distributed: Any) -> None:
    distributed.save()
    gone = distributed.images / "COCO_train2014_000000000025.jpg"
    gone.unlink()
    error = fails(distributed.root, "refcoco", "val")
    assert error.asked == f"The image {gone.name} of {distributed.instances_path} is missing."
    first, *folders = error.found.splitlines()
    assert first == (f"1 of 2 images are missing. Looked for {gone.name}, 000000000025.jpg in:")
    assert f"  {distributed.images}" in folders
    assert f"  {distributed.root}/images/mscoco/images/train2014" in folders
    assert f"  {distributed.folder}/train2017" in folders
    assert "--data refcoco:PATH@val,images=DIR" in error.repair
    assert "http://images.cocodataset.org/zips/train2014.zip" in error.repair


def test_an_annotation_without_an_image(distributed: Any) -> None:
    distributed.instances["annotations"][0]["image_id"] = 77
    distributed.refs[0]["image_id"] = 77
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"The image_id 77 of annotation 101 in {distributed.instances_path} is unknown.\n"
        f"It is not among the 'images' of {distributed.instances_path}.\n"
        "Use files of one release, unchanged."
    )


def test_a_ref_without_an_annotation(distributed: Any) -> None:
    distributed.refs[1]["ann_id"] = 555
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"The ann_id 555 of ref 1 of {distributed.refs_path} is unknown.\n"
        f"It is not among the 'annotations' of {distributed.instances_path}.\n"
        "Use files of one release, unchanged."
    )


def test_a_ref_and_its_annotation_disagree(distributed: Any) -> None:
    distributed.refs[1]["image_id"] = 9
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"Ref 1 of {distributed.refs_path} and its annotation name different images.\n"
        f"The ref says image_id 9; annotation 103 in {distributed.instances_path} says 25.\n"
        "Use refs and instances of one release."
    )


@pytest.mark.parametrize(
    ("key", "what", "double"),
    [("images", "image", 9), ("annotations", "annotation", 101), ("categories", "category", 1)],
)
def test_ids_that_stand_twice(distributed: Any, key: str, what: str, double: int) -> None:
    distributed.instances[key].append(distributed.instances[key][0])
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"The {what} id {double} occurs twice in {distributed.instances_path}.\n"
        "Ids must be unique; get an unchanged copy of the file."
    )


def test_a_ref_id_that_stands_twice(distributed: Any) -> None:
    distributed.refs[3]["ref_id"] = 1
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"The ref id 1 occurs twice in {distributed.refs_path}.\n"
        "Ids must be unique; get an unchanged copy of the file."
    )


def test_a_mask_that_does_not_fit_its_image(distributed: Any) -> None:
    distributed.instances["images"][1]["height"] = 60
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"The mask of annotation 103 in {distributed.instances_path} does not fit its image.\n"
        "The RLE is 50 x 30, the image 60 x 30 (height x width).\n"
        "Check that the annotation belongs to this image and was made at its size."
    )


def test_an_unknown_category(distributed: Any) -> None:
    distributed.instances["categories"].pop()
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"The category_id 18 of annotation 101 in {distributed.instances_path} is unknown.\n"
        f"It is not among the 'categories' of {distributed.instances_path}.\n"
        "Use files of one release, unchanged."
    )


def test_a_missing_key_and_a_wrong_type(distributed: Any) -> None:
    del distributed.refs[2]["ann_id"]
    distributed.refs[2] = {"ref_id": 2, "split": "val"}
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"Ref 2 of {distributed.refs_path} has no 'ann_id'.\n"
        "Its keys: ref_id, split.\n"
        "Add the key, or get an unchanged copy of the file."
    )
    distributed.refs[2] = {"ref_id": "two", "split": "val"}
    distributed.save()
    assert str(fails(distributed.root, "refcoco", "val")) == (
        f"Ref number 2 of {distributed.refs_path} has 'two' for 'ref_id'.\nExpected an integer."
    )


@pytest.mark.parametrize("sentences", [[], [{"sent": " "}]])
def test_a_ref_without_words_is_left_out(distributed: Any, sentences: list[Any]) -> None:
    distributed.refs[0]["sentences"] = sentences
    distributed.save()
    findings = Findings()
    images = read(f"refcoco:{distributed.root}@val", findings)
    assert sorted(thing.name for image in images for thing in image.objects) == ["1", "2"]
    assert findings.skipped == [Skipped(f"ref 0 of {distributed.refs_path}", "it has no sentence")]


def test_instances_that_are_cut_off(distributed: Any) -> None:
    distributed.save()
    whole = distributed.instances_path.read_text()
    distributed.instances_path.write_text(whole[:100])
    error = fails(distributed.root, "refcoco", "val")
    assert error.asked == f"The file {distributed.instances_path} is not whole JSON."
    assert "line 1 column" in error.found


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ({"a": 1}, "The file {path} is not a list.\nIt is {{'a': 1}}."),
        (["a"], "Ref number 0 of {path} is not a mapping.\nIt is 'a'."),
        (
            [],
            (
                "There is no split 'val' in {path}.\nIts splits: none.\n"
                "Name one of them after the '@'."
            ),
        ),
    ],
)
def test_a_refs_file_of_another_form(distributed: Any, refs: Any, message: str) -> None:
    distributed.save_refs(refs)
    error = fails(distributed.root, "refcoco", "val")
    assert str(error) == message.format(path=distributed.refs_path)


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["refcoco", "refcoco+", "refcocog"])
def test_what_is_written_is_read_back(tmp_path: Path, drawn_images: Any, dataset: str) -> None:
    root = FORMATS["refcoco"].write(tmp_path / "drawn", iter(drawn_images))
    (root / "refcoco").rename(root / dataset)
    refs_path = root / dataset / "refs(unc).p"
    refs_path.rename(refs_path.with_name(f"refs({SPLIT_MAKERS[dataset]}).p"))
    first, third = read(f"{dataset}:{root}@train")
    (second,) = read(f"{dataset}:{root}@val")
    for image, new in zip((first, second, third), drawn_images, strict=True):
        assert image.file_name == new.file_name
        assert image.image_hw == (new.image.height, new.image.width)
        assert read_image(image.path, image_hw=image.image_hw).tobytes() == new.image.tobytes()
        for thing, drawn in zip(image.objects, new.objects, strict=True):
            assert thing.mask == drawn.mask
            assert thing.sentences == drawn.sentences
            assert thing.category == (drawn.category or "object")
            assert thing.slice == drawn.slice
            assert thing.split == (drawn.split or "train")


def test_written_files_have_the_fields_of_the_real_ones(
    tmp_path: Path, drawn_images: Any, distributed: Any
) -> None:
    folder = FORMATS["refcoco"].write(tmp_path / "drawn", drawn_images) / "refcoco"
    instances = json.loads((folder / "instances.json").read_text())
    data = (folder / "refs(unc).p").read_bytes()
    assert data[:2] == b"\x80\x02"  # protocol 2, the newest that Python 2 reads
    refs = pickle.loads(data)
    assert set(distributed.refs[0]) | {"slice"} == set(refs[0])
    assert set(distributed.refs[0]["sentences"][0]) == set(refs[0]["sentences"][0])
    for key in ("images", "annotations", "categories"):
        expected = set(distributed.instances[key][0]) - {"license"}
        assert set(instances[key][0]) == expected
    assert [a["bbox"] for a in instances["annotations"][:2]] == [[3, 2, 6, 6], [20, 10, 10, 10]]
    assert [a["area"] for a in instances["annotations"][:2]] == [36, 100]


def test_encoded_images_are_copied_unchanged(tmp_path: Path, drawn_images: Any) -> None:
    image, _, objects, *_ = drawn_images[0]
    image.save(tmp_path / "source.jpg", quality=30)
    encoded = (tmp_path / "source.jpg").read_bytes()
    root = FORMATS["refcoco"].write(
        tmp_path / "drawn",
        [
            NewImage(encoded, "bytes.jpg", objects),
            NewImage(tmp_path / "source.jpg", "path.jpg", objects),
        ],
    )
    for name in ("bytes.jpg", "path.jpg"):
        (written,) = root.rglob(name)
        assert written.read_bytes() == encoded


def test_a_drawing_that_fails_leaves_no_data_set(tmp_path: Path, drawn_images: Any) -> None:
    def broken() -> Any:
        yield drawn_images[0]
        raise RuntimeError("the pencil broke")

    with pytest.raises(RuntimeError, match="the pencil broke"):
        FORMATS["refcoco"].write(tmp_path / "drawn", broken())
    fails(tmp_path / "drawn", "refcoco", "train")
    assert not list((tmp_path / "drawn").glob("refcoco*/*"))


def test_what_cannot_be_written(tmp_path: Path, drawn_images: Any) -> None:
    one, two, _ = drawn_images
    for entries, fault in (
        ([one, one], "1.png: two images have this file"),
        ([one._replace(objects=[])], "1.png: an image needs objects"),
        ([one._replace(image=two.image)], r"the sizes \[\(20, 30\), \(24, 16\)\]"),
    ):
        with pytest.raises(ValueError, match=fault):
            FORMATS["refcoco"].write(tmp_path / "drawn", entries)
