"""`flmm demo`"""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import click

from flmm_core.cli.options import PLACEMENT, config_options, given_behind


@click.command("demo")
@click.option(
    "--head",
    "heads",
    multiple=True,
    help="Trained head: a run folder, a head folder or a hub id; repeatable.  [default: the newest"
    " run in --runs]",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    help="Folder of runs that the page offers, too.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8088, help="Port; 0 takes a free one."
)
@click.option("--open/--no-open", "show", default=False, help="Open the page in a browser.")
@config_options(*PLACEMENT, "force", "strict", "check")
def command(
    heads: tuple[str, ...], runs: Path, host: str, port: int, show: bool, **parameters: Any
) -> int:
    """Talk and point on a web page.

    Shows which words of an answer belong to which part of the image, and finds phrases. Without a
    trained head, the tiny models talk and show what their words look at. The page loads nothing
    from elsewhere, and no image is kept.
    """
    from flmm_core.serving import require_extra

    require_extra("The page needs packages that are not installed.")
    from flmm_core.serving.page.models import Models
    from flmm_core.serving.page.routes import LIMITS, demo_app
    from flmm_core.serving.page.studio import Studio
    from flmm_core.serving.server import LOCAL_NAMES, Server, is_local, listen, url_of

    models = Models(heads, runs, given_behind(parameters))
    with listen(host, port) as listening:
        address = url_of(listening)
        if not models.has_head:
            click.echo(
                f"No trained head was given or found in '{runs}', so there are no masks: the tiny "
                "models talk and explain. Train a head with flmm train --backbone "
                f"{models.choices[0].backbone}."
            )
        if not is_local(listening):
            click.echo(f"Everybody who can reach {host} can use this page.", err=True)
        names = [*LOCAL_NAMES, host] if is_local(listening) else None

        def started() -> None:
            click.echo(f"The page: {address}  (Ctrl-C ends it)")
            if show:
                webbrowser.open(address)

        server = Server(demo_app(Studio(models), only_hosts=names), LIMITS, started=started)
        server.run(sockets=[listening])
        return server.code
