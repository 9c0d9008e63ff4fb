"""`nightread score`: score what is new in an archive and commit it once."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Console, JsonOption, Progress, duration, program
from jobs.night_record import night_recorded
from jobs.streams import LogFormat, LogFormatOption

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.scoring.config import ScoreConfig
    from pipelines.scoring.report import ScoreProgress, ScoreReport

AddressOption = Annotated[
    str, typer.Option(help="Ray: `local` starts it on this machine, `auto` or HOST:PORT joins a cluster.")
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Join a cluster even if it takes anybody, without a token.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("score")(score)


def score(
    archive: Annotated[str, typer.Argument(help="A folder, s3://bucket/prefix, or a manifest (.csv, .parquet).")],
    model: Annotated[str, typer.Option(help="A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION.")],
    results: Annotated[str, typer.Option(help="Folder or URI of the results.")],
    root: Annotated[str | None, typer.Option(help="Where relative URIs of a manifest start.")] = None,
    columns: Annotated[str | None, typer.Option(help="A manifest's column names: uri=path,patient_id=mrn.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Glob; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob of images to leave out; may be repeated.")] = None,
    actors: Annotated[str | None, typer.Option(help="Size of the actor pool: N or MIN:MAX.")] = None,
    precision: Annotated[str, typer.Option(help="float32 or int8.")] = "float32",
    engine: Annotated[
        str, typer.Option(help="Where the model answers: direct on cores, split on GPUs, or auto for what is faster.")
    ] = "auto",
    shard_size: Annotated[
        int | None, typer.Option(help="Images in a shard; 64 unless set, 512 with --same-bytes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score at most that many images.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and count; write nothing.")] = False,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score every image again.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try images again that failed for a reason of their own.")
    ] = False,
    fail_threshold: Annotated[str, typer.Option(help="Failed images that make exit code 3: 1% or a count.")] = "1%",
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit code 5 where images or scores are not as before.")
    ] = False,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="An archive without a file is no error.")] = False,
    until: Annotated[str | None, typer.Option(help="Begin no shard after this time of day: 06:30.")] = None,
    max_time: Annotated[str | None, typer.Option(help="Begin no shard after so long: 7h, 90m, 1h30m.")] = None,
    commit_every: Annotated[int, typer.Option(help="Images that become one run; more make several.")] = 1_000_000,
    wait: Annotated[str | None, typer.Option(help="Queue so long behind another writer instead of exit 75.")] = None,
    min_age: Annotated[str | None, typer.Option(help="Leave files that are younger to the next night: 2m.")] = None,
    backfill: Annotated[
        str, typer.Option(help="Images that another version of this model has scored: all, none or how many.")
    ] = "all",
    max_changed: Annotated[
        str, typer.Option(help="Known images that may be changed or newly gone: 20% (at least 1,000) or a count.")
    ] = "20%",
    accept_changes: Annotated[bool, typer.Option("--accept-changes", help="Let that many be changed or gone.")] = False,
    same_bytes: Annotated[
        bool, typer.Option("--same-bytes", help="Keep the score of a changed file whose bytes are the old ones.")
    ] = False,
    map_prefix: Annotated[
        list[str] | None, typer.Option(help=r"FROM=TO for a manifest's URIs: '\\srv\images=/mnt/images'.")
    ] = None,
    path_columns: Annotated[
        str | None, typer.Option(help="Columns from paths: an expression with named groups, (?P<patient>[^/]+)/.")
    ] = None,
    publish: Annotated[
        str | None, typer.Option(help="Folder or URI that gets the newest scores as one plain Parquet file.")
    ] = None,
    max_requests_per_second: Annotated[
        float | None, typer.Option(help="What the archive's store is asked at most, all actors together.")
    ] = None,
    metrics_file: Annotated[
        str | None, typer.Option(help="File for Prometheus' textfile collector, written when the night ends.")
    ] = None,
    list_images: Annotated[
        bool, typer.Option("--list", envvar="NIGHTREAD_SCORE_LIST", help="Print one line for each image.")
    ] = False,
    address: AddressOption = "local",
    insecure: InsecureOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    json: JsonOption = False,
) -> int:
    """Score every image that is new or changed, and commit the rows of each run in one transaction."""
    from cluster.session import start_or_join
    from jobs.drift import compare_night, exit_code, summary_lines
    from jobs.options import parse_backfill, parse_duration, parse_pairs
    from pipelines.predictions.runs import who_and_where
    from pipelines.scoring.config import Allowance, PoolSize, ScoreConfig
    from pipelines.scoring.hours import Hours
    from pipelines.scoring.run import score as run_score

    console = Console(json)
    config = ScoreConfig(
        archive=archive,
        model=model,
        results=results,
        root=root,
        columns=parse_pairs("--columns", columns),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        pool=PoolSize.parse(actors),
        precision=precision,
        engine=engine,
        shard_size=shard_size,
        limit=limit,
        dry_run=dry_run,
        rescore=rescore,
        retry_failed=retry_failed,
        fail_threshold=Allowance.parse("--fail-threshold", fail_threshold),
        allow_empty=allow_empty,
        hours=Hours.parse(until, None if max_time is None else parse_duration("--max-time", max_time)),
        commit_every=commit_every,
        wait_seconds=None if wait is None else parse_duration("--wait", wait),
        min_age_seconds=0.0 if min_age is None else parse_duration("--min-age", min_age),
        backfill=parse_backfill(backfill),
        max_changed=Allowance.parse("--max-changed", max_changed),
        accept_changes=accept_changes,
        same_bytes=same_bytes,
        map_prefix=tuple(map_prefix or ()),
        path_columns=path_columns,
        publish=publish,
        requests_per_second=max_requests_per_second,
        who=who_and_where(),
    )
    with night_recorded(config, console, metrics_file) as ending:
        with ScoreDisplay(console) as display:
            report = run_score(
                config,
                lambda: start_or_join(address, insecure),
                display.tell,
                row_printer(console, config) if list_images else None,
            )
        ending.answer = report.as_json()
        drift = compare_night(report, model)
        code = exit_code(report.exit_code, drift, fail_on_drift)
        ending.answer = {**ending.answer, "drift": drift, "exit_code": code}
    if fail_on_drift and drift is not None and drift["verdict"] == "unknown":
        console.warn("--fail-on-drift: nobody can tell whether this night has drifted, so it does not fail.")
    console.result(ending.answer, "\n".join([summary(report), *summary_lines(drift, code)]))
    return code


class ScoreDisplay:
    """Shows the progress of a command, phase by phase.

    Args:
        console: Where.
        phases: What is counted in each phase, in words; None: those of scoring.
    """

    def __init__(self, console: Console, phases: Mapping[str, str] | None = None) -> None:
        self._console = console
        self._phases = phases or _PHASES
        self._phase = ""
        self._stack = contextlib.ExitStack()
        self._bar: Progress | None = None

    def __enter__(self) -> ScoreDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def tell(self, progress: ScoreProgress) -> None:
        """Show where the command stands."""
        if self._bar is None or progress.phase != self._phase:
            self._stack.close()
            self._phase = progress.phase
            self._console.begin(progress.phase, progress.total, progress.run_id)
            self._bar = self._stack.enter_context(self._console.progress(progress.total, self._phases[self._phase]))
        self._bar.update(
            progress.done,
            failed=progress.failed,
            rate=progress.images_per_second,
            eta=progress.seconds_left,
            note=progress.note,
        )


_PHASES = {
    "waiting": "waiting for another writer",
    "listing": "images found",
    "planning": "planning",
    "starting": "starting Ray",
    "scoring": "images",
    "committing": "committing",
    "publishing": "publishing",
}


def row_printer(console: Console, config: ScoreConfig) -> Callable[[pa.Table], None]:
    """A function that prints one line for each row: `b26.jpg => benign 0.93`, failed ones with their reason."""
    from pipelines.storage import paths
    from pipelines.storage.listing import root_uri

    if config.is_manifest:
        root = root_uri(config.root or paths.parent(paths.canonical(config.archive)))
    else:
        root = root_uri(config.archive)

    def show(rows: pa.Table) -> None:
        for row in rows.select(["image_uri", "predicted_class", "score", "error_code", "error_message"]).to_pylist():
            uri = row["image_uri"]
            name = (
                (paths.relative(uri, root) if paths.is_inside(uri, root) else uri)
                .replace("\n", "\\n")
                .replace("\t", "\\t")
            )
            if row["error_code"]:
                console.say(f"{name} => failed: {row['error_code']} ({row['error_message']})")
            else:
                console.say(f"{name} => {row['predicted_class']} {row['score']:.2f}")

    return show


def summary(report: ScoreReport) -> str:
    """The figures of a command for a person: what was found, what was new, what failed and why."""
    lines = [*_found_lines(report), *_scored_lines(report)]
    if report.counts.failed:
        lines.append(f"  failed      {report.counts.failed:,}: {_counted(report.counts.failed_by_code.items())}")
    if report.multi_frame:
        lines.append(f"  further frames in {report.multi_frame:,} files were not scored, only their first")
    lines.extend(f"  not listed  {folder} (no permission or storage failed)" for folder in report.unlistable[:5])
    lines.append(f"  table       {report.results}, version {_or_none(report.table_version)}")
    if report.published:
        lines.append(f"  published   {report.published}")
    if report.by_rename:
        lines.append("  this place knows no hard links: commits go by rename, and only the lease guards them")
    if report.exit_code == 3:
        lines.append(
            f"  exit code 3: more failed than --fail-threshold {report.threshold.text} allows; the rest is committed. "
            f"See: {failures_command(report.results)}"
        )
    return "\n".join(lines)


def failures_command(results: str) -> str:
    """The command that lists what failed, ready for a shell."""
    query = "SELECT image_uri, error_code, error_message FROM unresolved"
    return f'{program()} query {shlex.quote(results)} "{query}"'


def _found_lines(report: ScoreReport) -> Iterable[str]:
    if report.found is None:
        if report.resumed:
            yield "Finished the interrupted run; the archive was not listed again."
        else:
            yield "The time was over before the archive was listed."
        return
    if report.dry_run:
        yield "Dry run: nothing was written."
    rescored = f", {report.rescored_for_model:,} scored by another version" if report.rescored_for_model else ""
    yield (
        f"  found       {report.found:,} images: {report.new:,} new, {report.changed:,} changed, "
        f"{report.unchanged:,} unchanged{rescored}"
    )
    if report.rescored_for_model:
        yield f"  backfill    {report.backfilled:,} of these are scored again by this version now"
    if report.gone:
        yield f"  gone        {report.gone:,} of {report.known:,} images that the table knows are no longer there"
    left_out = [(reason, count) for reason, count in report.left_out.items() if count]
    if left_out:
        yield f"  left out    {sum(count for _, count in left_out):,} files: {_counted(left_out)}"
    if report.repeated:
        rows = ", ".join(map(str, report.repeated_rows[:5])) + (", …" if report.repeated > 5 else "")
        yield f"  repeated    {report.repeated:,} rows of the manifest said the same again and were dropped: {rows}"
    if report.unmatched:
        yield f"  no columns  --path-columns does not match the paths of {report.unmatched:,} images"
    if report.dry_run:
        time = f", about {duration(report.seconds_estimated)}" if report.seconds_estimated is not None else ""
        yield f"  would score {report.planned:,} images in {report.shards:,} shards{time}"
        for place, counts in report.requests.items():
            yield f"  requests    to the store of the {place}: {_counted(counts.items())}"
        if report.would_stop:
            yield "  would stop  so much is changed or gone, or was moved, that it would ask first (see --max-changed)"


def _scored_lines(report: ScoreReport) -> Iterable[str]:
    if report.dry_run:
        return
    if report.resumed:
        yield f"  resumed     {report.resumed}"
    if report.remaining:
        yield f"  remaining   {report.remaining:,} images are left to the next command: the time was over"
    if report.run_id is None and report.remaining:
        return
    if report.run_id is None:
        yield f"  nothing new ({report.seconds:.1f} s)"
        return
    rate = f", {report.images_per_second:,.1f} images/s" if report.images_per_second else ""
    before = ", what the interrupted run had finished among them" if report.resumed else ""
    yield f"  scored      {report.counts.scored:,} in {report.seconds:.1f} s{rate}{before}"
    yield from _engine_lines(report.engine)
    if report.kept:
        yield f"  kept        {report.kept:,} of these: their bytes are the old ones"
    if len(report.runs) > 1:
        yield f"  runs        {len(report.runs)}, from {report.runs[0]} to {report.run_id}"
    else:
        yield f"  run         {report.run_id}"


def _engine_lines(engine: Mapping[str, Any] | None) -> Iterable[str]:
    """What scored, where it was not simply this cluster's cores."""
    from pipelines.scoring.report import ASKED_FOR, NO_GPU

    if engine is None or (engine["name"] == "direct" and engine["why"] in (ASKED_FOR, NO_GPU)):
        return
    if engine["name"] == "direct":
        yield f"  engine      direct: {engine['why'].rstrip('.')}"
        return
    yield (
        f"  engine      split: {engine['gpus']} × {', '.join(engine['devices'])}, {engine['decoders']} actors that "
        f"decode, batches of {engine['batch']}"
    )
    if engine.get("stood_in"):
        yield f"  stood in    {engine['stood_in']:,} images were answered on cores, because no GPU was there to do so"


def _counted(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(items, key=lambda item: (-item[1], item[0])))


def _or_none(value: int | None) -> str:
    return "none yet" if value is None else str(value)
