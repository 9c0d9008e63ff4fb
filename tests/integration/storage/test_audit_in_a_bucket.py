"""The audit in a bucket: several writers at once, answers that are lost, and a key that nobody else touches."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipelines.errors import TryLater
from pipelines.storage.audit import add_line, check_audit, read_audit


def entry(writer: int, number: int) -> dict[str, Any]:
    """A line of its own."""
    return {"at": "2026-03-01T22:00:00+00:00", "action": "promote", "what": f"{writer}-{number}"}


def test_four_writers_lose_no_line(s3: Any) -> None:
    place = f"{s3.uri}/models"
    check_audit(place)

    def write(writer: int) -> None:
        for number in range(6):
            add_line(place, entry(writer, number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    check_audit(place)
    entries, damaged = read_audit(place)
    expected = [entry(writer, number)["what"] for writer, number in itertools.product(range(4), range(6))]
    assert damaged == 0 and sorted(line["what"] for line in entries) == sorted(expected)
    raw = s3.filesystem.cat_file(f"{s3.bucket}/models/audit.jsonl")
    assert raw.endswith(b"}\n") and raw.count(b"\n") == 24
    assert s3.filesystem.find(s3.bucket) == [f"{s3.bucket}/models/audit.jsonl"]


def test_a_lost_answer_writes_no_line_twice(
    s3: Any, fault_proxy: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, place = fault_proxy(s3.endpoint), f"{s3.uri}/models"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    for number, fault in enumerate(["lost", 503, "reset", "lost"]):
        once = iter([fault])
        proxy.rule = lambda method, _path, once=once: next(once, None) if method == "PUT" else None
        add_line(place, entry(0, number))
    assert proxy.faults == 4
    assert Counter(line["what"] for line in read_audit(place)[0]) == {f"0-{number}": 1 for number in range(4)}


def test_a_store_that_takes_nothing_is_told(
    s3: Any, fault_proxy: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    proxy.rule = lambda method, _path: 503 if method == "PUT" else None
    with pytest.raises(TryLater):
        add_line(f"{s3.uri}/models", entry(0, 0))
