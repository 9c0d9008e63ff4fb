"""A plain install, which is no editable one, runs the commands from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("jobs", "cluster", "pipelines")


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds this checkout as `pip install .` lays it out, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--target", str(target), str(checkout)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTREAD_")}
    environment |= {"PYTHONPATH": str(installed), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


def test_the_wheel_holds_every_file_of_the_packages(installed: Path, checkout: Path) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=checkout, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    missing = [name for name in listed.stdout.splitlines() if not (installed / name).is_file()]
    assert missing == []


def test_it_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, sys.executable, "-c", "import jobs, pipelines; print(jobs.__file__)")
    assert where.stdout.startswith(str(installed)), where.stderr
    shown = run(installed, tmp_path, str(installed / "bin" / "nightread"), "--help")
    assert shown.returncode == 0 and "score" in shown.stdout


def test_the_doctor_finds_the_installed_project_well(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, str(installed / "bin" / "nightread"), "doctor", "--results", "out", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0, answer
    assert {"LiteRT", "Ray", "results"} <= {check["name"] for check in answer["checks"] if check["good"]}
    assert list(tmp_path.iterdir()) == []
