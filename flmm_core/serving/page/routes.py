"""What the page asks the server: its files, images, masks, answers, attention."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flmm_core.painting import COLORS, OPACITY
from flmm_core.pipeline.heat import HEAT
from flmm_core.serving.app import create_app
from flmm_core.serving.limits import Limits
from flmm_core.serving.page.examples import examples
from flmm_core.serving.page.studio import Studio
from flmm_core.serving.reading import read_form, read_json
from flmm_core.serving.refusals import RefusalError, refusal_of
from flmm_core.serving.service import service

STATIC = Path(__file__).parent / "static"
LIMITS = Limits(body_bytes=64 << 20, pixels=100_000_000, wait_seconds=600, run_seconds=600)
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
Value = TypeVar("Value")
Share = Annotated[float, Query(ge=0, le=1)]
Way = Literal["heads", "mean", "learned"]
Text = Annotated[str, Field(min_length=1, max_length=LIMITS.text_letters)]


class Asked(BaseModel):
    """What every question names: a model and an image that was sent before."""

    model: str
    image: str


class Phrases(Asked):
    """Phrases to look for."""

    phrases: Annotated[
        list[Annotated[str, Field(max_length=LIMITS.phrase_letters)]],
        Field(min_length=1, max_length=LIMITS.phrases),
    ]


class Turn(BaseModel):
    """What one side said."""

    role: Literal["user", "assistant"]
    text: Text


class Conversation(Asked):
    """A conversation about the image, the last turn of which is a question."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=200)]


class Spot(BaseModel):
    """A place in fractions of an image's width and height."""

    x: Annotated[float, Field(ge=0, lt=1)]
    y: Annotated[float, Field(ge=0, lt=1)]
    by: Way = "heads"


def demo_app(studio: Studio, *, only_hosts: list[str] | None = None) -> FastAPI:
    """The app of `flmm demo`: the page at `/`, what it asks below `/page`.

    `only_hosts`: Names that the browser may know this server by. Pages of other sites can make
    their names mean this machine; that a request came by such a name, its Host header tells.
    """
    app = create_app({}, limits=LIMITS, routers=[make_router(studio)], open_routers=[_files()])
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(_Headers)
    if only_hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=only_hosts, www_redirect=False)
    return app


def _files() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return router


class _Headers:
    """Adds `HEADERS` to every response that does not have them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                more = ((n.encode(), v.encode()) for n, v in HEADERS.items())
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in more if name not in known),
                ]
            await send(message)

        await self.app(scope, receive, adding)


def make_router(studio: Studio) -> APIRouter:
    """The routes below `/page`; what needs a model runs on the thread that owns them."""
    router = APIRouter(prefix="/page", include_in_schema=False)

    async def with_model(request: Request, function: Callable[[], Value]) -> Value:
        return await service(request).worker.call(function)

    @router.get("/state")
    async def state() -> dict[str, Any]:
        drawn = await asyncio.to_thread(examples)
        return {
            "models": [{"id": each.id, "name": each.name} for each in studio.models.choices],
            "selected": studio.models.selected,
            "colors": COLORS,
            "heat": HEAT.tolist(),
            "opacity": OPACITY,
            "examples": [{"name": each.name, "phrases": each.phrases} for each in drawn],
        }

    @router.get("/examples/{number}")
    async def example(number: int) -> Response:
        drawn = await asyncio.to_thread(examples)
        if not 0 <= number < len(drawn):
            raise RefusalError(404, f"There is no example {number}.")
        return Response(drawn[number].png, media_type="image/png")

    @router.post("/models/{name}")
    async def choose(request: Request, name: str) -> dict[str, Any]:
        return await with_model(request, lambda: studio.choose(name))

    @router.post("/images")
    async def take(request: Request) -> dict[str, Any]:
        own = service(request)
        with own.account() as account:
            form = await read_form(request, own.limits, account)
            file = form.get("image")
            if not isinstance(file, UploadFile):
                raise RefusalError(400, "The form has no file 'image'.", param="image")
            data = await file.read()
            image = await own.image(data, account)
        return await asyncio.to_thread(studio.take, image)

    @router.get("/images/{name}")
    async def image(name: str) -> Response:
        held = studio.image(name)
        return Response(held.shown, media_type=held.media_type)

    @router.post("/ground")
    async def ground(request: Request) -> dict[str, Any]:
        asked = await _read(request, Phrases)
        return await with_model(
            request, lambda: studio.ground(asked.model, asked.image, asked.phrases)
        )

    @router.post("/chat")
    async def chat(request: Request) -> Response:
        asked = await _read(request, Conversation)
        turns = [(turn.role, turn.text) for turn in asked.messages]
        events = service(request).worker.iterate(
            lambda: studio.answer(asked.model, asked.image, turns)
        )
        return StreamingResponse(_sent(events), media_type="text/event-stream")

    @router.post("/results/{name}/looks")
    async def looks(request: Request, name: str) -> dict[str, Any]:
        spot = await _read(request, Spot)
        return await with_model(request, lambda: studio.looks_at(name, spot.x, spot.y, spot.by))

    @router.get("/results/{name}/parts/{number}/attention")
    async def of_part(request: Request, name: str, number: int, by: Way = "heads") -> Any:
        return await with_model(request, lambda: studio.part_attention(name, number, by))

    @router.get("/results/{name}/words/{number}/attention")
    async def of_word(request: Request, name: str, number: int, by: Way = "heads") -> Any:
        return await with_model(request, lambda: studio.word_attention(name, number, by))

    @router.get("/results/{name}/overlay.png")
    async def overlay(name: str, threshold: Share = 0, opacity: Share = OPACITY) -> Response:
        data = await asyncio.to_thread(studio.overlay, name, threshold, opacity)
        return _file(data, "overlay.png", "image/png")

    @router.get("/results/{name}/masks.zip")
    async def masks(name: str, threshold: Share = 0) -> Response:
        data = await asyncio.to_thread(studio.masks, name, threshold)
        return _file(data, "masks.zip", "application/zip")

    @router.get("/results/{name}/coco.json")
    async def coco(name: str, threshold: Share = 0) -> Response:
        data = await asyncio.to_thread(studio.coco, name, threshold)
        return _file(data, "coco.json", "application/json")

    return router


Model = TypeVar("Model", bound=BaseModel)


async def _read(request: Request, model: type[Model]) -> Model:
    own = service(request)
    with own.account() as account:
        return await read_json(request, model, own.limits, account)


async def _sent(events: AsyncIterator[tuple[str, dict[str, Any]]]) -> AsyncIterator[str]:
    """Server-sent events; the last one is an error if there was one."""
    try:
        async for name, data in events:
            yield _event(name, data)
    except Exception as error:
        yield _event("error", refusal_of(error).body())


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _file(data: bytes, name: str, media_type: str) -> Response:
    kept = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type=media_type, headers=kept)
