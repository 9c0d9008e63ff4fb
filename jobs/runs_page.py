"""One night on one page of a terminal."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.console import duration
from jobs.drawing import Line, bar, sparkline

if TYPE_CHECKING:
    from pipelines.evaluation.night_facts import NightView, Piece

NAME_WIDTH = 16
BAR_WIDTH = 24
# Of the bars that have words behind them: all of it fits a terminal of 80 columns.
SHORT_BAR = 12
SLOWEST_SHOWN = 5
_HEADING, _QUIET, _GOOD, _WARN, _BAD, _BAR = "bold", "dim", "green", "yellow", "red", "blue"
_STATE_STYLE = {"committed": _GOOD, "scoring": _GOOD, "interrupted": _WARN, "unsure": _WARN}


def page_lines(view: NightView, blocks: bool) -> list[Line]:
    """The page, line by line.

    Args:
        view: What is known.
        blocks: Whether bars may be drawn with blocks; else with ASCII.
    """
    from pipelines.evaluation.night_facts import concerns

    lines: list[Line] = list(_head(view))
    for concern in concerns(view):
        if concern == view.sentence:  # the line above says it
            continue
        lines.append([("look here".ljust(NAME_WIDTH), _WARN), (concern, "")])
    lines += _progress(view, blocks)
    lines += _counts(view)
    lines += _rate(view, blocks)
    lines += _time(view, blocks)
    lines += _slowest(view)
    lines += _drift(view)
    lines += _made_by(view)
    return lines


def _fact(name: str, value: str, style: str = "") -> Line:
    return [(f"{name} ".ljust(NAME_WIDTH), _QUIET), (value, style)]


def _heading(text: str, said: str = "") -> Iterator[Line]:
    yield []
    yield [(text, _HEADING), (f"  {said}" if said else "", _QUIET)]


def _head(view: NightView) -> Iterator[Line]:
    record, timings = view.record, view.timings
    yield _fact("run", record.run_id, _HEADING)
    yield _fact("state", view.sentence, _STATE_STYLE.get(view.state, _BAD))
    took = timings.get("seconds")
    yield _fact(
        "started",
        f"{record.started_at:%Y-%m-%d %H:%M:%S} UTC" + ("" if took is None else f", took {duration(took)}"),
    )
    own = record.configuration.get("runs") or ()
    if len(own) > 1 and record.run_id in own:
        yield _fact("of a command", f"run {list(own).index(record.run_id) + 1} of {len(own)}")
    rate = timings.get("images_per_second")
    if rate is not None:
        yield _fact("steady rate", f"{rate:,.1f} images/s")
    if timings.get("node_hours") is not None:
        yield _fact("cost", cost_text(timings))


def cost_text(timings: Mapping[str, Any]) -> str:
    """What the night cost, in machines and cores."""
    nodes, cores = int(timings.get("nodes") or 0), int(timings.get("cores") or 0)
    worked = float(timings.get("core_hours") or 0.0)
    return (
        f"{timings['node_hours']:.3f} node-hours on {nodes} {'node' if nodes == 1 else 'nodes'}, "
        f"{worked:.3f} core-hours of work on {cores} {'core' if cores == 1 else 'cores'}"
    )


def _progress(view: NightView, blocks: bool) -> Iterator[Line]:
    told = view.progress
    if told is None:
        return
    done, total = int(told.get("done") or 0), int(told.get("total") or 0)
    share = done / total if total else 0.0
    yield from _heading("Where it stands", _since(str(told.get("at", ""))))
    text = f" {done:,} of {total:,} images ({share:.1%})"
    yield [(bar(share, BAR_WIDTH, blocks).ljust(BAR_WIDTH, "·" if blocks else "."), _BAR), (text, "")]
    yield _fact("phase", str(told.get("phase", "")))
    if told.get("failed"):
        yield _fact("failed", f"{int(told['failed']):,}", _WARN)
    if told.get("rate"):
        yield _fact("rate", f"{float(told['rate']):,.1f} images/s")
    if told.get("seconds_left") is not None and view.state == "scoring":
        yield _fact("time left", duration(float(told["seconds_left"])))


def _since(at: str) -> str:
    """How long ago its last word was, by this machine's clock."""
    from pipelines.evaluation.night_facts import moment

    try:
        seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(at)).total_seconds()
    except (ValueError, TypeError):
        return ""
    return f"told {duration(seconds)} ago" if seconds >= 0 else f"told at {moment(at)}, by another machine's clock"


def _counts(view: NightView) -> Iterator[Line]:
    counts = view.record.counts
    yield from _heading("Images")
    for name, count in counts.items():
        if name in ("failed", "failed_by_code") or not isinstance(count, int):
            continue
        if count or name in ("found", "new", "scored"):
            yield _fact(name.replace("_", " "), f"{count:,}".rjust(12))
    failed = counts.get("failed")
    if failed is not None:
        yield _fact("failed", f"{failed:,}".rjust(12), _BAD if view.over_threshold else _WARN if failed else "")
    for code, count in sorted((counts.get("failed_by_code") or {}).items(), key=lambda one: -one[1]):
        yield _fact(f"  {code}", f"{count:,}".rjust(12))
        for example in view.examples.get(code, ()):
            yield [(" " * (NAME_WIDTH + 14), ""), (example.image_uri.replace("\n", "\\n"), _QUIET)]


def _rate(view: NightView, blocks: bool) -> Iterator[Line]:
    from pipelines.evaluation.night_facts import rate_points

    points = rate_points(view.record)
    if len(points) < 2:
        return
    rates = [rate for _, rate in points]
    said = f"images/s, from {min(rates):,.0f} to {max(rates):,.0f}, over {duration(points[-1][0])}"
    yield from _heading("Rate over time", said)
    yield [(sparkline(rates, blocks), _BAR)]


def _time(view: NightView, blocks: bool) -> Iterator[Line]:
    from pipelines.evaluation.night_facts import actor_pieces, driver_pieces

    yield from _pieces("Where the cores' time went", actor_pieces(view.timings), "core-time", blocks)
    yield from _pieces("Where the command's time went", driver_pieces(view.timings), "by the clock", blocks)


def _pieces(title: str, pieces: Sequence[Piece], what: str, blocks: bool) -> Iterator[Line]:
    if not pieces:
        return
    total = sum(piece.seconds for piece in pieces)
    yield from _heading(title, f"{_clock(total)} {what}")
    for piece in pieces:
        drawn = bar(piece.share, SHORT_BAR, blocks).ljust(SHORT_BAR)
        yield [
            (piece.name.ljust(8), ""),
            (f"{piece.share:6.1%} ", ""),
            (f"{_clock(piece.seconds):>9}  ", _QUIET),
            (f"{drawn} ", _BAR),
            (piece.meaning, _QUIET),
        ]


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _slowest(view: NightView) -> Iterator[Line]:
    if not view.slowest:
        return
    more = len(view.slowest) - SLOWEST_SHOWN
    yield from _heading("Slowest images", f"{more} more with --json or --html" if more > 0 else "")
    for seconds, name in view.slowest[:SLOWEST_SHOWN]:
        yield _fact(f"{seconds:8.2f} s", (name or "its name is gone with the plan").replace("\n", "\\n"))


def _drift(view: NightView) -> Iterator[Line]:
    drift = view.drift
    if drift is None:
        return
    yield from _heading("Drift")
    verdict = str(drift.get("verdict"))
    style = {"drift": _BAD, "watch": _WARN, "none": _GOOD}.get(verdict, _QUIET)
    yield _fact(verdict, str(drift.get("sentence", "")), style)
    for figure in drift.get("figures") or ():
        if figure.get("verdict") != "none" and figure.get("sentence") != drift.get("sentence"):
            yield _fact(f"  {figure.get('figure')}", str(figure.get("sentence", "")))


def _made_by(view: NightView) -> Iterator[Line]:
    record = view.record
    yield from _heading("What made it")
    for name, value in record.configuration.items():
        if name != "runs" and value not in (None, False, [], {}, ""):
            yield _fact(name.replace("_", " "), _text(value))
    yield _fact("user", f"{_text(record.who.get('user'))} on {_text(record.who.get('host'))}")
    yield _fact("command", " ".join(record.who.get("command_line", [])))
    yield _fact("versions", ", ".join(f"{name} {version}" for name, version in record.who.get("versions", {}).items()))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "none" if value is None else f"{value:,}" if type(value) is int else str(value)
