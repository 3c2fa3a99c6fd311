"""Referring expressions as parquet files: data sets of the Hugging Face Hub, or files of your own.

    PATH/data/val-00000-of-00002.parquet    the files of a split begin with its name, or lie in a
    PATH/val/0000.parquet                   folder of its name; PATH may be one file

Where there is no folder PATH, OWNER/NAME (or OWNER/NAME/FOLDER) is a data set of the Hub, whose
files of the split are downloaded once. A row is an image with one object, or with a list of them
("samples", "ref_list" or "objects"). By name, the columns may be those of lmms-lab/RefCOCO,
jxu124/refcoco, jxu124/refcoco-benchmark, moondream/refcoco-m and similar sets:

    image       encoded bytes, which are kept in the user's cache folder, or a path ("image_path",
                "file_name") of an image beside the files, or in a usual folder of COCO there
    words       "sentences", "answer", "phrases", "captions", "text", "caption", ...
    mask        "segmentation", "mask", "rle" or "raw_anns": COCO polygons (flat for a single one)
                or RLE, as such or as JSON; rows of 0 and 1; an encoded image
    category    a class name

Reading needs the package pyarrow: pip install "flmm[parquet]".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.degenerate import NO_SENTENCE
from flmm_core.data.formats.shared.image_paths import ImagePaths
from flmm_core.data.formats.shared.kept_images import keep_image
from flmm_core.data.formats.shared.label_maps import decode_mask, marked_pixels
from flmm_core.data.formats.shared.refs import GET_IMAGES, IMAGE_FOLDERS
from flmm_core.data.images import image_size_of
from flmm_core.data.records import brief, sentence
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError, MissingExtraError, did_you_mean

IMAGE_KEYS = ("image", "img", "images")
PATH_KEYS = ("image_path", "file_name", "image_name", "filename")
LIST_KEYS = ("samples", "ref_list", "objects", "annotations")
MASK_KEYS = ("segmentation", "mask", "rle", "masks", "raw_anns")
WORD_KEYS = (
    "sentences", "answer", "phrases", "captions", "expressions", "referring_expressions", "text",
    "caption", "sentence", "phrase", "expression", "referring_expression", "prompt",
)  # fmt: skip
NAME_KEYS = ("ann_id", "ref_id", "id", "question_id")
BATCH = 64
"""Rows that are in memory at a time; each may hold an image."""


@dataclass
class _Found:
    """An image and what the rows so far say about it."""

    name: str
    path: Path
    image_hw: tuple[int, int]
    objects: list[GroundedObject] = field(default_factory=list)


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a split in the order of their first rows."""
    parquet = _pyarrow()
    files = _files(source)
    usual = [base / sub for base in {file.parent for file in files} for sub in IMAGE_FOLDERS]
    usual += [source.path / sub for sub in IMAGE_FOLDERS]
    paths = ImagePaths(source.image_folders(usual), ())
    images: dict[Path, _Found] = {}
    for file in files:
        for number, row in _rows(parquet, file):
            with findings.part():
                where = f"row {number} of {file}"
                image = _image(row, where, paths, source)
                known = images.setdefault(image.path, image)
                records = _records(row)
                for index, record in enumerate(records):
                    with findings.part():
                        place = f"object {index} of {where}" if len(records) > 1 else where
                        thing = _object(record, known.image_hw, source.split, place)
                        known.objects.append(thing)
    return tuple(
        AnnotatedImage(found.name, found.path, found.image_hw, tuple(found.objects))
        for found in images.values()
        if found.objects
    )


def _pyarrow() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files cannot be read without the package pyarrow.",
            found=f"{error}.",
            repair="Install it: pip install 'flmm[parquet]'.",
        ) from error
    return parquet


# --- files ---------------------------------------------------------------------------------------


def _patterns(split: str) -> list[str]:
    """The names that the files of a split have, in any folder."""
    if not split:
        return ["*.parquet"]
    names = (f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet")
    return [pattern for name in names for pattern in (name, f"*/{name}")]


def _files(source: Source) -> list[Path]:
    """The parquet files of a split, sorted; of a data set of the Hub downloaded."""
    path, split = source.path, source.split
    if path.is_file():
        return [path]
    root = path if path.is_dir() else _download(path.as_posix(), split)
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.parquet"))
    wanted = [name for name in names if any(fnmatchcase(name, one) for one in _patterns(split))]
    if not wanted:
        names = names if path.is_dir() else _hub_files(path.as_posix())
        there = dict.fromkeys(_split_of(name) for name in names)
        raise DataError(
            f"There is no split '{split}' in {path}. {did_you_mean(split, there)}".rstrip(),
            found=f"Its splits: {', '.join(there) or 'none; it has no parquet file'}.",
            repair="Name one of them after the '@'. The files of a split are SPLIT-*.parquet or "
            "SPLIT.parquet, or lie in a folder SPLIT.",
        )
    return [root / name for name in wanted]


def _split_of(name: str) -> str:
    """What stands before the numbers of a file's name, or its folder."""
    stem = re.split(r"-\d{5}-of-|\.parquet$", Path(name).name)[0]
    return Path(name).parent.name if stem.isdigit() else stem


def _hub(name: str) -> tuple[str, str]:
    """OWNER/NAME and FOLDER of a data set of the Hub."""
    owner, _, rest = name.partition("/")
    short, _, folder = rest.partition("/")
    return f"{owner}/{short}", folder


def _download(name: str, split: str) -> Path:
    """The local copy of a data set of the Hub, with the files of a split."""
    from huggingface_hub import snapshot_download

    repo, folder = _hub(name)
    patterns = [f"{folder}/{pattern}" if folder else pattern for pattern in _patterns(split)]
    try:
        copy = snapshot_download(repo, repo_type="dataset", allow_patterns=patterns)
    except (OSError, ValueError) as error:  # the Hub's own errors are of these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"There is no folder or file '{name}', and no such data set of the Hub can be had.",
            found=reason,
            repair="Check the path, or the name OWNER/NAME and the connection; a gated data set "
            "needs `hf auth login`.",
        ) from error
    return Path(copy) / folder


def _hub_files(name: str) -> list[str]:
    """The names of all files of a data set of the Hub; none without a connection."""
    from huggingface_hub import HfApi

    repo, folder = _hub(name)
    with suppress(OSError, ValueError):
        return [
            file.removeprefix(f"{folder}/")
            for file in HfApi().list_repo_files(repo, repo_type="dataset")
            if file.startswith(folder) and file.endswith(".parquet")
        ]
    return []


def _rows(parquet: Any, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their numbers, a few at a time."""
    number = 0
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own are of these
        raise DataError(
            f"The file {file} is not a parquet file, or is broken.",
            found=f"{brief(str(error))}.",
            repair="Download it again.",
        ) from error


# --- rows ----------------------------------------------------------------------------------------


def _image(row: Mapping[str, Any], where: str, paths: ImagePaths, source: Source) -> _Found:
    """The image of a row, without objects."""
    stored = next((row[key] for key in IMAGE_KEYS if row.get(key) is not None), None)
    stored = stored[0] if isinstance(stored, list) and len(stored) == 1 else stored
    name = next((row[key] for key in PATH_KEYS if isinstance(row.get(key), str)), "")
    data = stored.get("bytes") if isinstance(stored, Mapping) else stored
    if isinstance(stored, Mapping) and isinstance(stored.get("path"), str):
        name = stored["path"] if not isinstance(data, bytes) else name or stored["path"]
    if isinstance(data, bytes):
        try:
            path = keep_image(data, "parquet")
        except ValueError as error:
            raise DataError(
                f"The image of {where} is not an image, or is broken.", found=f"{error}."
            ) from error
    elif isinstance(data, str) or name:
        name = data if isinstance(data, str) else name
        path = paths.find(name, f"The image {name} of {where}", GET_IMAGES)
    else:
        raise _no_column(row, "an image", (*IMAGE_KEYS, *PATH_KEYS), where)
    size = image_size_of(path, upright=not source.as_stored)
    return _Found(Path(name).name or path.name, path, size)


def _records(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects of a row: those of a list in it, or the row itself."""
    for key in LIST_KEYS:
        listed = row.get(key)
        if isinstance(listed, list) and all(isinstance(entry, Mapping) for entry in listed):
            # {"ann_info": {"segmentation": ...}, "ref_info": {"sentences": ...}}
            return [{**entry, **_inner(entry)} for entry in listed]
        if isinstance(listed, Mapping) and all(isinstance(v, list) for v in listed.values() if v):
            columns = {key: values for key, values in listed.items() if values}
            return [
                dict(zip(columns, entry, strict=False))
                for entry in zip(*columns.values(), strict=False)
            ]
    return [row]


def _inner(entry: Mapping[str, Any]) -> dict[str, Any]:
    parts = (entry.get(key) for key in ("ann_info", "ref_info"))
    return {
        key: value for part in parts if isinstance(part, Mapping) for key, value in part.items()
    }


def _object(
    record: Mapping[str, Any], image_hw: tuple[int, int], split: str, where: str
) -> GroundedObject:
    said = next((record[key] for key in WORD_KEYS if record.get(key) is not None), None)
    if said is None:
        raise _no_column(record, "words", WORD_KEYS, where)
    words = _words(said)
    if not words:
        raise DegenerateError(where, NO_SENTENCE)
    key = next((key for key in MASK_KEYS if record.get(key) is not None), "")
    if not key:
        raise _no_column(record, "a mask", MASK_KEYS, where)
    category = record.get("category")
    number = next((str(record[key]) for key in NAME_KEYS if record.get(key) is not None), "")
    return GroundedObject(
        _mask(record[key], image_hw, where),
        words,
        category if isinstance(category, str) else "",
        split=split,
        name=number,
    )


def _words(said: Any) -> tuple[str, ...]:
    """The sentences of an object: one, a list, or RefCOCO's records of them; each once."""
    found: list[str] = []
    for one in said if isinstance(said, list) else [said]:
        if isinstance(one, Mapping):
            one = one.get("sent") or one.get("raw")
        found += [
            part for part in (one if isinstance(one, list) else [one]) if isinstance(part, str)
        ]
    return tuple(dict.fromkeys(text.strip() for text in found if text.strip()))


def _mask(stored: Any, image_hw: tuple[int, int], where: str) -> Mask:
    height, width = image_hw
    if isinstance(stored, str):
        try:
            stored = json.loads(stored)
        except (ValueError, RecursionError) as error:
            raise DataError(f"The mask of {where} is not JSON.", found=f"{error}.") from error
    if isinstance(stored, list) and len(stored) == 1 and isinstance(stored[0], Mapping):
        stored = stored[0]
    if isinstance(stored, Mapping) and "segmentation" in stored:  # the annotation of COCO
        stored = stored["segmentation"]
    data = stored.get("bytes") if isinstance(stored, Mapping) else stored
    if isinstance(data, bytes):
        image = decode_mask(data, f"the mask of {where}")
        return _fitting(marked_pixels(image), image_hw, where)
    if isinstance(stored, list) and len(stored) == height and _is_grid(stored, width):
        return _fitting(np.array(stored, dtype=np.float64) > 0, image_hw, where)
    if isinstance(stored, list) and stored and not isinstance(stored[0], (list, Mapping)):
        stored = [stored]
    return rle.to_rle(stored, height, width, source=where)


def _is_grid(rows: list[Any], width: int) -> bool:
    """Whether it is a mask written out: a row for each row of pixels, of 0 and 1."""
    return all(isinstance(row, list) and len(row) == width and set(row) <= {0, 1} for row in rows)


def _fitting(mask: Any, image_hw: tuple[int, int], where: str) -> Mask:
    if mask.shape != image_hw:
        raise DataError(
            f"The mask of {where} does not have the size of its image.",
            found=f"It is {mask.shape[0]} x {mask.shape[1]}, the image {image_hw[0]} x "
            f"{image_hw[1]} (height x width).",
        )
    return rle.encode(mask)


def _no_column(row: Mapping[str, Any], what: str, keys: tuple[str, ...], where: str) -> DataError:
    return DataError(
        f"{sentence(where)} has no column with {what}.",
        found=f"Its columns: {', '.join(row)}. Expected one of: {', '.join(keys)}.",
        repair="Rename the column, or convert the data set to a metadata.jsonl.",
    )
