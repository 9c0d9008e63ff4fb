"""An archive that nobody may write to is scored and reported on, and nothing in it changes."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PR_CAPBSET_DROP = 24
# With these root owns everything: writing where the mode forbids it, and changing owners and modes.
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER = 0, 1, 3


def without_rights() -> None:
    """In a child that is root: what it starts is held to the modes of files as everybody is."""
    if os.geteuid() == 0:
        for right in (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER):
            assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, right, 0, 0, 0) == 0


def everything(folder: Path) -> dict[str, tuple[int, ...]]:
    """Each name below a folder, and the folder itself, with what a change would change."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        status = os.lstat(path)
        found[str(path)] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


@pytest.fixture
def archive(tmp_path: Path, draw: Callable[..., list[Path]]) -> Path:
    """A folder with a manifest in it, of another owner where there can be one; nobody may write to it."""
    folder = tmp_path / "archive"
    drawn = draw(folder / "2024" / "a", 6) + draw(folder, 6, start=6)
    lines = [f"{path.relative_to(folder)},{('benign', 'malignant')[at % 2]}" for at, path in enumerate(drawn)]
    (folder / "labels.csv").write_text("\n".join(["uri,label", *lines]) + "\n")
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
    return folder


def test_an_archive_is_only_read(archive: Path, tmp_path: Path, tiny_models: Path, environment: dict[str, str]) -> None:
    before = everything(archive)

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment, preexec_fn=without_rights, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip

    refused = run("-c", f"open({str(archive / 'probe')!r}, 'w')")
    assert "PermissionError" in refused.stderr  # else this test would say nothing
    results, model = tmp_path / "results", f"{tiny_models}/cells"
    for place in (archive, archive / "labels.csv"):
        done = run("-m", "jobs", "score", place, "--model", model, "--results", results, "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert (answer["found"], answer["failed"]) == (12, 0)
    labels, report = archive / "labels.csv", tmp_path / "report"
    done = run("-m", "jobs", "evaluate", "--results", results, "--labels", labels, "--report", report)
    assert done.returncode == 0, done.stderr
    assert everything(archive) == before
