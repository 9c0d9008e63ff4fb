"""`nightread runs rollback`, `clean` and `verify`: what results need over the years."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import Console, JsonOption, program

if TYPE_CHECKING:
    from pipelines.predictions.rollback import RolledBack

ResultsArgument = Annotated[str, typer.Argument(help="The results folder or URI.")]


def register(runs: typer.Typer) -> None:
    """Add the commands to the group `runs`."""
    runs.command("rollback")(rollback)


def rollback(
    results: ResultsArgument,
    run: Annotated[str, typer.Argument(help="The run's id, as `runs list` shows it.")],
    json: JsonOption = False,
) -> None:
    """Take a committed run back: its rows leave the table, later runs stay, its images are new again.

    Writes one new version of the table. The earlier versions can be read until `runs clean` has removed their files.
    """
    from pipelines.predictions.rollback import roll_back
    from pipelines.predictions.runs import who_and_where
    from pipelines.storage import paths

    done = roll_back(results, run, who_and_where())
    answer = {**asdict(done), "results": paths.canonical(results)}
    Console(json).result(answer, _rolled_back(done, paths.canonical(results)))


def _rolled_back(done: RolledBack, place: str) -> str:
    if done.finished_earlier:
        lines = [f"  rolled back {done.run_id}; an earlier command had deleted its rows, and now its record says so"]
    else:
        lines = [f"  rolled back {done.run_id}: {done.rows:,} rows of {done.images:,} images, which are new again"]
    lines.append(f"  table       version {done.table_version}")
    lines += [f"  stale       {path}, until the next score with --publish" for path in done.published]
    sql = f"SELECT count(*) AS rows FROM rows WHERE run_id = '{done.run_id}'"
    lines.append(f"  see it      {program()} query {shlex.join([place, sql])}")
    return "\n".join(lines)
