"""`nightread submit`: have a cluster run a command, once a day however often a timer fires, and follow it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Console, JsonOption, program
from jobs.places import PLACES, REFS
from jobs.streams import LogFormat, LogFormatOption
from pipelines.errors import Stopped, UsageError

if TYPE_CHECKING:
    from cluster.jobs_api import Job, JobsApi
    from cluster.submission import Order

DASHBOARD = "http://127.0.0.1:8265"
# What these options take that is no place.
WORDS = ("imagenet", "none")
# They answer on this machine, or would send themselves.
NOT_SENT = ("submit", "serve", "demo")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("submit")(submit)


def submit(
    command: Annotated[
        list[str] | None, typer.Argument(help="What the cluster is to run, behind `--`: score ARCHIVE --model …")
    ] = None,
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = DASHBOARD,
    job_id: Annotated[
        str | None,
        typer.Option(
            "--id", envvar="NIGHTREAD_SUBMIT_ID", help="The job's name; else that of the command and the day."
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and do not follow it.")] = False,
    status: Annotated[str | None, typer.Option(help="Say how the job of this id is doing.")] = None,
    logs: Annotated[str | None, typer.Option(help="Print what the job of this id has written.")] = None,
    stop: Annotated[str | None, typer.Option(help="End the job of this id; what it finished is kept.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send it even to a cluster that takes anybody, without a token.")
    ] = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    json: JsonOption = False,
) -> int:
    """Run a command on a cluster and end with its exit code and its `--json` answer.

    The same command of the same day (UTC) runs once: while it runs it is followed, and when it has finished its answer
    is told again. Places must be such that every node of the cluster reaches them.
    """
    from cluster.jobs_api import open_jobs_api

    console = Console(json)
    asked = [name for name, value in (("--status", status), ("--logs", logs), ("--stop", stop)) if value]
    if len(asked) + bool(command) != 1:
        raise UsageError(
            "submit takes one thing at a time: a command behind `--`, --status, --logs or --stop.",
            "Write `nightread submit -- score …`.",
        )
    order = ordered(command, insecure, os.environ) if command else None
    api = open_jobs_api(address, insecure)
    if order is not None:
        return _submitted(console, api, order, job_id, no_wait)
    return _asked(console, api, status, logs, stop)


def ordered(words: list[str], insecure: bool, environment: Mapping[str, str]) -> Order:
    """Read a command as it would be read here, so that what is wrong with it is known before it is sent.

    Args:
        words: What stands behind `--`.
        insecure: Whether it may join a cluster that takes anybody.
        environment: Where its options, and how to reach storage, may stand.

    Raises:
        UsageError: If it cannot be sent, or names a place that only this folder knows.
        TyperException: If it is not a command, or its options are wrong.
    """
    from cluster.session import for_workers
    from cluster.submission import Order

    for word in words:
        if not word.isprintable():
            raise UsageError(f"{word!r} cannot be sent: it holds what no text can.", "Name the place otherwise.")
    context, names = _read(words)
    if names[0] in NOT_SENT:
        raise UsageError(f"`{names[0]}` is not sent to a cluster.", "Run it on the machine that it is for.")
    _refuse_relative(context.params)
    source = context.get_parameter_source("address")
    added: list[str] = []
    if source is not None and source.name != "COMMANDLINE":
        added += ["--address", "auto"]
    if insecure and context.params.get("insecure") is False:
        added.append("--insecure")
    if context.params.get("json") is False:
        added.append("--json")
    prefix = "_".join(["NIGHTREAD", *(name.upper().replace("-", "_") for name in names), ""])
    options = {
        name: value
        for name, value in environment.items()
        if name.startswith(prefix) and not name.endswith(("_ADDRESS", "_JSON"))
    }
    variables = {name: value for name, value in for_workers(environment).items() if name != "NIGHTREAD_S3_PLACES"}
    return Order(tuple(names), tuple(words[len(names) :]), tuple(added), options, variables)


def _read(words: list[str]) -> tuple[Any, list[str]]:
    """The command's context, with its parameters read, and its names."""
    from jobs.cli import app

    command: Any = typer.main.get_command(app)
    context: Any = None
    rest, names = list(words), ["nightread"]
    while True:
        context = command.make_context(names[-1], rest, parent=context)
        if not hasattr(command, "resolve_command"):
            return context, names[1:]
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        names.append(name)


def _refuse_relative(parameters: Mapping[str, Any]) -> None:
    for name in (*PLACES, *REFS, "recipe"):
        value = parameters.get(name)
        if not isinstance(value, str) or value in WORDS or "://" in value or value.startswith("/"):
            continue
        if name == "recipe" and not value.endswith(".toml"):
            continue
        raise UsageError(
            f"{value!r} is a place in the folder that you are in, which the cluster does not know.",
            "Name it in full: /folder/… that all nodes share, or s3://….",
        )


def _submitted(console: Console, api: JobsApi, order: Order, job_id: str | None, no_wait: bool) -> int:
    from cluster import submission

    job, started = submission.submit(api, order, job_id)
    if no_wait:
        console.result({**_as_json(job), "submitted": started}, job.id)
        return 0
    if started:
        console.note(f"submitted as {job.id}")
    else:
        console.note(f"{job.id} {'has finished before' if job.over else 'runs already'}: it is not run again")
    try:
        job, answer = submission.follow(api, job, console.note)
    except (KeyboardInterrupt, Stopped) as interrupt:
        raise Stopped(
            f"No longer following; the job {job.id} goes on in the cluster.",
            f"`{program()} submit --address {api.address} --stop {job.id}` ends it.",
        ) from interrupt
    code = submission.exit_code_of(job)
    if answer:
        _answers(answer)
    else:
        console.result({**_as_json(job), "exit_code": code}, f"{job.id} ended with exit code {code}, without an answer")
    return code


def _answers(text: str) -> None:
    """Print what the job answered, as it answered it."""
    stream = getattr(sys.stdout, "answers", sys.stdout)
    stream.write(text)
    stream.flush()


def _asked(console: Console, api: JobsApi, status: str | None, logs: str | None, stop: str | None) -> int:
    from cluster import submission

    if logs:
        job = submission.known_job(api, logs)
        notes, answer = submission.split_log(api.log(job.id))
        text = "".join(f"{line}\n" for line in notes) + answer
        console.result({**_as_json(job), "log": notes, "answer": answer}, text.rstrip("\n"))
        return 0
    job = submission.stop(api, stop) if stop else submission.known_job(api, status or "")
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    console.result(_as_json(job), f"{job.id}: {job.status.lower()}{code}")
    return 0


def _as_json(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "exit_code": job.exit_code,
        "started_at": _time(job.started_ms),
        "ended_at": _time(job.ended_ms),
    }


def _time(milliseconds: int | None) -> Any:
    import datetime

    return None if not milliseconds else datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
