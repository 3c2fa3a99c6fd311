"""`flmm backbones new`"""

from __future__ import annotations

from pathlib import Path

import click

from flmm_core.cli.console import importing


@click.command("new")
@click.argument("name")
@click.option("--model", required=True, help="A hub id or a folder; its weights are not read.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="A new folder.  [default: flmm_NAME]"
)
def command(name: str, model: str, output: Path | None) -> None:
    """Write a package with the backbone NAME, filled in by measuring a model.

    The package can be installed, and its tests run the conformance kit on the same model at toy
    width. Where the image tokens of the model cannot be measured, nothing is written, and what
    remains to be done by hand is said.
    """
    with importing():
        from flmm_core.scaffold.facts import find_facts
        from flmm_core.scaffold.package import check_name, module_of, write_package

    folder = output or Path(module_of(name))
    check_name(name, folder)
    facts = find_facts(name, model)
    write_package(name, model, facts, folder)
    for size, why in facts.refused.items():
        click.echo(f"Images of {size} pixels will be refused: {why}")
    click.echo(
        f"{folder}: the backbone '{name}' for models of the type '{facts.model_type}', whose views "
        f"are {', '.join(facts.view_names)}.\n"
        f"Next: pip install -e '{folder}[test]' && pytest {folder}"
    )
