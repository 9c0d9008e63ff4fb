"""Processes on cores of their own, and what they and all below them take."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_score import ENVIRONMENT

TICK = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Keep this thread, and the processes that it starts meanwhile, to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found.extend(parents.get(member, []))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a family so far."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            fields = (Path("/proc") / str(member) / "stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / TICK
    return total


def memory_mb(pid: int) -> float:
    """Proportional memory of a family: what all its processes share counts once."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            text = (Path("/proc") / str(member) / "smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


@contextlib.contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is asked to end, and made to."""
    started = subprocess.Popen(command, env=options.pop("env", ENVIRONMENT), text=True, **options)
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(60)
        started.kill()
        started.wait()
