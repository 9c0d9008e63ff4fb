"""A process of its own for decoding, so that a file that kills or hangs its decoder is named instead of feared.

`DecodeChild` is the parent's side; `python -m pipelines.images.child --input-size N` is the child. The child leaves
when its input closes, so it never outlives its parent by more than the picture in hand, and an alarm clock that no
hanging C code can mask ends it even there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipelines.errors import ImageFailure, TryLater
from pipelines.images.frames import ANSWER, READY, REQUEST, pack, pack_failure, pack_prepared, unpack
from pipelines.images.header import MAX_BYTES
from pipelines.images.members import load_pillow
from pipelines.images.preprocess import Prepared, Preprocessing

MEMORY_BYTES = 4 * 1024**3
START_SECONDS = 60.0
# The child's own alarm: later than the parent's limit, so that it only rings where no parent is left to act.
ALARM_SLACK_SECONDS = 5


class _Died(Exception):
    """The child closed its pipes."""


class _Late(Exception):
    """The child did not answer in time."""


class DecodeChild:
    """Prepares pictures in a child process with limits; restarts it after a death.

    Not thread-safe: one thread uses one child.

    Args:
        input_size: Side of the model's input in pixels.
        seconds: Time for one picture, decoding and resizing; the child's own start does not count.
    """

    def __init__(self, input_size: int, seconds: float) -> None:
        self._side = Preprocessing(input_size).input_size
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> DecodeChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id; None where none runs."""
        return None if self._process is None else self._process.pid

    def prepare(self, data: bytes) -> Prepared:
        """Prepare one file in the child.

        Args:
            data: The whole file.

        Returns:
            As `Preprocessing.prepare`.

        Raises:
            ImageFailure: As `Preprocessing.prepare`; `decoder_crashed` where the child died of it, `timed_out` where
                it took longer than the limit.
            TryLater: If no child can be started: that is no picture's fault.
        """
        if len(data) > MAX_BYTES:
            raise ImageFailure("too_large", f"{len(data)} bytes; the limit is {MAX_BYTES}.")
        process = self._started()
        deadline = time.monotonic() + self._seconds
        try:
            _send(process, REQUEST.pack(len(data)), deadline)
            _send(process, data, deadline)
            message = _receive_message(process, deadline)
            pixels = _receive(process, self._side**2 * 3, deadline) if "prepared" in message else b""
        except _Late as late:
            self._end()
            raise ImageFailure("timed_out", f"Decoding took longer than {self._seconds:g} s.") from late
        except _Died as death:
            how = _describe(self._end())
            raise ImageFailure("decoder_crashed", f"The decoding process {how}.") from death
        except BaseException:
            # Half an exchange cannot be continued: the next answer would belong to this picture.
            self._end()
            raise
        return unpack(message, pixels, self._side)

    def close(self) -> None:
        """End the child; may be called twice."""
        self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        # A child that died between two pictures was killed by someone else, and no picture is to blame.
        self._end()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        try:
            self._process = _launch(self._side, self._seconds, self._errors)
            if _receive_message(self._process, time.monotonic() + START_SECONDS) != READY:
                raise _Died
        except (_Died, _Late, OSError) as error:
            reason = _last_line(self._errors)
            self._end()
            raise TryLater(
                f"The decoding process does not start: {reason or type(error).__name__.strip('_').lower()}.",
                "Look at memory and at the installation (`nightread doctor`).",
            ) from error
        return self._process

    def _end(self) -> int | None:
        """Kill and reap the child; its return code, negative for a signal."""
        process, self._process = self._process, None
        errors, self._errors = self._errors, None
        if errors is not None:
            errors.close()
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A dying child may close its pipes a moment before it can be reaped; its own code tells more than ours.
            process.wait(0.2 if process.poll() is None and _hung_up(process) else 0)
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return process.wait()


def _launch(side: int, seconds: float, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    # -P: a file named numpy.py in the working directory must not be imported.
    command = [
        sys.executable,
        "-P",
        "-m",
        "pipelines.images.child",
        "--input-size",
        str(side),
        "--seconds",
        str(seconds),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=0
    )
    os.set_blocking(_descriptor(process.stdin), False)
    os.set_blocking(_descriptor(process.stdout), False)
    return process


def _descriptor(pipe: IO[bytes] | None) -> int:
    if pipe is None:
        raise _Died
    return pipe.fileno()


def _hung_up(process: subprocess.Popen[bytes]) -> bool:
    poll = select.poll()
    poll.register(_descriptor(process.stdout), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _wait(descriptor: int, events: int, deadline: float) -> None:
    # poll, not select: a busy parent has descriptors above 1,023.
    poll = select.poll()
    poll.register(descriptor, events)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise _Late


def _send(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    descriptor, rest = _descriptor(process.stdin), memoryview(data)
    while rest:
        _wait(descriptor, select.POLLOUT, deadline)
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise _Died from error


def _receive(process: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
    descriptor, parts = _descriptor(process.stdout), bytearray()
    while len(parts) < count:
        _wait(descriptor, select.POLLIN, deadline)
        try:
            part = os.read(descriptor, count - len(parts))
        except BlockingIOError:
            continue
        if not part:
            raise _Died
        parts += part
    return bytes(parts)


def _receive_message(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    (length,) = ANSWER.unpack(_receive(process, ANSWER.size, deadline))
    message: dict[str, Any] = json.loads(_receive(process, length, deadline))
    return message


def _describe(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read()[-4096:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def main(arguments: list[str] | None = None) -> None:
    """The child: answers pictures until its input closes."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.images.child", description=main.__doc__)
    parser.add_argument("--input-size", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="Time for one picture.")
    options = parser.parse_args(arguments)
    # Ctrl-C reaches the whole group; the parent decides what becomes of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    preprocessing = Preprocessing(options.input_size)
    # The golden pictures load the other decoders: a broken installation ends the child before any picture is blamed.
    load_pillow()
    _ = preprocessing.id
    _limit()
    _serve(preprocessing, sys.stdin.buffer, answers, options.seconds)


def _limit() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    # A core file would hold a patient's picture.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(preprocessing: Preprocessing, requests: IO[bytes], answers: IO[bytes], seconds: float) -> None:
    _write(answers, pack(READY))
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        (length,) = REQUEST.unpack(head)
        data = requests.read(length)
        if len(data) < length:
            return
        signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_SLACK_SECONDS)
        try:
            answer = pack_prepared(preprocessing.prepare(data))
        except ImageFailure as failure:
            answer = pack_failure(failure)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            _write(answers, answer)
        except BrokenPipeError:
            return


def _write(answers: IO[bytes], message: bytes) -> None:
    rest = memoryview(message)
    while rest:
        rest = rest[answers.write(rest) :]


if __name__ == "__main__":
    main()
