"""Training, run folders, heads on disk and evaluation, behind a toy model with random weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from flmm_core import Grounder, UsageError, WeightsError
from flmm_core.config import load_config
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.images import read_image
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError, RunError
from flmm_core.evaluation.evaluate import evaluate, evaluate_run
from flmm_core.files import sealed
from flmm_core.pipeline.head_folder import read_info
from flmm_core.plugins import load_backbones
from flmm_core.progress import LineProgress, Progress
from flmm_core.training.train import train
from recipes.twins import PARTS
from tests.flows import method_of
from tests.stopping import StopAt

Train = Callable[..., Path]


@pytest.fixture
def run(random_twin: Path, drawn: Path, tmp_path: Path) -> Train:
    """Train for a few steps; keywords are settings with "__" for the dot."""

    def start(name: str = "run", *, progress: Progress | None = None, **more: Any) -> Path:
        source = f"refcoco:{drawn}@train"
        settings: dict[str, Any] = {
            "backbone": "qwen",
            "model": str(random_twin),
            "data": [source],
            "eval_data": [source],
            "val_data": [],
            "output": tmp_path / name,
            "steps": 4,
            "batch_size": 3,
            "save_every": 2,
            "log_every": 1,
            "pictures": 1,
            "learning_rate": 1e-2,
            "head.base_channels": 4,
            "head.enlarge_to": 16,
        }
        settings |= {key.replace("__", "."): value for key, value in more.items()}
        return train(*load_config(None, settings, load_backbones().get), progress=progress)

    return start


def head_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_folder_holds_what_the_docs_say(run: Train, drawn: Path) -> None:
    folder = run()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "last", "pictures",
        "summary.json",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert {
        "backbone", "model", "steps", "seed", "data", "coarse", "refined",
        "trainable_parameters", "seconds", "protocol",
    } <= summary.keys()  # fmt: skip
    assert set(summary["coarse"]) == {"ciou", "miou"}
    remark, *_ = (folder / "config.yaml").read_text().splitlines()
    reads = read_info(folder / "last").facts["reads"]
    assert remark == f"# The model reads: {reads!r}"
    assert reads.endswith("Please give me a description of the image. ASSISTANT:{caption}")
    assert "calibration" not in summary  # there was no validation data
    assert not (folder / "last" / "confidence.json").exists()
    assert summary["vlm_sha256"]["before"] == summary["vlm_sha256"]["after"]
    (scores,) = summary["evaluations"].values()
    assert scores["refined"]["masks"] == len(open_source(f"refcoco:{drawn}@train"))
    assert set(scores["refined"]["slices"]) == {"plain", "relation"}
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(row["loss"] > 0 for row in steps)
    assert all(row["pictures_per_second"] > 0 for row in steps)
    assert all(row["phrases_per_second"] >= row["pictures_per_second"] for row in steps)
    assert all(0 <= row["share_waiting_for_data"] <= 1 for row in steps)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-2", "step-4"]
    assert [path.name for path in (folder / "pictures").iterdir()] == ["00.png"]


def test_progress_says_how_fast_it_is_and_whether_it_waits(run: Train) -> None:
    lines: list[str] = []
    run(progress=LineProgress(lines.append, every=0), pictures=0)
    for name, more in (("Training", r", waiting \d+ %"), ("refcoco:", "")):  # a long name
        shown = [line for line in lines if line.startswith(name) and "/" in line and "left" in line]
        assert shown
        for line in shown:
            assert re.search(rf", images/s [\d.e+]+{more}", line)


def test_a_head_holds_neither_the_vlm_nor_the_image_encoder(run: Train) -> None:
    state = head_of(run())
    assert not any("image_encoder" in name or "vlm" in name for name in state)
    trained = {"mask_head", "text_prompts", "refiner", "presence"}
    assert {name.split(".")[0] for name in state} == trained


def test_one_seed_one_head_and_another_seed_another(run: Train) -> None:
    first, second, other = (run(name, seed=s) for name, s in (("a", 1), ("b", 1), ("c", 2)))
    assert same(head_of(first), head_of(second))
    assert not same(head_of(first), head_of(other))


@pytest.mark.parametrize("bucket", [False, True])
def test_ctrl_c_saves_the_step_and_a_resumed_run_is_bit_identical(run: Train, bucket: bool) -> None:
    whole = run("whole", bucket=bucket)
    with pytest.raises(KeyboardInterrupt, match=r"Step 3 of 4 is saved\."):
        run("cut", bucket=bucket, progress=StopAt("Training", 3))
    resumed = run("cut", bucket=bucket, resume=True)
    assert (resumed / "last").resolve().name == "step-4"
    assert same(head_of(whole), head_of(resumed))


def test_the_best_checkpoint_is_kept_and_evaluated(run: Train, drawn: Path) -> None:
    source = f"refcoco:{drawn}@train"
    folder = run(val_data=[source], steps=6, save_every=1)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    masks = {r["step"]: r["validation"] for r in rows if "validation" in r}
    # borrowed phrases, which name nothing, do not decide
    assert all(found["generalised"]["no_target"] for found in masks.values())
    scores = {step: found["generalised"]["target_ciou"] for step, found in masks.items()}
    best = max(scores, key=lambda step: (scores[step], step))
    assert (folder / "best").resolve().name == f"step-{best}"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["refined"]["ciou"] == scores[best]
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {"step-5", "step-6", f"step-{best}"}


def test_validation_data_make_a_head_say_how_sure_it_is(
    run: Train, drawn: Path, tmp_path: Path
) -> None:
    source = f"refcoco:{drawn}@train"
    scenes = draw_images(3, seed=8, extras=("absent",))
    absent = f"grefcoco:{FORMATS['grefcoco'].write(tmp_path / 'absent', scenes)}@train"
    folder = run(val_data=[source, absent], pictures=0, absent_share=0.0)
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 <= summary["calibration"]["ece"] <= 1
    assert summary["calibration"]["masks"] == summary["evaluations"][source]["refined"]["masks"]
    grounder = Grounder.from_pretrained(folder)
    assert grounder.confidence is not None
    assert grounder.confidence.masks == len(open_source(source)) + len(open_source(absent))
    assert grounder.confidence.threshold is not None
    again = evaluate_run(folder, [source])["data"][source]["calibration"]
    assert again == summary["calibration"]
    copy = Grounder.from_pretrained(grounder.save_pretrained(tmp_path / "copy"))
    assert copy.confidence == grounder.confidence
    image = next(drawn.rglob("*.png"))
    out = copy.ground(image, ["red ring", "the star"])
    assert ((out.probabilities > 0) & (out.probabilities < 1)).all()
    threshold = grounder.confidence.threshold
    assert summary["not_there"]["threshold"] == threshold
    assert out.there.tolist() == (out.probabilities >= threshold).tolist()
    everything = copy.ground(image, ["red ring", "the star"], keep_absent=True)
    assert everything.there.all()
    assert torch.equal(everything.probabilities, out.probabilities)
    assert torch.equal(everything.masks & out.there[:, None, None], out.masks)


def test_a_run_is_measured_by_methods_without_training_too(run: Train, drawn: Path) -> None:
    folder, source = run(pictures=0), f"refcoco:{drawn}@train"
    figures = evaluate_run(folder, [source], method="top-k-heads", protocol="flmm-paper", limit=3)
    assert figures["method"]["name"] == "top-k-heads"
    assert len(figures["method"]["heads"]) == 3
    scores = figures["data"][source]
    assert scores["coarse"]["ciou"] == scores["refined"]["ciou"] > 0
    assert json.loads(json.dumps(figures)) == figures


def test_a_folder_with_a_run_is_not_overwritten(run: Train, tmp_path: Path) -> None:
    run()
    with pytest.raises(UsageError) as error:
        run()
    assert str(error.value).splitlines()[0] == (
        f"The output folder '{tmp_path / 'run'}' already contains a run."
    )
    assert "--resume" in str(error.value)
    with pytest.raises(UsageError, match="There is nothing to resume in"):
        run("other", resume=True)


def test_a_loss_that_is_no_number_names_step_and_samples(
    run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "flmm_core.training.losses.dice_loss", lambda logits, truth: logits.mean((1, 2)) * torch.nan
    )
    with pytest.raises(RunError, match=r"The loss of step 1 is nan\.\nSamples: .*train_plain"):
        run()


def test_training_without_a_refiner(run: Train) -> None:
    folder = run(refiner="none", pictures=0, head__presence=False)
    assert {name.split(".")[0] for name in head_of(folder)} == {"mask_head"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["coarse"]["ciou"] == pytest.approx(summary["refined"]["ciou"], abs=0.02)


def test_a_saved_head_gives_the_same_masks(run: Train, drawn: Path, tmp_path: Path) -> None:
    folder = run()
    picture = read_image(next(drawn.rglob("*.png")))
    first = Grounder.from_pretrained(folder)
    second = Grounder.from_pretrained(first.save_pretrained(tmp_path / "copy"))
    one, two = (g.ground(picture, ["red ring", "the star"]) for g in (first, second))
    assert torch.equal(one.logits, two.logits)
    assert one.logits.shape == (2, picture.height, picture.width)
    assert second.info.facts["steps"] == 4


def test_scores_do_not_depend_on_the_batch(run: Train, drawn: Path) -> None:
    method = method_of(Grounder.from_pretrained(run()))
    samples = open_source(f"refcoco:{drawn}@train")
    one, five = (evaluate(method, samples, batch_size=size) for size in (1, 5))
    assert one.phrases == five.phrases == len(samples)
    # Pixels on the border of a mask may flip with the order of float32 sums.
    assert one["ciou"] == pytest.approx(five["ciou"], rel=1e-3)
    assert one["coarse_ciou"] == pytest.approx(five["coarse_ciou"], rel=1e-3)


def test_evaluating_a_run_names_its_protocol(run: Train, drawn: Path) -> None:
    folder, source = run(), f"refcoco:{drawn}@train"
    standard = evaluate_run(folder, [source])
    paper = evaluate_run(folder, [source], protocol="flmm-paper", limit=2)
    assert (standard["protocol"], paper["protocol"]) == ("standard", "flmm-paper")
    assert paper["data"][source]["samples"] == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert standard["data"][source]["refined"]["ciou"] == summary["refined"]["ciou"]
    assert json.loads(json.dumps(standard)) == standard


@pytest.mark.multiprocess
def test_a_broken_image_is_named_from_a_worker_too(run: Train, drawn: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(drawn, broken)
    picture = sorted(broken.rglob("*.png"))[2]
    picture.write_bytes(picture.read_bytes()[:400])
    method = method_of(Grounder.from_pretrained(run()))
    for workers in (0, 2):
        with pytest.raises(DataError) as error:
            evaluate(method, open_source(f"refcoco:{broken}@train"), workers=workers)
        assert str(picture) in str(error.value).splitlines()[0]
        assert "Traceback" not in str(error.value)


def test_heads_that_do_not_fit_are_refused(run: Train, tmp_path: Path) -> None:
    folder = run()
    config = json.loads((folder / "last" / "config.json").read_text())
    shape, processor = PARTS["qwen"](pixels=96)
    shape.text_config.num_hidden_layers = 3
    shape.text_config.layer_types = shape.text_config.layer_types[:3]
    AutoModelForImageTextToText.from_config(shape).save_pretrained(tmp_path / "shallow")
    processor.save_pretrained(tmp_path / "shallow")
    with pytest.raises(WeightsError) as error:
        Grounder.from_pretrained(folder, model=str(tmp_path / "shallow"))
    assert str(error.value) == (
        f"The head in '{folder / 'last'}' does not fit the model '{tmp_path / 'shallow'}'.\n"
        "layers: head 4, model 3.\n"
        "Give the model that the head was trained with, or train a new head."
    )

    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "last" / "model.safetensors", other)
    config["recipe"]["backbone"] = "qwne"
    (other / "config.json").write_text(json.dumps(sealed(config)))
    with pytest.raises(UsageError, match=r"Unknown backbone 'qwne'. Did you mean 'qwen'\?"):
        Grounder.from_pretrained(other)

    config["recipe"]["backbone"] = "qwen"
    (other / "config.json").write_text(json.dumps(sealed(config)))
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be used"):
        Grounder.from_pretrained(other)

    (other / "config.json").write_text('{"architectures": ["Other"]}')
    with pytest.raises(WeightsError, match="does not describe a head of flmm"):
        Grounder.from_pretrained(other)


def test_a_missing_head_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        Grounder.from_pretrained(tmp_path)
    assert str(error.value) == (
        f"There is no trained head in '{tmp_path}'.\n"
        "It is a folder. Looked for config.json and model.safetensors in it, in best/ and in "
        "last/.\nGive a run folder of `flmm train`, one of its checkpoints, or a hub id."
    )


def test_a_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="The head 'someone/head' cannot be fetched"):
        Grounder.from_pretrained("someone/head")
