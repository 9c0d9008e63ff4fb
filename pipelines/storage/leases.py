"""The lease: at most one process writes to a results folder, on any storage that has create-if-absent.

Leases are numbered files, `leases/<n>.json`. Who creates n+1 owns the folder; an owner that sees a higher number has
lost it. The highest file is never deleted, only marked as released: otherwise an owner that slept through two
successors would find no higher number than its own. No clocks of two machines are compared: a lease of another
machine is dead when its content has not changed for two minutes of the observer's own monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from pipelines.errors import LeaseLost, NightreadError, TryLater, UsageError
from pipelines.storage import files, paths
from pipelines.storage.processes import Identity, is_alive

FORMAT = 1
STALE_SECONDS = 120.0
RENEW_SECONDS = 10.0
POLL_SECONDS = 5.0
_FILE_NAME = re.compile(r"([0-9]+)\.json")


@dataclass(frozen=True)
class _Holder:
    """What the highest lease file says; `identity` is None where it cannot be read."""

    number: int
    content: bytes
    identity: Identity | None
    released: bool


class Lease:
    """The right to write to one results folder.

    Made by `acquire`; use it in a `with` block, which releases it.

    Attributes:
        results: Canonical URI of the results folder.
        number: This lease's number; each later owner has a higher one.
        lost: Set once another owner was seen.
    """

    def __init__(self, results: str, number: int, identity: Identity, token: str) -> None:
        self.results = results
        self.number = number
        self.lost = threading.Event()
        self._identity = identity
        self._token = token
        self._counter = 0
        self._released = False
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        results: str,
        wait_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        identity: Identity | None = None,
        *,
        patient: bool = False,
        on_wait: Callable[[str, float], None] = lambda _owner, _left: None,
    ) -> Lease:
        """Become the owner, at once where nobody is or the owner's process is dead.

        A live owner on this machine is refused at once, unless the caller is patient. One of another machine is
        watched: if its file stays unchanged for two minutes it is taken over.

        Args:
            results: The results folder.
            wait_seconds: How long to watch at most.
            clock: Monotonic seconds.
            sleep: Waits for some seconds.
            identity: Who asks, instead of this process.
            patient: Queue behind an owner that lives, wherever it is, until it has finished or the time is over. One
                of another machine that does not stir is watched for two minutes at least. Storage that does not
                answer meanwhile is asked again.
            on_wait: Called before each wait with the owner in words and the seconds that are left.

        Raises:
            TryLater: Another process owns the folder, or storage does not answer.
            UsageError: The folder may not be written, or a newer release holds a lease in it.
        """
        place = paths.canonical(results)
        me = identity or Identity.of_this_process()
        seen = _highest(place)
        began = since = clock()
        moving = False
        while True:
            now = clock()
            visible = _is_visible(seen, me)
            # Otherwise a short wait would take over from the dead on no night.
            at_least = STALE_SECONDS if patient and not visible and not moving else 0.0
            end = began + max(wait_seconds, at_least)
            # One that can be seen to live is never taken over, however long it does not stir.
            stale = not visible and now - since >= STALE_SECONDS
            hopeless = visible or (moving and since + STALE_SECONDS > end)
            if stale or _is_free(seen, me):
                lease = cls._create(place, seen.number + 1 if seen else 1, me)
                if lease:
                    return lease
            elif now >= end or (hopeless and not patient):
                raise _held_elsewhere(place, seen)
            else:
                on_wait(_in_words(seen), end - now)
                sleep(min(POLL_SECONDS, end - now))
            try:
                latest = _highest(place)
            except TryLater:
                if not patient or clock() >= end:
                    raise
                since = clock()  # what was not seen is no sign that the owner is dead
                continue
            if latest != seen:
                seen, since, moving = latest, clock(), True

    @classmethod
    def _create(cls, results: str, number: int, identity: Identity) -> Lease | None:
        lease = cls(results, number, identity, secrets.token_hex(16))
        if not files.create_exclusive(_uri(results, number), lease._document()):
            return None
        numbers = _numbers(results)
        if max(numbers, default=0) > number:
            # Taken from a list that was old already: others have come and gone meanwhile.
            return None
        for old in numbers:
            if old < number:
                with contextlib.suppress(NightreadError):
                    files.delete(_uri(results, old))
        return lease

    def check(self) -> None:
        """Make sure that this is still the owner; call it before each step that cannot be taken back.

        Raises:
            LeaseLost: Another process has taken over.
            TryLater: Storage does not answer.
        """
        numbers = _numbers(self.results)
        if self.number in numbers and max(numbers) == self.number and not self._released:
            return
        self.lost.set()
        raise LeaseLost(
            f"Another process has taken over {self.results!r} while this one was paused or cut off.",
            "Nothing of it is lost; start the same command again once the other one has finished.",
        )

    def renew(self) -> None:
        """Show that this owner lives.

        Raises:
            LeaseLost: Another process has taken over.
            TryLater: Storage does not answer.
        """
        self.check()
        with self._writing:
            if not self._released:
                self._counter += 1
                files.write_atomic(_uri(self.results, self.number), self._document())

    def start_renewing(self, every_seconds: float = RENEW_SECONDS) -> None:
        """Renew in a background thread until the lease is released or lost; storage that fails is tried again."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._keep_renewing, args=(every_seconds,), name="lease", daemon=True
            )
            self._thread.start()

    def _keep_renewing(self, every_seconds: float) -> None:
        while not self._stop.wait(every_seconds):
            try:
                self.renew()
            except LeaseLost:
                return
            except NightreadError:
                # Whether the lease outlives this is for `check` to find out, not for this thread.
                continue

    def release(self) -> None:
        """Give the folder back; the next owner need not wait. Releasing twice, or what was lost, does nothing."""
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._released:
            return
        # If storage fails now, the next owner finds this process dead, or waits its two minutes.
        with contextlib.suppress(NightreadError):
            self.check()
            with self._writing:
                self._released = True
                files.write_atomic(_uri(self.results, self.number), self._document())
        self._released = True

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _document(self) -> bytes:
        content: dict[str, Any] = {
            "format": FORMAT,
            "number": self.number,
            **asdict(self._identity),
            "token": self._token,
            "counter": self._counter,
            "released": self._released,
        }
        return json.dumps(content, indent=1).encode()


@dataclass(frozen=True)
class Owner:
    """Who holds a results folder, as its lease says.

    Attributes:
        host: The machine; None where the lease cannot be read.
        pid: The process; None as well.
        alive: Whether it lives; None for another machine's, of which only time can tell.
        sign: Changes while it lives, every `RENEW_SECONDS`.
    """

    host: str | None
    pid: int | None
    alive: bool | None
    sign: bytes


def owner_of(results: str) -> Owner | None:
    """Look who holds a results folder, without waiting and without taking it; None for nobody.

    Raises:
        TryLater: Storage does not answer.
        UsageError: The folder may not be read, or a newer release holds a lease in it.
    """
    holder, me = _highest(paths.canonical(results)), Identity.of_this_process()
    if holder is None or holder.released:
        return None
    who = holder.identity
    alive = None if who is None or not me.can_see(who) else is_alive(who)
    return Owner(who.host if who else None, who.pid if who else None, alive, holder.content)


def is_held(results: str) -> bool | None:
    """Say whether a process holds a results folder at this moment, without waiting.

    Returns:
        None where another machine's process holds it, of which only time could tell whether it lives.

    Raises:
        TryLater: Storage does not answer.
        UsageError: The folder may not be read, or a newer release holds a lease in it.
    """
    owner = owner_of(results)
    return False if owner is None else owner.alive


def _uri(results: str, number: int) -> str:
    return paths.join(results, "leases", f"{number}.json")


def _numbers(results: str) -> list[int]:
    names = files.list_names(paths.join(results, "leases"))
    return [int(match[1]) for match in map(_FILE_NAME.fullmatch, names) if match]


def _highest(results: str) -> _Holder | None:
    """Read the highest lease; None where there is none."""
    while True:
        numbers = _numbers(results)
        if not numbers:
            return None
        with contextlib.suppress(FileNotFoundError):
            return _parsed(max(numbers), files.read_bytes(_uri(results, max(numbers))), results)


def _parsed(number: int, content: bytes, results: str) -> _Holder:
    try:
        found = json.loads(content)
        version = int(found["format"])
    except (ValueError, KeyError, TypeError):
        # Half written where links are unknown: nobody's name is in it, so only time can tell.
        return _Holder(number, content, None, False)
    if version > FORMAT:
        raise UsageError(
            f"{results!r} is in use by a newer release (lease format {version}, this one knows {FORMAT}).",
            "Install the newer release here too.",
        )
    try:
        identity = Identity(
            str(found["host"]),
            str(found["boot_id"]),
            str(found["pid_namespace"]),
            int(found["pid"]),
            int(found["process_started"]),
        )
    except (ValueError, KeyError, TypeError):
        return _Holder(number, content, None, False)
    return _Holder(number, content, identity, found.get("released") is True)


def _is_visible(holder: _Holder | None, me: Identity) -> bool:
    return holder is not None and holder.identity is not None and me.can_see(holder.identity)


def _is_free(holder: _Holder | None, me: Identity) -> bool:
    if holder is None or holder.released:
        return True
    return holder.identity is not None and _is_visible(holder, me) and not is_alive(holder.identity)


def _held_elsewhere(results: str, holder: _Holder | None) -> TryLater:
    return TryLater(f"{results!r} is being written by {_in_words(holder)}.", "Try again when it has finished.")


def _in_words(holder: _Holder | None) -> str:
    owner = holder.identity if holder else None
    return f"process {owner.pid} on {owner.host!r}" if owner else "another process"
