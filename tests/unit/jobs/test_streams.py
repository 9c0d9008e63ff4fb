"""`--log-format json`: every line of standard error is one JSON value, whoever wrote it."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main, wants_events
from jobs.console import Console
from jobs.streams import EventLog, event_log, figures, standard_error_as_events


def events(text: str) -> list[dict[str, Any]]:
    """Every line of a log, which has to be JSON with a time in UTC, a level and an event."""
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        assert datetime.datetime.fromisoformat(event["time"]).utcoffset() == datetime.timedelta()
        assert event["level"] in ("debug", "info", "warning", "error") and event["event"]
    return found


def test_what_a_console_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, times = io.StringIO(), iter([0.0, 10.0, 40.0, 80.0])
    monkeypatch.setattr(sys, "stderr", stream)
    with standard_error_as_events("score"):
        console = Console(json=True, clock=lambda: next(times))
        console.warn("Something is odd.")
        console.begin("listing", None, None)
        console.begin("scoring", 100, "r1")
        with console.progress(100, "images") as progress:
            progress.update(10, rate=1.5)  # too soon for a line
            progress.update(50, failed=2, rate=float("inf"), eta=33.5)
            progress.update(50, note="the archive does not answer")
        console.note("cache in /srv/cache")
        console.error("It failed.", "Mend it.", "try_later")
        with contextlib.redirect_stdout(io.StringIO()):
            Console(json=True).result(
                {"scored": 3, "results": "/srv/r", "failed_by_code": {"truncated": 1}, "run_id": "r1"}
            )
    assert sys.stderr is stream and event_log() is None
    told = [{key: value for key, value in event.items() if key != "time"} for event in events(stream.getvalue())]
    run = {"command": "score", "phase": "scoring", "run_id": "r1"}
    counted = {"counted": "images", "done": 50, "total": 100}
    assert told == [
        {"level": "warning", "event": "warning", "command": "score", "message": "Something is odd."},
        {"level": "info", "event": "phase", "command": "score", "phase": "listing", "total": None},
        {"level": "info", "event": "phase", **run, "total": 100},
        {"level": "info", "event": "progress", **run, **counted, "failed": 2, "per_second": None, "seconds_left": 33.5},
        {
            "level": "warning", "event": "waiting", **run, **counted, "failed": 0, "per_second": None,
            "seconds_left": None, "message": "the archive does not answer",
        },
        {"level": "debug", "event": "output", **run, "message": "cache in /srv/cache"},
        {"level": "error", "event": "error", **run, "code": "try_later", "message": "It failed.", "cure": "Mend it."},
        {"level": "info", "event": "answer", **run, "scored": 3, "failed_by_code": {"truncated": 1}},
    ]  # fmt: skip


def test_text_of_others_and_events_of_a_job_that_is_followed() -> None:
    stream = io.StringIO()
    log = EventLog(stream, "submit")
    theirs = '{"time": "2026-03-01T22:00:00+00:00", "level": "info", "event": "progress", "command": "score"}'
    print("half a ", end="", file=log)
    print(f"line\n\n{theirs}\n[1]\n\x1b[31mred\u2028", file=log)
    log.write("the rest")
    log.end()
    lines = stream.getvalue().splitlines()
    assert lines[1] == theirs
    assert [event.get("message") for event in events(stream.getvalue())] == [
        "half a line", None, "[1]", "\x1b[31mred\u2028".rstrip(), "the rest",
    ]  # fmt: skip
    assert stream.getvalue().isascii()


def test_figures_hold_no_place_and_no_name() -> None:
    answer = {
        "run_id": "r1", "runs": ["r1"], "results": "/srv/results", "unlistable": ["/mnt/anna"], "seconds": 1.5,
        "published": None, "dry_run": False, "requests": {"archive": {"list": 1}}, "left_out": {}, "path": "/srv/m",
    }  # fmt: skip
    assert figures(answer) == {
        "run_id": "r1", "runs": ["r1"], "seconds": 1.5, "published": None, "dry_run": False,
    }  # fmt: skip
    assert figures([{"scored": 1}]) == {}


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["score", "--log-format", "json"], {}, True),
        (["score", "--log-format=json"], {}, True),
        (["score", "--log-format", "json", "--log-format", "text"], {}, False),
        (["score"], {"NIGHTREAD_SCORE_LOG_FORMAT": "json"}, True),
        (["score", "--log-format", "text"], {"NIGHTREAD_SCORE_LOG_FORMAT": "json"}, False),
        (["train"], {"NIGHTREAD_SCORE_LOG_FORMAT": "json"}, False),
        (["submit", "--", "score", "--log-format", "json"], {}, False),
        (["score", "--log-format"], {}, False),
    ],
)
def test_it_is_found_before_the_command_line_is_understood(
    arguments: list[str], environment: dict[str, str], expected: bool
) -> None:
    assert wants_events(arguments, environment) is expected


def test_an_error_of_the_command_line_is_an_event_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["score", str(tmp_path / "a"), "--model", "m", "--results", str(tmp_path / "r"), "--log-format", "json"]
    assert main([*words, "--nonsense"]) == 2
    shown = capsys.readouterr()
    begun, error, ended = events(shown.err)
    assert shown.out == "" and begun["event"] == "started" and begun["nightread"]
    assert (error["level"], error["code"], error["command"]) == ("error", "usage", "score")
    assert (ended["event"], ended["exit_code"]) == ("ended", 2)
    assert main([*words, "--json"]) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["exit_code"] == 4
    assert [event.get("code") for event in events(shown.err) if event["event"] == "error"] == ["model_refused"]
    assert main([*words[:-1], "yaml"]) == 2  # in text: nobody asked for JSON
    assert "yaml" in capsys.readouterr().err


def test_what_others_write_to_the_descriptor_is_an_event(tmp_path: Path) -> None:
    script = tmp_path / "speaks.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "from jobs.streams import standard_error_as_events\n"
        "with standard_error_as_events('train') as log:\n"
        "    os.write(2, b'W0000 a library in C\\n')\n"
        "    subprocess.run([sys.executable, '-c', 'import sys; sys.stderr.write(chr(228))'])\n"
        "    log.event('info', 'here')\n"
        "    print('and Python', file=sys.stderr)\n"
        "print('afterwards', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=_environment(), check=True)
    *lines, last = done.stderr.splitlines()
    assert last == "afterwards"
    told = {event.get("message") for event in events("\n".join(lines))}
    assert told == {"W0000 a library in C", "ä", "and Python", None}


def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    script = tmp_path / "goes_on.py"
    script.write_text(
        "from jobs.streams import standard_error_as_events\n"
        "with standard_error_as_events('score') as log:\n"
        "    for number in range(2000):\n"
        "        log.event('info', 'progress', done=number)\n"
        "print('done')\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
        env=_environment(),
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, "done\n")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
