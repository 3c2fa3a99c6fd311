"""`flmm import-flmm`"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any, Literal

import click

from flmm_core.cli.console import echo_table
from flmm_core.cli.options import config_options, given_settings
from flmm_core.config import load_config
from flmm_core.errors import UsageError
from flmm_core.files import check_writable
from flmm_core.plugins import load_backbones


@click.command("import-flmm")
@click.argument("file", type=click.Path(path_type=Path))
@config_options("backbone", "model", "options", "prompt", "system")
@config_options("refiner", unset="sam:vit_l, or what FILE tells; sam:tiny with --model tiny")
@config_options("refiner_options", "refiner_weights")
@click.option(
    "--pool",
    type=click.Choice(["mean", "max"]),
    default="mean",
    help="How attention was pooled over the tokens of a phrase; FILE does not tell.",
)
@config_options("force")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="New folder of the head.  [default: beside FILE, without its ending]",
)
def command(
    file: Path, pool: Literal["mean", "max"], output: Path | None, **parameters: Any
) -> None:
    """Make a head of a checkpoint of the original F-LMM.

    FILE is a checkpoint that F-LMM or one of its forks wrote: flat or nested, in float16 or
    float32, with or without the frozen models. Nothing in it is run. The head grounds as the
    original does: captions piece by piece, its rounding, its pixels. Of the model only the
    settings and the processor are read, not the weights.
    """
    given = given_settings(parameters)
    folder = output or file.with_suffix("")
    _check_new(folder)
    registry = load_backbones()
    if "backbone" not in given:
        raise UsageError(
            f"The backbone that '{file}' was trained with is not given.",
            found=f"Installed: {', '.join(registry.specs)}.",
            repair="Give it with --backbone, and its model with --model.",
        )
    spec = registry.get(given["backbone"])
    from flmm_core.pipeline.build import recipe_of
    from flmm_core.pipeline.original import import_original, read_checkpoint

    checkpoint = read_checkpoint(file, spec)
    usual = "tiny" if given.get("model", "tiny") == "tiny" else "vit_l"
    refiner = given.setdefault("refiner", f"sam:{checkpoint.sam_size or usual}")
    originals: dict[str, Any] = {
        "caption_mode": "pieces",
        "head.pool": pool,
        "head.paper_rounding": True,
        "head.presence": False,
        "head.enlarge_to": 64,
        "head.base_channels": checkpoint.base_channels,
        **{f"options.{key}": value for key, value in spec.original.options.items()},
        **({"refiner_options.text": True} if refiner.startswith("sam") else {}),
    }
    weights, force = given.pop("refiner_weights", None), given.pop("force", False)
    config, _ = load_config(None, originals | given, registry.get)
    info = import_original(
        checkpoint, recipe_of(config), folder, refiner_weights=weights, force=force
    )
    views = f" x {len(info.vlm.views)} views" if len(info.vlm.views) > 1 else ""
    shape, count = info.vlm, sum(tensor.numel() for tensor in checkpoint.head.values())
    kinds = sorted({str(x.dtype).removeprefix("torch.") for x in checkpoint.head.values()})
    encoder = "not in it"
    if checkpoint.encoder:
        encoder = f"in it, {'compared with' if weights else 'not compared: no'} --refiner-weights"
    echo_table(
        [
            ("head", f"{len(checkpoint.head)} tensors, {count:,} numbers, {', '.join(kinds)}"),
            (
                "model",
                f"{shape.layers} layers x {shape.heads} heads{views}, width {shape.hidden_size}",
            ),
            ("SAM's encoder", encoder),
            ("VLM", f"{checkpoint.vlm} tensors, not used" if checkpoint.vlm else "not in it"),
        ]
    )
    if spec.original.differs:
        click.echo(spec.original.differs)
    more = f" --refiner-weights {quote(str(weights or 'PATH'))}"
    more = more if weights or info.recipe.refiner_options.get("size", "tiny") != "tiny" else ""
    click.echo(f"{folder}: flmm ground IMAGE PHRASE --head {quote(str(folder))}{more}")


def _check_new(folder: Path) -> None:
    check_writable(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"The output folder '{folder}' is not empty.", repair="Give another --output."
        )
