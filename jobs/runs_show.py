"""`nightread runs show`: one night on one page, and where a night stands that is still running."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Console, JsonOption
from jobs.runs_nights import too_many_failed
from jobs.runs_page import page_lines
from pipelines.errors import NightreadError, UsageError

if TYPE_CHECKING:
    from pipelines.evaluation.night_facts import NightView
    from pipelines.predictions.examples import Example
    from pipelines.predictions.runs import RunRecord
    from pipelines.predictions.standing import Standing
    from pipelines.storage.leases import Owner

# The owner of another machine is watched a little longer than it takes to show that it lives.
WATCH_SECONDS = 12.0
POLL_SECONDS = 1.0


def show(
    results: Annotated[str, typer.Argument(help="The results folder or URI.")],
    run: Annotated[str | None, typer.Argument(help="A run's id; without it the last one.")] = None,
    html: Annotated[str | None, typer.Option(help="Write the page to this file, to look at in a browser.")] = None,
    json: JsonOption = False,
) -> None:
    """Show one night: counts, failures with examples, where the time went; of a running one, where it stands.

    The page names images, which may say who a patient is: keep it where the results may go.
    """
    console = Console(json)
    view = look(results, run)
    answer = as_json(view)
    if html is not None:
        answer["html"] = _write_page(view, results, html)
    if json:
        console.result(answer)
    elif html is not None:
        console.say(f"Wrote {html}. It names images: keep it where the results may go.")
    else:
        console.page(page_lines(view, console.blocks))


def look(
    results: str,
    run: str | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> NightView:
    """Read what is known of a run, and of nothing else.

    Args:
        results: The results folder.
        run: Its id; None: the one that is being scored, else the last.
        clock: Monotonic seconds.
        sleep: Waits for some seconds, while an owner on another machine is watched.

    Raises:
        UsageError: If there is no such run.
        TryLater: If storage does not answer.
    """
    from pipelines.evaluation.night_facts import NightView
    from pipelines.predictions.runs import RunFolder
    from pipelines.predictions.standing import standings
    from pipelines.scoring.slowest import slowest_images
    from pipelines.storage import paths

    place = paths.canonical(results)
    record = _record(results, place, run)
    (standing,) = standings(place, [record], lambda owner: _stirs(place, owner, clock, sleep))
    record = standing.record
    examples, notes = _examples(place, record)
    return NightView(
        record,
        standing.state,
        _sentence(standing),
        too_many_failed(
            int(record.counts.get("failed") or 0),
            int(record.counts.get("scored") or 0),
            str(record.configuration.get("fail_threshold") or ""),
        ),
        standing.progress,
        examples,
        [(slow.seconds, slow.image_uri) for slow in slowest_images(RunFolder(place, record.run_id), record)],
        _drift(place, record),
        [*notes, *_since(place, record, run)],
    )


def as_json(view: NightView) -> dict[str, Any]:
    """The record, and what is known beside it."""
    return {
        **view.record.as_json(),
        "state": view.state,
        "sentence": view.sentence,
        "progress": view.progress,
        "failure_examples": {
            code: [{"image_uri": one.image_uri, "message": one.message} for one in examples]
            for code, examples in view.examples.items()
        },
        "slowest_images": [{"image_uri": name, "seconds": seconds} for seconds, name in view.slowest],
        "drift": view.drift,
        "notes": list(view.notes),
    }


def _record(results: str, place: str, run: str | None) -> RunRecord:
    from pipelines.predictions.runs import RunFolder
    from pipelines.storage import files, paths

    names = sorted(files.list_names(paths.join(place, "runs")), reverse=True)
    if run is not None:
        if run not in names:
            last = ", ".join(reversed(names[:3]))
            raise UsageError(
                f"There is no run {run!r} in {results!r}.", f"The last ones are: {last}." if last else "There is none."
            )
        return RunFolder(place, run).read_record()
    for name in names:
        # A folder without a record is a run that died before it had one.
        if (record := RunFolder(place, name).readable_record()) is not None:
            return _at_work(place, record)
    if files.exists(paths.join(place, "predictions")):
        raise UsageError(f"There is no run in {results!r} yet.", "The first `nightread score` makes one.")
    raise UsageError(f"There are no results in {results!r}.", "Check the path; `nightread score` makes them.")


def _at_work(place: str, newest: RunRecord) -> RunRecord:
    """Of the runs of one command, which are there before the first begins, the one that is being scored."""
    from pipelines.predictions.runs import RunFolder

    for name in newest.configuration.get("runs") or ():
        record = RunFolder(place, str(name)).readable_record()
        if record is not None and record.status == "running":
            return record
    return newest


def _sentence(standing: Standing) -> str:
    """Where the run stands, as a sentence."""
    record, owner = standing.record, standing.owner
    if standing.state == "interrupted":
        return "Interrupted: nobody is working on it. The same `score` command goes on with it."
    if owner is None:
        said = {
            "committed": f"Committed: its rows are in version {record.table_version} of the table.",
            "abandoned": "Abandoned: it has no rows, and its images are new again.",
            "rolled_back": "Rolled back: its rows were taken out of the table again, and its images are new.",
        }
        return said.get(record.status, f"Its status is {record.status}.")
    who = f"process {owner.pid} on {owner.host}" if owner.pid is not None else "a process whose lease cannot be read"
    if standing.state == "scoring":
        return f"Being worked on by {who}."
    return (
        f"Held by {who}, which has shown no sign of life for {WATCH_SECONDS:.0f} seconds: it may be dead. If it is, "
        "the same `score` command takes over after two minutes."
    )


def _stirs(place: str, owner: Owner, clock: Callable[[], float], sleep: Callable[[float], None]) -> bool:
    from pipelines.storage.leases import owner_of

    until = clock() + WATCH_SECONDS
    while clock() < until:
        sleep(POLL_SECONDS)
        now = owner_of(place)
        if now is None or now.sign != owner.sign:
            return now is not None
    return False


def _examples(place: str, record: RunRecord) -> tuple[dict[str, list[Example]], list[str]]:
    from pipelines.predictions.examples import failure_examples

    if record.status != "committed" or not record.counts.get("failed"):
        return {}, []
    try:
        return failure_examples(place, record), []
    except NightreadError as error:  # a damaged table does not hide what the record says
        return {}, [f"Examples of failures could not be read: {error.message}"]


def _drift(place: str, record: RunRecord) -> Mapping[str, Any] | None:
    """What was compared after the command of this run: it is kept with the last of its runs."""
    from pipelines.predictions.runs import RunFolder
    from pipelines.predictions.standing import small_document

    of_command = [str(name) for name in record.configuration.get("runs") or [record.run_id]]
    for name in (record.run_id, of_command[-1]):
        if (found := small_document(RunFolder(place, name).drift)) is not None:
            return found
    return None


def _since(place: str, record: RunRecord, run: str | None) -> list[str]:
    """That a later night failed before it came to a run, where the last run was asked for."""
    from pipelines.predictions.nights import newest_nights

    night = next(iter(newest_nights(place, 1)), None) if run is None else None
    if night is None or night.finished or night.ended_at < record.started_at:
        return []
    said = f": {night.error['message']}" if night.error else "."
    return [f"The newest command ended {night.ended_at:%Y-%m-%d %H:%M} UTC with exit code {night.exit_code}{said}"]


def _write_page(view: NightView, results: str, html: str) -> str:
    from pipelines.evaluation.night_page import GENERATOR, render_night
    from pipelines.storage import files, paths

    place = paths.canonical(html)
    if paths.is_inside(place, paths.canonical(results)):
        raise UsageError(f"--html {html} lies in the results, which are only read.", "Choose another folder.")
    try:
        before = files.read_bytes(place)
    except FileNotFoundError:
        before = b""
    if before and GENERATOR not in before[:2000]:
        raise UsageError(f"--html {html} is there already and is no page of a night.", "Name another file.")
    files.write_atomic(place, render_night(view, paths.canonical(results)))
    return place
