"""The head of a Ray cluster, and Ray's daemon on this machine: without them no night goes on, so their loss is noticed.

Ray ends a driver whose head does not come back at once, or whose daemon has died or is stopped: without a word, and
with an exit code that means a defect. So Ray is told to be patient (`cluster.session`), both are asked from here, and
the night ends by itself.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from pipelines.errors import TryLater

# As long as the nodes of a cluster wait for a head that is restarted before they give up themselves.
PATIENCE_SECONDS = 60.0
# Nobody restarts the head of a Ray that this command started; sooner than Ray itself ends a driver without a head.
OWN_PATIENCE_SECONDS = 15.0
ASK_SECONDS: Final = 5.0

_OWN_CURE = (
    "See why, in the kernel's log first: often memory was short. The same command goes on from the finished shards."
)
_ELSEWHERE = (
    "Start the cluster again, or see why it does not answer. The same command goes on from the finished shards, on "
    "another cluster too."
)


class Head:
    """Asks whether the head still answers; `minded` makes it.

    Attributes:
        drains: Set where Ray is being stopped on this machine: half a minute later it ends this process too.

    Args:
        address: `HOST:PORT` of the cluster's head.
        daemon: The Unix socket of Ray's daemon on this machine; it is not started again, so it needs no patience.
        own: Whether this command started the head; another may be silent for longer.
        clock: Monotonic seconds.
        answering: Instead of `answers`.
    """

    def __init__(
        self,
        address: str,
        daemon: str,
        own: bool = False,
        clock: Callable[[], float] = time.monotonic,
        answering: Callable[[str], bool] | None = None,
    ) -> None:
        self.address = address
        self._daemon = daemon
        self._daemon_lives = True
        self._patience = OWN_PATIENCE_SECONDS if own else PATIENCE_SECONDS
        self._own = own
        self._clock = clock
        self._answers = answering or answers
        self._answered_at = clock()
        self.drains = False

    @property
    def silent_seconds(self) -> float:
        """How long it has not answered; less than some seconds mean nothing."""
        return self._clock() - self._answered_at

    def ask(self) -> bool:
        """Ask once; False if the head has been silent for too long, or the daemon is dead or being stopped."""
        answered = self._answers(self.address)
        if answered:
            self._answered_at = self._clock()
        self._daemon_lives = self._answers(self._daemon)
        return self._daemon_lives and not self.drains and (answered or self.silent_seconds < self._patience)

    def lost(self) -> TryLater:
        """What the loss is told as."""
        if not self._daemon_lives:
            return TryLater("Ray's daemon on this machine has died.", _OWN_CURE)
        if self.drains:
            return TryLater("Ray is being stopped on this machine.", _ELSEWHERE)
        if self._own:
            return TryLater(f"Ray's head on this machine has not answered for {self._patience:g} seconds.", _OWN_CURE)
        return TryLater(
            f"The head of the Ray cluster at {self.address} has not answered for {self._patience:g} seconds.",
            _ELSEWHERE,
        )


@contextlib.contextmanager
def minded(
    address: str,
    daemon: str,
    own: bool = False,
    draining: Callable[[], bool] | None = None,
    answering: Callable[[str], bool] | None = None,
) -> Iterator[Head]:
    """Ask head and daemon every few seconds while the block runs, and end the block if one is lost.

    The block waits inside Ray, which does not return without its head, so it is interrupted as by Ctrl-C. Outside the
    main thread nothing can be interrupted, and nothing is asked.

    Args:
        address: `HOST:PORT` of the cluster's head.
        daemon: The Unix socket of Ray's daemon on this machine.
        own: Whether this command started the head.
        draining: Asks the head whether it takes this machine's node out; it may take for ever to answer.
        answering: Instead of `answers`.

    Raises:
        TryLater: The head has not answered for `PATIENCE_SECONDS` (`OWN_PATIENCE_SECONDS`), or the daemon is dead or
            being stopped.
    """
    head = Head(address, daemon, own, answering=answering)
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield head
        return
    left, interrupted, deciding = threading.Event(), threading.Event(), threading.Lock()

    def mind() -> None:
        while not left.wait(ASK_SECONDS):
            if not head.ask():
                with deciding:
                    if not left.is_set():
                        interrupted.set()
                        signal.pthread_kill(main.ident or 0, signal.SIGINT)
                return

    def look() -> None:
        while draining is not None and not head.drains and not left.wait(ASK_SECONDS):
            with contextlib.suppress(Exception):  # whatever Ray raises where its head is gone, which `mind` notices
                head.drains = draining()

    for work in (mind, look):
        threading.Thread(target=work, name=f"head-{work.__name__}", daemon=True).start()
    try:
        try:
            yield head
        finally:
            with deciding:
                left.set()
        if interrupted.is_set():
            raise head.lost()
    except KeyboardInterrupt as interrupt:
        if interrupted.is_set():
            raise head.lost() from interrupt
        raise


def answers(address: str) -> bool:
    """Say whether anything takes a connection at `HOST:PORT`, or at a Unix socket's path; within seconds."""
    host, _, port = address.rpartition(":")
    try:
        if address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ASK_SECONDS)
                client.connect(address)
            return True
        socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_SECONDS).close()
    except OSError:
        return False
    return True
