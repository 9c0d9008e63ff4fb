"""`nightread runs`: which nights there were, what each of them did, and what has to be told when an archive moves."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import runs_check, runs_keeping, runs_nights, runs_show
from jobs.audit import Audit, ReasonOption
from jobs.console import Console, JsonOption, program
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.predictions.rebase import Rebased
    from pipelines.predictions.runs import RunRecord
    from pipelines.predictions.standing import Standing

ResultsArgument = Annotated[str, typer.Argument(help="The results folder or URI.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    runs = typer.Typer(help="Show the runs of a results folder, and look after them.", rich_markup_mode=None)
    runs.command("list")(list_)
    runs.command("show")(runs_show.show)
    runs.command("check")(runs_check.check)
    runs.command("rebase")(rebase)
    runs_keeping.register(runs)
    app.add_typer(runs, name="runs")


def list_(results: ResultsArgument, json: JsonOption = False) -> None:
    """List the runs, oldest first, below a line that has a sign for each night."""
    from pipelines.predictions.standing import standings
    from pipelines.storage import paths

    console = Console(json)
    stands = standings(paths.canonical(results), _records(results))
    if json:
        console.result([{**stand.record.as_json(), "state": stand.state} for stand in stands])
        return
    if not stands:
        console.say("No run yet.")
        return
    records = [stand.record for stand in stands]
    if nights := runs_nights.night_lines(records, console.blocks):
        console.page(nights)
    columns = ("run", "started (UTC)", "status", "found", "scored", "failed", "images/s", "seconds", "version", "model")
    console.table(columns, [_line(stand) for stand in stands])


def rebase(
    results: ResultsArgument,
    old_prefix: Annotated[str, typer.Argument(help="The folder or URI in which the images lay when they were scored.")],
    new_prefix: Annotated[str, typer.Argument(help="Where they lie now.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count; change nothing.")] = False,
    reason: ReasonOption = None,
    json: JsonOption = False,
) -> None:
    """Tell the table that an archive has moved, so that no image is scored again for its new place.

    Writes one new version of the table. Files are neither looked at nor moved.
    """
    from pipelines.predictions.rebase import rebase as rebase_table
    from pipelines.predictions.runs import who_and_where
    from pipelines.storage import paths

    audit = None if dry_run else Audit(results, "rebase", reason)
    done = rebase_table(results, old_prefix, new_prefix, who_and_where(), dry_run=dry_run)
    # Images that were in the new folder before would be taken along: then there is no exact way back.
    back = None
    if not done.there_before:
        words = [results, *(paths.canonical(prefix) for prefix in (new_prefix, old_prefix))]
        back = f"{program()} runs rebase {shlex.join(words)}"
    answer = {**asdict(done), "results": paths.canonical(results), "dry_run": dry_run, "taken_back_by": back}
    if audit is not None:
        counts = {"rows": done.rows, "images": done.images, "abandoned": list(done.abandoned)}
        audit.done("archive", done.old_prefix, done.new_prefix, done.table_version, counts)
    Console(json).result(answer, _told(done, dry_run, back))


def _told(done: Rebased, dry_run: bool, back: str | None) -> str:
    would = "would be" if dry_run else "are"
    lines = ["Dry run: nothing was written."] if dry_run else []
    lines.append(f"  rebased     {done.rows:,} rows of {done.images:,} images, which {would} in {done.new_prefix} now")
    if done.abandoned:
        lines.append(f"  given up    {', '.join(done.abandoned)}: interrupted, its images {would} new again")
    if done.there_before:
        lines.append(f"  no way back: {done.there_before:,} images were in the new folder before")
    if not dry_run:
        lines.append(f"  table       version {done.table_version}")
        lines += [f"  taken back by: {back}"] if back else []
    return "\n".join(lines)


def _records(results: str) -> list[RunRecord]:
    from pipelines.predictions.commit import table_version
    from pipelines.predictions.runs import list_runs

    records = list_runs(results)
    if not records and table_version(results) is None:
        raise UsageError(f"There are no results in {results!r}.", "Check the path; `nightread score` makes them.")
    return records


def _line(stand: Standing) -> tuple[Any, ...]:
    record = stand.record
    counts, timings = record.counts, record.timings
    return (
        record.run_id,
        f"{record.started_at:%Y-%m-%d %H:%M:%S}",
        "running" if stand.state == "scoring" else stand.state,
        counts.get("found"),
        counts.get("scored"),
        counts.get("failed"),
        _rate(timings.get("images_per_second")),
        _rate(timings.get("seconds")),
        record.table_version,
        record.configuration.get("model_name"),
    )


def _rate(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
