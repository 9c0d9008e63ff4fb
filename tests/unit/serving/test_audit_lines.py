"""The audit log's lines: whole ones, in order, whatever happens to the file."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.serving.audit_log import AuditLog, Entry
from pipelines.serving.problems import Refused

ENTRY = Entry("2026-03-01T00:00:00.000+00:00", "0" * 16, "10.0.0.1", None, "c" * 64, "a" * 64, "refer", "answered")


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file may grow beyond a size: as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_entries_are_appended_to_what_is_there_whoever_else_writes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("before\n")
    first, second = AuditLog(path), AuditLog(path)
    first.append([ENTRY, ENTRY])
    second.append([ENTRY])
    before, *lines = path.read_text().splitlines()
    assert before == "before" and [json.loads(line)["decision"] for line in lines] == ["refer"] * 3
    path.write_text("")  # as a rotation that copies and truncates
    first.append([ENTRY])
    assert [json.loads(line)["decision"] for line in path.read_text().splitlines()] == ["refer"]
    first.close()
    second.close()


def test_after_half_a_line_the_next_begins_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.append([ENTRY])
    one = path.stat().st_size
    with full_at(one + one // 2):
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                log.append([ENTRY])
            assert caught.value.problem.status == 503
    log.append([ENTRY])
    first, half, last = path.read_text().splitlines()
    assert json.loads(first) == json.loads(last)
    assert first.startswith(half) and len(half) == one // 2
    log.close()
