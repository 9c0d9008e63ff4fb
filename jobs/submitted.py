"""What runs on the cluster for `nightread submit`: the command itself, each line of its answer marked in the log."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import TextIO

# As in cluster.submission, which cannot be imported where libraries are missing.
MARK = "\x1e"


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
        self._stream.write("".join(f"{MARK}{line}\n" for line in lines))
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
    for needed in ("ray", "typer"):
        if find_spec(needed) is None:
            return _wrong_python(needed)
    from jobs.cli import main, tell_failure, wants_json
    from jobs.console import Console
    from pipelines.errors import NightreadError
    from pipelines.scoring.worker_check import installed, refuse_others

    answers = MarkedLines(sys.stdout)
    with contextlib.redirect_stdout(answers):
        try:
            refuse_others(locked(), installed(), "the node where the job began", "the machine that sent it")
            code = main(arguments)
        except NightreadError as error:
            code = tell_failure(Console(wants_json(arguments, os.environ)), error, error.exit_code)
        answers.end()
    return code


def _wrong_python(lacking: str) -> int:
    """Say that this is not the Python that Ray runs with: a shell found another one."""
    message = f"On the cluster `python` is {sys.executable}, which has no {lacking}."
    cure = "Start Ray there with the bin folder of its own Python first in PATH."
    print(f"error: {message}\n  {cure}", file=sys.stderr)
    told = {"error": {"code": "usage", "message": message, "cure": cure}, "exit_code": 2}
    print(f"{MARK}{json.dumps(told)}", flush=True)
    return 2


def locked() -> dict[str, str]:
    """The versions that the wheel was sent with, by name; none where this is no such wheel."""
    from cluster.wheel import LOCK, PROJECT

    text = metadata.distribution(PROJECT).read_text(LOCK) or ""
    return dict(line.split("==", 1) for line in text.splitlines() if "==" in line)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
