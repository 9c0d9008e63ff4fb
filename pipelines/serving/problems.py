"""Every answer that is not the one asked for: RFC 9457 problems, without a word of what the client sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ImageFailure
from pipelines.serving.answering import NotReady, QueueFull

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """What is the same for every problem of a code.

    Attributes:
        status: The HTTP status.
        title: A few words for people.
    """

    status: int
    title: str


KINDS: Mapping[str, Kind] = {
    # The image's own, with the codes of the table of results.
    "not_an_image": Kind(415, "Not an image"),
    "unsupported": Kind(415, "Unsupported image"),
    "truncated": Kind(422, "Damaged image"),
    "too_large": Kind(413, "Too large"),
    "decoder_crashed": Kind(422, "The decoder crashed"),
    "timed_out": Kind(422, "The image took too long"),
    # The request's.
    "bad_request": Kind(400, "Bad request"),
    "unauthorized": Kind(401, "Unauthorized"),
    "forbidden_origin": Kind(403, "Forbidden origin"),
    "not_found": Kind(404, "Not found"),
    "method_not_allowed": Kind(405, "Method not allowed"),
    "request_timeout": Kind(408, "The request came too slowly"),
    "unsupported_media_type": Kind(415, "Unsupported kind of body"),
    "misdirected": Kind(421, "Misdirected request"),
    "header_too_large": Kind(431, "Too large a head"),
    # The server's.
    "queue_full": Kind(429, "Too many requests"),
    "internal": Kind(500, "A defect of the server"),
    "not_ready": Kind(503, "Not ready"),
    "too_many_connections": Kind(503, "Too many connections"),
    "audit_failed": Kind(503, "The answer could not be recorded"),
}


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        error_code: A key of `KINDS`.
        detail: One sentence; nothing of the input.
        retry_after: Seconds after which asking again may help, or None.
        headers: Further headers of the answer.
    """

    error_code: str
    detail: str
    retry_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.error_code].status

    def as_json(self, request_id: str) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "type": f"urn:nightread:error:{self.error_code}",
            "title": KINDS[self.error_code].title,
            "status": self.status,
            "detail": self.detail,
            "error_code": self.error_code,
            "request_id": request_id,
        }

    def all_headers(self) -> dict[str, str]:
        """Headers of the answer, its media type among them."""
        retry = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {"Content-Type": MEDIA_TYPE, **retry, **dict(self.headers)}


class Refused(Exception):
    """A request that gets a problem for its answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.error_code)
        self.problem = problem


def refused(
    error_code: str, detail: str, retry_after: int | None = None, headers: Mapping[str, str] | None = None
) -> Refused:
    """The exception for one problem."""
    return Refused(Problem(error_code, detail, retry_after, tuple((headers or {}).items())))


START_SECONDS = 2
"""When to ask again a server that is starting."""

IMAGE_CODES = ("not_an_image", "unsupported", "truncated", "too_large", "decoder_crashed", "timed_out")
"""Codes of `KINDS` that the table of results knows too."""

NO_ANSWER = (Refused, ImageFailure, QueueFull, NotReady)
"""What a service may raise instead of an answer, and what refuses a request: `problem_of` knows all of them."""


def problem_of(error: Refused | ImageFailure | QueueFull | NotReady) -> Problem:
    """What a client is told of an image without answer."""
    match error:
        case Refused():
            return error.problem
        case QueueFull():
            seconds = error.retry_after_seconds
            return Problem("queue_full", "As many images wait as may; ask again later.", seconds)
        case NotReady():
            return Problem("not_ready", error.sentence, START_SECONDS)
        case _:
            code = error.code if error.code in IMAGE_CODES else "internal"
            return Problem(code, error.message)
