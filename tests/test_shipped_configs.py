"""The configurations that come with flmm: found by name, and run as they are on drawn data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flmm_core.cli import main
from flmm_core.config import load_config
from flmm_core.config.shipped import shipped
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.sources import parse_source
from flmm_core.errors import ConfigError
from flmm_core.plugins import load_backbones

Capture = pytest.CaptureFixture[str]
TINY = ["--refiner", "sam:tiny", "--precision", "float32", "--pictures", "0"]
TINY += ["--head-base-channels", "4", "--head-enlarge-to", "16"]


@pytest.mark.parametrize("name", ["paper", "own-data"])
def test_they_are_settings_of_any_backbone_with_real_sources(name: str, tmp_path: Path) -> None:
    for backbone in load_backbones().specs:
        given = {"backbone": backbone, "model": "some/model", "data_root": tmp_path}
        config, _ = load_config(Path(name), given)
        for text in (*config.data, *config.val_data, *config.eval_data):
            assert parse_source(text).path == tmp_path
        assert config.dtype == "bfloat16"
        assert config.refiner_options["size"] == "vit_l"
        assert str(config.refiner_weights) == "sam_vit_l_0b3195.pth"


def test_a_name_that_is_none_lists_them(capsys: Capture) -> None:
    assert main(["train", "--config", "papper", "--backbone", "qwen", "--dry-run"]) == 2
    assert capsys.readouterr().err == (
        "flmm: There is no configuration 'papper'. Did you mean 'paper'?\n"
        "No such file here; these come with flmm: own-data, paper.\n"
        "Give one of these names, or a YAML file.\n"
    )
    main(["train", "--help"])
    assert f"one that comes with flmm: {', '.join(shipped())}." in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_file_that_is_missing_is_named_as_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "paper", Path("paper.yml")):
        with pytest.raises(ConfigError, match="It cannot be read: No such file or directory"):
            load_config(path, {"backbone": "qwen"})


def test_a_file_of_the_user_goes_before_a_name_and_this_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("paper").write_text("steps: 7\n")
    config, _ = load_config(Path("paper"), {"backbone": "qwen"})
    assert config.steps == 7
    assert "--config paper: the file of this name here is used" in caplog.text


def test_relative_paths_of_data_start_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {
        "jsonl:a/b@val": "jsonl:{}/a/b@val",
        "refcoco:.@train,images=/photos": "refcoco:{}@train,images=/photos",
        "coco:.": "coco:{}",
        "refcoco:./coco/rrsisd@val": "refcoco:{}/coco/rrsisd@val",
        "jsonl:/a@b": "jsonl:/a@b",
        "shapes@train": "shapes@train",
    }
    given = {"backbone": "qwen", "data": [*texts], "data_root": "the/root", "eval_data": "png:.@x"}
    config, _ = load_config(None, given)
    root = tmp_path / "the" / "root"
    assert config.data == [text.format(root) for text in texts.values()]
    assert config.eval_data == [f"png:{root}@x"]
    file = tmp_path / "again.yaml"
    file.write_text(config.to_yaml())
    monkeypatch.chdir("/")
    assert load_config(file, {})[0].data == config.data


def test_another_refiner_takes_no_weights_of_the_first(tmp_path: Path) -> None:
    def weights(**more: Any) -> Path | None:
        return load_config(path, {"backbone": "qwen", **more})[0].refiner_weights

    path = Path("paper")
    assert weights(refiner="sam:tiny") is None
    assert weights(refiner="none") is None
    kept = Path("sam_vit_l_0b3195.pth")
    assert weights() == weights(refiner="sam:vit_l") == weights(refiner="sam") == kept
    assert weights(refiner="sam:vit_h", refiner_weights="h.pth") == Path("h.pth")
    resolved, _ = load_config(path, {"backbone": "qwen"})
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved.to_yaml())
    assert weights() == weights(refiner="sam:vit_l") == kept
    assert weights(refiner="sam:vit_b") is None


def train(name: str, twin: Path, root: Path, run: Path, *more: str) -> Any:
    where = ["--data-root", str(root), "--output", str(run)]
    given = ["--config", name, "--backbone", "qwen", "--model", str(twin), *where, *TINY, *more]
    assert main(["train", *given]) == 0
    settings = yaml.safe_load((run / "config.yaml").read_text())
    return settings, json.loads((run / "summary.json").read_text())


def test_the_paper_trains_on_all_its_data(random_twin: Path, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    FORMATS["refcoco"].write(root, draw_images(3, seed=1))
    shutil.copytree(root / "refcoco", root / "refcoco+")
    shutil.copytree(root / "refcoco", root / "refcocog")
    (root / "refcocog" / "refs(unc).p").rename(root / "refcocog" / "refs(umd).p")
    FORMATS["png"].write(root, draw_images(2, seed=2, extras=FORMATS["png"].extras))
    more = ["--eval-data", "", "--refiner", "none"]
    settings, summary = train("paper", random_twin, root, tmp_path / "run", *more)
    assert (settings["epochs"], settings["batch_size"]) == (8, 8)
    assert settings["steps"] == 11  # 8 epochs of 3 + 3 + 3 + 2 samples
    assert settings["head"]["presence"] is False
    assert summary["data"] == [
        f"{name}:{root}@train" for name in ("refcoco", "refcoco+", "refcocog", "png")
    ]


def test_images_of_your_own_go_from_annotations_to_a_head(
    random_twin: Path, tmp_path: Path, capsys: Capture
) -> None:
    FORMATS["coco"].write(tmp_path / "in", draw_images(10, seed=1))
    mine = tmp_path / "mine"
    assert main(["data", "split", f"coco:{tmp_path / 'in'}@train", str(mine)]) == 0
    more = ["--epochs", "3", "--save-every", "1", "--patience", "1"]
    settings, summary = train("own-data", random_twin, mine, tmp_path / "run", *more)
    assert settings["val_data"] == [f"jsonl:{mine}@val"]
    assert settings["ema"] == 0.99
    assert list(summary["evaluations"]) == [f"jsonl:{mine}@test"]
    assert (tmp_path / "run" / "best" / "confidence.json").is_file()
