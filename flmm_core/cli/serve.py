"""`flmm serve`"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flmm_core.cli.options import AS_TRAINED, PLACEMENT, config_options, given_behind
from flmm_core.errors import UsageError
from flmm_core.serving import require_extra
from flmm_core.serving.limits import Limits

DEFAULT = Limits()
TOKEN = "FLMM_TOKEN"


@click.command("serve")
@click.option(
    "--head",
    "heads",
    required=True,
    multiple=True,
    help="Trained head: a run folder, a head folder or a hub id; repeatable. NAME=HEAD names it.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 takes a free one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help=f"File with the bearer token that clients must send.  [default: ${TOKEN}]",
)
@click.option("--no-token", is_flag=True, help="Serve other machines without a token.")
@click.option("--allow-urls", is_flag=True, help="Fetch images from public http(s) URLs.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=DEFAULT.batch_phrases,
    help="Phrases grounded in one forward.",
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=DEFAULT.queue,
    help="Requests that may wait; the next are answered with 429.",
)
@click.option(
    "--max-megabytes",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT.body_bytes / (1 << 20),
    help="Of a request, in MiB.",
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT.pixels / 1e6,
    help="Of the images of a request.",
)
@click.option(
    "--max-memory",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT.memory_bytes / (1 << 30),
    help="Of all requests' bodies and images, in GiB.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT.run_seconds,
    help="Seconds that the model may take for a request, beyond the wait.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT.wait_seconds,
    help="Seconds that a request may wait for the model.",
)
@config_options(*PLACEMENT, "force", "strict", "check")
@config_options(*AS_TRAINED, unset="as in training")
def command(
    heads: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    no_token: bool,
    allow_urls: bool,
    batch_size: int,
    queue: int,
    max_megabytes: float,
    max_megapixels: float,
    max_memory: float,
    timeout: float,
    wait: float,
    **parameters: Any,
) -> int:
    """Serve trained heads over HTTP.

    POST /v1/ground takes an image and phrases, POST /v1/chat/completions what OpenAI clients send;
    /docs describes both. SIGTERM finishes the requests that run, then exits.
    """
    require_extra()
    from flmm_core.serving import server

    token = read_token(token_file)
    named = named_heads(heads)
    limits = replace(
        DEFAULT,
        batch_phrases=batch_size,
        queue=queue,
        body_bytes=int(max_megabytes * (1 << 20)),
        pixels=int(max_megapixels * 1e6),
        memory_bytes=int(max_memory * (1 << 30)),
        run_seconds=timeout,
        wait_seconds=wait,
    )
    with server.listen(host, port) as listening:
        if token is None and not no_token and not server.is_local(listening):
            raise UsageError(
                f"Other machines can reach the server at {host}, and it has no token.",
                repair=f"Give --token-file, set ${TOKEN}, or allow everyone with --no-token.",
            )
        from flmm_core import Grounder
        from flmm_core.serving.app import create_app

        given = given_behind(parameters)
        grounders = {name: Grounder.from_pretrained(head, **given) for name, head in named.items()}
        app = create_app(
            grounders,
            limits=limits,
            token=token,
            allow_urls=allow_urls,
            # A web page can give this machine a name of its own, and so pass for this server.
            only_hosts=[*server.LOCAL_NAMES, host]
            if token is None and server.is_local(listening)
            else None,
        )
        url = server.url_of(listening)
        return server.serve(
            app,
            listening,
            limits,
            started=lambda: click.echo(f"Serving {', '.join(grounders)} at {url} ({url}/docs)"),
        )


def named_heads(heads: tuple[str, ...]) -> dict[str, str]:
    """Heads by the names that clients call them by: NAME=HEAD, else the last part of the path."""
    named: dict[str, str] = {}
    for head in heads:
        name, equals, path = head.partition("=")
        if not equals or Path(head).exists():
            name, path = Path(head).resolve().name if Path(head).exists() else head, head
        if not name or name in named:
            raise UsageError(
                f"Two heads are called '{name}'." if name else f"'{head}' has no name.",
                repair="Name them: --head NAME=HEAD.",
            )
        named[name] = path
    return named


def read_token(file: Path | None) -> str | None:
    """The bearer token of a file or the environment; None if there is neither.

    Raises:
        UsageError: It cannot be read, is empty, or cannot stand in a header.
    """
    source = f"The token file '{file}'" if file else f"${TOKEN}"
    try:
        text = file.read_text("ascii") if file else os.environ.get(TOKEN)
    except (OSError, UnicodeError) as error:
        found = error.strerror if isinstance(error, OSError) else "It is not ASCII."
        raise UsageError(
            f"{source} cannot be read.", found=f"{found}", repair="Check --token-file."
        ) from error
    if text is None:
        return None
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{source} holds no token.",
            found="Expected one word of printable ASCII.",
            repair="Write one, for example with `openssl rand -hex 32`.",
        )
    return token
