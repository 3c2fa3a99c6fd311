"""POST /v1/chat/completions as OpenAI's clients send it, and /v1/models.

The answer's message, or the last deltas of a stream, carry our spans in the field `flmm`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.types import Receive, Scope, Send

from flmm_core.pipeline.conversation.answer import Answer, Span
from flmm_core.pipeline.conversation.phrases.base import PhraseFinder
from flmm_core.pipeline.conversation.phrases.choose import open_finder
from flmm_core.pipeline.grounder import Grounder
from flmm_core.serving.budget import Account
from flmm_core.serving.chat_request import ChatRequest
from flmm_core.serving.ground import check_phrases, mask_png
from flmm_core.serving.reading import read_json
from flmm_core.serving.refusals import refusal_of
from flmm_core.serving.service import Service, service, unless_gone

router = APIRouter(prefix="/v1", tags=["conversation"])
Event = str | Span | Answer


@router.post(
    "/chat/completions",
    summary="A conversation about images",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}
            },
        }
    },
)
async def chat(request: Request) -> Response:
    """OpenAI's chat completions; what the answer names is grounded, see the field `flmm`."""
    own = service(request)
    with ExitStack() as held:
        account = held.enter_context(own.account())
        asked = await read_json(request, ChatRequest, own.limits, account)
        asked.check(own.limits)
        name, grounder = own.grounder(asked.model)
        phrases = asked.options.phrases
        if isinstance(phrases, list):
            check_phrases(phrases, own)
        turns, urls = asked.turns()
        images = await _images(urls, own, account)
        answering = _Answering(own, name, grounder, asked, turns, images)
        if not asked.stream:
            return JSONResponse(await unless_gone(request, answering.whole()))
        events = answering.chunks()
        first = await unless_gone(request, anext(events))  # a refusal still has its status
        return _Events(first, events, held.pop_all())


@router.get("/models", summary="The models")
async def models(request: Request) -> dict[str, Any]:
    """The names that `model` may have."""
    return {"object": "list", "data": [_model(name) for name in service(request).grounders]}


@router.get("/models/{name:path}", summary="One model")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Whether there is one of a name."""
    return _model(service(request).grounder(name)[0])


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "flmm"}


async def _images(urls: Sequence[str], own: Service, account: Account) -> list[Image.Image]:
    images: list[Image.Image] = []
    left = own.limits.pixels
    for url in urls:
        images.append(await own.image(url, account, left))
        left -= images[-1].width * images[-1].height
    return images


class _Answering:
    """One answer, whole or in chunks."""

    def __init__(
        self,
        own: Service,
        name: str,
        grounder: Grounder,
        asked: ChatRequest,
        turns: list[dict[str, Any]],
        images: list[Image.Image],
    ) -> None:
        self.own = own
        self.name = name
        self.grounder = grounder
        self.asked = asked
        self.turns = turns
        self.images = images
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def events(self) -> AsyncGenerator[Event, None]:
        """The pieces of the text, its spans, and the answer, from the thread of the models."""
        options = self.asked.options
        phrases = options.phrases

        def start() -> Iterator[Event]:
            try:
                yield from self.grounder.stream(
                    self.images,
                    self.turns,
                    phrases=_finder(phrases) if isinstance(phrases, str) else phrases,
                    keep_absent=options.keep_absent,
                    seed=self.asked.seed,
                    **self.asked.generation(self.own.limits),
                )
            finally:
                self.grounder.backbone.forget()  # it would keep the images for a next turn

        async def counted() -> AsyncGenerator[Event, None]:
            async with aclosing(self.own.worker.iterate(start)) as events:
                async for event in events:
                    if isinstance(event, Answer):
                        self.own.metrics.tokens.inc(len(event.token_ids))
                    yield event

        return counted()

    async def whole(self) -> dict[str, Any]:
        """A chat completion."""
        answer: Answer | None = None
        async with aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Answer):
                    answer = event
        assert answer is not None
        spans = await asyncio.to_thread(lambda: [self._record(span) for span in answer])
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": answer.text,
                "refusal": None,
                "flmm": {"spans": spans},
            },
            "logprobs": None,
            "finish_reason": self._reason(answer),
        }
        return self._frame("chat.completion", [choice]) | {"usage": self._usage(answer)}

    async def chunks(self) -> AsyncGenerator[str, None]:
        """The events of a stream, each a chunk of a chat completion."""
        async with aclosing(self.events()) as events:
            first = True
            async for event in events:
                if first:
                    yield self._chunk({"role": "assistant", "content": "", "refusal": None})
                    first = False
                if isinstance(event, str):
                    yield self._chunk({"content": event})
                elif isinstance(event, Span):
                    span = await asyncio.to_thread(self._record, event)
                    yield self._chunk({"flmm": {"spans": [span]}})
                else:
                    yield self._chunk({}, self._reason(event))
                    options = self.asked.stream_options
                    if options is not None and options.include_usage:
                        usage = {"usage": self._usage(event)}
                        yield _event(self._frame("chat.completion.chunk", []) | usage)

    def _record(self, span: Span) -> dict[str, Any]:
        record = span.to_record()
        masks = self.asked.options.masks
        if masks == "none":
            del record["segmentation"]
        elif masks == "png":
            data = mask_png(span.result, span.number)
            record["png"] = base64.b64encode(data).decode("ascii")
        return record

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._frame("chat.completion.chunk", [choice]))

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.name,
            "choices": choices,
        }

    def _reason(self, answer: Answer) -> str:
        full = len(answer.token_ids) >= self.asked.new_tokens(self.own.limits)
        ends = self.grounder.backbone.vlm.generation_config.eos_token_id
        ended = full and int(answer.token_ids[-1]) in (ends if isinstance(ends, list) else [ends])
        return "length" if full and not ended else "stop"

    def _usage(self, answer: Answer) -> dict[str, int]:
        written = len(answer.token_ids)
        return {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": answer.prompt_tokens + written,
        }


@lru_cache(maxsize=8)
def _finder(name: str) -> PhraseFinder:
    return open_finder(name)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


class _Events(StreamingResponse):
    """Server-sent events; what a request holds is given back whenever it ends."""

    def __init__(self, first: str, rest: AsyncGenerator[str, None], held: ExitStack) -> None:
        self._first = first
        self._rest = rest
        self._held = held
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)

    async def _events(self) -> AsyncGenerator[str, None]:
        yield self._first
        try:
            async for event in self._rest:
                yield event
            yield "data: [DONE]\n\n"
        except Exception as error:  # the status is sent already
            yield _event(refusal_of(error).body())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()
            self._held.close()
