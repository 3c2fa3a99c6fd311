"""A result as files and as HTML. Imported without torch and numpy."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Collection, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from flmm_core.files import whole_folder, write_json

if TYPE_CHECKING:
    from PIL import Image

    from flmm_core.pipeline.result import Found, Result

RESULT = "result.json"
OWN = r"(mask|attention)-\d+\.png|overlay\.png|attention\.npz"
"""What is written of one image besides."""
USUAL = ("overlay", "masks")


def write_result(
    result: Result,
    folder: Path,
    *,
    kinds: Collection[str] = USUAL,
    kept: int = 0,
    painted: Image.Image | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write result.json, and what else is wanted of one image; returns the content of result.json.

    What an earlier result left in the folder is removed.

    Args:
        result: Of all phrases.
        folder: For the files; created if it is missing.
        kinds: What is wanted: see `flmm_core.annotate.outputs.KINDS`.
        kept: For how many of the first phrases the files of single phrases are there already.
        painted: As for `Result.overlay`.
        facts: More for result.json.
    """
    import numpy as np
    from PIL import Image

    earlier = (folder / RESULT).exists()
    records = result.to_coco()
    with whole_folder(folder) as aside:
        for number, record in enumerate(records):
            if "masks" in kinds:
                name = f"mask-{number + 1}.png"
                if number >= kept:
                    Image.fromarray(result.mask(number).numpy() * np.uint8(255)).save(aside / name)
                records[number] = {"mask": name, **record}
        if "overlay" in kinds:
            # Packed harder, a photo is a seventh smaller and takes three times as long.
            overlay = result.overlay(painted=painted)
            overlay.save(aside / "overlay.png", compress_level=1)
        if "attention" in kinds:
            _write_attention(result, aside, kept)
        size = {"height": result.image.height, "width": result.image.width}
        content = {**facts, **size, "found": records}
        write_json(aside / RESULT, content)
        written = {path.name for path in aside.iterdir()}
        for kind, number in product(("mask", "attention"), range(kept)):
            written.add(f"{kind}-{number + 1}.png")
    for path in folder.iterdir() if earlier else ():
        if path.name not in written and re.fullmatch(OWN, path.name) and path.is_file():
            path.unlink()
    return content


def _write_attention(result: Result, folder: Path, kept: int) -> None:
    """attention.npz, as the model gives it, and attention-N.png, over the image."""
    import numpy as np

    from flmm_core.pipeline.heat import paint_heat

    np.savez_compressed(
        folder / "attention.npz",
        attention=result.heat.maps[:, 0].numpy(),  # (P, h, w)
        image_box=np.array(result.heat.image_box),
        phrases=np.array(result.phrases, dtype=np.str_),
    )
    for number in range(kept, len(result)):
        looked = result.attention(number)  # (H, W)
        shown = (looked - looked.min()) / (looked.max() - looked.min()).clamp(min=1e-12)
        paint_heat(result.image, shown.numpy()).save(folder / f"attention-{number + 1}.png")


def html_of(results: Sequence[Result], text: Markup | None = None) -> str:
    """What a notebook shows: a text, and each image with its masks and a row per phrase."""
    parts = [] if text is None else [Markup("<p>{}</p>").format(text)]
    for result in results:
        rows = [_row(number, found) for number, found in enumerate(result)]
        parts.append(
            Markup(
                '<img alt="{}" style="max-width:100%" src="data:image/png;base64,{}">'
                "<table><tr><th></th><th>phrase</th><th>score</th><th>probability</th>"
                "<th>box</th></tr>{}</table>"
            ).format(
                ", ".join(result.phrases), _png(result.overlay(legend=False)), Markup("").join(rows)
            )
        )
    return f"<div>{Markup('').join(parts)}</div>"


def colored(number: int, words: str) -> Markup:
    """Words on the color of a mask."""
    from flmm_core.painting import mask_color

    red, green, blue = mask_color(number)
    return Markup('<mark style="background:rgb({} {} {}/45%);color:inherit">{}</mark>').format(
        red, green, blue, words
    )


def _row(number: int, found: Found) -> Markup:
    likely = "" if found.probability is None else f"{found.probability:.2f}"
    cells = [
        str(number),
        colored(number, found.phrase),
        f"{found.score:.2f}" if found.there else "not there",
        likely,
        str(found.box) if any(found.box) else "",
    ]
    shown = [Markup("<td>{}</td>").format(cell) for cell in cells]
    return Markup("<tr>{}</tr>").format(Markup("").join(shown))


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
