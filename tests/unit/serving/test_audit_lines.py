"""The audit log's lines: whole ones, in order, whatever happens to the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipelines.serving.audit_log import AuditLog, Entry

ENTRY = Entry("2026-03-01T00:00:00.000+00:00", "0" * 16, "10.0.0.1", None, "c" * 64, "a" * 64, "refer", "answered")

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from pipelines.serving.audit_log import AuditLog, Entry
from pipelines.serving.problems import Refused
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = AuditLog(Path(sys.argv[1]))
entry = Entry("t", "r", None, None, "c" * 64, None, None, "answered")
log.append([entry])
one = Path(sys.argv[1]).stat().st_size
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (one + one // 2, hard))  # as a disk that is full in the middle of a line
for _ in range(2):
    try:
        log.append([entry])
    except Refused as refused:
        print(refused.problem.error_code)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.append([entry])
"""


def test_entries_are_appended_to_what_is_there_whoever_else_writes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("before\n")
    first, second = AuditLog(path), AuditLog(path)
    first.append([ENTRY, ENTRY])
    second.append([ENTRY])
    path.write_text("")  # as a rotation that copies and truncates
    first.append([ENTRY])
    assert [json.loads(line)["decision"] for line in path.read_text().splitlines()] == ["refer"]
    first.close()
    second.close()


def test_after_half_a_line_the_next_begins_on_its_own(tmp_path: Path, checkout: Path) -> None:
    path = tmp_path / "audit.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["audit_failed", "audit_failed"]
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    whole = [json.loads(line)["status"] for line in (lines[0], lines[2])]
    assert whole == ["answered", "answered"] and not lines[1].endswith("}")
