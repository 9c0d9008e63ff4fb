"""Visits of a client to an endpoint without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
from fastapi import FastAPI
from stand_in_service import StandIn

from pipelines.serving.app import make_app
from pipelines.serving.problems import KINDS
from pipelines.serving.settings import ServeSettings

Visit = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


def visit(act: Visit, service: StandIn | None = None, base: str = "http://localhost:8460", **settings: Any) -> Any:
    """Let a client visit an endpoint of its own."""
    app = make_app(service or StandIn(), ServeSettings(**{"workers": 2, **settings}))
    return visited(app, act, base)


def visited(app: FastAPI, act: Visit, base: str = "http://localhost:8460") -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 5))
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await act(client)

    return asyncio.run(run())


def asked(method: str, path: str, service: StandIn | None = None, **options: Any) -> httpx.Response:
    """One request to an endpoint of its own; options of `ServeSettings` are taken out of those of the request."""
    settings = {name: options.pop(name) for name in list(options) if name in ServeSettings.__dataclass_fields__}
    answer: httpx.Response = visit(lambda client: client.request(method, path, **options), service, **settings)
    return answer


def problem(answer: httpx.Response, code: str) -> dict[str, Any]:
    """Check that an answer is a problem as RFC 9457 and the house want it."""
    told: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert list(told) == ["type", "title", "status", "detail", "error_code", "request_id"]
    assert (told["error_code"], told["type"]) == (code, f"urn:nightread:error:{code}")
    assert told["status"] == answer.status_code == KINDS[code].status
    assert told["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text and "Traceback" not in answer.text
    return told
