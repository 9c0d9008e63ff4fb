"""`nightread tune` as its users start it: stopped, killed, continued, enlarged, tested once."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.demo.archive import draw_archive

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "jobs"]
MANY_EPOCHS = 300
"""A head that is trained so long is still training when the first points are answered."""
DIVERGING = 10.0
"""A rate at which two layers without a bend between them soon hold no numbers any more."""
GRID = ["--grid", f"learning_rate=0.001,0.003,{DIVERGING:g}", "--grid", f"epochs=2,{MANY_EPOCHS}"]
LARGER_GRID = ["--grid", f"learning_rate=0.001,0.002,0.003,{DIVERGING:g}", *GRID[2:]]
SETTINGS = ("input_size=96", "early_stopping=0", "optimizer=sgd", "momentum=0.9", "dense_units=64", "activation=linear")


@dataclass(frozen=True)
class Place:
    """A drawn archive, and what is searched on it.

    Attributes:
        home: Where all lies.
        arguments: Of every command.
    """

    home: Path
    arguments: list[str]

    @property
    def search(self) -> Path:
        return self.home / "models" / "cells" / "searches" / "s1"

    def answers(self) -> dict[str, bytes]:
        """Name and content of each answer on disk."""
        found = self.search.glob("points/*.npz")
        return {path.name: path.read_bytes() for path in found if not path.name.endswith(".weights.npz")}

    def rows(self) -> dict[tuple[str, ...], dict[str, str]]:
        """Rows of leaderboard.csv by rate, dropout and epochs."""
        with (self.search / "leaderboard.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        return {(row["learning_rate"], row.get("dropout", ""), row["epochs"]): row for row in rows}


def start_and_end(place: Place, environment: dict[str, str], number: signal.Signals) -> int:
    """Start the search and send it a signal once a point more than before is answered; the exit code."""
    count = len(place.answers())
    process = subprocess.Popen(
        [*COMMAND, *place.arguments, *GRID],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    ends = time.monotonic() + 240
    while process.poll() is None and len(place.answers()) <= count and time.monotonic() < ends:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert len(place.answers()) > count, errors.decode()[-3000:]
    return process.returncode


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where nothing was searched yet."""
    home = tmp_path_factory.mktemp("tuned")
    drawn = draw_archive(home / "drawn", 3, labelled=60, archive=1)
    arguments = ["tune", str(drawn.labelled), "--models", str(home / "models"), "--name", "cells"]
    arguments += ["--weights", "none", "--recipe", "frozen", "--cache", str(home / "cache")]
    arguments += ["--concurrency", "1"]  # what is at a time takes a process each, which loads TensorFlow first
    for setting in SETTINGS:
        arguments += ["--set", setting]
    return Place(home, arguments)


@pytest.fixture(scope="module")
def stopped(place: Place, environment: dict[str, str]) -> int:
    """Exit code of the search, stopped by Ctrl-C."""
    return start_and_end(place, environment, signal.SIGINT)


@pytest.fixture(scope="module")
def killed(place: Place, stopped: int, environment: dict[str, str]) -> dict[str, bytes]:
    """The answers that were there when the driver was killed."""
    start_and_end(place, environment, signal.SIGKILL)
    return place.answers()


@pytest.fixture(scope="module")
def finished(place: Place, killed: dict[str, bytes], nightread: Callable) -> Any:
    """The same command, which goes on to the end."""
    done = nightread(*place.arguments, *GRID, "--json")
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def enlarged(place: Place, finished: Any, nightread: Callable) -> Any:
    """The same search with a further rate, then tested."""
    before = place.answers()
    done = nightread(*place.arguments, *LARGER_GRID, "--test", "--json")
    assert done.code == 0, done.err
    assert before.items() <= place.answers().items()
    return done


def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path: Path, nightread: Callable) -> None:
    for name in ("benign", "malignant"):
        (tmp_path / "drawn" / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "drawn" / name / f"{number}.jpg").write_bytes(b"never looked into")
    models = tmp_path / "models"
    arguments = ["tune", tmp_path / "drawn", "--models", models, "--name", "cells", "--recipe", "skin-lesion"]
    arguments += ["--grid", "learning_rate=1e-5,1e-4,5e-4,1e-3,5e-3", "--grid", "epochs=10,20,30,40,50,100"]
    done = nightread(*arguments, "--weights", "none", "--dry-run", "--json")
    assert done.code == 0, done.err
    counts = ("trials", "trainings", "epochs", "epochs_apart", "images", "answered")
    assert [done.answer[name] for name in counts] == [30, 5, 500, 1250, 20, 0]
    assert not models.exists()


def test_ctrl_c_ends_a_search_with_its_own_code(stopped: int) -> None:
    assert stopped == 130


def test_what_was_finished_when_the_driver_was_killed_is_kept(place: Place, killed: dict[str, bytes]) -> None:
    assert 2 <= len(killed) <= 6
    assert (place.search / "search.json").exists()


def test_the_same_command_goes_on_and_nothing_finished_is_lost(
    place: Place, killed: dict[str, bytes], finished: Any
) -> None:
    assert killed.items() <= place.answers().items()
    answer = finished.answer
    assert (answer["search"], answer["trials"], answer["trainings"]) == ("s1", 6, 3)
    assert (answer["finished"], answer["failed"]) == (5, 1)
    assert Path(answer["leaderboard"]) == place.search / "leaderboard.parquet"
    assert not list(place.search.glob("trainings/*"))


def test_a_training_that_diverges_is_a_row_with_its_reason(place: Place, finished: Any) -> None:
    rows = place.rows()
    assert len(rows) == 6
    diverged = rows[(str(DIVERGING), "", str(MANY_EPOCHS))]
    assert diverged["status"] == "failed" and "no number" in diverged["error"] and diverged["rank"] == ""
    assert sorted(int(row["rank"]) for row in rows.values() if row["rank"]) == [1, 2, 3, 4, 5]


def test_the_best_is_a_version_with_its_trained_state(place: Place, finished: Any) -> None:
    answer = finished.answer
    assert (answer["model"], answer["champion"]) == ("cells@v1", "v1")
    record = json.loads((Path(answer["path"]) / "bundle.json").read_text())
    assert record["provenance"]["search"]["point"] == answer["best"]["point"]
    settings = answer["best"]["settings"]
    row = place.rows()[(str(settings["learning_rate"]), "", str(settings["epochs"]))]
    assert row["rank"] == "1" and float(row["value"]) == pytest.approx(answer["best"]["value"])
    assert (place.search / "search.html").read_text().startswith("<!DOCTYPE html>")
    weights = list(place.search.glob("points/*.weights.npz"))
    assert [path.name.partition(".")[0] for path in weights] == [answer["best"]["point"]]


def test_a_larger_grid_runs_only_the_points_that_are_new(place: Place, enlarged: Any) -> None:
    answer = enlarged.answer
    assert (answer["search"], answer["trials"], answer["trainings"], answer["run"]) == ("s1", 8, 4, 1)
    assert (answer["finished"], answer["failed"]) == (7, 1)


def test_the_best_is_tested_once(place: Place, enlarged: Any, nightread: Callable) -> None:
    tested = enlarged.answer["test"]
    assert tested["again"] is False and list(tested["backbones"]) == ["mobilenet_v2"]
    report = place.search / "test" / "mobilenet_v2"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["part"] == "test" and metrics["n"] == tested["backbones"]["mobilenet_v2"]["n"] == 12
    assert tested["backbones"]["mobilenet_v2"]["point"] == enlarged.answer["best"]["point"]
    assert "mobilenet_v2" in (place.search / "test.html").read_text()
    written = (report / "report.html").stat().st_mtime_ns
    again = nightread(*place.arguments, *LARGER_GRID, "--test", "--json")
    assert again.code == 0, again.err
    assert again.answer["run"] == 0 and again.answer["test"] == {**tested, "again": True}
    assert (report / "report.html").stat().st_mtime_ns == written


def test_a_tested_search_takes_no_further_points(place: Place, enlarged: Any, nightread: Callable) -> None:
    record = (place.search / "search.json").read_bytes()
    done = nightread(*place.arguments, *LARGER_GRID, "--grid", "dropout=0.2,0.3", "--json")
    assert done.code == 2
    assert "tested" in done.answer["error"]["message"] and "--search ID" in done.answer["error"]["cure"]
    assert (place.search / "search.json").read_bytes() == record


def test_where_every_point_fails_the_leaderboard_says_why(place: Place, nightread: Callable) -> None:
    grid = ["--grid", f"learning_rate={DIVERGING:g}", "--grid", f"epochs={MANY_EPOCHS},{MANY_EPOCHS + 1}"]
    done = nightread(*place.arguments, *grid, "--search", "hopeless", "--json")
    assert done.code == 2, done.err
    assert "no number" in done.answer["error"]["message"]
    with (place.search.parent / "hopeless" / "leaderboard.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["status"] for row in rows] == ["failed", "failed"] and all(row["error"] for row in rows)
