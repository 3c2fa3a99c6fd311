from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flmm_core import WeightsError, load_backbones
from flmm_core.plugins import load_class


def test_incomplete_weights_are_refused(random_twin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "twin"
    folder.mkdir()
    for path in random_twin.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    lost = [name for name in weights if name.endswith("layers.1.self_attn.q_proj.weight")]
    assert len(lost) == 1
    del weights[lost[0]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    spec = load_backbones().get("qwen")
    with pytest.raises(WeightsError) as error:
        load_class(spec).load(spec, str(folder))
    assert str(error.value).startswith(
        f"The weights in '{folder}' are not complete.\n1 of the model's tensors are missing: "
    )
