"""`nightread serve`: answer for one image at a time, to programs and on a page."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import Console, JsonOption
from jobs.score import InsecureOption
from jobs.streams import LogFormat, LogFormatOption, event_log

if TYPE_CHECKING:
    from pipelines.serving.server import Ready
    from pipelines.serving.settings import ServeSettings


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("serve")(serve)


def serve(
    model: Annotated[
        str,
        typer.Option(help="A bundle's folder, MODELS/NAME, whose champion is followed, or MODELS/NAME@VERSION."),
    ],
    host: Annotated[
        str,
        typer.Option(help="Where to listen; for others than this machine NIGHTREAD_SERVE_TOKEN and TLS are needed."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 8460,
    workers: Annotated[
        int | None, typer.Option(help="Processes that answer, or replicas at most; as many as there are cores.")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32 or int8.")] = "float32",
    address: Annotated[
        str, typer.Option(help="Ray: `local` does without, `auto` or HOST:PORT deploys on a cluster with Ray Serve.")
    ] = "local",
    insecure: InsecureOption = False,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Answer anybody, without a token.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate and those above it.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy in front encrypts and says who calls.")
    ] = False,
    cors: Annotated[list[str] | None, typer.Option(help="Origin whose pages may ask; may be repeated.")] = None,
    audit_log: Annotated[
        Path | None, typer.Option(help="File that gets a line for each image: when, who, hash, model, decision.")
    ] = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    json: JsonOption = False,
) -> None:
    """Answer for one image at a time: an endpoint for programs and a page for people."""
    from cluster.session import start_or_join, usable_cores
    from pipelines.models.bundle import check_precision
    from pipelines.serving.settings import TOKEN, ServeSettings

    console = Console(json)
    check_precision(precision)
    here = address == "local"
    settings = ServeSettings(
        host=host,
        port=port,
        token=os.environ.get(TOKEN) or None,
        auth=not no_auth,
        tls_cert=tls_cert,
        tls_key=tls_key,
        behind_proxy=behind_proxy,
        cors=tuple(cors or ()),
        audit_log=audit_log,
        # A replica has one; how many of them there are is Ray's business.
        workers=(usable_cores() if workers is None else workers) if here else 1,
    )
    ready = _teller(console, settings)
    with _log_to(console):
        if here:
            from pipelines.serving.server import serve as serve_here

            serve_here(model, precision, settings, _sayer(console), ready)
        else:
            from pipelines.serving.deployment import serve_on_cluster

            serve_on_cluster(model, precision, settings, workers, lambda: start_or_join(address, insecure), ready)


def _teller(console: Console, settings: ServeSettings) -> Callable[[Ready], None]:
    """What says that images are answered now, and where."""

    def ready(told: Ready) -> None:
        served = told.model
        value = {"url": told.url, "model": served.identity, "precision": served.precision, "workers": told.workers}
        asks = " Requests need the token." if settings.required_token else ""
        text = f"{served.name}@{served.version} answers at {told.url} (Ctrl-C ends it).{asks}"
        console.result(value, text)

    return ready


def _sayer(console: Console) -> Callable[[str], None]:
    """What tells an operator of processes and promotions: a plain line, in a log of JSON values an event."""

    def say(sentence: str) -> None:
        if (log := event_log()) is not None:
            log.event("warning", "serving", message=sentence)
        else:
            console.note(sentence)

    return say


@contextlib.contextmanager
def _log_to(console: Console) -> Iterator[None]:
    """Show what the endpoint warns of; what it says of each request stays out of the log."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.warn(record.getMessage())

    handler = Handler(logging.WARNING)
    logs = [logging.getLogger(name) for name in ("nightread.serve", "uvicorn.error")]
    for log in logs:
        log.addHandler(handler)
        log.propagate = False
    try:
        yield
    finally:
        for log in logs:
            log.removeHandler(handler)
            log.propagate = True
