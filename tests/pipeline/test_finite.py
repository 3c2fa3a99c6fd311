"""Values that are not finite are an error wherever masks leave the flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flmm_core.cli import main
from flmm_core.data.sources import open_source
from flmm_core.errors import RunError
from flmm_core.evaluation.baselines import METHODS, make_baseline
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.refiners.sam import SamRefiner
from tests.flows import assemble, fresh_grounder, method_of
from tests.heads import small_sam
from tests.models import build, picture

FAMILIES = ("qwen", "deepseek_vl", "llava_next")
ADVICE = "Use --dtype bfloat16 or float32: float16 ends at 65504."


def overflowing(vlm: Any) -> None:
    """Finite weights of finite activations, but for float16: one layer adds up to more."""
    layer = vlm.get_decoder().layers[0].mlp
    with torch.no_grad():
        layer.up_proj.weight.mul_(100)
        layer.down_proj.weight.fill_(20000.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_overflow_of_the_model_names_its_number_type(family: str) -> None:
    backbone = build(family)
    overflowing(backbone.vlm)
    grounder = assemble(backbone)
    assert grounder.ground(picture(48, 48), ["it"]).logits.isfinite().all()
    backbone.vlm.half()
    with pytest.raises(RunError) as error:
        grounder.ground(picture(48, 48), ["it"])
    asked, found, repair = str(error.value).splitlines()
    assert asked == "The attention maps are not finite."
    assert found.endswith("infinite; the vision-language model runs in float16.")
    assert repair == ADVICE


@pytest.fixture(scope="module")
def broken(random_twin: Path) -> Grounder:
    """A flow whose model overflows in float16."""
    recipe = Recipe("qwen", model=str(random_twin), base_channels=4, enlarge_to=16)
    grounder = fresh_grounder(recipe)
    overflowing(grounder.backbone.vlm)
    grounder.backbone.vlm.half()
    return grounder


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_evaluation_says_so(name: str, broken: Grounder, drawn: Path) -> None:
    samples = open_source(f"refcoco:{drawn}@train")[:2]

    def measure() -> None:
        if name == "head":
            evaluate(method_of(broken), samples)
        else:
            evaluate(make_baseline(name, broken.observer, broken.info.recipe, samples), samples)

    with pytest.raises(RunError) as error:
        measure()
    assert str(error.value).startswith(f"The attention maps for '{samples[0].name}' are not finite")
    assert str(error.value).endswith(ADVICE)


def spoil(grounder: Grounder, part: str) -> None:
    module = {"coarse": grounder.head.mask_head, "refined": grounder.head.refiner}[part]
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(torch.nan)


@pytest.mark.parametrize(
    ("part", "refiner"),
    [
        ("coarse", lambda: SamRefiner(small_sam())),
        # SAM sees the coarse mask as a box only: of nan it makes the box of the whole image
        ("coarse", lambda: SamRefiner(small_sam(), mask=False)),
        ("refined", lambda: SamRefiner(small_sam())),
    ],
)
def test_a_damaged_head_is_an_error_of_its_stage(part: str, refiner: Callable[[], Any]) -> None:
    grounder = assemble(build("qwen"), refiner=refiner())
    spoil(grounder, part)
    with pytest.raises(RunError, match=f"^The {part} mask logits are not finite"):
        grounder.ground(picture(48, 24), ["it"])


def test_an_evaluation_names_the_sample_of_a_damaged_head(random_twin: Path, drawn: Path) -> None:
    recipe = Recipe("qwen", model=str(random_twin), base_channels=4, enlarge_to=16)
    grounder = fresh_grounder(recipe)
    spoil(grounder, "coarse")
    samples = open_source(f"refcoco:{drawn}@train")[:1]
    with pytest.raises(RunError, match=f"The coarse mask logits of '{samples[0].name}' are not"):
        evaluate(method_of(grounder), samples)


def test_the_command_ends_with_exit_code_1(
    broken: Grounder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken.save_pretrained(tmp_path / "head")
    broken.backbone.vlm.save_pretrained(tmp_path / "model")
    broken.backbone.processor.save_pretrained(tmp_path / "model")
    Image.new("RGB", (60, 40), "gray").save(tmp_path / "a.png")
    arguments = [
        "ground", str(tmp_path / "a.png"), "a cup", "--head", str(tmp_path / "head"),
        "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main([*arguments, "--dtype", "float16"]) == 1
    lines = capsys.readouterr().err.splitlines()
    said = f"flmm: The hidden states of the model '{tmp_path / 'model'}' are not finite on a drawn"
    assert (lines[-3], lines[-1]) == (f"{said} image.", ADVICE)
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--dtype", "float32"]) == 0
