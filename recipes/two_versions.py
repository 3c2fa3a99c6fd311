"""Are heads that were made with one version of transformers right behind another?

    pip install --target other --no-deps transformers==5.6.0 'tokenizers<=0.23.0' \
        'huggingface_hub<2' httpx httpcore h11 anyio
    python -m recipes.two_versions other

Saves a head of each backbone's tiny model under the installed version and under the one in the
folder, and loads each under the other with `strict`. Ends with 1 if one does otherwise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MAKE, LOAD = "--make", "--load"


def make(folder: Path) -> None:
    """Save a head of each backbone with the installed version."""
    from flmm_core.pipeline.build import Recipe, build_flow
    from flmm_core.pipeline.grounder import Grounder
    from flmm_core.pipeline.head_folder import HeadInfo
    from flmm_core.plugins import load_backbones

    for name in load_backbones().specs:
        recipe = Recipe(name, base_channels=4, enlarge_to=16, refiner="none")
        observer, head = build_flow(recipe, device="cpu")
        info = HeadInfo(
            recipe,
            observer.vlm,
            model=observer.backbone.identity(),
            fingerprint=observer.fingerprint,
            vlm_sha256=observer.backbone.weights_digest(),
        )
        Grounder(observer, head, info).save_pretrained(folder / name)


def load(folder: Path) -> int:
    """Load what `make` saved, under the installed version; returns how many do otherwise."""
    from importlib.metadata import version

    from flmm_core.errors import FlmmError
    from flmm_core.pipeline.grounder import Grounder
    from flmm_core.pipeline.head_folder import read_info

    wrong = 0
    for head in sorted(folder.iterdir()):
        made = read_info(head).fingerprint
        found = "the same"
        try:
            grounder = Grounder.from_pretrained(head, device="cpu", strict=True)
            if grounder.backbone.weights_digest() != grounder.info.vlm_sha256:
                found = "another digest of the weights"
        except FlmmError as error:
            found = error.found.replace("\n", "; ")
        wrong += found != "the same"
        then = made.versions["transformers"] if made else "unknown"
        print(f"{head.name}: made with {then}, loaded with {version('transformers')}: {found}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("other", type=Path, help="folder with another version of transformers")
    parser.add_argument(MAKE, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(LOAD, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.other)
        return 0
    if arguments.load:
        return min(load(arguments.other), 1)
    paths = os.environ.get("PYTHONPATH", "")
    other = os.pathsep.join(filter(None, [str(arguments.other.resolve()), paths]))
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        here = [sys.executable, "-m", "recipes.two_versions"]
        folders = {paths: f"{scratch}/installed", other: f"{scratch}/other"}
        for path, folder in folders.items():
            environment = {**os.environ, "PYTHONPATH": path}
            subprocess.run([*here, folder, MAKE], env=environment, check=True)
        for path in folders:
            environment = {**os.environ, "PYTHONPATH": path}
            for folder in folders.values():
                wrong += subprocess.run([*here, folder, LOAD], env=environment).returncode
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
