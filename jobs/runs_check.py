"""`nightread runs check`: a plugin for Nagios, Icinga and Checkmk that notices a night which never ran.

Its exit codes are those of monitoring plugins (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN), and whatever keeps it from
answering is UNKNOWN, on one line of standard output: `jobs.cli` leaves this command's errors to `unknown`.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import typer

from jobs.console import Console, JsonOption
from jobs.options import parse_duration
from pipelines.errors import NightreadError, TryLater, UsageError

if TYPE_CHECKING:
    from pipelines.predictions.watching import Verdict

COMMAND: Final = ("runs", "check")
UNKNOWN: Final = 3
Answer = TypeVar("Answer")
Perfdata = tuple[str, float | int, str, float | None, float | None, int | None, int | None]


def check(
    results: Annotated[str, typer.Argument(help="The results folder or URI.")],
    max_age: Annotated[
        str, typer.Option(metavar="DURATION", help="CRITICAL when no night has finished for longer.")
    ] = "26h",
    warn_age: Annotated[
        str | None, typer.Option(metavar="DURATION", help="WARNING when no night has finished for longer.")
    ] = None,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="UNKNOWN when storage has not answered for so long.")
    ] = "10s",
    json: JsonOption = False,
) -> int:
    """Tell a monitoring system whether the nights are well: one line, and the exit codes of its plugins.

    0 OK; 1 WARNING: the last night ended with 3, 5 or 75 or was stopped, or a run is interrupted; 2 CRITICAL: no night
    has finished for too long, or the last one ended with 1, 2 or 4; 3 UNKNOWN: it cannot be told.
    """
    from pipelines.predictions.watching import judge, look

    limits = parse_duration("--max-age", max_age), None if warn_age is None else parse_duration("--warn-age", warn_age)
    if limits[1] is not None and limits[1] >= limits[0]:
        raise UsageError(f"--warn-age {warn_age} is not shorter than --max-age {max_age}.", "Give a shorter one.")
    seconds = parse_duration("--timeout", timeout)
    now = datetime.datetime.now(datetime.UTC)
    console = Console(json)
    seen = _within(seconds, lambda: look(results, now), lambda: _give_up(console, results, timeout))
    verdict = judge(seen, now, *limits)
    figures = perfdata(verdict, *limits)
    level = verdict.level
    answer = {
        "status": level.name,
        "reasons": list(verdict.reasons),
        "finished_at": verdict.finished.ended_at if verdict.finished else None,
        "running": [record.run_id for record in seen.running],
        "interrupted": [record.run_id for record in seen.interrupted],
        "perfdata": {name: value for name, value, *_ in figures},
        "exit_code": int(level),
    }
    console.result(answer, status_line(level.name, _said(verdict), figures))
    return int(level)


def unknown(console: Console, error: NightreadError, _exit_code: int = UNKNOWN) -> int:
    """Answer UNKNOWN in place of an error.

    Args:
        console: Where.
        error: What keeps the command from answering.
        _exit_code: What it would be for any other command.

    Returns:
        The exit code.
    """
    told = {"code": error.code, "message": error.message, "cure": error.cure}
    answer = {"status": "UNKNOWN", "reasons": [error.message], "error": told, "exit_code": UNKNOWN}
    console.result(answer, status_line("UNKNOWN", str(error), ()))
    return UNKNOWN


def perfdata(verdict: Verdict, max_age: float, warn_age: float | None) -> list[Perfdata]:
    """The figures of the night that finished last: label, value, unit, warning and critical limit, least and most.

    The label `drift` is 0 for none, 1 for a certain but small one, 2 for drift, -1 where it cannot be told.
    """
    from pipelines.predictions.prometheus import drift_number

    night, age = verdict.finished, verdict.age_seconds
    if night is None or age is None:
        return []
    scored, failed = int(night.counts.get("scored") or 0), int(night.counts.get("failed") or 0)
    figures: list[Perfdata] = [
        ("age", round(age), "s", warn_age, max_age, 0, None),
        ("scored", scored, "", None, None, 0, None),
        ("failed", failed, "", None, None, 0, None),
        ("failed_share", round(100 * failed / max(1, scored + failed), 3), "%", None, None, 0, 100),
        ("remaining", int(night.counts.get("remaining") or 0), "", None, None, 0, None),
        ("seconds", round(night.seconds, 1), "s", None, None, 0, None),
    ]
    if night.images_per_second is not None:
        figures.append(("rate", round(night.images_per_second, 2), "", None, None, 0, None))
    if night.drift is not None:
        figures.append(("drift", drift_number(night.drift), "", None, None, -1, 2))
    return figures


def status_line(status: str, text: str, figures: Sequence[Perfdata]) -> str:
    """One line of plugin output; what would end the text early is replaced."""
    safe = " ".join(text.replace("|", "/").split())
    told = " ".join(
        f"{name}={_figure(value)}{unit};{_figure(warn)};{_figure(critical)};{_figure(least)};{_figure(most)}".rstrip(
            ";"
        )
        for name, value, unit, warn, critical, least, most in figures
    )
    return f"NIGHTREAD {status} - {safe}" + (f"|{told}" if told else "")


def _figure(value: float | int | None) -> str:
    """A number without exponent, as the plugins' grammar has it; nothing for none."""
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _said(verdict: Verdict) -> str:
    from pipelines.predictions.watching import in_words

    said = list(verdict.reasons)
    night, age = verdict.finished, verdict.age_seconds
    if night is not None and age is not None:
        counts = night.counts
        text = f"a night finished {in_words(age)} ago: {counts.get('scored') or 0:,} scored"
        text += f", {counts['failed']:,} failed" if counts.get("failed") else ""
        text += f", {counts['remaining']:,} left over" if counts.get("remaining") else ""
        said.append(text)
        said += _drift_said(night.drift)
    # A message of an error is a sentence, and here it stands among others.
    return "; ".join(one.rstrip(".") for one in said)


def _drift_said(drift: Mapping[str, Any] | None) -> list[str]:
    """Which figures are no longer as they were; what became of them is too long for a line, and `runs show` has it."""
    verdict = None if drift is None else drift.get("verdict")
    if drift is None or verdict not in ("watch", "drift"):
        return []
    figures = [str(one.get("figure")) for one in drift.get("figures") or () if one.get("verdict") == verdict]
    return [f"{'drift' if verdict == 'drift' else 'small drift'}: {', '.join(figures) or 'see runs show'}"]


def _within(seconds: float, ask: Callable[[], Answer], give_up: Callable[[], NoReturn]) -> Answer:
    """Ask in a thread, and do not wait for it longer: a share that hangs holds whoever touches it, for ever."""
    outcome: list[Answer | BaseException] = []

    def work() -> None:
        try:
            outcome.append(ask())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        give_up()
    answer = outcome[0]
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _give_up(console: Console, results: str, timeout: str) -> NoReturn:
    error = TryLater(f"{results!r} did not answer within {timeout}.", "Look at its storage, and at --timeout.")
    code = unknown(console, error)
    sys.stdout.flush()
    os._exit(code)  # an ordinary end would wait for the threads that hang
