"""What is told of a night that shows nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipelines.scoring import silence
from pipelines.scoring.silence import Silence, of_storage


def test_silence_is_told_after_half_a_minute_with_what_is_known() -> None:
    now, told, known = [100.0], list[str](), ["the archive is gone or empty, and is waited for"]
    watched = Silence(told.append, lambda: known[0], lambda: now[0])
    now[0] += 29.9
    watched.look()
    assert told == []
    now[0] += 0.1
    watched.look()
    assert told == ["no news for 30 s: the archive is gone or empty, and is waited for"]
    watched.broken()
    now[0] += 29.9
    watched.look()
    assert len(told) == 1
    known[0] = ""
    now[0] += 10.1
    watched.look()
    assert told[1:] == ["no news for 40 s"]  # what was known of an earlier silence is not said of this one


def test_a_reason_that_hangs_or_fails_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "LOOK_SECONDS", 0.01)
    now, told, back = [0.0], list[str](), threading.Event()
    asked = []

    def hangs() -> str:
        asked.append(1)
        back.wait(20)
        return "the share hung"

    watched = Silence(told.append, hangs, lambda: now[0])
    for now[0] in (31.0, 36.0):
        watched.look()
    assert told == ["no news for 31 s", "no news for 36 s"] and len(asked) == 1
    back.set()
    monkeypatch.setattr(silence, "LOOK_SECONDS", 20.0)
    watched.look()
    assert told[-1] == "no news for 36 s: the share hung"

    def fails() -> str:
        raise OSError

    failing = Silence(told.append, fails, lambda: now[0])
    now[0] = 90.0
    failing.look()
    assert told[-1] == "no news for 54 s"


def test_a_watched_block_looks_by_itself_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.0)
    heard = threading.Event()
    with Silence(lambda _note: heard.set(), lambda: "").watched():
        assert heard.wait(20)
    assert not [thread for thread in threading.enumerate() if thread.name == "silence"]


def test_an_archive_that_is_there_and_one_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.jpg").touch()
    (tmp_path / "empty").mkdir()
    there = str(tmp_path / "full")
    assert of_storage(there, there) == of_storage(None, there) == ""
    for gone in ("empty", "missing"):
        assert "archive is gone or empty" in of_storage(str(tmp_path / gone), there)
        assert "results do not answer" in of_storage(there, str(tmp_path / gone))
