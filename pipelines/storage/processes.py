"""Which process holds something, and whether it still lives; answered only for processes that can be seen from here."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_DEAD_STATES = ("Z", "X", "x")


@dataclass(frozen=True)
class Identity:
    """A process, told apart from all others of all machines.

    Attributes:
        host: Host name, for people.
        boot_id: The kernel's random number of this boot; empty where it is unknown.
        pid_namespace: In which process numbers count; empty where it is unknown.
        pid: Process number.
        process_started: Start time in clock ticks since boot, since process numbers are used again.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    process_started: int

    @classmethod
    def of_this_process(cls) -> Identity:
        """Describe the running process."""
        pid = os.getpid()
        started = _state_and_start(pid)
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, started[1] if started else 0)

    def can_see(self, other: Identity) -> bool:
        """Say whether the other's process number means something here: same boot of the same kernel, same namespace."""
        mine = (self.host, self.boot_id, self.pid_namespace)
        return all(mine) and mine == (other.host, other.boot_id, other.pid_namespace)


def is_alive(identity: Identity) -> bool:
    """Say whether a process that can be seen from here still runs; doubtful ones do."""
    try:
        os.kill(identity.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        # Another user's: it lives, or its number was given to a process that does.
        pass
    found = _state_and_start(identity.pid)
    return found is None or (found[0] not in _DEAD_STATES and found[1] == identity.process_started)


def _state_and_start(pid: int) -> tuple[str, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The program's name stands in parentheses and may hold anything, so count from the last one.
        fields = text.rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
