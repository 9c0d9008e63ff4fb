"""One answering process, as the server sees it: started, given a model, asked for one image at a time, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from pipelines.errors import ModelRefused, NightreadError, TryLater, UsageError
from pipelines.serving.exchange import READY, Incoming, head
from pipelines.serving.served_model import LoadedModel

START_SECONDS = 60.0
# How long a process may take to leave after its socket was closed; the image in hand is nobody's any more.
LEAVE_SECONDS = 1.0

_REFUSALS: dict[str, type[NightreadError]] = {kind.code: kind for kind in (ModelRefused, UsageError)}


class Died(Exception):
    """The process ended, or could not be reached any more.

    Attributes:
        how: For the log: `was ended by SIGSEGV`.
    """

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Late(Exception):
    """The process did not reply in time."""


class AnsweringProcess(asyncio.Protocol):
    """A process that answers, and the socket to it. `start_process` makes it.

    Attributes:
        gone: Set when its end of the socket closes, or ours.
        on_gone: Called then, where set.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.gone = asyncio.Event()
        self.on_gone: Callable[[], None] | None = None
        self._process = process
        self._incoming = Incoming()
        self._reply: asyncio.Future[tuple[dict[str, Any], bytes]] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._killed_by_us = False

    @property
    def was_killed_by_others(self) -> bool:
        """Whether it ended by a SIGKILL that is not ours: the kernel's, for want of memory, or a person's."""
        return self._process.returncode == -signal.SIGKILL and not self._killed_by_us

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's call."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        """Asyncio's call: a piece of a reply."""
        try:
            whole = self._incoming.take(data)
        except ValueError:
            # What it says cannot be trusted any more; it is replaced like one that died.
            self._kill()
            return
        if whole is not None and self._reply is not None and not self._reply.done():
            self._reply.set_result(whole)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's call: the process has ended, or `end` was called."""
        self.gone.set()
        if self.on_gone is not None:
            self.on_gone()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(Died("closed its socket"))

    async def load(self, model: LoadedModel) -> None:
        """Give it a model, which it tests.

        Raises:
            ModelRefused, UsageError: If it refuses the model.
            TryLater: If it does not start.
        """
        told = {
            "model": asdict(replace(model.served, card={})),
            "io": model.io.to_json(),
            "uri": model.uri,
            "lengths": [len(model.scorer), None if model.golden is None else len(model.golden)],
        }
        try:
            said, _ = await self.ask(told, START_SECONDS, model.scorer, model.golden or b"")
        except (Died, Late) as error:
            how = await self.end()
            reason = how if isinstance(error, Died) else f"was not ready within {START_SECONDS:g} s"
            raise TryLater(
                f"An answering process {reason} before its first image.",
                "Look at memory and at the installation (`nightread doctor`).",
            ) from error
        if said != READY:
            await self.end()
            refusal = said["refused"]
            raise _REFUSALS.get(refusal["code"], ModelRefused)(refusal["message"], refusal["cure"])

    async def ask(self, told: dict[str, Any], seconds: float, *data: bytes) -> tuple[dict[str, Any], bytes]:
        """One exchange.

        Args:
            told: The message's object.
            seconds: Time for it.
            data: What follows the object, in pieces.

        Raises:
            Died: If the process ended; `end` is to be called.
            Late: If the time was over; `end` is to be called.
        """
        if self._transport is None or self.gone.is_set():
            raise Died("closed its socket")
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(head(told, sum(map(len, data))))
        for piece in data:
            self._transport.write(piece)
        try:
            async with asyncio.timeout(seconds):
                return await self._reply
        except TimeoutError as error:
            raise Late from error
        finally:
            self._reply = None

    async def end(self, patience: float = 0.0) -> str:
        """Close the socket, reap the process, and kill it where it has not left in time.

        Args:
            patience: Seconds that it may take to leave by itself.

        Returns:
            How it ended, for the log.
        """
        # A dying process may close its socket a moment before it can be reaped; its own code tells more than ours.
        patience = max(patience, 0.2) if self.gone.is_set() else patience
        if self._transport is not None:
            self._transport.abort()
        return _described(await asyncio.to_thread(self._reap, patience))

    def _reap(self, patience: float) -> int:
        if patience:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(patience)
        if self._process.poll() is None:
            self._kill()
        return self._process.wait()

    def _kill(self) -> None:
        self._killed_by_us = True
        self._process.kill()


async def start_process(seconds: float) -> AnsweringProcess:
    """Start a process that waits for its model.

    Args:
        seconds: Its own limit of one image.

    Raises:
        TryLater: If the system cannot start one more.
    """
    ours, theirs = socket.socketpair()
    # An ordinary picture goes over at once, and the process finds all of it.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with theirs:
        try:
            process = _launch(theirs, seconds)  # two milliseconds, and rare
        except OSError as error:
            ours.close()
            raise TryLater(
                f"No answering process can be started: {error.strerror}.", "Look at memory and limits of this machine."
            ) from error
    made = AnsweringProcess(process)
    await asyncio.get_running_loop().create_unix_connection(lambda: made, sock=ours)
    return made


def _launch(channel: socket.socket, seconds: float) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
    # It asks nobody for anything: whoever breaks a decoder finds no keys there.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "NIGHTREAD_", "RAY_"))}
    environment = {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    # -P: a file named numpy.py in the working directory must not be imported.
    command = [sys.executable, "-P", "-m", "pipelines.serving.worker", "--seconds", str(seconds)]
    return subprocess.Popen(command, stdin=channel.fileno(), stdout=subprocess.DEVNULL, env=environment)


def _described(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
