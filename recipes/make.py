"""The weights that ship, from the start, in one command per family.

    OMP_NUM_THREADS=1 nohup python -m recipes.make qwen --output build/qwen --export NEW &
    OMP_NUM_THREADS=1 nohup python -m recipes.make deepseek_vl --output build/deepseek_vl \
        --named FOLDER --export NEW &

Captions (`recipes.pretrain`), names (`recipes.aligning`), then place and size
(`recipes.referring`). `--named` gives a folder of a model that knows names, and only the last is
done. All is seeded. The same command goes on where it was stopped; a part whose result is in the
output folder is not done again.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from recipes import aligning, pretrain, referring


def make(family: str, output: Path, named: Path | None = None) -> Path:
    """Teach a family, as far as that is not done; returns the folder of the finished model."""
    named, taught = named or output / "named", output / "taught"
    if not named.exists():
        pretrain.pretrain(family, output / "captions")
        model = aligning.align(family, output / "names", output / "captions" / "state.pt")
        publish(model, family, named)
    if not taught.exists():
        publish(referring.refer(family, output / "expressions", named), family, taught)
    return taught


def publish(model: object, family: str, folder: Path) -> None:
    """As `pretrain.export`, whole or not at all."""
    unfinished = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    pretrain.export(model, family, unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the weights of a tiny model.")
    parser.add_argument("family", choices=sorted(referring.PARTS))
    parser.add_argument("--output", type=Path, required=True, help="checkpoints, logs and results")
    parser.add_argument("--named", type=Path, help="a folder of a model that knows names already")
    parser.add_argument("--export", type=Path, help="copy the finished model, fp16, here")
    given = parser.parse_args()
    if given.named and not given.named.is_dir():
        parser.error(f"--named: there is no folder {given.named}")
    found = make(given.family, given.output, given.named)
    if given.export:
        shutil.copytree(found, given.export, dirs_exist_ok=True)
    print(given.export or found)
