"""Put some images of a run under each other: the image in the README.

python -m recipes.flow_picture runs/qwen-... docs/flow.png --rows 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image


def stack(pictures: list[Path]) -> Image.Image:
    """Images under each other on white, in order."""
    rows = [Image.open(path).convert("RGB") for path in pictures]
    whole = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Stack a run's images.")
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    arguments = parser.parse_args()
    chosen = sorted((arguments.run / "pictures").glob("*.png"))[: arguments.rows]
    stack(chosen).quantize(128).save(arguments.output, optimize=True)
