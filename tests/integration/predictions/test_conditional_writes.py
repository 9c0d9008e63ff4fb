"""Stores that keep the promise of conditional writes, break it or refuse it, and what the table asks of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy

from pipelines.errors import UsageError
from pipelines.predictions import commit
from pipelines.storage.preflight import Proof, prove_place

Headers = list[tuple[str, str]]


class Watching(FaultProxy):
    """A forwarder that notes what is asked, and may answer conditional writes itself.

    Attributes:
        asked: Method, path and the condition of each request.
        refusal: Status with which conditional writes are answered; None: they are passed on.
    """

    def __init__(self, target: str) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.refusal: int | None = None
        super().__init__(target)

    def forward(self, method: str, path: str, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        condition = next((value for name, value in headers if name.lower() == "if-none-match"), None)
        self.asked.append((method, path, condition))
        if condition and self.refusal:
            return self.refusal, [("Content-Type", "application/xml")], b"<Error><Code>NotImplemented</Code></Error>"
        return super().forward(method, path, headers, body)


@pytest.fixture
def store(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The S3 server behind a forwarder."""
    proxy = Watching(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield proxy
    proxy.close()


def nothing_is_left(s3: Any) -> bool:
    s3.filesystem.invalidate_cache()
    return not s3.filesystem.find(s3.bucket)


def test_a_store_that_keeps_its_promise_is_proven_with_five_requests(s3: Any, store: Watching) -> None:
    assert prove_place(f"{s3.uri}/night results/ü") == Proof(hard_links=True)
    assert [method for method, _, _ in store.asked] == ["GET", "PUT", "PUT", "GET", "POST"]
    assert nothing_is_left(s3)


def test_the_table_asks_for_the_condition_that_was_proven(s3: Any, store: Watching) -> None:
    prove_place(f"{s3.uri}/results")
    proven = {condition for method, _, condition in store.asked if method == "PUT"}
    store.asked.clear()
    commit.ensure_table(f"{s3.uri}/results")
    commit.abandon_run(f"{s3.uri}/results", "a")
    entries = [condition for method, path, condition in store.asked if method == "PUT" and "_delta_log" in path]
    assert len(entries) == 2
    assert proven == set(entries) == {"*"}


def test_a_store_that_ignores_the_condition_is_refused(s3: Any, store: Watching) -> None:
    store.drop_headers = ("if-none-match",)
    with pytest.raises(UsageError, match="ignores it") as refused:
        prove_place(f"{s3.uri}/results")
    assert refused.value.cure == "Keep results on a disk or on a store with conditional writes."
    assert nothing_is_left(s3)


@pytest.mark.parametrize("status", [501, 400, 403])
def test_a_store_that_refuses_the_condition_is_told_from_one_that_cannot_be_written(
    s3: Any, store: Watching, status: int
) -> None:
    store.refusal = status
    with pytest.raises(UsageError, match="refuses conditional writes") as refused:
        prove_place(f"{s3.uri}/results")
    assert "conditional writes" in refused.value.cure
    assert nothing_is_left(s3)
    store.refusal = None
    store.rule = lambda method, _path: 403 if method == "PUT" else None
    with pytest.raises(UsageError, match="is refused"):
        prove_place(f"{s3.uri}/results")


def every_third(fault: Any) -> Callable[[str, str], Any]:
    asked = []
    return lambda *request: fault if asked.append(request) is None and len(asked) % 3 == 1 else None


@pytest.mark.parametrize("fault", ["lost", "reset", 503])
def test_answers_that_are_lost_make_no_store_suspect(s3: Any, store: Watching, fault: Any) -> None:
    store.rule = every_third(fault)
    for _ in range(3):
        assert prove_place(f"{s3.uri}/results") == Proof(hard_links=True)
    assert store.faults >= 5
    assert nothing_is_left(s3)


def test_a_night_into_a_store_that_ignores_the_condition_is_exit_2_and_the_doctor_says_so_before(
    s3: Any, store: Watching, tiny_models: Path, tmp_path: Path, nightread: Callable, draw: Callable
) -> None:
    draw(tmp_path / "archive", 2)
    store.drop_headers = ("if-none-match",)
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    place = f"{s3.uri}/results"
    done = nightread(
        "score", tmp_path / "archive", "--model", f"{tiny_models}/cells", "--results", place, "--json", env=env
    )
    assert done.code == 2, done.err
    assert done.answer["error"]["cure"] == "Keep results on a disk or on a store with conditional writes."
    told = nightread("doctor", "--results", place, "--json", env=env)
    (check,) = [check for check in told.answer["checks"] if check["name"] == "results"]
    assert told.code == 2 and not check["good"] and check["cure"] == done.answer["error"]["cure"]
    assert nothing_is_left(s3)
