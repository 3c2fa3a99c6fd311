"""Checks once that the tokens of a loaded model are where its views say, on images of many sizes.

`load_check` does it for one image whenever a model is loaded; here it is done more thoroughly, and
what was found is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from flmm_core.errors import RunError
from flmm_core.files import cache_folder, write_json
from flmm_core.pipeline.backbone.load_check import misplaced_views
from flmm_core.pipeline.backbone.probe import CAPTION, decoder_inputs, probe_image
from flmm_core.plugins import package_version

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone

SIZES = ((480, 640), (400, 160), (96, 96))
"""(H, W) of the images."""


@torch.no_grad()
def check_places(backbone: Backbone) -> None:
    """See `Backbone.check_places`; a model without values is not looked at."""
    if all(weight.is_meta for weight in backbone.vlm.parameters()):
        return
    versions = {name: package_version(name) for name in ("transformers", "flmm")}
    known = {"versions": versions, "options": repr(backbone.options), **asdict(backbone.identity())}
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    kept = cache_folder() / "places" / f"{key[:32]}.json"
    if kept.is_file():
        return
    faults: list[str] = []
    for height, width in SIZES:
        image = probe_image().resize((width, height))
        inputs = backbone.prepare(image, CAPTION, name="drawn image")
        embedded = decoder_inputs(backbone, backbone.collate([inputs]))["inputs_embeds"][0]
        wrong = misplaced_views(backbone, image, inputs, embedded)
        faults += [f"{width} x {height} pixels, {fault}" for fault in wrong]
    if faults:
        raise RunError(
            f"The image tokens of the model '{backbone.model}' are not where they should be.",
            found="\n".join(faults),
            repair="Report it, with the model's name and the version of transformers.",
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, {"model": backbone.source, "sizes": SIZES, "versions": versions})
