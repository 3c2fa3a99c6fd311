"""The app: routes, and what is the same for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flmm_core import __version__
from flmm_core.pipeline.grounder import Grounder
from flmm_core.serving import chat, ground, reference, refusals, status
from flmm_core.serving.budget import Budget
from flmm_core.serving.chat_request import ChatRequest
from flmm_core.serving.limits import Limits
from flmm_core.serving.service import Service, authorized
from flmm_core.serving.status import Metrics
from flmm_core.serving.worker import Worker

DESCRIPTION = "Masks and conversation from frozen vision-language models."
SCHEMAS = (ground.GroundRequest, ChatRequest)


def create_app(
    grounders: Grounder | Mapping[str, Grounder],
    *,
    limits: Limits | None = None,
    token: str | None = None,
    allow_urls: bool = False,
    only_hosts: Sequence[str] | None = None,
    routers: Sequence[APIRouter] = (),
    open_routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """An ASGI app that serves trained heads; one thread of its own runs the models.

    Args:
        grounders: One, or several by the name that clients call them by; the first is the default.
        limits: By default those of `Limits`.
        token: The bearer token that clients must send; None asks for none.
        allow_urls: Fetch images from public http(s) URLs.
        only_hosts: Names that clients may know the server by; None takes any Host header.
        routers: More routes, behind the token.
        open_routers: More routes, open to all, such as static pages.
    """
    limits = limits or Limits()
    named = {"flmm": grounders} if isinstance(grounders, Grounder) else dict(grounders)
    budget = Budget(limits.memory_bytes)
    worker = Worker(limits)
    metrics = Metrics(lambda: worker.waiting, lambda: budget.taken)
    worker.grounded = metrics.grounded

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)

    app = FastAPI(
        title="flmm",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = Service(named, worker, limits, budget, metrics, token, allow_urls)
    app.state.cut_off = False
    app.add_exception_handler(HTTPException, refusals.of_framework)
    guarded = [Depends(authorized)]
    for router in (ground.router, chat.router, status.metrics, *routers):
        app.include_router(router, dependencies=guarded)
    for router in (status.health, reference.router, *open_routers):
        app.include_router(router)
    _describe(app, token is not None)
    if only_hosts is not None:
        hosts = list(only_hosts)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(_Answering, metrics=metrics)
    return app


def _describe(app: FastAPI, token: bool) -> None:
    """Add to the OpenAPI document what routes read by themselves."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        first = app.openapi_schema is None
        document = made()
        if first:
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for model in SCHEMAS:
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {})
                schemas[model.__name__] = schema
            if token:
                components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"bearer": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


class _Answering:
    """Makes an answer of every error; counts and times answers, those of no route as "other"."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.monotonic()
        code = 0

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            pass  # nobody reads an answer
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            scope["app"].state.cut_off = True
            if not code:
                await refusals.stopping().response()(scope, receive, noting)
        except Exception as error:
            if code:  # the client sees that the rest is missing
                raise
            await refusals.refusal_of(error).response()(scope, receive, noting)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if path != "other" else "other"
            self.metrics.requests.labels(method, path, code or "none").inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - start)
