"""What runs on the cluster for `nightread submit`: the command itself, each line of its answer marked in the log."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TextIO

from cluster.submission import ANSWER_MARK
from cluster.wheel import LOCK, PROJECT
from jobs.cli import main, tell_failure, wants_json
from jobs.console import Console
from pipelines.errors import NightreadError
from pipelines.scoring.worker_check import installed, refuse_others


class MarkedLines(io.TextIOBase):
    """A text stream that begins each line with the mark.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        """Write whole lines; what has no end yet waits for it."""
        *lines, self._rest = (self._rest + text).split("\n")
        self._stream.write("".join(f"{ANSWER_MARK}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        self._stream.flush()

    def end(self) -> None:
        """Write what waits for the end of its line."""
        if self._rest:
            self.write("\n")
        self.flush()


def run(arguments: Sequence[str]) -> int:
    """Run a command as `nightread` does; returns its exit code."""
    answers = MarkedLines(sys.stdout)
    with contextlib.redirect_stdout(answers):
        try:
            refuse_others(locked(), installed(), "the node where the job began", "the machine that sent it")
            code = main(arguments)
        except NightreadError as error:
            code = tell_failure(Console(wants_json(arguments, os.environ)), error, error.exit_code)
        answers.end()
    return code


def locked() -> dict[str, str]:
    """The versions that the wheel was sent with, by name; none where this is no such wheel."""
    text = metadata.distribution(PROJECT).read_text(LOCK) or ""
    return dict(line.split("==", 1) for line in text.splitlines() if "==" in line)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
