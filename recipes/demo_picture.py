"""Take the picture of docs/demo.md: an answer on the page, one of its phrases pointed at.

python -m recipes.demo_picture http://127.0.0.1:8088 docs/demo.png

`flmm demo --head RUN` has to run. The first example is asked about with the first question that
the page offers.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from recipes.browser import opened


def take_picture(address: str, output: Path, width: int, height: int) -> None:
    """Ask, point at the second phrase of the answer, and write the window as PNG."""
    with opened() as page:
        page.open(address, width, height, prefers_color_scheme="light")
        page.until("document.body?.dataset.ready === ''", 300)
        page.click("#suggestions button")
        page.until("document.querySelectorAll('.turn.model[data-result]').length === 1")
        page.until("document.getElementById('busy').hidden")
        page.move(".turn.model .phrase:nth-of-type(2)")
        page.until("!document.getElementById('tag').hidden")
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    # Steps of 4 instead of 1, which nobody sees, make the file smaller.
    steps = [min(255, 4 * round(value / 4)) for value in range(256)] * 3
    picture.point(steps).save(output, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the picture of docs/demo.md.")
    parser.add_argument("address")
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=800)
    arguments = parser.parse_args()
    take_picture(arguments.address, arguments.output, arguments.width, arguments.height)
