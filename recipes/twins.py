"""Tiny models of the families in `recipes.families.toys`: transformers folders with processors.

    python -m recipes.twins qwen DIR --seed 7       # random weights, as a control

They are normal transformers folders, which `AutoProcessor` and `AutoModelForImageTextToText` load
with `from_pretrained`. `recipes.pretrain` teaches them to caption.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from recipes.families.parts import Parts
from recipes.families.toys import TOYS

# What the built-in backbones ship as `tiny`.
PARTS: dict[str, Callable[..., Parts]] = {
    "qwen": TOYS["qwen2_5_vl"],
    "deepseek_vl": TOYS["deepseek_vl"],
    "llava_next": TOYS["llava_next"],
}
MAKERS = {**TOYS, **PARTS}
# Position embeddings must start at the scale of what they are added to, or they are ignored.
SCALES = {
    "deepseek_vl": {"patch_embedding": 4.0, "position_embedding": 4.0},
    "llava_next": {"position_embedding": 20.0},
}


def random_twin(family: str, seed: int, **geometry: Any) -> tuple[Any, Any]:
    """(model, processor) with random weights, float32."""
    config, processor = MAKERS[family](**geometry)
    torch.manual_seed(seed)
    # from_config shares the config object with the model it makes.
    model = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            for part, scale in SCALES.get(family, {}).items():
                if f"{part}.weight" in name and "vision" in name:
                    value.mul_(scale)
    return model.float().eval(), processor


RENAMED = ("clip_vision_model", "siglip_vision_model")
TOWER = re.compile(r"^(vision_tower\.|model\.vision_model\.)(?!vision_model\.)")


def build_twin(family: str, folder: str | Path, seed: int = 0, **geometry: Any) -> Path:
    """Write a tiny model with random weights as a transformers folder; returns the folder."""
    model, processor = random_twin(family, seed, **geometry)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    publish_names(Path(folder))
    return Path(folder)


def publish_names(folder: Path) -> None:
    """Rename a saved model's CLIP or SigLIP tensors as published models have them.

    Every version of transformers reads those; what a new one writes, an older one does not know.
    """
    vision = json.loads((folder / "config.json").read_text())["vision_config"]["model_type"]
    if vision not in RENAMED:
        return
    path = folder / "model.safetensors"
    weights = {TOWER.sub(r"\1vision_model.", name): v for name, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny model with random weights.")
    parser.add_argument("family", choices=sorted(MAKERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(build_twin(arguments.family, arguments.folder, arguments.seed))
