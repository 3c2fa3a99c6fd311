"""`flmm import-flmm`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flmm_core.cli.options import config_options, given_settings
from flmm_core.config import load_config
from flmm_core.errors import UsageError
from flmm_core.files import check_writable
from flmm_core.plugins import load_backbones


@click.command("import-flmm")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), help="Head folder.  [default: beside FILE]"
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "max"]),
    default="mean",
    help="How the head was trained to pool attention over the tokens of a phrase.",
)
@config_options("backbone", "model", "options", "dtype", "device", "prompt", "system")
@config_options("refiner_options", "refiner_weights")
@config_options("refiner", unset="sam:vit_l, or sam:tiny with --model tiny")
def command(path: Path, output: Path | None, pool: str, **parameters: Any) -> None:
    """Turn a checkpoint of the original F-LMM into a head.

    FILE is what its authors publish or what its training wrote: a flat or nested state dict in
    float16 or float32, with or without SAM's image encoder and the VLM. The head rounds, tokenizes
    and resizes as the original does, and works with every command. Missing, unexpected and
    misshapen tensors are listed, and nothing is written.
    """
    given = given_settings(parameters)
    spec = load_backbones().get(given["backbone"]) if "backbone" in given else None
    theirs = {} if spec is None else spec.original.options
    fixed = {
        "head.pool": pool,
        "head.paper_rounding": True,
        "caption_mode": "pieces",
        **{f"options.{name}": value for name, value in theirs.items()},
    }
    tiny = given.get("model", "tiny") == "tiny"
    defaults = {"refiner": "sam:tiny" if tiny else "sam:vit_l"}
    config, spec = load_config(None, {**defaults, **fixed, **given}, load_backbones().get)
    if config.refiner != "sam":
        raise UsageError(
            f"A head of the original F-LMM has no refiner '{config.refiner}'.",
            found="All of them were trained with SAM.",
            repair="Use --refiner sam:vit_l.",
        )
    output = output or path.with_suffix("")
    if output.exists():
        raise UsageError(f"'{output}' exists already.", repair="Give another --output.")
    check_writable(output)
    from flmm_core.pipeline.build import recipe_of
    from flmm_core.pipeline.original import import_head, read_checkpoint

    read_checkpoint(path)  # before the model is loaded
    grounder = import_head(
        path,
        recipe_of(config),
        spec,
        refiner_weights=config.refiner_weights,
        dtype=config.dtype,
        device=config.device,
    )
    click.echo(grounder.save_pretrained(output))
