"""POST /v1/ground over loopback: the masks of `Grounder.ground`, in whatever form it is asked."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from flmm_core.pipeline.grounder import Grounder
from tests.models import picture
from tests.serving.running import data_url, encoded

IMAGE = picture(48, 24)
PHRASES = ["a red ring", "the star"]


def iou(record: dict[str, Any], mask: Any) -> float:
    return float(coco_mask.iou([record["segmentation"]], [mask], [0])[0, 0])


@pytest.mark.parametrize("form", ["data URL", "base64", "multipart", "multipart with base64"])
def test_masks_are_those_of_the_grounder(
    grounder: Grounder, client: httpx.Client, form: str
) -> None:
    plain = base64.b64encode(encoded(IMAGE)).decode()
    body: dict[str, Any] = {
        "data URL": {"json": {"image": data_url(IMAGE), "phrases": PHRASES}},
        "base64": {"json": {"image": plain, "phrases": PHRASES}},
        "multipart": {"files": {"image": encoded(IMAGE)}, "data": {"phrases": PHRASES}},
        "multipart with base64": {
            "files": [("image", (None, plain)), *(("phrases", (None, p)) for p in PHRASES)]
        },
    }[form]
    answer = client.post("/v1/ground", **body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["width"], found["height"], found["model"]) == (48, 24, "flmm")
    expected = grounder.ground(IMAGE, PHRASES)
    for record, wanted in zip(found["found"], expected.to_coco(), strict=True):
        assert record["phrase"] == wanted["phrase"]
        assert record["score"] == pytest.approx(wanted["score"], abs=1e-4)
        assert iou(record, wanted["segmentation"]) > 0.999


def test_a_mask_comes_as_png_if_asked_for(client: httpx.Client) -> None:
    body = {"image": data_url(IMAGE), "phrases": PHRASES, "masks": "png"}
    for record in client.post("/v1/ground", json=body).json()["found"]:
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(record["png"]))))
        assert (mask > 0).tolist() == coco_mask.decode(record["segmentation"]).astype(bool).tolist()
