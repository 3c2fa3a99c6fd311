"""The conformance kit passes the template plugin, and fails it for every promise it breaks."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flmm_core import Backbone, BackboneInputs, ImageView, ModelInfo, plugins
from flmm_core.testing import CHECKS, check_backbone, check_skips, load_for_checks

TEMPLATE = Path(__file__).parents[2] / "examples" / "minimal_backbone"
Break = Callable[[Backbone], None]
BY_NAME = {check.__name__: check for check in CHECKS}


@pytest.fixture(scope="module", autouse=True)
def template() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TEMPLATE))
        yield


@pytest.fixture(scope="module")
def tiny(template: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from make_tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def backbone(tiny: Path) -> Backbone:
    from flmm_minimal import SPEC

    return load_for_checks(SPEC, tiny)


def test_the_template_keeps_every_promise(tiny: Path) -> None:
    from flmm_minimal import SPEC

    check_backbone(SPEC, tiny)


@pytest.mark.slow
def test_the_template_tests_itself_wherever_it_is_copied(tmp_path: Path) -> None:
    copy = shutil.copytree(TEMPLATE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pyc*"))
    path = os.pathsep.join(filter(None, sys.path))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(CHECKS) + 1} passed" in ran.stdout


def test_the_template_is_found_as_a_plugin() -> None:
    import flmm_minimal

    entry: Any = SimpleNamespace(name="minimal", value="flmm_minimal", dist=None)
    entry.load = lambda: flmm_minimal
    registry = plugins.load_backbones([entry])
    assert registry.get("minimal") is flmm_minimal.SPEC
    assert not registry.failures


def change_views(change: Callable[[ImageView], ImageView]) -> Break:
    """Break the geometry: every view that the backbone gives is changed."""

    def apply(backbone: Backbone) -> None:
        right = backbone.views

        def wrong(*args: Any) -> tuple[ImageView, ...]:
            return tuple(change(view) for view in right(*args))

        backbone.views = wrong  # type: ignore[method-assign]

    return apply


def reorder(change: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    return change_views(lambda v: dataclasses.replace(v, token_index=change(v.token_index)))


def move(dy: float) -> Break:
    def shift(view: ImageView) -> ImageView:
        y0, x0, y1, x1 = view.image_box
        step = dy * (y1 - y0) / len(view.token_index)
        return dataclasses.replace(view, image_box=(y0 + step, x0, y1 + step, x1))

    return change_views(shift)


def train_a_layer(backbone: Backbone) -> None:
    backbone.vlm.get_decoder().layers[0].train()


def want_a_gradient(backbone: Backbone) -> None:
    next(backbone.vlm.parameters()).requires_grad_(True)


def leave_out_a_license(backbone: Backbone) -> None:
    models = {**backbone.spec.models, "7b": ModelInfo("owner/name", license="")}
    backbone.spec = dataclasses.replace(backbone.spec, models=models)


def change_inputs(change: Callable[[BackboneInputs], dict[str, Any]]) -> Break:
    def apply(backbone: Backbone) -> None:
        right = backbone.prepare

        def wrong(*args: Any, **kwargs: Any) -> BackboneInputs:
            inputs = right(*args, **kwargs)
            return dataclasses.replace(inputs, **change(inputs))

        backbone.prepare = wrong  # type: ignore[method-assign]

    return apply


def first_row_missing(inputs: BackboneInputs) -> dict[str, Any]:
    (view,) = inputs.views
    return {"views": (dataclasses.replace(view, token_index=view.token_index[1:]),)}


def one_token_early(inputs: BackboneInputs) -> dict[str, Any]:
    return {"phrase_rows": tuple(rows - 1 for rows in inputs.phrase_rows)}


class NotTheSameTwice:
    """A processor that changes the image by chance."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "processor":  # pickle asks before there is one
            raise AttributeError(name)
        return getattr(self.processor, name)

    def __call__(self, **kwargs: Any) -> Any:
        encoded = self.processor(**kwargs)
        encoded["pixel_values"] += 0.01 * random.random()
        return encoded


def prepare_by_chance(backbone: Backbone) -> None:
    backbone.processor = NotTheSameTwice(backbone.processor)


def end_the_text_with_a_line(backbone: Backbone) -> None:
    class Ending(NotTheSameTwice):
        def __call__(self, **kwargs: Any) -> Any:
            return self.processor(**{**kwargs, "text": [text + "\n" for text in kwargs["text"]]})

    backbone.processor = Ending(backbone.processor)


def expand_control_words(backbone: Backbone) -> None:
    backbone._controls = ()


def change_traces(change: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    def apply(backbone: Backbone) -> None:
        right = backbone.trace

        def wrong(*args: Any, **kwargs: Any) -> Any:
            traces = right(*args, **kwargs)
            return tuple(dataclasses.replace(t, attention=change(t.attention)) for t in traces)

        backbone.trace = wrong  # type: ignore[method-assign]

    return apply


def forget_the_padding(backbone: Backbone) -> None:
    right = backbone.collate

    def wrong(*args: Any, **kwargs: Any) -> Any:
        batch = right(*args, **kwargs)
        everywhere = torch.ones_like(batch.tensors["attention_mask"])
        return dataclasses.replace(batch, tensors={**batch.tensors, "attention_mask": everywhere})

    backbone.collate = wrong  # type: ignore[method-assign]


def go_on_from_another_place(backbone: Backbone) -> None:
    right = backbone.collate

    def wrong(*args: Any, **kwargs: Any) -> Any:
        batch = right(*args, **kwargs)
        if batch.captions is None:
            return batch
        ids = batch.captions.input_ids.roll(1, 1)
        return dataclasses.replace(
            batch, captions=dataclasses.replace(batch.captions, input_ids=ids)
        )

    backbone.collate = wrong  # type: ignore[method-assign]


def answer_by_chance(backbone: Backbone) -> None:
    right = backbone.generate
    backbone.generate = (  # type: ignore[method-assign]
        lambda *args, **kwargs: right(*args, **kwargs) + str(random.random())
    )


def learn_from_a_question(backbone: Backbone) -> None:
    right = backbone.generate

    def wrong(*args: Any, **kwargs: Any) -> str:
        next(backbone.vlm.parameters()).data.mul_(1.001)
        return right(*args, **kwargs)

    backbone.generate = wrong  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("break_it", "check"),
    [
        (leave_out_a_license, "check_spec"),
        (train_a_layer, "check_loads_frozen"),
        (want_a_gradient, "check_loads_frozen"),
        (change_inputs(first_row_missing), "check_views_cover_image_tokens"),
        (reorder(lambda index: index.T), "check_repainted_spot"),
        (reorder(lambda index: index.flip(0)), "check_repainted_spot"),
        (reorder(lambda index: index.roll(1, 1)), "check_repainted_spot"),
        (move(0.5), "check_repainted_spot"),
        (move(-0.5), "check_repainted_spot"),
        (prepare_by_chance, "check_prepare_repeats"),
        (change_inputs(one_token_early), "check_phrase_rows"),
        (end_the_text_with_a_line, "check_captions_are_answers"),
        (expand_control_words, "check_control_words_are_text"),
        (change_traces(lambda a: a[:, :1]), "check_trace_shapes"),
        (change_traces(lambda a: a * 1.001), "check_trace_equals_eager"),
        (forget_the_padding, "check_batch_independence"),
        (go_on_from_another_place, "check_shared_prefixes"),
        (answer_by_chance, "check_answers"),
        (learn_from_a_question, "check_vlm_stays_unchanged"),
    ],
)
def test_a_broken_promise_is_seen(backbone: Backbone, break_it: Break, check: str) -> None:
    BY_NAME[check](backbone)
    break_it(backbone)
    with pytest.raises(AssertionError, match=r"\w"):
        BY_NAME[check](backbone)


def test_a_plugin_that_imports_torch_is_seen(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    backbone.spec = dataclasses.replace(backbone.spec, target="heavy:Backbone")
    with pytest.raises(
        AssertionError,
        match=r"^import heavy: expected neither torch nor transformers, found torch$",
    ):
        BY_NAME["check_spec_without_torch"](backbone)
    assert "heavy" not in sys.modules


def test_all_broken_promises_are_listed_and_a_crash_is_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flmm_minimal import SPEC
    from flmm_minimal.backbone import MinimalBackbone

    monkeypatch.setattr(MinimalBackbone, "views", lambda *_: 1 / 0)
    with pytest.raises(AssertionError) as caught:
        check_backbone(SPEC, tiny)
    report = str(caught.value)
    assert report.startswith("Backbone 'minimal' breaks its contract.\n")
    blamed = (
        "expected no error, found RunError: The plugin's own code fails: tests.testing.test_kit:"
    )
    assert f"\ncheck_repainted_spot: check_repainted_spot: {blamed}" in report
    assert "\nZeroDivisionError: division by zero\n" in report
    assert "check_spec" not in report.splitlines()[1]


def test_a_skipped_check_is_not_run(tiny: Path) -> None:
    from flmm_minimal import SPEC

    silent = dataclasses.replace(SPEC, summary="")
    with pytest.raises(AssertionError) as caught:
        check_backbone(silent, tiny)
    assert str(caught.value) == (
        "Backbone 'minimal' breaks its contract.\n"
        "check_spec: summary: expected one line, found nothing"
    )
    check_backbone(silent, tiny, skip={"check_spec": "nobody lists it"})


def test_a_skip_needs_a_check_and_a_reason() -> None:
    with pytest.raises(AssertionError, match="'check_taste': no such check"):
        check_skips({"check_taste": "subjective"})
    with pytest.raises(AssertionError, match="check_answers is skipped without a reason"):
        check_skips({"check_answers": " "})
