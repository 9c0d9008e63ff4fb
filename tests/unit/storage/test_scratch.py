"""Temporary folders: gone with their block, and those of dead processes with the next one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipelines.storage.scratch import PREFIX, YOUNGEST, Scratch, remove_stale

LATER = YOUNGEST + 5


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_gone_with_its_block(temporary: Path) -> None:
    with Scratch() as folder:
        assert folder.parent == temporary and not list(folder.iterdir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "in" / "it").mkdir(parents=True)
    assert not list(temporary.iterdir())


def test_closing_twice_is_closing_once() -> None:
    scratch = Scratch()
    scratch.close()
    scratch.close()


def test_a_killed_process_leaves_a_folder_that_the_next_removes(temporary: Path, checkout: Path) -> None:
    program = "import sys; from pipelines.storage.scratch import Scratch; print(Scratch().path, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(checkout), "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    remove_stale(temporary, time.time() + LATER)
    assert left.is_dir(), "its process lived"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    remove_stale(temporary)
    assert left.is_dir(), "too young to be told from one that is being made"
    remove_stale(temporary, time.time() + LATER)
    assert not left.exists()


def test_only_our_own_folders_are_removed(temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (temporary / f"{PREFIX}12345678").symlink_to(elsewhere)
    (temporary / f"{PREFIX}abcdefgh").touch()
    (temporary / f"{PREFIX}of-somebody").mkdir()
    (temporary / "nightread-12345678").mkdir()
    before = sorted(temporary.rglob("*"))
    remove_stale(temporary, time.time() + LATER)
    assert sorted(temporary.rglob("*")) == before


def test_a_folder_in_use_is_left_to_its_owner(temporary: Path) -> None:
    with Scratch() as folder:
        remove_stale(temporary, time.time() + LATER)
        assert folder.is_dir()


def test_without_a_temporary_folder_nothing_is_removed(temporary: Path) -> None:
    remove_stale(temporary / "nowhere")
