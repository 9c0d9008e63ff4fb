"""The endpoint's routes, without sockets: every answer of a service, and every way to be refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from stand_in_service import MODEL, StandIn
from visits import asked, problem, visit, visited

from pipelines.serving.app import make_app
from pipelines.serving.problems import IMAGE_CODES
from pipelines.serving.settings import ServeSettings

TOKEN = "a-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def test_an_image_is_answered_in_each_of_three_ways() -> None:
    image = b"the image"
    text = base64.b64encode(image).decode()
    for body in ({"json": {"image": text}}, {"content": image}, {"files": {"any": ("secret-name.jpg", image)}}):
        answer = asked("POST", "/predict", **body)
        assert answer.status_code == 200
        told = answer.json()
        assert told == {
            "request_id": answer.headers["x-request-id"],
            "content_sha256": hashlib.sha256(image).hexdigest(),
            "predicted_label": "benign",
            "probabilities": {"benign": 0.75, "malignant": 0.25},
            "p_positive": 0.25,
            "decision": "negative",
            "model": {"name": MODEL.name, "version": "v3", "model_id": MODEL.model_id},
            "width": 4,
            "height": 3,
            "decoder": "opencv",
            "milliseconds": 1.5,
        }
        assert list(told)[:3] == ["request_id", "content_sha256", "predicted_label"]


def test_the_published_envelope_holds_the_answer_and_the_problem() -> None:
    async def act(client: httpx.AsyncClient) -> None:
        answer = await client.post("/predict?envelope=lambda", content=b"image")
        told = answer.json()
        assert (answer.status_code, list(told), told["statusCode"]) == (200, ["statusCode", "headers", "body"], 200)
        assert json.loads(told["body"])["predicted_label"] == "benign"
        answer = await client.post("/predict?envelope=lambda", content=b"truncated")
        told = answer.json()
        assert answer.status_code == told["statusCode"] == 422
        assert json.loads(told["body"])["error_code"] == "truncated"
        assert told["headers"]["Content-Type"] == "application/problem+json"
        problem(await client.post("/predict?envelope=secret", content=b"image"), "bad_request")

    visit(act)


@pytest.mark.parametrize("code", [*IMAGE_CODES, "queue_full", "not_ready"])
def test_what_the_service_refuses_becomes_its_problem(code: str) -> None:
    for path in ("/predict", "/preview"):
        answer = asked("POST", path, content=code.encode() + b" secret")
        problem(answer, code)
        assert answer.headers.get("retry-after") == {"queue_full": "7", "not_ready": "2"}.get(code)


def test_a_defect_is_told_by_its_request_id_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/predict", "/preview"):
        told = problem(asked("POST", path, content=b"defect secret"), "internal")
        assert f"request {told['request_id']} met a defect: ZeroDivisionError at" in caplog.text
    assert "secret" not in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "method, path, code",
    [
        ("GET", "/secret", "not_found"),
        ("GET", "/predict/", "not_found"),
        ("GET", "/predict//batch", "not_found"),
        ("GET", "/docs/../predict", "method_not_allowed"),
        ("GET", "/predict", "method_not_allowed"),
        ("DELETE", "/model", "method_not_allowed"),
        ("SECRET", "/", "method_not_allowed"),
        ("POST", "/preview?side=15", "bad_request"),
        ("POST", "/preview?side=4097", "bad_request"),
        ("POST", "/preview?side=secret", "bad_request"),
        ("POST", "/preview?side=٣٣", "bad_request"),
        ("POST", "/predict", "bad_request"),
        ("POST", "/predict/batch", "bad_request"),
        ("GET", "/docs/secret.js", "not_found"),
        ("GET", "/" + "x" * 5000, "not_found"),
    ],
)
def test_what_the_framework_refuses_is_a_problem_too(method: str, path: str, code: str) -> None:
    problem(asked(method, path), code)


@pytest.mark.parametrize(
    "header, value, code",
    [
        ("Content-Type", "text/secret", "unsupported_media_type"),
        ("Content-Encoding", "gzip", "unsupported_media_type"),
        ("Content-Length", "999999999999", "too_large"),
        ("Content-Length", "9" * 40, "too_large"),
    ],
)
def test_a_head_is_refused_before_its_body_is_read(header: str, value: str, code: str) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"secret")
        yield b"secret"

    problem(asked("POST", "/predict", content=body(), headers={header: value}), code)
    problem(asked("POST", "/predict", content=body(), token=TOKEN), "unauthorized")
    assert read == []


def test_a_body_is_read_up_to_its_limit() -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(11):
            taken.append(100)
            yield b"x" * 100

    async def act(client: httpx.AsyncClient) -> None:
        assert (await client.post("/predict", content=b"x" * 999)).status_code == 200
        problem(await client.post("/predict", content=b"x" * 1000), "too_large")
        problem(await client.post("/predict", content=body()), "too_large")
        # A batch has a limit of its own, and what all hold at once has one too.
        problem(await client.post("/predict/batch", files=[("f", ("a", b"x" * 1500))]), "queue_full")
        assert "nightread_serve_held_bytes 0.0" in (await client.get("/metrics")).text

    taken: list[int] = []
    visit(act, max_body_bytes=999, max_batch_bytes=5000, max_held_bytes=1400)
    assert sum(taken) == 1000 or sum(taken) == 1100


def test_while_the_model_starts_only_health_is_fine() -> None:
    async def act(client: httpx.AsyncClient) -> None:
        for method, path in [("GET", "/readyz"), ("GET", "/model"), ("POST", "/predict"), ("POST", "/predict/batch")]:
            answer = await client.request(method, path, content=b"image")
            assert "being loaded" in problem(answer, "not_ready")["detail"]
            assert answer.headers["retry-after"] == "2"
        for path in ("/healthz", "/", "/docs", "/openapi.json", "/metrics"):
            assert (await client.get(path)).status_code == 200

    service = StandIn()
    service.start_again()
    visit(act, service)


def test_the_model_is_told_without_its_place() -> None:
    answer = asked("GET", "/model")
    assert answer.json() == {
        "name": MODEL.name,
        "version": "v3",
        "model_id": MODEL.model_id,
        "preprocessing_id": MODEL.preprocessing_id,
        "precision": "float32",
        "classes": ["benign", "malignant"],
        "positive_classes": ["malignant"],
        "input_size": 96,
        "thresholds": {"threshold": 0.5},
        "card": {"images": {"val": {"benign": 7}}},
        "loaded_at": "2026-03-01T00:00:00+00:00",
    }
    assert "secret-place" not in answer.text


def test_one_bad_image_of_a_batch_costs_no_other_and_none_is_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serving.app.BATCH_PATIENCE_SECONDS", 0.0)
    images = [b"one", b"truncated", b"two", b"defect", b"", b"queue_full", b"three"]
    answer = asked("POST", "/predict/batch", files=[("f", (str(n), image)) for n, image in enumerate(images)])
    told = answer.json()["answers"]
    assert answer.status_code == 200
    assert [each.get("error_code") for each in told] == [
        *(None, "truncated", None, "internal", "bad_request", "queue_full", None)
    ]
    hashes = [each.get("content_sha256") for each in told if "error_code" not in each]
    assert hashes == [hashlib.sha256(image).hexdigest() for image in (b"one", b"two", b"three")]
    assert [each["request_id"] for each in told] == [f"{answer.headers['x-request-id']}-{n}" for n in range(7)]


def test_a_batch_asks_for_a_few_at_a_time_and_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serving.app.BATCH_PAUSE_SECONDS", 0.0)
    service = StandIn(full=5)
    images = [base64.b64encode(b"image %d" % number).decode() for number in range(64)]
    answer = asked("POST", "/predict/batch", service, json={"images": images}, workers=3)
    assert [each["predicted_label"] for each in answer.json()["answers"]] == ["benign"] * 64
    assert service.at_once == 3
    assert len(service.asked) == 64 + 5


def test_an_image_of_a_batch_may_be_as_large_as_one_alone_and_has_no_envelope() -> None:
    files = [("f", ("a", image)) for image in (b"x" * 1000, b"x" * 1001)]
    answers = asked("POST", "/predict/batch", max_body_bytes=1000, files=files).json()["answers"]
    assert answers[0]["decision"] == "negative" and answers[1]["error_code"] == "too_large"
    problem(asked("POST", "/predict/batch?envelope=lambda", files=files), "bad_request")


def test_who_leaves_frees_a_place_in_the_queue() -> None:
    service = StandIn(gate=asyncio.Event())
    app = make_app(service, ServeSettings())
    messages = [{"type": "http.request", "body": b"image", "more_body": False}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }

    async def run() -> None:
        await app({**scope, "http_version": "1.1", "raw_path": b"/predict", "root_path": ""}, receive, send)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert (service.cancelled, sent) == (1, [])
    figures = visited(app, lambda client: client.get("/metrics")).text
    assert 'nightread_serve_requests_total{route="/predict",status="499"} 1.0' in figures
    assert "nightread_serve_held_bytes 0.0" in figures


def test_every_answer_is_closed_to_caches_frames_and_guesses() -> None:
    async def act(client: httpx.AsyncClient) -> None:
        for method, path in [("GET", "/"), ("GET", "/docs"), ("GET", "/model"), ("GET", "/x"), ("POST", "/predict")]:
            headers = (await client.request(method, path, content=b"defect")).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "server" not in headers
            assert len(headers.get_list("content-security-policy")) == 1
        head = await client.head("/healthz")
        assert (head.status_code, head.headers["content-length"]) == (200, "16")

    visit(act)


def test_the_documents_load_nothing_from_elsewhere() -> None:
    async def act(client: httpx.AsyncClient) -> None:
        page = (await client.get("/docs")).text
        assert "//" not in page.replace("<!doctype html>", "")
        for path in ("docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js"):
            assert f'"{path}"' in page
            assert len((await client.get(f"/{path}")).content) > 100

    visit(act)


def test_a_listed_page_of_another_origin_can_ask_and_read_what_is_wrong() -> None:
    page = {"Origin": "https://ward.example"}

    async def act(client: httpx.AsyncClient) -> None:
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = await client.options("/predict", headers={**page, **ask})
        assert (preflight.status_code, preflight.content) == (204, b"")
        assert preflight.headers["access-control-allow-methods"] == "GET, POST"
        refused = await client.post("/predict", content=b"image", headers=page)
        problem(refused, "unauthorized")
        answered = await client.post("/predict", content=b"image", headers={**page, **BEARER})
        assert answered.status_code == 200
        for answer in (preflight, refused, answered):
            assert answer.headers.get_list("access-control-allow-origin") == [page["Origin"]]
            assert "access-control-allow-credentials" not in answer.headers
            assert answer.headers["vary"] == "Origin"
        other = {"Origin": "https://evil.example"}
        problem(await client.options("/predict", headers={**other, **ask}), "forbidden_origin")
        assert "access-control-allow-origin" not in (await client.get("/model", headers={**other, **BEARER})).headers
        problem(await client.options("/predict", headers=BEARER), "method_not_allowed")

    visit(act, token=TOKEN, cors=(page["Origin"],))
