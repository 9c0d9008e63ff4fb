"""Runs the commands as a person does: in their own processes, on real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "jobs"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        """The one JSON value of `--json`."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def environment(checkout: Path) -> dict[str, str]:
    """Environment of the commands: this checkout's code, nothing of the developer's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTREAD_", "RAY_", "AWS_"))}
    return {**kept, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.fixture(scope="session")
def nightread(environment: dict[str, str]) -> Callable[..., Done]:
    """Runs one command to its end."""

    def run(*arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Done:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env={**environment, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=280,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def draw() -> Callable[..., list[Path]]:
    """Draws small JPEGs, each different, into a folder."""
    import cv2

    def images(folder: Path, count: int, start: int = 0) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number in range(start, start + count):
            generator = np.random.default_rng(number)
            coarse = generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
            path = folder / f"b{number:05d}.jpg"
            temporary = path.with_suffix(".part")
            temporary.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
            temporary.rename(path)
            paths.append(path)
        return paths

    return images


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """All rows of a results folder, read by PyArrow from the table's log: not through our own code."""
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

    def rows(results: Path) -> list[dict[str, Any]]:
        files = DeltaTable(str(results / "predictions")).file_uris()
        return ds.dataset(files).to_table().to_pylist() if files else []

    return rows
