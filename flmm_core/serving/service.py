"""What every route shares: the models, the thread that owns them, limits, metrics."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from PIL import Image
from starlette.requests import ClientDisconnect

from flmm_core.errors import did_you_mean, shortened
from flmm_core.pipeline.grounder import Grounder
from flmm_core.serving import fetch, images
from flmm_core.serving.budget import Account, Budget
from flmm_core.serving.limits import Limits
from flmm_core.serving.refusals import RefusalError
from flmm_core.serving.status import Metrics
from flmm_core.serving.worker import Worker

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Service:
    """What every route shares; `service(request)` gives it.

    Attributes:
        grounders: The models by the name that clients call them; the first is the default.
        budget: The memory of all requests' bodies and images.
        token: What clients must send as bearer token; None asks for none.
    """

    grounders: Mapping[str, Grounder]
    worker: Worker
    limits: Limits
    budget: Budget
    metrics: Metrics
    token: str | None = None
    allow_urls: bool = False

    def grounder(self, name: str | None) -> tuple[str, Grounder]:
        """A model and its name; None is the default.

        Raises:
            RefusalError: 404, there is none of that name.
        """
        if not self.grounders:
            raise RefusalError(404, "This server has a page alone; flmm serve has the models.")
        chosen = next(iter(self.grounders)) if name is None else name
        if chosen not in self.grounders:
            hint = did_you_mean(chosen[:100], self.grounders)
            raise RefusalError(
                404,
                f"The model {shortened(chosen)!r} does not exist. {hint} Served: "
                f"{', '.join(self.grounders)}.".replace("  ", " "),
                param="model",
                code="model_not_found",
            )
        return chosen, self.grounders[chosen]

    def account(self) -> AbstractContextManager[Account]:
        """The memory of one request."""
        return self.budget.account()

    async def image(
        self, source: str | bytes, account: Account, pixels: int | None = None
    ) -> Image.Image:
        """The image of a request as upright RGB.

        Args:
            source: A file's bytes; or base64, a data URL, or a URL if these are allowed.
            pixels: The most that it may have, by default the server's limit.

        Raises:
            RefusalError: It is none of that, too large, or cannot be fetched.
            DataError: It is broken.
        """
        if isinstance(source, str) and images.is_url(source):
            if not self.allow_urls:
                raise images.refuse_url(source)
            source = await fetch.fetch(source, self.limits, account)

        def decode() -> Image.Image:
            data = source if isinstance(source, bytes) else images.from_text(source, account)
            return images.decode_image(data, account, pixels or self.limits.pixels)

        return await asyncio.to_thread(decode)


def service(request: Request) -> Service:
    """The service of the app that a request is for."""
    found: Service = request.app.state.service
    return found


async def authorized(request: Request) -> None:
    """A dependency of routes: the bearer token is right, and no foreign web page asks.

    Raises:
        RefusalError: 401 or 403.
    """
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        # A browser says so of a page of another origin; without a token any could use the models.
        raise RefusalError(403, "Pages of other origins may not use this server.")
    token = service(request).token
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not right:
        raise RefusalError(
            401,
            "The bearer token is wrong." if given else "The server asks for a bearer token.",
            headers={"WWW-Authenticate": "Bearer"},
        )


def check_text(text: str, name: str, own: Service) -> None:
    """`RefusalError` 400 for a text that is too long or cannot be written."""
    if len(text) > own.limits.text_letters:
        raise RefusalError(
            400,
            f"The {name} has {len(text)} characters; the limit is {own.limits.text_letters}.",
            param=name,
        )


async def unless_gone(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """What `work` gives; it is cancelled if the client closes the connection meanwhile.

    The request's body must have been read.

    Raises:
        ClientDisconnect: The client is gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
