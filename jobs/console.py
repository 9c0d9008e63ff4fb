"""What a person or a program sees: the progress bar, tables and the one JSON value. The only place that prints.

Answers go to standard output, progress and warnings to standard error. With `--json` standard output carries one
JSON value and nothing else. A reader that goes away (`| head`) silences the output and changes nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import json as json_module
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from jobs.drawing import Line, plain_table, rich_table, terminal_page, terminal_table
from jobs.streams import event_log, figures

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output and nothing else.")]

SECONDS_BETWEEN_LINES = 30.0


class Console:
    """Prints for one command.

    Args:
        json: True where the command was given `--json`.
        clock: Seconds that only go forward; a test passes its own.
    """

    def __init__(self, json: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.json = json
        self._clock = clock
        self._answers: TextIO | None = getattr(sys.stdout, "answers", sys.stdout)
        self._notes: TextIO | None = sys.stderr
        self._above: RichConsole | None = None  # prints above what is being drawn

    @property
    def terminal(self) -> bool:
        """True where a person watches: answers are no JSON and go to a terminal."""
        return not self.json and self._answers is not None and self._answers.isatty()

    @property
    def watched(self) -> bool:
        """True where progress goes to a terminal that can draw a bar."""
        return self._notes is not None and self._notes.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str = "") -> None:
        """Print a line of the answer; with `--json` it goes to standard error."""
        if self.json:
            self._note(text)
        elif self._above is not None and self.terminal:
            self._above.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            self._answers = _write(self._answers, printable(text) + "\n")

    def note(self, text: str) -> None:
        """Print a line about the progress on standard error, above a bar that is drawn there."""
        if self._above is not None:
            self._above.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        else:
            self._note(text)

    def warn(self, text: str) -> None:
        """Print a warning on standard error."""
        if (log := event_log()) is not None:
            log.event("warning", "warning", message=text)
        else:
            self._note(f"warning: {text}")

    def error(self, message: str, cure: str, code: str = "error") -> None:
        """Print what was wrong, and on the next line what to do about it; a program gets the code as well."""
        if (log := event_log()) is not None:
            log.event("error", "error", code=code, message=message, cure=cure)
            return
        self._note(f"error: {message}")
        if cure:
            self._note(f"  {cure}")

    def begin(self, phase: str, total: int | None, run_id: str | None) -> None:
        """Tell a log that is JSON which phase of which run begins; every event says so from then on."""
        if (log := event_log()) is not None:
            log.about(phase=phase, run_id=run_id)
            log.event("info", "phase", total=total)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print an aligned table; numbers stand right, cells that a terminal cannot hold are wrapped."""
        cells, right = _cells(columns, rows)
        if self.terminal:
            self._answers = _write(self._answers, terminal_table(columns, cells, right))
        else:
            self.say(plain_table(columns, cells, right))

    def page(self, lines: Sequence[Line]) -> None:
        """Print lines of pieces of text, in colour on a terminal; what a piece holds is shown, not obeyed."""
        safe = [[(printable(text), style) for text, style in line] for line in lines]
        if self.terminal and os.environ.get("TERM") != "dumb":
            self._answers = _write(self._answers, terminal_page(safe))
        else:
            self.say("\n".join("".join(text for text, _ in line).rstrip() for line in safe))

    @property
    def blocks(self) -> bool:
        """Whether the answer's place can show the blocks of a bar, and not only ASCII."""
        encoding = getattr(self._answers, "encoding", None) or "ascii"
        try:
            "▁█·".encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return not self.terminal or os.environ.get("TERM") not in ("dumb", "linux")

    def result(self, value: Mapping[str, Any] | Sequence[Any], text: str | None = None) -> None:
        """Print the command's answer: the value with `--json`, else the text where there is one."""
        if (log := event_log()) is not None:
            log.event("info", "answer", **figures(plain(value)))
        if self.json:
            answer = json_module.dumps(plain(value), ensure_ascii=False, allow_nan=False)
            self._answers = _write(self._answers, answer + "\n")
        elif text is not None:
            self.say(text)

    @contextlib.contextmanager
    def progress(self, total: int | None, what: str) -> Iterator[Progress]:
        """Show how far a piece of work has come, for as long as the block runs.

        On a terminal it is a bar, elsewhere one line every 30 s; both on standard error.

        Args:
            total: How many there are, or None where nobody knows yet.
            what: The plural noun of what is counted, as in `images`.
        """
        if not self.watched:
            yield _Lines(total, what, self._note, self._clock)
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichBar

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
        bar = RichBar(
            *columns,
            console=RichConsole(file=self._notes),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        with bar, self._drawing(bar.console):
            yield _Bar(total, what, bar, bar.add_task(what, total=total, state=""))

    @contextlib.contextmanager
    def board(self) -> Iterator[Board]:
        """Show lines and a table that are drawn again and again, for as long as the block runs.

        Only for a terminal that can draw (`watched`), on standard error; a log gets the lines of `progress`.
        """
        from rich.console import Console as RichConsole
        from rich.live import Live

        live = Live(
            console=RichConsole(file=self._notes),
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        with live, self._drawing(live.console):
            yield Board(live)

    @contextlib.contextmanager
    def _drawing(self, above: RichConsole) -> Iterator[None]:
        self._above = above
        try:
            yield
        finally:
            self._above = None

    def _note(self, text: str) -> None:
        self._notes = _write(self._notes, printable(text) + "\n")


class Progress:
    """How far the work has come; `Console.progress` makes it."""

    def __init__(self, total: int | None, what: str) -> None:
        self.total = total
        self.what = what

    def update(
        self, done: int, *, failed: int = 0, rate: float | None = None, eta: float | None = None, note: str = ""
    ) -> None:
        """Tell what is done so far.

        Args:
            done: How many are finished, failed ones among them.
            failed: How many of them failed.
            rate: How many a second.
            eta: Seconds left.
            note: What keeps it waiting; it then takes the place of the two.
        """
        raise NotImplementedError


class _Lines(Progress):
    """One line every 30 s, for logs."""

    def __init__(self, total: int | None, what: str, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        super().__init__(total, what)
        self._write = write
        self._clock = clock
        self._last = clock()

    def update(
        self, done: int, *, failed: int = 0, rate: float | None = None, eta: float | None = None, note: str = ""
    ) -> None:
        now = self._clock()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            if (log := event_log()) is not None:
                log.progress(self.what, done, self.total, failed, rate, eta, note)
            else:
                self._write(f"{self.what}: {progress_text(done, self.total, failed, rate, eta, note)}")


class _Bar(Progress):
    """A bar on a terminal."""

    def __init__(self, total: int | None, what: str, bar: RichProgress, task: TaskID) -> None:
        super().__init__(total, what)
        self._bar = bar
        self._task = task

    def update(
        self, done: int, *, failed: int = 0, rate: float | None = None, eta: float | None = None, note: str = ""
    ) -> None:
        state = progress_text(done, self.total, failed, rate, eta, note)
        self._bar.update(self._task, completed=done, state=state)


class Board:
    """Lines and a table that are drawn again and again; `Console.board` makes it."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def draw(
        self, above: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[object]], below: Sequence[str]
    ) -> None:
        """Draw these lines, this table and these lines in place of what stands there."""
        from rich.console import Group
        from rich.text import Text

        def lines(texts: Sequence[str]) -> list[Text]:
            return [Text(printable(text), overflow="ellipsis", no_wrap=True) for text in texts]

        table = [rich_table(columns, *_cells(columns, rows))] if rows else []
        self._live.update(Group(*lines(above), *table, *lines(below)))


def progress_text(
    done: int, total: int | None, failed: int, rate: float | None, eta: float | None, note: str = ""
) -> str:
    """Say how far the work has come, as in `1,200 of 2,000, 3 failed, 190.2/s, 0:04 left`."""
    parts = [f"{done:,}" if total is None else f"{done:,} of {total:,}"]
    if failed:
        parts.append(f"{failed:,} failed")
    if note:
        return ", ".join([*parts, note])
    if rate is not None and math.isfinite(rate):
        parts.append(f"{rate:,.1f}/s")
    if eta is not None and math.isfinite(eta):
        parts.append(f"{duration(eta)} left")
    return ", ".join(parts)


def program() -> str:
    """How this program was started, ready for a shell: `nightread` where that finds it, else what was typed."""
    typed = sys.argv[0]
    if os.path.basename(typed) != "nightread":
        return "nightread"
    found = shutil.which("nightread")
    return "nightread" if found and os.path.realpath(found) == os.path.realpath(typed) else shlex.quote(typed)


def duration(seconds: float) -> str:
    """Write seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows: NaN becomes null, times ISO 8601, numbers of any kind plain numbers.

    Raises:
        TypeError: If the value has no such form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return None
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes | bytearray):
        return bytes(value).hex()
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, without importing NumPy
        return plain(value.tolist())
    raise TypeError(f"no JSON form for {type(value).__name__}")


def printable(text: str) -> str:
    r"""Write control characters as `\xNN`, so that a file's name cannot steer the terminal; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not _is_control(c) else f"\\x{ord(c):02x}" for c in text)


def _cells(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[list[str]], list[bool]]:
    """Text of each cell, and which columns hold numbers only and stand right."""
    cells = [[_cell(value) for value in row] for row in rows]
    return cells, [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return printable(str(plain(value))).replace("\n", "\\n").replace("\t", "\\t")


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool))


def _is_control(character: str) -> bool:
    code = ord(character)
    # Besides C0 and C1: what separates lines and paragraphs, and the marks that turn the direction of writing, with
    # which a name can lie about its suffix.
    return code < 0x20 or 0x7F <= code < 0xA0 or 0x2028 <= code <= 0x202E or 0x2066 <= code <= 0x2069


def _write(stream: TextIO | None, text: str) -> TextIO | None:
    """Write and flush; None in place of the stream once its reader has gone away."""
    if stream is None:
        return None
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        return None
    return stream
