"""The files that `flmm annotate` writes for a block of images: parquet or COCO JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flmm_core.errors import MissingExtraError

ShardFormat = Literal["parquet", "coco"]
ENDINGS: dict[ShardFormat, str] = {"parquet": ".parquet", "coco": ".json"}
LEFT_OUT = ".left-out.jsonl"
"""The ending of the list of a block's images that cannot be used."""
MOST_PHRASES = 10_000
"""Of an image; ids of annotations follow from those of images."""

Row = tuple[str, Mapping[str, Any]]
"""An image's address, and its height, width and records as in result.json."""


def encode_shard(form: ShardFormat, rows: Sequence[Row], first_id: int) -> bytes:
    """The contents of a shard; `first_id` is the id of its first image in COCO."""
    return _coco(rows, first_id) if form == "coco" else _parquet(rows)


def encode_left_out(left_out: Sequence[tuple[str, str]]) -> bytes:
    """Images and reasons as JSON lines."""
    lines = (json.dumps({"image": image, "reason": reason}) for image, reason in left_out)
    return "".join(f"{line}\n" for line in lines).encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    """One row per image: its address, size, objects, and the model's answer if it was asked."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files are written by pyarrow, which is not installed.",
            repair='Install it: pip install "flmm[ray]", or use --format coco.',
        ) from error
    rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    thing = pa.struct(
        [
            ("phrase", pa.string()),
            ("segmentation", rle),
            ("bbox", pa.list_(pa.int32())),
            ("area", pa.int64()),
            ("score", pa.float32()),
            ("probability", pa.float32()),
            ("there", pa.bool_()),
        ]
    )
    schema = pa.schema(
        [
            ("image_path", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("answer", pa.string()),
            ("objects", pa.list_(thing)),
        ]
    )
    table = [
        {
            "image_path": image,
            "height": content["height"],
            "width": content["width"],
            "answer": content.get("answer"),
            "objects": content["found"],
        }
        for image, content in rows
    ]
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table, schema), written, compression="zstd")
    return written.getvalue()


def _coco(rows: Sequence[Row], first_id: int) -> bytes:
    """Ids of images and annotations differ between shards; categories are numbered in each."""
    from flmm_core.annotate.outputs import coco_content

    content = coco_content(rows)
    for image, (_, found) in zip(content["images"], rows, strict=True):
        image["id"] += first_id - 1
        if found.get("answer") is not None:
            image["answer"] = found["answer"]
    count: dict[int, int] = {}
    for annotation in content["annotations"]:
        image_id = annotation["image_id"] + first_id - 1
        count[image_id] = number = count.get(image_id, -1) + 1
        annotation |= {"image_id": image_id, "id": image_id * MOST_PHRASES + number}
    return json.dumps(content).encode()
