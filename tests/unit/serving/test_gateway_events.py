"""Events of API gateways: every way to send an image gives its bytes back, and every event gets an envelope."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.serving.gateway import read_event
from pipelines.serving.handler import handler
from pipelines.serving.problems import Refused
from pipelines.serving.settings import ServeSettings

Event = dict[str, Any]
BOUNDARY = "----night-7MA4YWxkTrZu0gW"


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTREAD_MODEL", raising=False)


def rest(body: str | None, encoded: bool, content_type: str | None, method: str = "POST") -> Event:
    """As API Gateway calls a function for a REST API (payload format 1.0)."""
    headers = {"Accept": "*/*", "Host": "abcdef.execute-api.eu-central-1.amazonaws.com", "User-Agent": "curl/8.5.0"}
    if content_type is not None:
        headers["Content-Type"] = content_type
    return {
        "resource": "/predict",
        "path": "/predict",
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "resourceId": "2gxmpl",
            "resourcePath": "/predict",
            "httpMethod": method,
            "extendedRequestId": "JJbxmplHYosFVYQ=",
            "requestTime": "10/Mar/2026:00:03:59 +0000",
            "path": "/prod/predict",
            "accountId": "123456789012",
            "protocol": "HTTP/1.1",
            "stage": "prod",
            "requestId": "77375676-xmpl-4b79-853a-f982474efe18",
            "identity": {"sourceIp": "203.0.113.12", "userAgent": "curl/8.5.0"},
            "apiId": "70ixmpl4fl",
        },
        "body": body,
        "isBase64Encoded": encoded,
    }


def http_api(body: str | None, encoded: bool, content_type: str | None, method: str = "POST") -> Event:
    """As API Gateway calls a function for an HTTP API (payload format 2.0), or a function's own URL."""
    headers = {"accept": "*/*", "host": "abcdef.execute-api.eu-central-1.amazonaws.com", "content-length": "160"}
    if content_type is not None:
        headers["content-type"] = content_type
    event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/predict",
        "rawQueryString": "",
        "headers": headers,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "r3pmxmplak",
            "domainName": "r3pmxmplak.execute-api.eu-central-1.amazonaws.com",
            "http": {"method": method, "path": "/predict", "protocol": "HTTP/1.1", "sourceIp": "203.0.113.12"},
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "$default",
            "stage": "$default",
            "timeEpoch": 1583817383220,
        },
        "isBase64Encoded": encoded,
    }
    return event if body is None else {**event, "body": body}


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def form(data: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x.jpg"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


# Each way in which a client and a gateway bring one image: body, whether the gateway encoded it, Content-Type.
WAYS: dict[str, Callable[[bytes], tuple[str, bool, str | None]]] = {
    "json": lambda data: (json.dumps({"image": text_of(data)}), False, "application/json"),
    "json encoded by the gateway": lambda data: (
        text_of(json.dumps({"image": text_of(data)}).encode()), True, "application/json; charset=utf-8",
    ),
    "json that does not say so": lambda data: (json.dumps({"image": text_of(data)}), False, None),
    "data URL": lambda data: (
        json.dumps({"image": f"data:image/jpeg;base64,{text_of(data)}"}), False, "application/json",
    ),
    "a file": lambda data: (text_of(data), True, "image/jpeg"),
    "a file of no kind": lambda data: (text_of(data), True, None),
    "base64 as text": lambda data: (text_of(data), False, None),
    "a form": lambda data: (text_of(form(data)), True, f"multipart/form-data; boundary={BOUNDARY}"),
}  # fmt: skip


@pytest.mark.parametrize("event", [rest, http_api])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@settings(max_examples=25)
@given(data=st.binary(min_size=1, max_size=200).filter(lambda data: BOUNDARY.encode() not in data))
def test_every_way_gives_the_bytes_back(event: Callable[..., Event], way: Callable[..., Any], data: bytes) -> None:
    request = read_event(event(*way(data)))
    assert request.method == "POST" and request.image() == data


def test_the_gateways_own_request_id_is_kept() -> None:
    assert read_event(rest("x", False, None)).request_id == "77375676-xmpl-4b79-853a-f982474efe18"
    assert read_event(http_api("x", False, None)).request_id == "JKJaXmPLvHcESHA="
    strange = {"requestContext": {"requestId": 'x"\n<script>'}}
    assert read_event(strange).request_id.isalnum() and len(read_event(strange).request_id) == 32


def test_a_header_is_found_under_any_spelling() -> None:
    event = rest("x", False, None)
    event["headers"] = {"CONTENT-TYPE": "image/png"}
    assert read_event(event).content_type == "image/png"
    event["headers"], event["multiValueHeaders"] = None, {"content-Type": ["image/png", "image/gif"]}
    assert read_event(event).content_type == "image/gif"


@pytest.mark.parametrize("encoded", [True, False])
def test_a_body_beyond_the_limit_is_not_decoded(encoded: bool) -> None:
    body = "A" * (2 * ServeSettings.max_body_bytes)
    with pytest.raises(Refused) as refusal:
        read_event(rest(body, encoded, None)).image()
    assert refusal.value.problem.error_code == "too_large"


WRONG: dict[str, tuple[str | None, bool, str | None, int]] = {
    "nothing": (None, False, "application/json", 400),
    "no base64": (json.dumps({"image": "%%%"}), False, "application/json", 400),
    "empty": (json.dumps({"image": ""}), False, "application/json", 400),
    "no image": (json.dumps({"picture": "aaaa"}), False, "application/json", 400),
    "no json": ("{", False, "application/json", 400),
    "the gateway's base64 is none": ("%%%", True, "image/jpeg", 400),
    "another kind": ("a=1", False, "application/x-www-form-urlencoded", 415),
}


@pytest.mark.parametrize("event", [rest, http_api])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_request_is_told_without_a_model(
    event: Callable[..., Event], wrong: tuple[str | None, bool, str | None, int]
) -> None:
    *given, status = wrong
    answer = handler(event(*given), None)
    problem = json.loads(answer["body"])
    assert (answer["statusCode"], problem["status"]) == (status, status)
    assert answer["headers"]["Content-Type"] == "application/problem+json"
    assert answer["headers"]["Cache-Control"] == "no-store"
    assert problem["request_id"] == answer["headers"]["X-Request-Id"]


def test_other_methods_are_refused_by_name() -> None:
    answer = handler(rest(None, False, None, "DELETE"), None)
    assert answer["statusCode"] == 405 and answer["headers"]["Allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [(None, "NIGHTREAD_MODEL is not set."), ("{folder}/models/chest", "There is no model chest in {folder}/models.")],
)
def test_a_missing_model_is_a_sentence_in_the_log_and_names_no_place_to_the_caller(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture, model: str | None, sentence: str
) -> None:
    if model is not None:
        monkeypatch.setenv("NIGHTREAD_MODEL", model.format(folder=tmp_path))
    for event in (rest(None, False, None, "GET"), http_api(text_of(b"picture"), True, "image/png")):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            answer = handler(event, None)
        problem = json.loads(answer["body"])
        assert answer["statusCode"] == 503 and problem["error_code"] == "not_ready"
        assert answer["headers"]["Retry-After"] and str(tmp_path) not in answer["body"]
        assert sentence.format(folder=tmp_path) in caplog.text and "Traceback" not in caplog.text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("httpMethod", "headers", "multiValueHeaders", "body", "isBase64Encoded", "requestContext", "version", "rawPath")


@settings(max_examples=30)
@given(event=values | st.dictionaries(st.sampled_from(KEYS), values, max_size=8))
def test_every_event_gets_an_envelope(event: Any) -> None:
    answer = handler(event, None)
    assert set(answer) == {"statusCode", "headers", "body"}
    assert answer["statusCode"] in (400, 405, 415, 503)  # never a defect: no model is set
    assert json.loads(answer["body"])["status"] == answer["statusCode"]
    assert all(isinstance(value, str) and value.isascii() for value in answer["headers"].values())
