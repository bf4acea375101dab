"""The errors that clients receive."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An error, in the format that OpenAI's clients expect.

    Attributes:
        status: HTTP status code.
        message: one sentence for a person, with the remedy.
        param: the invalid key of the request, if there is one.
        code: an identifier for programs.
        headers: HTTP headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers or {}

    @property
    def type(self) -> str:
        """The error's type, as OpenAI names it."""
        named = {401: "authentication_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(param: str, message: str, *, code: str | None = None, status: int = 400) -> ApiError:
    """The error for an invalid key."""
    return ApiError(status, f"{param}: {message}", param=param, code=code)


QUEUE_FULL = "too many requests are waiting; try again in a moment"
SHUTTING_DOWN = "the server is shutting down"


def queue_full() -> ApiError:
    return ApiError(429, QUEUE_FULL, code="queue_full", headers={"retry-after": "1"})


def shutting_down() -> ApiError:
    return ApiError(503, SHUTTING_DOWN, code="shutting_down", headers={"connection": "close"})
