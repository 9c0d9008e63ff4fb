"""The demo as a new user runs it, in processes of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.demo.archive import MARKER


def run(checkout: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(
        command, cwd=folder, env=_environment(checkout), capture_output=True, text=True, timeout=900, umask=0
    )


def _environment(checkout: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(checkout)}


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.mark.slow
def test_the_demo_is_neither_a_coin_nor_a_toy_and_can_be_repeated(
    checkout: Path, tmp_path: Path, open_to_others: Callable[..., list[str]]
) -> None:
    first = answer(run(checkout, tmp_path, "demo", "my demo", "--json"))
    assert 0.85 < first["roc_auc"] < 0.99
    assert first["roc_auc_images"] >= 300
    assert first["score"]["found"] == 308
    assert first["score"]["failed_by_code"] == {"not_an_image": 2, "truncated": 1}
    assert first["second_score"]["new"] == first["second_score"]["changed"] == 0
    assert first["second_score"]["seconds"] < 10
    for command in first["next"]:
        words = shlex.split(command)
        assert words[0] == "nightread"
        assert run(checkout, tmp_path, *words[1:]).returncode == 0, command
    again = answer(run(checkout, tmp_path, "demo", "my demo", "--json"))
    assert again["roc_auc"] == first["roc_auc"]
    assert again["score"]["new"] == 0
    assert [path.name for path in (tmp_path / "my demo" / "models" / "tissue").glob("v*")] == ["v1"]
    assert open_to_others(tmp_path / "my demo" / "models", tmp_path / "my demo" / "results") == []


def test_a_folder_of_somebody_else_is_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = run(checkout, tmp_path, "demo", "mine")
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert not (tmp_path / "mine" / MARKER).exists()
