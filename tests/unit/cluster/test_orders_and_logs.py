"""What is submitted: its name, its words, its wheel; and how an answer is found again in a log."""

from __future__ import annotations

import datetime
import hashlib
import io
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from cluster.jobs_api import Job
from cluster.submission import check_id, exit_code_of, split_log
from cluster.wheel import locked, make_wheel
from jobs.submit import ordered
from jobs.submitted import MARK, MarkedLines
from pipelines.errors import TryLater, UsageError
from pipelines.scoring.worker_check import DECIDING, installed, refuse_others

SCORE = ["score", "/srv/images", "--model", "/srv/models/chest", "--results", "s3://data/results"]
MONDAY, TUESDAY = datetime.date(2026, 11, 23), datetime.date(2026, 11, 24)


def job(status: str, exit_code: int | None = None, message: str = "") -> Job:
    return Job("night", status, exit_code, message, None, None)


def test_one_command_has_one_name_a_day() -> None:
    order = ordered(SCORE, False, {})
    assert order.id_of_day(MONDAY) == ordered(SCORE, True, {}).id_of_day(MONDAY) != order.id_of_day(TUESDAY)
    assert order.id_of_day(MONDAY).endswith("-2026-11-23")
    others = [[*SCORE, "--limit", "3"], [*SCORE[:1], "/srv/other", *SCORE[2:]], [*SCORE[:-1], "s3://data/other"]]
    by_variable = ordered(SCORE, False, {"NIGHTREAD_SCORE_PRECISION": "int8"})
    names = {order.id_of_day(MONDAY), by_variable.id_of_day(MONDAY)}
    assert len(names | {ordered(words, False, {}).id_of_day(MONDAY) for words in others}) == 5
    assert check_id(order.id_of_day(MONDAY))


def test_the_command_joins_the_cluster_unless_it_says_otherwise_and_answers_in_json() -> None:
    assert ordered(SCORE, False, {}).entrypoint.startswith(
        "exec python -m jobs.submitted score --address auto --json /srv/images "
    )
    assert "--address auto --insecure --json" in ordered(SCORE, True, {}).entrypoint
    named = ordered([*SCORE, "--address", "local", "--json"], False, {}).entrypoint
    assert named.count("--address") == named.count("--json") == 1
    two_words = ordered(["runs", "list", "/srv/results"], False, {})
    assert (two_words.command, two_words.words, two_words.added) == (("runs", "list"), ("/srv/results",), ("--json",))
    spaced = ordered(["runs", "list", "/srv/my results; rm -rf /"], False, {})
    assert spaced.entrypoint.endswith(" '/srv/my results; rm -rf /'")


def test_options_and_settings_travel_and_secrets_do_not() -> None:
    known = {
        "NIGHTREAD_SCORE_FAIL_THRESHOLD": "5%",
        "NIGHTREAD_SCORE_ADDRESS": "elsewhere:1",
        "NIGHTREAD_TRAIN_SEED": "3",
        "NIGHTREAD_S3_PLACES": "{}",
        "NIGHTREAD_S3_RESULTS_ENDPOINT_URL": "https://store",
        "NIGHTREAD_S3_RESULTS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "RAY_AUTH_TOKEN": "hunter2",
    }
    order = ordered(SCORE, False, known)
    assert order.options == {"NIGHTREAD_SCORE_FAIL_THRESHOLD": "5%"}
    assert order.variables == {"NIGHTREAD_S3_RESULTS_ENDPOINT_URL": "https://store"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "images", *SCORE[2:]], "'images' is a place in the folder that you are in"),
        ([*SCORE[:2], "--model", "models/chest", *SCORE[4:]], "'models/chest' is a place"),
        ([*SCORE[:4], "--results", "./results"], "'./results' is a place"),
        (["train", "/data", "--models", "/m", "--name", "n", "--recipe", "own.toml"], "'own.toml' is a place"),
        (["submit", "--", "score"], "`submit` is not sent"),
        (["demo"], "`demo` is not sent"),
        (["score", "/srv/\udcff", *SCORE[2:]], "cannot be sent"),
    ],
)
def test_what_the_cluster_cannot_run_is_refused_here(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ordered(words, False, {})


def test_a_word_that_is_no_place_is_not_taken_for_one() -> None:
    words = ["train", "/data", "--models", "/m", "--name", "n", "--recipe", "default", "--weights", "imagenet"]
    assert ordered(words, False, {}).words[0] == "/data"


@pytest.mark.parametrize("name", ["", "a b", "../x", "ü", "-a", "x" * 101])
def test_names_that_cannot_be_files_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the id of a job"):
        check_id(name)


text_lines = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), max_size=8)


@given(answers=text_lines, notes=text_lines, pieces=st.lists(st.integers(1, 30), max_size=8))
def test_every_line_of_an_answer_is_found_again_between_notes(
    answers: list[str], notes: list[str], pieces: list[int]
) -> None:
    log = io.StringIO()
    marked = MarkedLines(log)
    written = "".join(f"{line}\n" for line in answers)
    at = 0
    for length in [*pieces, len(written)]:  # however a library cuts its writes
        marked.write(written[at : at + length])
        at += length
    marked.end()
    mixed: list[str] = []
    rest = [f"{line}\n" for line in log.getvalue().split("\n")[:-1]]
    for number in range(max(len(rest), len(notes))):
        mixed += [f"{note}\n" for note in notes[number : number + 1]] + rest[number : number + 1]
    assert split_log("".join(mixed)) == (notes, written)


def test_a_note_without_an_end_does_not_hide_the_answer() -> None:
    assert split_log(f'progress 3{MARK}{{"a": 1}}\nafter') == (["progress 3", "after"], '{"a": 1}\n')


def test_a_job_ends_as_its_command_ended() -> None:
    assert [exit_code_of(job("FAILED", code)) for code in (2, 3, 75, -9)] == [2, 3, 75, 137]
    assert (exit_code_of(job("SUCCEEDED", 0)), exit_code_of(job("STOPPED"))) == (0, 143)
    with pytest.raises(TryLater, match="ended the job night: Job supervisor actor died"):
        exit_code_of(job("FAILED", message="Job supervisor actor died.\nmore"))


def test_the_wheel_is_one_and_the_same_and_sound(tmp_path: Path, checkout: Path) -> None:
    assert any(make_wheel() == make_wheel() for _ in range(3))  # somebody may be writing to this checkout
    name, data = make_wheel()
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        names = wheel.namelist()
        information = f"{name.removesuffix('-py3-none-any.whl')}.dist-info"
        rows = [line.rsplit(",", 2) for line in wheel.read(f"{information}/RECORD").decode().splitlines()]
        assert sorted(row[0] for row in rows) == sorted(names)
        for file, digest, size in rows[:-1]:
            content = wheel.read(file)
            hashed = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={hashed}", len(content)), file
        lock = wheel.read(f"{information}/requirements.lock").decode().splitlines()
        wheel.extractall(tmp_path)
    tracked = subprocess.run(
        ["git", "ls-files", "jobs", "cluster", "pipelines"], cwd=checkout, capture_output=True, text=True, check=False
    )
    if not tracked.returncode:
        there = [line for line in tracked.stdout.splitlines() if (checkout / line).exists()]
        assert not {line for line in there if not Path(line).name.startswith(".")} - set(names)
    assert {Requirement(line).name for line in lock} >= set(DECIDING) - {"nightread"}
    shown = [sys.executable, "-c", "import jobs.submitted as s; print(len(s.locked()), s.__file__)"]
    done = subprocess.run(shown, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert done.stdout.split() == [str(len(locked())), str(tmp_path / "jobs" / "submitted.py")], done.stderr


def test_other_versions_of_what_decides_are_named() -> None:
    here = installed()
    assert set(here) == set(DECIDING) and "none" not in here.values()
    refuse_others(here, here, "node a", "the driver's machine")
    refuse_others({"pyarrow": "0"}, here, "node a", "the driver's machine")
    with pytest.raises(UsageError, match=r"Other versions on node a than on .*: numpy .*, not 0\.1"):
        refuse_others({**here, "numpy": "0.1"}, here, "node a", "the driver's machine")
