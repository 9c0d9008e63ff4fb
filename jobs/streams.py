"""What stands in for standard output under `--json`, and for standard error under `--log-format json`.

`jobs.cli` puts an `EventLog` in the place of standard error before anything is said; `jobs.console` tells it events.
What is written there by anybody else, libraries and child processes too, becomes an event of level `debug`: it is text
for people, and may name places. At level `info` there are only figures, phases and the ids of runs.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import io
import json as json_module
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TextIO

import typer


class LogFormat(enum.StrEnum):
    """How a command tells its progress on standard error."""

    TEXT = "text"
    JSON = "json"


# `jobs.cli` looks for it itself, since what is wrong with a command line is told in the same format.
LogFormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="Progress, warnings and errors: text, or one JSON value a line.")
]

_NAMES: Final = ("run_id", "runs", "resumed", "version", "model_id", "verdict")
"""What an answer's figures keep of its texts."""

_DRAIN_SECONDS: Final = 1.0


class EventLog(io.TextIOBase):
    """Standard error as JSON lines.

    Args:
        stream: Where they go.
        command: The command's name, which every event says.
    """

    def __init__(self, stream: TextIO, command: str) -> None:
        self._stream: TextIO | None = stream
        self._fields: dict[str, Any] = {"command": command}
        self._rest = ""
        self._lock = threading.RLock()

    def about(self, **fields: Any) -> None:
        """Say these in every event from now on; one that is None no longer."""
        self._fields = {name: value for name, value in {**self._fields, **fields}.items() if value is not None}

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Write one event.

        Args:
            level: `debug`, `info`, `warning` or `error`.
            event: Its name.
            fields: JSON values.
        """
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json_module.dumps({"time": time, "level": level, "event": event, **self._fields, **fields})
        with self._lock:
            self._put(line + "\n")

    def progress(
        self,
        counted: str,
        done: int,
        total: int | None,
        failed: int,
        rate: float | None,
        seconds_left: float | None,
        waiting_for: str,
    ) -> None:
        """Tell how far the work has come, as `console.Progress.update` is told; to be kept waiting is a warning."""
        fields: dict[str, Any] = {"counted": counted, "done": done, "total": total, "failed": failed}
        fields |= {"per_second": _finite(rate), "seconds_left": _finite(seconds_left)}
        if waiting_for:
            self.event("warning", "waiting", message=waiting_for, **fields)
        else:
            self.event("info", "progress", **fields)

    def output(self, line: str) -> None:
        """Pass on a line that somebody wrote: as it is where it is an event already, as of a job that is followed."""
        if not line.strip():
            return
        try:
            value = json_module.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict) and {"time", "level", "event"} <= value.keys():
            with self._lock:
                self._put(line.strip() + "\n")
        else:
            self.event("debug", "output", message=line.rstrip())

    def write(self, text: str) -> int:
        """Take text for people: each whole line is an event."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self.output(line)
        return len(text)

    def end(self) -> None:
        """Write what waits for the end of its line."""
        with self._lock:
            rest, self._rest = self._rest, ""
            self.output(rest)

    def flush(self) -> None:
        """Nothing waits but a line without its end."""

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """Descriptor 2, for those who write there themselves."""
        return 2

    def _put(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # its reader has gone away, and the command goes on
            self._stream = None


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def event_log() -> EventLog | None:
    """The log of this process; None where it tells in text."""
    return sys.stderr if isinstance(sys.stderr, EventLog) else None


def figures(value: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Of a command's answer what may stand in a log: numbers, counts by name, and the ids of runs and models."""
    if not isinstance(value, Mapping):
        return {}

    def is_number(item: object) -> bool:
        return item is None or isinstance(item, bool | int | float)

    return {
        str(key): dict(item) if isinstance(item, Mapping) else item
        for key, item in value.items()
        if key in _NAMES
        or is_number(item)
        or (isinstance(item, Mapping) and item and all(is_number(inner) for inner in item.values()))
    }


@contextlib.contextmanager
def standard_error_as_events(command: str) -> Iterator[EventLog]:
    """Turn all that is written to standard error into events, while the block runs."""
    before = sys.stderr
    with contextlib.ExitStack() as stack:
        log = EventLog(stack.enter_context(_own_end(before)), command)
        sys.stderr = log
        try:
            if log._stream is not before:
                stack.enter_context(_lines_of_others(log))
            yield log
        finally:
            log.end()
            sys.stderr = before


@contextlib.contextmanager
def _own_end(stream: TextIO) -> Iterator[TextIO]:
    """A stream that goes where standard error goes now, whatever becomes of descriptor 2."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # not a file, as in a test
        yield stream
        return
    own = open(os.dup(descriptor), "w", encoding="ascii", errors="backslashreplace")  # noqa: SIM115 - closed below
    try:
        yield own
    finally:
        with contextlib.suppress(BrokenPipeError):
            own.close()


@contextlib.contextmanager
def _lines_of_others(log: EventLog) -> Iterator[None]:
    """Read what libraries and child processes write to descriptor 2."""
    kept = os.dup(2)
    reading, writing = os.pipe()

    def read() -> None:
        with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                log.output(line)

    thread = threading.Thread(target=read, name="standard error", daemon=True)
    os.dup2(writing, 2)
    os.close(writing)
    thread.start()
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        thread.join(_DRAIN_SECONDS)  # a child that lives on holds the pipe open


class _Diverted(io.TextIOBase):
    """Stands in for standard output under `--json`: what a library prints goes to standard error."""

    def __init__(self, answers: TextIO, notes: TextIO) -> None:
        self.answers = answers
        self._notes = notes

    def write(self, text: str) -> int:
        return self._notes.write(text)

    def flush(self) -> None:
        self._notes.flush()

    def fileno(self) -> int:
        return self._notes.fileno()


@contextlib.contextmanager
def standard_output_for_json() -> Iterator[None]:
    """Keep standard output for the one JSON value, whatever libraries print while the block runs."""
    with contextlib.redirect_stdout(_Diverted(sys.stdout, sys.stderr)):
        yield
