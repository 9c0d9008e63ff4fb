"""`nightread runs rollback`, `clean` and `verify`: what results need over the years."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.audit import Audit, ReasonOption
from jobs.console import Console, JsonOption, program
from jobs.options import parse_duration
from jobs.places import declare_places
from pipelines.errors import ModelRefused, TryLater, UsageError

if TYPE_CHECKING:
    from pipelines.predictions.cleaning import Compaction
    from pipelines.predictions.leftovers import Leftovers
    from pipelines.predictions.rollback import RolledBack
    from pipelines.predictions.verifying import UsedModel

ResultsArgument = Annotated[str, typer.Argument(help="The results folder or URI.")]


def register(runs: typer.Typer) -> None:
    """Add the commands to the group `runs`."""
    runs.command("rollback")(rollback)
    runs.command("clean")(clean)
    runs.command("verify")(verify)


def rollback(
    results: ResultsArgument,
    run: Annotated[str, typer.Argument(help="The run's id, as `runs list` shows it.")],
    reason: ReasonOption = None,
    json: JsonOption = False,
) -> None:
    """Take a committed run back; its images are new again.

    Its rows leave the table in one new version, and later runs stay. The earlier versions can be read until
    `runs clean` has removed their files.
    """
    from pipelines.predictions.rollback import roll_back
    from pipelines.predictions.runs import who_and_where
    from pipelines.storage import paths

    audit = Audit(results, "rollback", reason)
    done = roll_back(results, run, who_and_where())
    counts = {"rows": done.rows, "images": done.images}
    audit.done(done.run_id, "committed", "rolled_back", done.table_version, counts)
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
    lines.append(f'  see it      {program()} query {shlex.quote(place)} "{sql}"')
    return "\n".join(lines)


def clean(
    results: ResultsArgument,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Leave everything that is younger, for example 30d. Without it each kind has its own age: runs that "
            "died before they had a record 30 days, files of the table 7 days, what was half written a day.",
        ),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="First write each day's small files of the table anew as few large ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted; write nothing.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Delete files of the table before they are 7 days old; who reads an earlier version then loses it.",
        ),
    ] = False,
    reason: ReasonOption = None,
    json: JsonOption = False,
) -> None:
    """Delete what the results need no more.

    That is what remains of runs that are over, and files of earlier table versions. The table's newest version, the
    records of runs and everything of an interrupted run stay.
    """
    from pipelines.predictions.cleaning import clean as clean_results
    from pipelines.predictions.leftovers import Ages
    from pipelines.predictions.runs import who_and_where
    from pipelines.storage import paths

    ages = Ages.of(None if older_than is None else parse_duration("--older-than", older_than), force)
    console = Console(json)

    def tell(leftovers: Leftovers, compaction: Compaction | None) -> None:
        console.say("\n".join(_to_be_cleaned(leftovers, compaction, dry_run)))

    audit = None if dry_run else Audit(results, "clean", reason)
    done = clean_results(results, ages, who_and_where(), tell, compact=compact, dry_run=dry_run)
    answer = {
        "results": paths.canonical(results),
        "dry_run": dry_run,
        "deleted": [{"what": pile.what, "files": len(pile.files), "bytes": pile.size} for pile in done.leftovers.piles],
        "unreadable_versions": [list(stretch) for stretch in done.leftovers.unreadable],
        "interrupted_runs": list(done.leftovers.interrupted),
        "compaction": None if done.compaction is None else asdict(done.compaction),
        "table_version": done.table_version,
    }
    if audit is not None:
        cleaned = ("deleted", "unreadable_versions", "compaction")
        audit.done("results", table_version=done.table_version, details={name: answer[name] for name in cleaned})
    console.result(answer, None if dry_run else "Done.")


def _to_be_cleaned(leftovers: Leftovers, compaction: Compaction | None, dry_run: bool) -> Iterator[str]:
    if dry_run:
        yield "Dry run: nothing is deleted or written."
    if compaction is not None and not compaction.days:
        yield "  nothing to compact"
    elif compaction is not None and compaction.into is None:
        yield f"  would compact {compaction.files:,} files of {compaction.days:,} days"
    elif compaction is not None:
        yield f"  compacted   {compaction.files:,} files of {compaction.days:,} days into {compaction.into:,}"
    verb = "would go" if dry_run else "to go"
    for pile in leftovers.piles:
        yield f"  {verb:<11} {pile.what}: {_files(len(pile.files))}, {size(pile.size)}"
    if not leftovers.piles:
        yield "  nothing to delete"
    if leftovers.unreadable:
        stretches = ", ".join(
            f"{first}" if first == last else f"{first} to {last}" for first, last in leftovers.unreadable
        )
        yield f"  unreadable  table versions {stretches}, from then on"
    if leftovers.interrupted:
        yield f"  left alone  {', '.join(leftovers.interrupted)}: not at the end; the same score command continues it"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def size(number: int) -> str:
    """Bytes as a person reads them: `1.2 GB`."""
    value = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def verify(
    results: ResultsArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every row and check its values too; takes as long as reading all.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Prove that the results are whole; only reads.

    Compares files, rows, runs, records and models with each other. Ends with 0 if all is well, with 2 if a person must
    look.
    """
    from pipelines.predictions.verifying import verify as verify_results
    from pipelines.storage import paths

    found = verify_results(results, deep)
    problems, notes = list(found.problems), list(found.notes)
    for model in found.models:
        refused, unknown = _proved(model)
        problems += refused
        notes += unknown
    exit_code = UsageError.exit_code if problems else 0
    answer = {
        "results": paths.canonical(results),
        "sound": not problems,
        "deep": deep,
        "table_version": found.table_version,
        "files": found.files,
        "rows": found.rows,
        "runs": found.runs,
        "problems": problems,
        "notes": notes,
        "exit_code": exit_code,
    }
    looked = "every row" if deep else "every file's footer"
    lines = [
        f"  table       version {found.table_version}: {_files(found.files)}, {found.rows:,} rows; {looked} was read",
        f"  runs        {found.runs:,}",
        *(f"  note        {note}" for note in notes),
        *(f"  wrong       {problem}" for problem in problems),
        f"{len(problems):,} things are wrong: a person must look." if problems else "The results are whole.",
    ]
    Console(json).result(answer, "\n".join(lines))
    return exit_code


def _proved(model: UsedModel) -> tuple[list[str], list[str]]:
    """What is wrong with the bundle that rows name, and what cannot be told."""
    from pipelines.models.finding import prove_bundle

    which = f"The model {model.model_name} {model.model_id[:12]}"
    refused, unknown = [], []
    for ref in model.refs:
        declare_places({"model": ref})
        try:
            if prove_bundle(ref, model.model_id):
                return [], []
            unknown.append(f"{which} was not looked at: there is nothing in {ref}.")
        except ModelRefused as error:
            refused.append(f"{which}: {error.message}")
        except (TryLater, UsageError) as error:
            unknown.append(f"{which} was not looked at: {error.message}")
    if not model.refs:
        unknown.append(f"{which} was not looked at: no record tells where it lies.")
    return (refused, []) if refused else ([], unknown)
