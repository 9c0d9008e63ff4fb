"""Where `bench_faults.py` causes its faults: folders, images, a cluster with a night on it, a small disk, models."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests/integration")]
from ray_nodes import Night, Nodes, ray_nodes  # noqa: E402

SHARD_SIZE = 4
SECONDS_AN_IMAGE = 0.3
"""Of these 16 run at once in an actor."""


class Skipped(Exception):
    """This machine does not allow the fault."""


class Lab:
    """One fault's folder, images and cluster.

    Args:
        folder: Of its own.
        models: A MODELS folder with the model `cells`.
    """

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        self.archive, self.results = folder / "archive", folder / "results"
        self._models = models
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("NIGHTREAD_", "RAY_", "AWS_"))
        }
        path = f"{CHECKOUT / 'tests/end_to_end/injector'}{os.pathsep}{CHECKOUT}"
        self.environment = {
            **kept,
            "PYTHONPATH": path,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "FAULTS": "slow",
            "FAULT_SECONDS": str(SECONDS_AN_IMAGE),
        }

    def draw(self, count: int) -> None:
        """Put so many images into the archive."""
        self.archive.mkdir(exist_ok=True)
        for number in range(count):
            coarse = np.random.default_rng(number).integers(0, 255, (9, 12, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
            (self.archive / f"b{number:05d}.jpg").write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())

    def night(self, nodes: Nodes, *more: object, archive: object = None, results: object = None) -> Night:
        """Start to score the archive on a cluster."""
        arguments = ["score", archive or self.archive, "--model", f"{self._models}/cells"]
        arguments += ["--results", results or self.results, "--shard-size", SHARD_SIZE, "--address", nodes.address]
        return Night([*arguments, *more], self.results, nodes.environment)

    @contextlib.contextmanager
    def begun(
        self, images: int, workers: int, *more: object, parts: int = 6, env: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Nodes, Night]]:
        """Draw an archive and begin to score it on a cluster; entered when so many shards are finished.

        Args:
            images: In the archive.
            workers: Nodes of one core each; in `nodes.nodes` they stand behind the head.
            more: Further words of the command.
            parts: Shards to wait for.
            env: Further variables of the cluster.
        """
        self.draw(images)
        with ray_nodes(self.environment | dict(env or {})) as nodes:
            nodes.head()
            for _ in range(workers):
                nodes.add()
            night = self.night(nodes, *more)
            night.await_parts(parts)
            yield nodes, night

    def rows(self, options: dict[str, str] | None = None, table: str = "") -> list[dict[str, Any]]:
        """All rows, read by PyArrow from the table's log: not through nightread."""
        import pyarrow.dataset as ds
        from deltalake import DeltaTable

        delta = DeltaTable(table or str(self.results / "predictions"), storage_options=options)
        found = delta.to_pyarrow_dataset() if options else ds.dataset(delta.file_uris())
        rows: list[dict[str, Any]] = found.to_table().to_pylist()
        return rows

    def answer(self, code: int, said: str, *, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """What is printed: the exit code, and whether each image is in the table exactly once."""
        rows = self.rows() if rows is None else rows
        counted = Counter(Path(row["image_uri"]).name for row in rows)
        exact = counted == Counter(path.name for path in self.archive.iterdir())
        failed = Counter(row["error_code"] for row in rows if row["error_code"])
        return {"exit_code": code, "rows": len(rows), "each_once": exact, "failed": dict(failed), "said": said.strip()}


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of this size, for the length of a block."""
    # Below a short name: Ray's sockets may lie in it.
    place = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, f"size={megabytes}m".encode()):
        place.rmdir()
        raise Skipped(f"no file system may be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        libc.umount2(bytes(place), 2)  # lazily: a process may still be leaving it
        place.rmdir()


def memory() -> tuple[float, float]:
    """Bytes of memory that this machine has, and that are free."""
    text = Path("/proc/meminfo").read_text()
    found = dict(re.findall(r"(\w+):\s+(\d+) kB", text))
    return float(found["MemTotal"]) * 1024, float(found["MemAvailable"]) * 1024


def make_models(folder: Path) -> Path:
    """The small models that the test suite uses."""
    source = (CHECKOUT / "tests/conftest.py").read_text()
    made = re.search(r'MAKE_MODEL = """(.*?)"""', source, re.DOTALL)
    assert made
    script = folder / "make.py"
    script.write_text(made[1])
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, str(script), str(folder / "MODELS")], env=environment, check=True)
    return folder / "MODELS"
