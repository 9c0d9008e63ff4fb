"""The lease and atomic writes with real processes that are killed and paused, on disk and in a bucket."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import LeaseLost, TryLater
from pipelines.storage import files
from pipelines.storage.leases import Lease

CHECKOUT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pipelines.errors import LeaseLost
from pipelines.storage.leases import Lease
lease = Lease.acquire(sys.argv[1])
lease.start_renewing(0.2)
print("owner", lease.number, flush=True)
try:
    while not lease.lost.is_set():
        time.sleep(0.02)
    lease.check()
except LeaseLost:
    print("lost", flush=True)
"""
WRITER = """
import sys
from pipelines.storage import files
number = 0
print("started", flush=True)
while True:
    number += 1
    files.write_atomic(sys.argv[1], (b"%d," % number) * 50_000)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture(params=["disk", "bucket"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A results folder on the local disk, and one in a bucket."""
    if request.param == "disk":
        yield str(tmp_path / "results")
    else:
        yield f"{request.getfixturevalue('s3').uri}/results"


def test_one_works_the_other_is_refused_and_a_killed_owner_is_taken_over_at_once(results: str) -> None:
    holder = start(HOLDER, results)
    try:
        assert line_of(holder) == "owner 1"
        with pytest.raises(TryLater, match=str(holder.pid)):
            Lease.acquire(results)
    finally:
        holder.kill()
        holder.wait()
    began = time.monotonic()
    with Lease.acquire(results) as lease:
        assert lease.number == 2
    assert time.monotonic() - began < 10


def test_a_patient_caller_queues_behind_a_process_until_it_is_killed(results: str) -> None:
    holder = start(HOLDER, results)
    seconds, waits = _FastClock(20), []

    def kill_after_some_waits(owner: str, _left: float) -> None:
        waits.append(owner)
        if len(waits) == 4:
            holder.kill()
            holder.wait()

    try:
        assert line_of(holder) == "owner 1"
        lease = Lease.acquire(results, 3600, seconds.read, seconds.sleep, patient=True, on_wait=kill_after_some_waits)
        assert lease.number == 2 and len(waits) >= 4
        assert set(waits) == {f"process {holder.pid} on {socket.gethostname()!r}"}
        lease.release()
    finally:
        holder.kill()
        holder.wait()


def test_an_owner_that_was_paused_past_its_lease_notices(results: str) -> None:
    holder = start(HOLDER, results)
    try:
        assert line_of(holder) == "owner 1"
        os.kill(holder.pid, signal.SIGSTOP)
        # A successor on another machine, whose two minutes have passed.
        successor = Lease._create(results, 2, _elsewhere())
        assert successor is not None
        os.kill(holder.pid, signal.SIGCONT)
        assert line_of(holder) == "lost"
        successor.check()
        successor.release()
    finally:
        holder.kill()
        holder.wait()


def test_a_foreign_owner_is_recognised_by_its_renewals_and_by_their_absence(results: str) -> None:
    owner = Lease.acquire(results, identity=_elsewhere())
    owner.start_renewing(0.2)
    seconds = _FastClock(30)
    with pytest.raises(TryLater):
        Lease.acquire(results, clock=seconds.read, sleep=seconds.sleep)
    owner._stop.set()
    assert owner._thread is not None
    owner._thread.join()
    seconds = _FastClock(2000)
    assert Lease.acquire(results, clock=seconds.read, sleep=seconds.sleep).number == 2
    with pytest.raises(LeaseLost):
        owner.check()


class _FastClock:
    """Real time, many times as fast."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def read(self) -> float:
        return time.monotonic() * self.factor

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.factor)


def _elsewhere() -> Any:
    from dataclasses import replace

    from pipelines.storage.processes import Identity

    return replace(Identity.of_this_process(), host="elsewhere", boot_id="another boot")


def test_a_write_that_is_killed_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "file"
    files.write_atomic(str(target), b"0," * 50_000)
    source = random.Random(11)
    for _ in range(12):
        writer = start(WRITER, str(target))
        try:
            assert line_of(writer) == "started"
            time.sleep(source.uniform(0, 0.1))
        finally:
            writer.kill()
            writer.wait()
        content = target.read_bytes()
        first = content.split(b",", 1)[0] + b","
        assert content == first * 50_000
