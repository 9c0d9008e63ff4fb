"""The audit file: one whole line for each act, whoever else writes, whatever was cut off before."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import NightreadError, TryLater, UsageError
from pipelines.storage.audit import add_line, check_audit, read_audit

ENTRY = {"at": "2026-03-01T22:00:00+00:00", "action": "promote", "what": "chest"}
WRITER = """
import sys
from pipelines.storage.audit import add_line
for number in range(int(sys.argv[3])):
    add_line(sys.argv[1], {"at": "now", "action": "x", "writer": sys.argv[2], "number": number, "reason": "x" * 300})
"""


@settings(max_examples=25)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_reason_is_one_line(tmp_path_factory: pytest.TempPathFactory, reasons: list[str]) -> None:
    folder = tmp_path_factory.mktemp("audit")
    for reason in reasons:
        add_line(str(folder), {**ENTRY, "reason": reason})
    content = (folder / "audit.jsonl").read_bytes()
    assert content.isascii() and len(content.decode().splitlines()) == len(reasons)
    entries, damaged = read_audit(str(folder))
    assert [entry["reason"] for entry in entries] == reasons and damaged == 0
    assert all(entry["format"] == 1 and entry["what"] == "chest" for entry in entries)


def test_the_file_is_for_its_group_only_and_its_folder_is_made(tmp_path: Path) -> None:
    place = tmp_path / "not there yet"
    check_audit(str(place))
    assert read_audit(str(place)) == ([], 0) and not place.exists()
    add_line(str(place), ENTRY)
    assert stat.S_IMODE((place / "audit.jsonl").stat().st_mode) == 0o640


@pytest.mark.parametrize("torn", [b'{"at": "20', b"\xff\xfe", b'{"at": 1, "action": "x"}\n[1]', b"null", b'{"at": 1}'])
def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path, torn: bytes) -> None:
    add_line(str(tmp_path), ENTRY)
    with open(tmp_path / "audit.jsonl", "ab") as file:
        file.write(torn)
    add_line(str(tmp_path), {**ENTRY, "what": "brain"})
    entries, damaged = read_audit(str(tmp_path))
    assert [entry["what"] for entry in entries if "what" in entry] == ["chest", "brain"]
    assert damaged == 1


def test_two_processes_lose_no_line(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name, "40"], stderr=subprocess.PIPE)
        for name in "abc"
    ]
    for writer in writers:
        assert writer.wait(60) == 0, writer.stderr
        assert writer.stderr is not None
        writer.stderr.close()
    entries, damaged = read_audit(str(tmp_path))
    assert damaged == 0
    for name in "abc":
        assert [entry["number"] for entry in entries if entry["writer"] == name] == list(range(40))


def test_a_file_that_may_not_be_written_is_told_before_the_act(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"audit\.jsonl"):
        check_audit(str(tmp_path))
    with pytest.raises(UsageError, match=r"audit\.jsonl"):
        add_line(str(tmp_path), ENTRY)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "audit.jsonl")
    with pytest.raises(TryLater, match="full"):
        add_line(str(tmp_path), ENTRY)
    assert issubclass(TryLater, NightreadError)


def test_lines_are_plain_json_lines(tmp_path: Path) -> None:
    add_line(str(tmp_path), {**ENTRY, "reason": "Zurück\nwegen \u2028 „Fehlern“"})
    (line,) = (tmp_path / "audit.jsonl").read_text(encoding="ascii").splitlines()
    assert json.loads(line)["reason"] == "Zurück\nwegen \u2028 „Fehlern“"
