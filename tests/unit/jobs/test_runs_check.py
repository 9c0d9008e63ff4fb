"""`nightread runs check` against the grammar of the Monitoring Plugins' guidelines, read by a parser of its own."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.runs_check import status_line
from pipelines.predictions.nights import NightRecord, write_night

# https://www.monitoring-plugins.org/doc/guidelines.html: 'label'=value[UOM];[warn];[crit];[min];[max]
RANGE = r"@?(?:~|-?[\d.]+)?(?::(?:-?[\d.]+)?)?"
FIGURE = re.compile(
    rf"(?:'(?P<quoted>(?:[^'=]|'')+)'|(?P<plain>[^\s'=]+))=(?P<value>-?\d+(?:\.\d+)?|U)(?P<unit>us|ms|s|%|[KMGT]?B|c|)"
    rf"(?:;(?P<warn>{RANGE})(?:;(?P<crit>{RANGE})(?:;(?P<least>-?[\d.]*)(?:;(?P<most>-?[\d.]*))?)?)?)?(?:\s+|$)"
)
CODES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}


@dataclass(frozen=True)
class Told:
    """One line of plugin output, taken apart."""

    status: str
    text: str
    figures: dict[str, dict[str, str | None]]


def parsed(output: str) -> Told:
    """Read plugin output as a monitoring system does; fails where the grammar is not kept."""
    assert output.endswith("\n") and output.count("\n") == 1, "one line"
    text, bar, rest = output.rstrip("\n").partition("|")
    match = re.fullmatch(r"NIGHTREAD (OK|WARNING|CRITICAL|UNKNOWN) - (.+)", text)
    assert match and "|" not in rest and (rest or not bar)
    figures = {}
    while rest:
        found = FIGURE.match(rest)
        assert found, rest
        figures[found["quoted"] or found["plain"]] = found.groupdict()
        rest = rest[found.end() :]
    return Told(match[1], match[2], figures)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder that holds a table, as far as a night looks."""
    (tmp_path / "results" / "predictions").mkdir(parents=True)
    return tmp_path / "results"


def leave(results: Path, exit_code: int = 0, hours_ago: float = 1.0, message: str = "") -> None:
    """Write a night that ended so long ago."""
    ended = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours_ago)
    counts = {"scored": 3990, "failed": 10, "remaining": 7, "failed_by_code": {"truncated": 10}}
    error = {"code": "x", "message": message, "cure": ""} if message else None
    began = ended - datetime.timedelta(seconds=312.25)
    figures = [{"figure": "size", "verdict": "watch"}, {"figure": "score", "verdict": "none"}]
    figures.append({"figure": "intensity", "verdict": "watch"})
    drift = {"verdict": "watch", "sentence": "Images have become darker and smaller. " * 9, "figures": figures}
    write_night(str(results), NightRecord(began, ended, exit_code, "/a", "/m", error, (), counts, 12.8166, 4, drift))


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Told]:
    """Ask, and hold the word against the exit code."""
    code = main(["runs", "check", *map(str, arguments)])
    told = parsed(capsys.readouterr().out)
    assert CODES[told.status] == code
    return code, told


def test_a_good_night(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(results)
    code, told = asked(capsys, results, "--max-age", "26h", "--warn-age", "25h")
    assert code == 0
    assert told.text.startswith("a night finished 1h") and "3,990 scored, 10 failed, 7 left over" in told.text
    assert told.text.endswith("7 left over; small drift: size, intensity") and len(told.text) < 150
    values = {name: (figure["value"], figure["unit"]) for name, figure in told.figures.items()}
    age = int(values.pop("age")[0] or 0)
    assert 3600 <= age < 3700
    assert values == {
        "scored": ("3990", ""),
        "failed": ("10", ""),
        "failed_share": ("0.25", "%"),
        "remaining": ("7", ""),
        "seconds": ("312.2", "s"),
        "rate": ("12.82", ""),
        "drift": ("1", ""),
    }
    limits = told.figures["age"]
    assert (limits["unit"], limits["warn"], limits["crit"], limits["least"]) == ("s", "90000", "93600", "0")


@pytest.mark.parametrize(("exit_code", "level"), [(3, 1), (5, 1), (75, 1), (143, 1), (1, 2), (2, 2), (4, 2)])
def test_a_night_that_did_not_end_well(
    results: Path, capsys: pytest.CaptureFixture[str], exit_code: int, level: int
) -> None:
    leave(results, hours_ago=3)
    leave(results, exit_code, message="It went | wrong\nbadly." if exit_code not in (3, 5) else "")
    code, told = asked(capsys, results)
    assert code == level and f"exit code {exit_code}" in told.text
    assert ".;" not in told.text and ("wrong badly; " in told.text or exit_code in (3, 5))


def test_a_night_that_never_ran(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys, results) == (2, Told("CRITICAL", "no night has finished yet", {}))
    leave(results, hours_ago=27)
    assert asked(capsys, results)[0] == 2
    assert asked(capsys, results, "--max-age", "2d")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["/nowhere/at/all"],
        ["/nowhere", "--max-age", "soon"],
        ["/nowhere", "--max-age", "1h", "--warn-age", "2h"],
        ["/nowhere", "--nonsense"],
    ],
)
def test_what_cannot_be_told_is_unknown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys, *arguments)[0] == 3
    assert main(["runs", "check", *arguments, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert (answer["status"], answer["exit_code"]) == ("UNKNOWN", 3) and answer["error"]["cure"]


def test_results_of_a_newer_release_are_unknown(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "nights").mkdir()
    (results / "nights" / "20260101T000000-00000000.json").write_text('{"format": 2}')
    code, told = asked(capsys, results)
    assert code == 3 and "format 2" in told.text


def test_json_says_the_same(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(results, 3)
    assert main(["runs", "check", str(results), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["status"], answer["exit_code"], answer["perfdata"]["failed"]) == ("WARNING", 1, 10)
    assert "10 images failed" in answer["reasons"][0]


def test_a_share_that_hangs_is_unknown_in_time(results: Path) -> None:
    leave(results)
    os.mkfifo(results / "nights" / "29990101T000000-00000000.json")  # whoever opens it for reading waits for ever
    command = [sys.executable, "-m", "jobs", "runs", "check", str(results), "--timeout", "1s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    told = parsed(done.stdout)
    assert told.status == "UNKNOWN" and "did not answer within 1s" in told.text


def test_numbers_have_no_exponent() -> None:
    figures = [("a", 1e-9, "s", 1e9, 0.125, 0, None), ("b", 123_456_789_012, "", None, None, None, 7)]
    line = status_line("OK", "fine", figures)  # type: ignore[arg-type]
    assert line == "NIGHTREAD OK - fine|a=0s;1000000000;0.125;0 b=123456789012;;;;7"
    assert parsed(line + "\n").figures["a"]["warn"] == "1000000000"
