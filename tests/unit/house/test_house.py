"""The house's rules that no other tool checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("jobs", "cluster", "pipelines")
CHECKOUT = Path(__file__).resolve().parents[3]
SOURCES = sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
TESTS = sorted((CHECKOUT / "tests").rglob("*.py"))
LONGEST_FILE = 400
LONGEST_FUNCTION = 60

HEAVY = ("ray", "tensorflow", "keras", "pandas", "pyarrow", "numpy", "duckdb", "deltalake", "cv2", "scipy", "sklearn")


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    for function in functions(path):
        assert function.end_lineno is not None
        body = function.body[1:] if ast.get_docstring(function) else function.body
        lines = function.end_lineno - body[0].lineno + 1 if body else 0
        assert lines <= LONGEST_FUNCTION, f"{function.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_room_for_odds_and_ends(path: Path) -> None:
    assert not {"utils", "util", "helpers", "common", "misc"}.intersection(
        path.relative_to(CHECKOUT).with_suffix("").parts
    )


# What a cluster runs has to say so where the libraries of the console are missing.
PRINTERS = {CHECKOUT / "jobs" / "console.py", CHECKOUT / "jobs" / "submitted.py"}


@pytest.mark.parametrize("path", [path for path in SOURCES if path not in PRINTERS], ids=name_of)
def test_only_the_console_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "sys.stdout.write", "sys.stderr.write"), (
                f"line {node.lineno}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_pickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}.intersection(names)


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


def test_no_mock_of_our_own_code() -> None:
    mocks = re.compile(r"unittest\.mock|\bMagicMock\b|\bmocker\b")
    assert [name_of(path) for path in TESTS if path != Path(__file__) and mocks.search(path.read_text())] == []


def test_the_lock_is_plain_names_and_versions() -> None:
    lines = (CHECKOUT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_]+", line) for line in lines)
    names = [canonical(line) for line in lines]
    assert names == sorted(set(names))


def test_the_lock_holds_everything_that_the_project_names() -> None:
    locked = {canonical(line) for line in (CHECKOUT / "requirements.lock").read_text().splitlines()}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert {canonical(requirement) for requirement in needed} <= locked


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~;\s]", requirement)[0]).lower()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["score", "--help"], ["nonsense"]], ids=" ".join)
def test_the_command_line_answers_without_loading_what_it_does_not_need(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from jobs.cli import main\n"
        f"code = main({arguments!r})\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if arguments == ["nonsense"] else 0), done.stderr


def test_no_name_of_this_workplace_is_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    machine_paths = re.compile(r"/(?:home|Users|root|work)/\w")
    for name in listed.stdout.splitlines():
        path = CHECKOUT / name
        if path.suffix in {".py", ".md", ".toml", ".lock", ".cff", ".yaml", ".yml"} and path != Path(__file__):
            assert not machine_paths.search(path.read_text()), name
