"""A refiner of someone else's plugin: chosen, listed and loaded without a change to the core."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch
import yaml
from PIL import Image

from flmm_core.cli import main
from flmm_core.plugins import load_class, load_refiners

PLUGIN = """
    from pydantic import Field
    from flmm_core import RefinerOptions, RefinerSpec, hookimpl

    class BlurOptions(RefinerOptions):
        radius: int = Field(1, ge=1, description="Radius in pixels.")

    @hookimpl
    def flmm_refiners():
        summary = "blurs masks where the image is dark"
        target = "blur_refiner:BlurRefiner"
        return [RefinerSpec("blur", target, summary, options=BlurOptions, shorthand="radius")]
"""
REFINER = """
    import numpy as np
    import torch
    from torch.nn import functional as F
    from flmm_core import EncodedImage, ImageEncoder, MaskLogits, Refiner

    class Brightness(ImageEncoder):
        embedding_shape = (1, 4, 4)

        def prepare(self, image):
            return torch.from_numpy(np.array(image.convert("L")))

        def encode(self, images):
            small = [F.adaptive_avg_pool2d(image[None].float() / 255, (4, 4)) for image in images]
            return tuple(EncodedImage(x, tuple(i.shape)) for x, i in zip(small, images))

        def to(self, device):
            return self

    class BlurRefiner(Refiner):
        def __init__(self, radius):
            super().__init__()
            self.radius = radius
            self.amount = torch.nn.Parameter(torch.ones(()))

        @classmethod
        def load(cls, options, *, weights=None, paper_rounding=False):
            return Brightness(), cls(options.radius)

        def forward(self, images, coarse, prompts, image_hw):
            return tuple(map(self.one, images, coarse, image_hw))

        def one(self, image, coarse, hw):
            large = F.interpolate(coarse[:, None], hw)
            blurred = F.avg_pool2d(large, 2 * self.radius + 1, 1, self.radius)
            dark = 1 - F.interpolate(image.embedding[None], hw)
            return MaskLogits((large + self.amount * dark * (blurred - large))[:, 0])
"""


@pytest.fixture(autouse=True)
def plugin(install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("flmm-blur", "0.1", flmm_blur=PLUGIN)
    (tmp_path / "blur_refiner.py").write_text(dedent(REFINER))
    monkeypatch.chdir(tmp_path)


def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refiners", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["refiners"]
    assert [fact["name"] for fact in facts] == ["blur", "none", "sam", "sam2"]
    assert facts[0]["plugin"] == "flmm-blur 0.1"
    assert main(["refiners", "show", "blur"]) == 0
    assert "  radius  int  Radius in pixels.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "chosen", [["--refiner", "blur:3"], ["--refiner", "blur", "--refiner-option", "radius=3"]]
)
def test_it_is_chosen_on_the_command_line(
    chosen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--backbone", "qwen", *chosen, "--print-config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["refiner"], resolved["refiner_options"]) == ("blur", {"radius": 3})


def test_both_halves_are_loaded_through_its_spec() -> None:
    spec = load_refiners().get("blur")
    encoder, refiner = load_class(spec).load(spec.options())
    assert encoder is not None
    image = Image.new("L", (12, 8), 0)
    images = encoder.encode([encoder.prepare(image)])
    coarse = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    (masks,) = refiner(images, [coarse], (), [(8, 12)])
    logits = masks.full()
    assert logits.shape == (1, 8, 12)
    assert logits[0, 4].unique().numel() > 2
    logits.sum().backward()
    assert [name for name, _ in refiner.named_parameters()] == ["amount"]
