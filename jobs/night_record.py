"""What a `score` command leaves of itself, however it ends: its night in the results."""

from __future__ import annotations

import contextlib
import datetime
import signal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs.console import Console
from pipelines.errors import NightreadError, Stopped

if TYPE_CHECKING:
    from pipelines.predictions.nights import NightRecord
    from pipelines.scoring.config import ScoreConfig


class Ending:
    """Where a command puts its answer, for the night that is written after it."""

    def __init__(self) -> None:
        self.answer: Mapping[str, Any] | None = None


@contextlib.contextmanager
def night_recorded(config: ScoreConfig, console: Console) -> Iterator[Ending]:
    """Write the night when the block ends, whatever its end; a dry run is none.

    That the night cannot be written is told on standard error, and changes nothing about how the command ends.

    Args:
        config: What was asked.
        console: Where.
    """
    if config.dry_run:
        yield Ending()
        return
    started, ending = datetime.datetime.now(datetime.UTC), Ending()
    try:
        yield ending
    except BaseException as error:
        _leave(config, console, _night(config, started, ending, error))
        raise
    _leave(config, console, _night(config, started, ending, None))


def _leave(config: ScoreConfig, console: Console, night: NightRecord) -> None:
    from pipelines.predictions.nights import write_night

    try:
        write_night(config.results, night)
    except NightreadError as error:
        console.warn(f"This night is not written down in the results: {error}")


def _night(config: ScoreConfig, started: datetime.datetime, ending: Ending, error: BaseException | None) -> NightRecord:
    from pipelines.predictions.nights import COUNTS, NightRecord
    from pipelines.storage import paths

    answer = ending.answer or {}
    code, told = _ended(error)
    return NightRecord(
        started_at=started,
        ended_at=datetime.datetime.now(datetime.UTC),
        exit_code=code if error is not None else int(answer["exit_code"]),
        archive=paths.escape_name(paths.canonical(config.archive)),
        model=paths.escape_name(config.model),
        error=told,
        runs=tuple(answer.get("runs", ())),
        counts={name: answer[name] for name in COUNTS if name in answer},
        images_per_second=answer.get("images_per_second"),
        table_version=answer.get("table_version"),
        drift=answer.get("drift"),
        who=config.who,
    )


def _ended(error: BaseException | None) -> tuple[int, dict[str, str] | None]:
    """The exit code that an error becomes, and what is told of it."""
    if error is None:
        return 0, None
    if isinstance(error, KeyboardInterrupt):
        return 128 + _signal(error), _told(Stopped.code, "Stopped before the work was done.")
    if isinstance(error, Stopped):
        return 128 + _signal(error), _told(error.code, error.message, error.cure)
    if isinstance(error, NightreadError):
        return error.exit_code, _told(error.code, error.message, error.cure)
    # What a library says may hold the name of an image; the traceback on standard error has it.
    return 1, _told("defect", f"{type(error).__name__}; the traceback is on standard error.")


def _told(code: str, message: str, cure: str = "") -> dict[str, str]:
    return {"code": code, "message": message, "cure": cure}


def _signal(error: BaseException | None) -> int:
    """The signal behind an error, SIGINT where none is known; `jobs.cli` puts its number into the KeyboardInterrupt."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) and error.args and isinstance(error.args[0], int):
            return error.args[0]
        error = error.__cause__ or error.__context__
    return signal.SIGINT
