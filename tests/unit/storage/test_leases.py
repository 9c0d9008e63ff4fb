from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import LeaseLost, TryLater, UsageError
from pipelines.storage import files
from pipelines.storage.leases import POLL_SECONDS, STALE_SECONDS, Lease
from pipelines.storage.processes import Identity, is_alive

ME = Identity.of_this_process()
FOREIGN = replace(ME, host="other", boot_id="another boot")


class Clock:
    """Monotonic time that passes by sleeping only; things may happen at given times."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events: list[tuple[float, Callable[[], object]]] = []

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= POLL_SECONDS
        self.now += seconds
        for event in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(event)
            event[1]()


def acquire(results: Path, clock: Clock | None = None, identity: Identity = ME, wait: float = STALE_SECONDS) -> Lease:
    clock = clock or Clock()
    return Lease.acquire(str(results), wait, clock.read, clock.sleep, identity)


def lease_files(results: Path) -> list[str]:
    return files.list_names(str(results / "leases"))


def dead_process() -> Identity:
    """A process that lived on this machine and has exited."""
    command = [
        sys.executable,
        "-c",
        "from pipelines.storage.processes import Identity as I; i=I.of_this_process(); print(i.pid, i.process_started)",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=Path(__file__).parents[3])
    pid, started = map(int, done.stdout.split())
    return replace(ME, pid=pid, process_started=started)


def test_the_first_owner_gets_number_one_and_the_file_says_who(tmp_path: Path) -> None:
    with acquire(tmp_path) as lease:
        lease.check()
        found = json.loads((tmp_path / "leases" / "1.json").read_bytes())
        assert (found["format"], found["pid"], found["host"], found["counter"]) == (1, ME.pid, ME.host, 0)
        lease.renew()
        assert json.loads((tmp_path / "leases" / "1.json").read_bytes())["counter"] == 1


def test_a_released_lease_is_had_again_at_once_under_a_higher_number(tmp_path: Path) -> None:
    clock = Clock()
    numbers = []
    for identity in (ME, FOREIGN, ME):
        with acquire(tmp_path, clock, identity) as lease:
            numbers.append(lease.number)
    assert numbers == [1, 2, 3]
    assert clock.now == 1000
    assert lease_files(tmp_path) == ["3.json"]


def test_a_live_owner_on_this_machine_is_refused_at_once(tmp_path: Path) -> None:
    clock = Clock()
    with acquire(tmp_path), pytest.raises(TryLater, match=str(ME.pid)):
        acquire(tmp_path, clock)
    assert clock.now == 1000


def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    clock = Clock()
    acquire(tmp_path, identity=dead_process())
    assert acquire(tmp_path, clock).number == 2
    assert clock.now == 1000


def test_a_process_number_used_again_is_not_the_owner(tmp_path: Path) -> None:
    acquire(tmp_path, identity=replace(ME, process_started=ME.process_started - 1))
    assert acquire(tmp_path).number == 2


@pytest.mark.parametrize("other", [FOREIGN, replace(ME, pid_namespace="pid:[1]"), replace(ME, host="namesake")])
def test_a_process_of_elsewhere_is_not_judged_by_its_number(tmp_path: Path, other: Identity) -> None:
    clock = Clock()
    acquire(tmp_path, identity=replace(other, pid=dead_process().pid))
    assert acquire(tmp_path, clock).number == 2
    assert clock.now == 1000 + STALE_SECONDS


def test_a_foreign_owner_that_renews_is_left_alone(tmp_path: Path) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=FOREIGN)
    clock.events = [(1000 + seconds, owner.renew) for seconds in range(10, 300, 10)]
    with pytest.raises(TryLater, match="other"):
        acquire(tmp_path, clock)
    assert clock.now < 1000 + STALE_SECONDS
    owner.check()


def test_a_patient_caller_waits_for_an_owner_that_renews_and_then_dies(tmp_path: Path) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=FOREIGN)
    clock.events = [(1000 + seconds, owner.renew) for seconds in range(10, 300, 10)]
    lease = acquire(tmp_path, clock, wait=3600)
    assert lease.number == 2
    assert 1290 + STALE_SECONDS <= clock.now <= 1300 + STALE_SECONDS
    with pytest.raises(LeaseLost):
        owner.check()


def test_a_foreign_owner_that_finishes_while_watched_hands_over(tmp_path: Path) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=FOREIGN)
    clock.events = [(1007, owner.release)]
    assert acquire(tmp_path, clock).number == 2
    assert clock.now == 1010


def queue_up(results: Path, clock: Clock, wait: float) -> tuple[Lease, list[tuple[str, float]]]:
    """Wait patiently; also what was said meanwhile."""
    said: list[tuple[str, float]] = []
    lease = Lease.acquire(
        str(results), wait, clock.read, clock.sleep, ME, patient=True, on_wait=lambda *words: said.append(words)
    )
    return lease, said


@pytest.mark.parametrize("identity", [ME, FOREIGN])
def test_a_patient_caller_queues_behind_an_owner_that_lives(tmp_path: Path, identity: Identity) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=identity)
    clock.events = [(1000 + seconds, owner.renew) for seconds in range(10, 1800, 10)]
    clock.events.append((2800, owner.release))
    lease, said = queue_up(tmp_path, clock, 7200)
    assert (lease.number, clock.now) == (2, 2800)
    left = [seconds for _, seconds in said]
    assert left == [7200 - POLL_SECONDS * step for step in range(len(left))] and len(left) == 1800 / POLL_SECONDS
    assert {words for words, _ in said} == {f"process {identity.pid} on {identity.host!r}"}


def test_a_patient_caller_takes_over_at_the_next_look_from_an_owner_that_dies_here(tmp_path: Path) -> None:
    clock = Clock()
    child = subprocess.Popen(["sleep", "1000"])
    try:
        started = int(Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        acquire(tmp_path, identity=replace(ME, pid=child.pid, process_started=started))
        # It does not renew, but it lives: that it lives is seen, and it is not taken over.
        clock.events = [(2000, lambda: (child.kill(), child.wait()))]
        lease, _ = queue_up(tmp_path, clock, 7200)
        assert (lease.number, clock.now) == (2, 2000)
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("identity", [ME, FOREIGN])
def test_a_patient_caller_gives_up_when_its_time_is_over(tmp_path: Path, identity: Identity) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=identity)
    clock.events = [(1000 + seconds, owner.renew) for seconds in range(10, 1000, 10)]
    with pytest.raises(TryLater, match=str(identity.pid)):
        queue_up(tmp_path, clock, 603)
    assert clock.now == 1603
    owner.check()


@pytest.mark.parametrize("wait", [0, 60, STALE_SECONDS, 3600])
def test_a_patient_caller_takes_over_from_a_dead_owner_of_elsewhere_however_short_its_time(
    tmp_path: Path, wait: float
) -> None:
    clock = Clock()
    acquire(tmp_path, identity=FOREIGN)
    lease, said = queue_up(tmp_path, clock, wait)
    assert (lease.number, clock.now) == (2, 1000 + STALE_SECONDS)
    assert said[0] == (f"process {FOREIGN.pid} on 'other'", max(wait, STALE_SECONDS))


@pytest.mark.parametrize("stirs_at", [20, 60, 95])
def test_an_owner_of_elsewhere_that_stirs_is_given_no_more_than_the_caller_has(tmp_path: Path, stirs_at: int) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=FOREIGN)
    clock.events = [(1000 + stirs_at, owner.renew)]
    with pytest.raises(TryLater, match="other"):
        queue_up(tmp_path, clock, 60)
    assert clock.now == 1000 + max(60, stirs_at)
    owner.check()


def test_a_short_time_is_all_that_an_owner_here_is_waited_for(tmp_path: Path) -> None:
    clock = Clock()
    with acquire(tmp_path) as owner:
        with pytest.raises(TryLater, match=str(ME.pid)):
            queue_up(tmp_path, clock, 60)
        assert clock.now == 1060
        owner.check()


@pytest.mark.parametrize(("back_at", "told"), [(80, "being written"), (9999, "does not answer")])
def test_storage_that_does_not_answer_after_a_short_time_is_no_reason_to_wait_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back_at: int, told: str
) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=FOREIGN)
    real = files.list_names

    def list_names(folder: str) -> list[str]:
        if 1070 <= clock.now < 1000 + back_at:
            raise TryLater("Storage does not answer.")
        return real(folder)

    monkeypatch.setattr(files, "list_names", list_names)
    with pytest.raises(TryLater, match=told):
        queue_up(tmp_path, clock, 60)
    assert clock.now == 1000 + STALE_SECONDS
    monkeypatch.undo()
    owner.check()


def test_while_storage_does_not_answer_nobody_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=FOREIGN)
    real = files.list_names

    def list_names(folder: str) -> list[str]:
        if 1050 <= clock.now < 1400:
            raise TryLater("Storage does not answer.")
        return real(folder)

    monkeypatch.setattr(files, "list_names", list_names)
    clock.events = [(1000 + seconds, owner.renew) for seconds in range(10, 50, 10)]
    clock.events += [(1000 + seconds, owner.renew) for seconds in range(400, 1000, 10)]
    with pytest.raises(TryLater, match="being written"):
        queue_up(tmp_path, clock, 900)
    assert clock.now == 1900


def test_a_short_wait_ends_without_taking_over(tmp_path: Path) -> None:
    clock = Clock()
    owner = acquire(tmp_path, identity=FOREIGN)
    with pytest.raises(TryLater):
        acquire(tmp_path, clock, wait=30)
    assert clock.now == 1030
    owner.check()


def test_an_owner_that_was_overtaken_notices_and_stays_out(tmp_path: Path) -> None:
    sleeper = acquire(tmp_path, identity=FOREIGN)
    with acquire(tmp_path) as second:
        assert not sleeper.lost.is_set()
        with pytest.raises(LeaseLost):
            sleeper.check()
        assert sleeper.lost.is_set()
        with pytest.raises(LeaseLost):
            sleeper.renew()
        sleeper.release()
        second.check()
    # The successor has finished too: the sleeper must still find a higher number.
    with pytest.raises(LeaseLost):
        sleeper.check()


def test_an_owner_whose_file_was_removed_has_lost(tmp_path: Path) -> None:
    lease = acquire(tmp_path)
    files.delete_tree(str(tmp_path / "leases"))
    with pytest.raises(LeaseLost):
        lease.check()


def test_who_creates_a_number_below_the_highest_is_not_the_owner(tmp_path: Path) -> None:
    acquire(tmp_path, identity=dead_process())
    winner = Lease._create(str(tmp_path), 3, FOREIGN)
    assert winner is not None
    assert Lease._create(str(tmp_path), 2, ME) is None
    winner.check()


def test_of_many_at_once_exactly_one_becomes_the_owner(tmp_path: Path) -> None:
    acquire(tmp_path, identity=dead_process())
    barrier = threading.Barrier(8)
    owners: list[Lease] = []
    refused: list[TryLater] = []

    def race() -> None:
        barrier.wait()
        try:
            owners.append(acquire(tmp_path))
        except TryLater as error:
            refused.append(error)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(owners) == 1
    assert len(refused) == 7
    owners[0].check()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    files.write_atomic(str(tmp_path / "leases" / "7.json"), b'{"format": 2}')
    with pytest.raises(UsageError, match="newer release"):
        acquire(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "pid": "x"}'])
def test_a_file_that_says_nothing_is_taken_over_only_when_it_stays_so(tmp_path: Path, content: bytes) -> None:
    files.write_atomic(str(tmp_path / "leases" / "4.json"), content)
    clock = Clock()
    assert acquire(tmp_path, clock).number == 5
    assert clock.now == 1000 + STALE_SECONDS


def test_other_files_in_the_folder_are_not_leases(tmp_path: Path) -> None:
    for name in (".1.json.ab.tmp", "README", "99.json.bak"):
        files.write_atomic(str(tmp_path / "leases" / name), b"")
    assert acquire(tmp_path).number == 1


def test_the_background_thread_renews_through_failing_storage_and_stops_when_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = acquire(tmp_path, identity=FOREIGN)
    calls: list[str] = []
    outcomes = iter([TryLater("x"), None, TryLater("x"), None])
    renew = lease.renew

    def unsteady() -> None:
        outcome = next(outcomes, None)
        calls.append("fails" if outcome else "works")
        if outcome:
            raise outcome
        renew()
        if len(calls) == 4:
            acquire(tmp_path)

    monkeypatch.setattr(lease, "renew", unsteady)
    lease.start_renewing(every_seconds=0.001)
    assert lease.lost.wait(20)
    assert calls[:4] == ["fails", "works", "fails", "works"]
    lease.release()


def test_this_process_is_alive_and_an_impossible_one_is_not() -> None:
    assert is_alive(ME)
    assert not is_alive(replace(ME, pid=2**22 + 1))
    assert ME.can_see(ME)
    assert not replace(ME, boot_id="").can_see(replace(ME, boot_id=""))
