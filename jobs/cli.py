"""The command line: which commands there are, and how errors become exit codes."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Annotated

import typer

from jobs import runs_check
from jobs.console import Console
from jobs.places import place_commands
from jobs.streams import LogFormat, event_log, standard_error_as_events, standard_output_for_json
from pipelines.errors import NightreadError, Stopped, UsageError
from pipelines.scoring.worker_process import close_to_others
from pipelines.storage.roles import declared

COMMANDS = ("demo", "score", "train", "tune", "evaluate", "models", "runs", "query", "serve", "submit", "doctor")

app = typer.Typer(
    name="nightread",
    help="Score every new image of a medical archive once, and commit one complete, traceable table.",
    epilog="Every option can also be given as NIGHTREAD_<COMMAND>_<OPTION> in the environment.",
    context_settings={"auto_envvar_prefix": "NIGHTREAD", "help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        Console().say(f"nightread {version('nightread')}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop.",
            callback=_version,
            is_eager=True,
            allow_from_autoenv=False,  # images of containers like to set NIGHTREAD_VERSION
        ),
    ] = False,
) -> None:
    pass


for _name in COMMANDS:
    # A command's module imports nothing heavy at its top, so that --help answers at once.
    importlib.import_module(f"jobs.{_name}").register(app)
place_commands(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands behind `nightread`; by default the process's own.

    Returns:
        The exit code, as documented in docs/operations.md.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    json = wants_json(given, os.environ)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that this locale cannot write is no defect
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, close_to_others())
        stack.enter_context(declared())
        if wants_events(given, os.environ):
            stack.enter_context(_events(given))
        if json:
            stack.enter_context(standard_output_for_json())
        signals = stack.enter_context(_stop_signals())
        code = _run(given, Console(json), signals)
        if (log := event_log()) is not None:
            log.event("info", "ended", exit_code=code)
    _flush()
    return code


def wants_json(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Tell whether the answer is to be JSON, before the command line has been understood.

    Args:
        arguments: What stands behind `nightread`; what follows a `--` belongs to another command.
        environment: Where `NIGHTREAD_<COMMAND>_JSON` may stand.
    """
    own = _own(arguments)
    if {"--help", "-h", "--version"}.intersection(own):
        return False
    said = _from_environment(own, environment, "JSON")
    return "--json" in own or any(value.lower() in ("1", "true", "t", "yes", "y", "on") for value in said)


def wants_events(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Tell whether standard error is to be JSON lines, before the command line has been understood.

    Args:
        arguments: What stands behind `nightread`; what follows a `--` belongs to another command.
        environment: Where `NIGHTREAD_<COMMAND>_LOG_FORMAT` may stand.
    """
    own = _own(arguments)
    given = [word.partition("=")[2] for word in own if word.startswith("--log-format=")]
    given += [value for word, value in itertools.pairwise(own) if word == "--log-format"]
    return (given or _from_environment(own, environment, "LOG_FORMAT"))[-1:] == [LogFormat.JSON]


def _own(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _from_environment(own: Sequence[str], environment: Mapping[str, str], option: str) -> list[str]:
    """What the environment says of an option that stands with a command, or with one of a group's."""
    words = [word.upper().replace("-", "_") for word in own if not word.startswith("-")]
    names = ["_".join(["NIGHTREAD", *words[:count], option]) for count in (1, 2)]
    return [environment[name] for name in names if name in environment]


@contextlib.contextmanager
def _events(arguments: Sequence[str]) -> Iterator[None]:
    from importlib.metadata import version

    command = next((word for word in arguments if not word.startswith("-")), "")
    with standard_error_as_events(command if command in COMMANDS else "") as log:
        log.event("info", "started", nightread=version("nightread"))
        yield


def _run(arguments: list[str], console: Console, signals: list[int]) -> int:
    # A monitoring plugin has exit codes of its own.
    failed = runs_check.unknown if tuple(arguments[:2]) == runs_check.COMMAND else tell_failure
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="nightread", standalone_mode=False)
        if code == 128 + signal.SIGINT:  # what Typer makes of a KeyboardInterrupt
            raise Stopped("Stopped before the work was done.", "The same command goes on from there.")
        return code if isinstance(code, int) else 0
    except Stopped as error:
        return failed(console, error, 128 + (signals[-1] if signals else error.signal_number))
    except NightreadError as error:
        return failed(console, error, error.exit_code)
    except typer.TyperException as error:
        usage = _as_usage_error(error)
        return failed(console, usage, usage.exit_code)
    except typer.Abort:
        return failed(console, UsageError("The command was given up."), UsageError.exit_code)
    except Exception as error:
        traceback.print_exc()
        cure = "This is a defect of nightread; please report it with the traceback on standard error."
        return failed(console, _Defect(f"{type(error).__name__}: {error}", cure), _Defect.exit_code)


class _Defect(NightreadError):
    code = "defect"


def tell_failure(console: Console, error: NightreadError, exit_code: int) -> int:
    """Print what was wrong and what to do about it, and answer with the exit code."""
    if not isinstance(error, _Defect):  # of which the traceback has told
        console.error(error.message, error.cure, error.code)
    if console.json:
        told = {"code": error.code, "message": error.message, "cure": error.cure}
        console.result({"error": told, "exit_code": exit_code})
    return exit_code


def _as_usage_error(error: typer.TyperException) -> UsageError:
    """Make one sentence of what Typer says, with the command whose help explains it."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    cure = f"See `{context.command_path if context else 'nightread'} --help`."
    commands = getattr(getattr(context, "command", None), "commands", None)
    if commands:
        cure = f"The commands are: {', '.join(commands)}. {cure}"
    return UsageError(message, cure)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Turn SIGTERM into what Ctrl-C is, and remember which of the two came."""
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt(number)  # whoever writes down how the command ended wants to know which it was

    try:
        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone may set handlers
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _flush() -> None:
    """Flush standard output; a reader that has gone away must not become an error at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
