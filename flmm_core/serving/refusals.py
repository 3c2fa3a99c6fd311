"""Errors as responses, in the form that OpenAI's clients read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from flmm_core.errors import DataError, FlmmError, MissingExtraError, UsageError, machine_error

logger = logging.getLogger(__name__)

CODES = {
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "overloaded",
    504: "timeout",
}


class RefusalError(Exception):
    """A response that is an error: its status, a message, and the parameter that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or CODES.get(status)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }

    def response(self) -> Response:
        return JSONResponse(self.body(), self.status, self.headers)


def stopping() -> RefusalError:
    """503; another server, or this one after its restart, may answer."""
    return RefusalError(503, "The server is stopping.", headers={"Retry-After": "5"})


def busy(message: str, seconds: float) -> RefusalError:
    """429; a client should come back after so many seconds."""
    return RefusalError(429, message, headers={"Retry-After": str(max(1, round(seconds)))})


def refusal_of(error: BaseException) -> RefusalError:
    """The refusal that tells a client of an error; what is not meant for users is logged."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, UsageError | DataError | MissingExtraError):
        return RefusalError(400, str(error))
    known = error if isinstance(error, FlmmError) else machine_error(error)
    if isinstance(known, FlmmError) and not isinstance(error, OSError):  # which may name a path
        logger.error("a request failed: %s", known)
        return RefusalError(500, str(known))
    logger.error("a request failed", exc_info=error)
    return RefusalError(500, "The server failed at this request. Its log tells why.")


async def of_framework(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors with an error object."""
    assert isinstance(error, HTTPException)
    said = {404: f"There is nothing at {request.url.path[:200]}."}
    message = said.get(error.status_code, str(error.detail))
    return RefusalError(error.status_code, message, headers=error.headers).response()
