"""How errors become exit codes, one sentence and one JSON value."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from jobs import cli
from jobs.console import Console, JsonOption
from pipelines.errors import LeaseLost, ModelRefused, NightreadError, Stopped, TryLater, UsageError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | int]:
    """An app with one command, `work`, that ends as the first item of the list says."""
    ends: list[BaseException | int] = []
    app = typer.Typer(context_settings={"auto_envvar_prefix": "NIGHTREAD"}, rich_markup_mode=None)

    @app.callback()
    def root() -> None:
        pass

    @app.command()
    def work(level: Annotated[int, typer.Option()] = 1, json: JsonOption = False) -> int:
        if isinstance(ends[0], BaseException):
            raise ends[0]
        Console(json).result({"level": level}, f"level {level}")
        return ends[0]

    monkeypatch.setattr(cli, "app", app)
    return ends


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (UsageError("Bad value 3.", "Say 4."), 2, "usage"),
        (ModelRefused("Altered."), 4, "model_refused"),
        (TryLater("Not mounted."), 75, "try_later"),
        (LeaseLost("Taken over."), 75, "lease_lost"),
        (Stopped("Stopped."), 130, "stopped"),
        (Stopped("Stopped.", signal_number=signal.SIGTERM), 143, "stopped"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_become_exit_codes(
    failing: list[BaseException | int],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    exit_code: int,
    code: str,
) -> None:
    failing.append(error)
    assert cli.main(["work"]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and len(err.splitlines()) <= 2 and "Traceback" not in err

    assert cli.main(["work", "--json"]) == exit_code
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == exit_code
    assert answer["error"]["code"] == code
    if isinstance(error, NightreadError):
        assert (answer["error"]["message"], answer["error"]["cure"]) == (error.message, error.cure)


def test_a_defect_is_exit_1_with_its_traceback(
    failing: list[BaseException | int], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(ZeroDivisionError("division by zero"))
    assert cli.main(["work", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" in err and "ZeroDivisionError" in err
    assert json.loads(out)["error"]["code"] == "defect"


@pytest.mark.parametrize("code", [0, 3, 5])
def test_a_command_returns_its_own_exit_code(
    failing: list[BaseException | int], capsys: pytest.CaptureFixture[str], code: int
) -> None:
    failing.append(code)
    assert cli.main(["work", "--level", "2"]) == code
    assert capsys.readouterr().out == "level 2\n"


def test_options_come_from_the_environment(
    failing: list[BaseException | int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(0)
    monkeypatch.setenv("NIGHTREAD_WORK_LEVEL", "7")
    monkeypatch.setenv("NIGHTREAD_WORK_JSON", "1")
    assert cli.main(["work"]) == 0
    assert json.loads(capsys.readouterr().out) == {"level": 7}


@pytest.mark.parametrize("arguments", [["work", "--level", "x"], ["work", "--lvel", "2"], ["wrk"], []])
def test_wrong_usage_is_exit_2_and_names_the_help(
    failing: list[BaseException | int], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    failing.append(0)
    assert cli.main([*arguments, "--json"] if arguments else []) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and "--help`" in err
    if arguments:
        assert json.loads(out)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("arguments", "environment", "json_asked"),
    [
        (["score", "--json"], {}, True),
        (["submit", "--", "score", "--json"], {}, False),
        (["score"], {"NIGHTREAD_SCORE_JSON": "true"}, True),
        (["score"], {"NIGHTREAD_SCORE_JSON": "0"}, False),
        (["models", "list", "x"], {"NIGHTREAD_MODELS_LIST_JSON": "1"}, True),
        (["score", "--json", "--help"], {}, False),
        ([], {}, False),
    ],
)
def test_json_is_known_before_the_command_line_is_understood(
    arguments: list[str], environment: dict[str, str], json_asked: bool
) -> None:
    assert cli.wants_json(arguments, environment) is json_asked


def test_a_variable_that_containers_like_to_set_is_no_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTREAD_VERSION", "0.1.0")
    assert cli.main(["--help"]) == 0
    assert "NIGHTREAD_VERSION" not in capsys.readouterr().out


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in overview
        assert cli.main([name, "--help"]) == 0
        assert "Usage: nightread" in capsys.readouterr().out


def test_a_closed_pipe_is_quiet(checkout: Path) -> None:
    line = f"{sys.executable} -m jobs --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.stderr == ""
