"""Answers, progress and JSON, as a program and as a person see them."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import io
import json
import math
import os
import pty
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.console import Console, duration, plain, printable, progress_text
from jobs.drawing import plain_table
from jobs.streams import standard_output_for_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.datetimes()
    | st.decimals(allow_nan=True, allow_infinity=True),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(VALUES)
def test_every_answer_is_strict_json(value: object) -> None:
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == plain(value)


def test_values_become_plain() -> None:
    @dataclasses.dataclass
    class Row:
        path: Path
        when: datetime.datetime

    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert plain(Row(Path("/a"), when)) == {"path": "/a", "when": "2026-01-02T03:04:05+00:00"}
    assert plain({"n": np.int64(3), "x": np.float32("nan"), "v": np.arange(2)}) == {"n": 3, "x": None, "v": [0, 1]}
    assert plain([decimal.Decimal(12), decimal.Decimal("0.5"), decimal.Decimal("NaN")]) == [12, 0.5, None]
    assert plain([math.inf, -math.inf, b"\x01\xff"]) == [None, None, "01ff"]
    assert plain(2**100) == 2**100
    with pytest.raises(TypeError):
        plain(object())


def test_json_leaves_one_value_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with standard_output_for_json():
        console = Console(json=True)
        print("a library's greeting")
        console.say("hello")
        console.warn("careful")
        console.table(["a"], [[1]])
        console.result({"rate": math.nan}, "unseen")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rate": None}
    assert "greeting" in err and "hello" in err and "warning: careful" in err
    assert "unseen" not in out + err


def test_without_json_the_text_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.result({"a": 1}, "one")
    console.result([], None)
    assert capsys.readouterr().out == "one\n"


def test_a_table_is_aligned_and_numbers_stand_right(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(["name", "n"], [["brain scan", 7], ["x\ny", None], ["é", 1234]])
    assert capsys.readouterr().out.splitlines() == [
        "name           n",
        "----------  ----",
        "brain scan     7",
        "x\\ny",
        "é           1234",
    ]


def test_an_empty_table_has_its_heading() -> None:
    assert plain_table(["a", "b"], [], [False, False]) == "a  b\n-  -"


def test_a_name_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\rc\u202ed") == "a\\x1b[2Jb\\x0dc\\x202ed"
    assert printable("zwei\nZeilen\tü") == "zwei\nZeilen\tü"


def test_progress_in_a_log_is_one_line_every_thirty_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with Console(clock=lambda: now).progress(2000, "images") as progress:
        for second in range(0, 91, 10):
            now = float(second)
            progress.update(second * 10, failed=second // 50, rate=10.0, eta=100.0)
    assert capsys.readouterr().err.splitlines() == [
        "images: 300 of 2,000, 10.0/s, 1:40 left",
        "images: 600 of 2,000, 1 failed, 10.0/s, 1:40 left",
        "images: 900 of 2,000, 1 failed, 10.0/s, 1:40 left",
    ]


def test_progress_without_a_total_counts() -> None:
    assert progress_text(12300, None, 0, None, math.nan) == "12,300"
    assert [duration(seconds) for seconds in (0, 59.6, 61, 3661, -5)] == ["0:00", "1:00", "1:01", "1:01:01", "0:00"]


def read_all(leader: int) -> str:
    """What was written to a terminal whose other end is closed."""
    pieces = []
    try:
        while piece := os.read(leader, 1 << 16):
            pieces.append(piece)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(leader)
    return b"".join(pieces).decode()


def test_on_a_terminal_there_is_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        console = Console()
        assert console.terminal
        with console.progress(10, "images") as progress:
            progress.update(4, failed=1, rate=2.0, eta=3.0)
            console.say("b26.jpg => benign 0.93")
        console.table(["image", "score"], [["[bold]b26.jpg", 0.93]])
    seen = read_all(leader)
    assert "4 of 10, 1 failed, 2.0/s, 0:03 left" in seen
    assert "b26.jpg => benign 0.93" in seen
    assert "[bold]b26.jpg" in seen


def test_a_reader_that_goes_away_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    console = Console()
    console.say("first")
    console.say("second")
    console.table(["a"], [[1]])
    console.result({}, "third")
