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
def night_recorded(config: ScoreConfig, console: Console, metrics_file: str | None = None) -> Iterator[Ending]:
    """Write the night when the block ends, whatever its end; a dry run is none.

    That it cannot be written is told on standard error, and changes nothing about how the command ends.

    Args:
        config: What was asked.
        console: Where.
        metrics_file: Where the night's figures are left for Prometheus; None: nowhere.

    Raises:
        UsageError: If the metrics file is in a place where none can be written.
    """
    if config.dry_run:
        yield Ending()
        return
    started, ending = datetime.datetime.now(datetime.UTC), Ending()
    if metrics_file is not None:
        from pipelines.predictions.prometheus import check_metrics_file

        check_metrics_file(metrics_file)
    try:
        yield ending
    except BaseException as error:
        _leave(config, console, _night(config, started, ending, error), metrics_file)
        raise
    _leave(config, console, _night(config, started, ending, None), metrics_file)


def _leave(config: ScoreConfig, console: Console, night: NightRecord, metrics_file: str | None) -> None:
    from pipelines.predictions.nights import write_night
    from pipelines.predictions.prometheus import write_metrics

    written = True
    try:
        write_night(config.results, night)
    except NightreadError as error:
        written = False
        console.warn(f"This night is not written down in the results: {error}")
    if metrics_file is None:
        return
    try:
        write_metrics(metrics_file, config.results, night, ask_results=written)
    except NightreadError as error:
        console.warn(f"The metrics of this night are not written: {error}")


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
        model=paths.escape_name(paths.canonical(config.model)),
        error=told,
        runs=tuple(answer.get("runs", ())),
        counts={name: answer[name] for name in COUNTS if name in answer},
        images_per_second=answer.get("images_per_second"),
        table_version=answer.get("table_version"),
        drift=_drift_told(answer.get("drift")),
        who=config.who,
    )


def _drift_told(drift: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of a report on drift, what a night keeps; the run's folder has all of it."""
    if drift is None:
        return None
    of_all, of_each = (
        ("verdict", "sentence", "reference"),
        ("figure", "verdict", "value", "expected", "effect", "psi", "p"),
    )
    told = {name: drift.get(name) for name in of_all}
    return {**told, "figures": [{name: figure.get(name) for name in of_each} for figure in drift.get("figures", ())]}


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
