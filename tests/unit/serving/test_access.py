"""Who may ask: the token, pages of other origins, names of this machine, and who is written down as the caller."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.serving.access import OPEN_PATHS, Access
from pipelines.serving.metrics import ROUTES
from pipelines.serving.problems import Problem
from pipelines.serving.settings import ServeSettings, is_loopback

TOKEN = "a-token-of-enough-letters"
PAGE = "https://ward.example:8443"


def scope(path: str = "/predict", method: str = "POST", **headers: str | list[str]) -> dict[str, Any]:
    """An ASGI scope; underscores in names of headers stand for hyphens, a list for repeated headers."""
    given = {"host": "localhost:8460", **headers}
    pairs = [(name.replace("_", "-"), value) for name, many in given.items() for value in _several(many)]
    return {
        "http_version": "1.1",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
        "client": ("10.0.0.9", 4711),
    }


def _several(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def code_of(problem: Problem | None) -> str | None:
    return None if problem is None else problem.error_code


@pytest.mark.parametrize(
    "authorization, passes",
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"BEARER   {TOKEN} ", True),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer", False),
        ("Bearer ", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        (f"Bearer {TOKEN.upper()}", False),
        (f"Bearer {TOKEN}, Bearer {TOKEN}", False),
        ("Bearer \xff\xfe", False),
        ([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], False),
        ([], False),
    ],
)
def test_only_the_token_itself_lets_in(authorization: str | list[str], passes: bool) -> None:
    access = Access(ServeSettings(token=TOKEN))
    for path in ("/predict", "/predict/batch", "/preview", "/model", "/metrics", "/unknown", "/../healthz"):
        problem = access.problem(scope(path, authorization=authorization))
        assert code_of(problem) == (None if passes else "unauthorized")
        assert problem is None or dict(problem.headers)["WWW-Authenticate"].startswith("Bearer")
    for path in OPEN_PATHS:
        assert access.problem(scope(path, authorization=authorization)) is None


@given(st.binary(max_size=60))
def test_no_other_bytes_let_in(authorization: bytes) -> None:
    asked = scope()
    asked["headers"].append((b"authorization", authorization))
    assert code_of(Access(ServeSettings(token=TOKEN)).problem(asked)) == "unauthorized"


def test_what_needs_no_token_says_nothing_of_the_model() -> None:
    assert {"/predict", "/predict/batch", "/preview", "/model", "/metrics"} == ROUTES - OPEN_PATHS


def test_a_token_that_is_not_asked_for_is_not_needed() -> None:
    assert Access(ServeSettings(token=TOKEN, auth=False)).problem(scope()) is None
    assert Access(ServeSettings(token=TOKEN, auth=False)).token_id is None


@pytest.mark.parametrize(
    "headers, code",
    [
        ({}, None),
        ({"origin": "http://localhost:8460"}, None),
        ({"origin": PAGE}, None),
        ({"origin": "https://evil.example"}, "forbidden_origin"),
        ({"origin": "null"}, "forbidden_origin"),
        ({"origin": "http://localhost:9999"}, "forbidden_origin"),
        ({"origin": [PAGE, "https://evil.example"]}, "forbidden_origin"),
        ({"host": "127.0.0.1:8460"}, None),
        ({"host": "[::1]:8460"}, None),
        ({"host": "LOCALHOST"}, None),
        ({"host": "evil.example:8460", "origin": "http://evil.example:8460"}, "misdirected"),
        ({"host": "127.0.0.1.evil.example"}, "misdirected"),
        ({"host": "localhost@evil.example"}, "misdirected"),
        ({"host": "[::1"}, "misdirected"),
        ({"host": ""}, "misdirected"),
        ({"host": []}, "bad_request"),
        ({"host": ["localhost", "localhost"]}, "bad_request"),
    ],
)
def test_without_a_token_pages_of_others_cannot_use_the_browser_of_this_machine(
    headers: dict[str, Any], code: str | None
) -> None:
    assert code_of(Access(ServeSettings(cors=(PAGE,))).problem(scope(**headers))) == code


def test_behind_a_proxy_any_name_is_ours() -> None:
    access = Access(ServeSettings(behind_proxy=True, auth=False))
    assert access.problem(scope(host="nightread.example", origin="https://nightread.example")) is None
    assert code_of(access.problem(scope(host="nightread.example", origin="https://evil.example"))) == "forbidden_origin"


def test_a_listed_origin_may_ask_and_no_other() -> None:
    access = Access(ServeSettings(token=TOKEN, cors=(PAGE,)))
    allowed = dict(access.cross_origin(scope(origin=PAGE)))
    assert allowed[b"access-control-allow-origin"] == PAGE.encode()
    assert b"access-control-allow-credentials" not in allowed
    for headers in ({}, {"origin": "https://ward.example"}, {"origin": "null"}, {"origin": PAGE + ".evil.example"}):
        assert access.cross_origin(scope(**headers)) == [(b"vary", b"Origin")]
    assert Access(ServeSettings(token=TOKEN)).cross_origin(scope(origin=PAGE)) == []


def test_a_browser_may_ask_whether_it_may_ask_without_token() -> None:
    access = Access(ServeSettings(token=TOKEN, cors=(PAGE,)))
    ask = {"method": "OPTIONS", "access_control_request_method": "POST"}
    answer = access.preflight(scope(origin=PAGE, **ask))
    assert isinstance(answer, list)
    told = dict(answer)
    assert told[b"access-control-allow-headers"] == b"Authorization, Content-Type"
    assert b"access-control-allow-credentials" not in told
    for headers in ({"origin": "https://evil.example"}, {}):
        problem = access.preflight(scope(**headers, **ask))
        assert isinstance(problem, Problem) and problem.error_code == "forbidden_origin"
    assert access.preflight(scope(origin=PAGE)) is None
    assert access.preflight(scope(origin=PAGE, method="OPTIONS")) is None


@pytest.mark.parametrize(
    "forwarded, caller",
    [
        ([], "10.0.0.9"),
        (["192.0.2.1"], "192.0.2.1"),
        (["1.1.1.1, 192.0.2.1"], "192.0.2.1"),
        (["1.1.1.1", "192.0.2.1 "], "192.0.2.1"),
        (["2001:db8::1"], "2001:db8::1"),
        (["Mr Patient"], None),
        (["192.0.2.1, "], None),
    ],
)
def test_the_caller_is_whom_the_proxy_saw(forwarded: list[str], caller: str | None) -> None:
    asked = scope(x_forwarded_for=forwarded)
    assert Access(ServeSettings(behind_proxy=True, auth=False)).caller(asked) == caller
    assert Access(ServeSettings()).caller(asked) == "10.0.0.9"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"host": "0.0.0.0", "behind_proxy": True}, "NIGHTREAD_SERVE_TOKEN is not set"),
        ({"host": "::", "behind_proxy": True}, "NIGHTREAD_SERVE_TOKEN is not set"),
        ({"behind_proxy": True}, "the proxy"),
        ({"host": "nightread.example", "token": TOKEN}, "unencrypted"),
        ({"host": "192.0.2.1", "auth": False}, "unencrypted"),
        ({"tls_cert": "a.pem"}, "belong together"),
        ({"token": "short"}, "at least 16"),
        ({"token": "with blanks in between them"}, "without spaces"),
        ({"token": "mit-Ümläuten-und-lang"}, "ASCII"),
        ({"cors": ("*",)}, "is not an origin"),
        ({"cors": ("https://ward.example/",)}, "is not an origin"),
        ({"cors": ("ward.example",)}, "is not an origin"),
        ({"port": 65_536}, "--port 65536"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_settings_that_would_let_others_in_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ServeSettings(**settings)
    assert words in str(caught.value) and caught.value.cure
    assert "short" not in str(caught.value) and "blanks in" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"host": "127.8.9.1", "token": TOKEN},
        {"host": "0.0.0.0", "token": TOKEN, "behind_proxy": True},
        {"host": "0.0.0.0", "token": TOKEN, "tls_cert": "a", "tls_key": "b"},
        {"host": "0.0.0.0", "auth": False, "tls_cert": "a", "tls_key": "b"},
        {"cors": ("https://ward.example", "http://[::1]:3000", "http://127.0.0.1:1")},
    ],
)
def test_settings_that_are_safe_are_taken_and_never_show_the_token(settings: dict[str, Any]) -> None:
    assert TOKEN not in repr(ServeSettings(**settings))


def test_names_of_this_machine() -> None:
    assert all(map(is_loopback, ["localhost", "LocalHost.", "127.0.0.1", "127.255.0.1", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["", "0.0.0.0", "::", "localhost.evil.example", "10.0.0.1", "::ffff:8.8.8.8"]))
