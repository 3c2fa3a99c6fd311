"""The body of a request, read within the server's limits: nothing is buffered beyond them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from flmm_core.errors import shortened
from flmm_core.serving.budget import Account
from flmm_core.serving.limits import Limits
from flmm_core.serving.refusals import RefusalError

Model = TypeVar("Model", bound=BaseModel)
FIELD_BYTES = 1 << 20
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a client's faults


class _InMemory(MultiPartParser):
    spool_max_size = sys.maxsize  # no image on the disk


def media_type(request: Request) -> str:
    """The content type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(
    request: Request, model: type[Model], limits: Limits, account: Account
) -> Model:
    """The body, which is JSON, as a model.

    Raises:
        RefusalError: 400 if it is not JSON, too deep, or not what the model says; 408 if it takes
            too long, 413 if it is too long, 415 if it is of another type.
    """
    kind = media_type(request)
    if kind != "application/json":
        raise RefusalError(
            415,
            f"The content type is {shortened(kind) or 'missing'}; expected application/json.",
        )
    body = bytearray()
    async for part in _parts(request, limits, account):
        body += part
    return await asyncio.to_thread(parse, model, bytes(body))


def parse(model: type[Model], body: bytes) -> Model:
    """JSON as a model; `RefusalError` 400 if it is not."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        # Where several forms are possible, the problem of the one that fits best.
        problem = max(problems, key=lambda each: len(each["loc"]))
        if problem["type"] == "json_invalid":
            raise RefusalError(400, f"The body is not JSON: {problem['msg']}.") from None
        parts = [str(part) for part in problem["loc"]]
        place = shortened(".".join(each for each in parts if each != "str" and "[" not in each))
        message = f"{place}: {problem['msg']}" if place else problem["msg"]
        raise RefusalError(400, f"{shortened(message, 500)}.", param=place or None) from None


async def read_form(request: Request, limits: Limits, account: Account) -> FormData:
    """The body, which is multipart/form-data; files stay in memory.

    Raises:
        RefusalError: as for `read_json`.
    """
    parts = _parts(request, limits, account)
    parser = _InMemory(
        request.headers,
        parts,
        max_files=limits.images,
        max_fields=limits.phrases + 16,
        max_part_size=FIELD_BYTES,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise RefusalError(400, f"The form is broken: {error.message}") from None
    except (ValueError, LookupError) as error:
        raise RefusalError(400, f"The form is broken: {type(error).__name__}.") from None


async def _parts(request: Request, limits: Limits, account: Account) -> AsyncGenerator[bytes, None]:
    """The body as it arrives."""
    too_large = RefusalError(
        413, f"The body is too large: the limit is {limits.body_bytes / (1 << 20):g} MiB."
    )
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise too_large
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusalError(415, "The body is compressed; send it as it is.")
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.read_seconds
    size = 0
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(end):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RefusalError(
                408, f"The body did not arrive within {limits.read_seconds:g} seconds."
            ) from None
        size += len(part)
        if size > limits.body_bytes:
            raise too_large
        account.take(len(part))
        yield part
