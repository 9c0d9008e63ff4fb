"""What every request passes on its way in and every answer on its way out."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pipelines.serving.access import Access, Headers
from pipelines.serving.metrics import Metrics
from pipelines.serving.problems import NO_ANSWER, Problem, problem_of
from pipelines.serving.reading import ClientLeft, Receive

LOG = logging.getLogger("nightread.serve")

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ALWAYS: Headers = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
POLICY = b"content-security-policy"
REQUEST_ID = b"x-request-id"
GIVEN_ID = re.compile(rb"[0-9A-Za-z._-]{1,64}")
"""What a request's id may be that others have given: it stands in logs."""
NO_CONTENT: Headers = [(POLICY, b"default-src 'none'; frame-ancestors 'none'")]
CLIENT_LEFT = 499
"""What a request counts as whose client did not wait for the answer; nothing is sent."""


def head_of(problem: Problem, request_id: str, body: bytes) -> Headers:
    """All headers of a problem that no route has made."""
    return [*_of_problem(problem, body), *ALWAYS, *NO_CONTENT, (REQUEST_ID, request_id.encode())]


def _of_problem(problem: Problem, body: bytes) -> Headers:
    headers = {**problem.all_headers(), "Content-Length": str(len(body))}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def defect_of(defect: Exception, request_id: str) -> Problem:
    """Write a defect of ours into the log, and say that there is one.

    Args:
        defect: What nobody expected. Its text and the values in its frames may hold what the client sent, so that only
            its type and its places are written.
        request_id: Joins the log's line and the client's problem.
    """
    frames = traceback.extract_tb(defect.__traceback__)[-8:]
    places = " ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
    LOG.error("request %s met a defect: %s at %s", request_id, type(defect).__name__, places)
    return Problem("internal", "The server has a defect; its log knows this request's id.")


class Door:
    """The outermost ASGI application: request ids, access, headers, problems, metrics and the log.

    Args:
        app: What lies behind it.
        access: Who may ask.
        metrics: Counts requests.
        ids_given: Whether what stands before it gives each request its id and puts it onto the answer too, as Ray's
            proxies do.
    """

    def __init__(self, app: App, access: Access, metrics: Metrics, ids_given: bool = False) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._ids_given = ids_given

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request; what goes wrong in it never leaves this method."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = _given_id(scope) if self._ids_given else None
        request_id = scope.setdefault("state", {})["request_id"] = given or secrets.token_hex(8)
        identity = [] if given else [(REQUEST_ID, request_id.encode())]
        answer = _Answer(send, request_id, [*self._access.cross_origin(scope), *identity])
        try:
            await self._serve(scope, receive, answer)
        except ClientLeft:
            answer.status = CLIENT_LEFT
        except NO_ANSWER as error:
            await answer.problem(problem_of(error))
        except Exception as defect:
            await answer.problem(defect_of(defect, request_id))
        finally:
            seconds = time.perf_counter() - began
            self._metrics.count_request(scope["path"], answer.status, seconds)
            LOG.info("request %s status %d %.1f ms", request_id, answer.status, seconds * 1000)

    async def _serve(self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer) -> None:
        preflight = self._access.preflight(scope)
        if isinstance(preflight, list):
            await answer({"type": "http.response.start", "status": 204, "headers": preflight})
            await answer({"type": "http.response.body", "body": b""})
            return
        if problem := preflight or self._access.problem(scope):
            await answer.problem(problem)
            return
        if scope["method"] == "HEAD":
            # The server leaves the body of the answer out; its own scope goes on saying HEAD.
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, answer)


def _given_id(scope: MutableMapping[str, Any]) -> str | None:
    """The id that a request came with, where it may stand in a log."""
    given: bytes = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
    return given.decode() if GIVEN_ID.fullmatch(given) else None


class _Answer:
    """The way out: adds what every answer carries, and remembers its status."""

    def __init__(self, send: Send, request_id: str, own: Headers) -> None:
        self._send = send
        self._request_id = request_id
        self._own = own
        self._started = False
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self.status = message["status"]
            given: Headers = list(message.get("headers", ()))
            policy = [] if any(name == POLICY for name, _ in given) else NO_CONTENT
            message = {**message, "headers": [*given, *ALWAYS, *policy, *self._own]}
        await self._send(message)

    async def problem(self, problem: Problem) -> None:
        """Answer with a problem; once an answer has begun there is nothing left to say."""
        if self._started:
            return
        body = json.dumps(problem.as_json(self._request_id)).encode()
        await self({"type": "http.response.start", "status": problem.status, "headers": _of_problem(problem, body)})
        await self({"type": "http.response.body", "body": body})
