"""`nightread tune`: what it refuses before anything starts, and what it shows."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.console import Console, plain
from jobs.tune import grid_words, read_weights
from jobs.tuning_display import TuneDisplay, plan_json, plan_lines, show, summary
from pipelines.errors import UsageError
from pipelines.scoring.report import ScoreProgress
from pipelines.training.recipe_rules import RULES
from pipelines.training.recipes import load_recipe
from pipelines.tuning.plan import make_plan, without
from pipelines.tuning.progress import PlanReport, Running, SearchProgress, TuneReport
from pipelines.tuning.space import make_points, read_space

RATES = {"learning_rate": "0.001", "dropout": "0.2"}
REPORT = TuneReport(
    search="s2",
    folder="/data/my models/cells/searches/s2",
    metric="accuracy",
    best={
        "point": "0" * 16,
        "settings": {"learning_rate": 0.005, "epochs": 20},
        "value": 0.8634,
        "epochs": 20,
        "kept_epoch": 18,
        "figures": {"accuracy": 0.8634, "roc_auc": 0.93125, "log_loss": 0.33},
    },
    trials=30,
    trainings=5,
    run=2,
    finished=28,
    stopped=0,
    failed=2,
    seconds=101.25,
    leaderboard="/data/my models/cells/searches/s2/leaderboard.parquet",
    page="/data/my models/cells/searches/s2/search.html",
    sureness="These six are not told apart: a, b, c, d, e, f.",
    model="cells@v3",
    path="/data/my models/cells/v3",
    champion="v1",
    backbones={"mobilenet_v2": "/data/my models/cells/searches/s2/best/mobilenet_v2/v1"},
    warnings=("Look twice.",),
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    """How a command was refused, which must have exit code 2."""
    code = main(["tune", "DATA", "--models", "MODELS", "--name", "cells", *map(str, arguments), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (code, answer["exit_code"], answer["error"]["code"]) == (2, 2, "usage")
    told: dict[str, str] = answer["error"]
    return told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "grid"),
        (["--grid", "dropout=0.9..0.1", "--random", 3], "0.9"),
        (["--grid", "dropout=0.1..0.1", "--random", 3], "0.1"),
        (["--grid", "dropout=0.1..0.9"], "is a range"),
        (["--grid", "learning_rate=log:0..1", "--random", 3], "0"),
        (["--grid", "epochs=2,3,4", "--grid", "dropout=0.1,0.2", "--limit", 5], "6"),
        (["--grid", "epochs=2,3", "--metric", "auc"], "'auc'"),
        (["--grid", "epochs=2,3", "--scheduler", "pbt"], "'pbt'"),
        (["--grid", "epochs=2,3", "--concurrency", 0], "--concurrency"),
        (["--grid", "epochs=2,3", "--resources", "cpu=much"], "--resources"),
        (["--grid", "epochs=2,3", "--random", 0], "--random"),
        (["--grid", "epochs=2,3", "--weights", "vgg16=none"], "vgg16"),
        (["--grid", "epochs=2,3", "--grid", "epochs=3"], "epochs"),
        (["--grid", "epochs=2,2"], "epochs"),
        (["--grid", "epochs=2,0"], "epochs"),
        (["--grid", "epochs=2,3", "--grid", "test_share=0.1,0.2"], "test_share"),
        (["--grid", "epochs"], "'epochs'"),
        (["--grid", "epochs=2,3", "--set", "dropuot=0.1"], "dropuot"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_be_searched_is_refused_before_the_images_are_looked_for(
    arguments: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)["message"]


def test_an_unknown_key_of_the_grid_lists_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "--grid", "epochs=2,3", "--grid", "learning_rte=0.1")
    assert "learning_rte" in told["message"] and all(key in f"{told['message']} {told['cure']}" for key in RULES)


def test_every_option_is_taken_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTREAD_TUNE_GRID", "epochs=2,3 dropout=0.1,0.2")
    monkeypatch.setenv("NIGHTREAD_TUNE_LIMIT", "3")
    assert "4 points" in refused(capsys)["message"]
    monkeypatch.setenv("NIGHTREAD_TUNE_LIMIT", "4")
    monkeypatch.setenv("NIGHTREAD_TUNE_METRIC", "auc")
    assert "'auc'" in refused(capsys)["message"]
    monkeypatch.setenv("NIGHTREAD_TUNE_SET", "batch_size=16 head_epochs=none")
    assert "head_epochs" in refused(capsys)["message"]


def test_the_grid_in_words() -> None:
    space = read_space(["learning_rate=log:1e-5..0.01", "dense_units=64..1024", "activation=relu,elu"], 5)
    assert grid_words(space) == {
        "learning_rate": "1e-05 to 0.01 (log)",
        "dense_units": "64 to 1024",
        "activation": "relu, elu",
    }
    assert grid_words(read_space(["batch_norm=true,false"], None)) == {"batch_norm": "true, false"}


@pytest.mark.parametrize(
    ("text", "common", "some"),
    [
        ("imagenet", "imagenet", {}),
        ("a,b.weights.h5", "a,b.weights.h5", {}),
        ("/k=v/my.weights.h5", "/k=v/my.weights.h5", {}),
        ("none,mobilenet_v2=imagenet", "none", {"mobilenet_v2": "imagenet"}),
        ("vgg16=none, resnet50_v2=/a=b.h5", "imagenet", {"vgg16": "none", "resnet50_v2": "/a=b.h5"}),
    ],
)
def test_weights_of_all_and_of_some_backbones(text: str, common: str, some: dict[str, str]) -> None:
    assert read_weights(text) == (common, some)


@pytest.mark.parametrize("text", ["vgg16=none,vgg16=imagenet", "none,imagenet,vgg16=none", "vgg16="])
def test_weights_said_twice_or_not_at_all_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_weights(text)


def standings() -> list[SearchProgress]:
    """Three moments of a search: nothing yet, a first best, the same best while more is done."""
    running = (Running(RATES, 23, 100, 0.8421), Running({"learning_rate": "0.01"}, 0, 100, float("nan")))
    first = SearchProgress("searching", 0, 30, metric="accuracy", running=running)
    best = dataclasses.replace(first, done=12, failed=1, seconds_left=151.0, best=RATES, best_value=0.8634)
    return [first, best, dataclasses.replace(best, done=13)]


def test_a_log_has_a_line_every_thirty_seconds_and_one_for_each_new_best(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with TuneDisplay(Console(clock=lambda: now)) as display:
        display.tell(ScoreProgress("listing"))
        for progress in standings():
            display.tell(progress)
        now = 31.0
        display.tell(standings()[-1])
        display.tell(ScoreProgress("compiling"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "best so far: accuracy 0.8634 at learning_rate=0.001, dropout=0.2",
        "points: 13 of 30, 1 failed, 2:31 left",
    ]


def test_a_terminal_has_a_table_of_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with open(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        console = Console()
        with TuneDisplay(console) as display:
            display.tell(ScoreProgress("listing", 60))
            for progress in standings():
                display.tell(progress)
            console.note("a line above the table")
            display.tell(ScoreProgress("compiling"))
    seen = read_all(leader)
    assert "best so far: accuracy 0.8634 at learning_rate=0.001, dropout=0.2" in seen
    lines = [line.split() for line in seen.replace("\r", "\n").splitlines()]
    assert ["learning_rate", "dropout", "epoch", "accuracy"] in [line[-4:] for line in lines]
    assert ["0.001", "0.2", "23/100", "0.8421"] in [line[-4:] for line in lines]
    assert ["0.01", "0/100", "–"] in [line[-3:] for line in lines]
    assert "13 of 30, 1 failed, 2:31 left" in seen and "a line above the table" in seen


def test_a_table_longer_than_a_screen_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "50")
    running = tuple(Running({"learning_rate": f"rate{number}"}, 1, 9, 0.5) for number in range(40))
    with open(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with TuneDisplay(Console()) as display:
            display.tell(SearchProgress("searching", 0, 40, metric="accuracy", running=running))
    seen = read_all(leader)
    assert "rate15" in seen and "rate16" not in seen and "and 24 more trainings" in seen


def read_all(leader: int) -> str:
    """What was written to a terminal whose other end is closed, without its colours."""
    pieces = []
    try:
        while piece := os.read(leader, 1 << 16):
            pieces.append(piece)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(pieces).decode())


def planned(texts: list[str], settings: Mapping[str, str], answered: int = 0) -> PlanReport:
    points = make_points(read_space(texts, None), load_recipe("skin-lesion", dict(settings)), 1000, 0)
    plan = make_plan(points)
    left = without(plan, [point.key for point in points[:answered]])
    return PlanReport("s1" if answered else None, 2637, plan, left, 200.0)


def test_the_plan_of_the_published_grid() -> None:
    report = planned(["learning_rate=1e-5,1e-4,5e-4,1e-3,5e-3", "epochs=10,20,30,40,50,100"], {})
    text = "\n".join(plan_lines(report))
    assert text.startswith("Dry run: nothing was written.\n")
    assert "points      30\n" in text
    assert "trainings   5 of 500 epochs at most, where 30 apart would be of 1,250\n" in text
    assert "passes      mobilenet_v2 at 224 px: its features of each image, for 5 trainings\n" in text
    assert "time        about 3:20" in text and "rough" in text and "apart  " not in text
    answer = plain(plan_json(report))
    counts = {"trials": 30, "trainings": 5, "epochs": 500, "epochs_apart": 1250, "answered": 0, "images": 2637}
    assert counts.items() <= answer.items()
    assert answer["remaining"] == {"trials": 30, "trainings": 5, "passes": 1, "epochs": 500}
    assert json.loads(json.dumps(answer)) == answer


def test_a_plan_says_what_is_apart_and_what_is_answered() -> None:
    cosine = "\n".join(plan_lines(planned(["epochs=2,4"], {"schedule": "cosine"})))
    assert "apart       2 points with schedule = cosine" in cosine
    cut = planned(["trainable_layers=0,30", "epochs=2,4"], {}, answered=2)
    text = "\n".join(plan_lines(cut))
    assert "mobilenet_v2 at 224 px, last 30 layers trained: what enters the trained layers of each image" in text
    assert "search      s1 goes on; 2 points of these are answered already\n" in text
    assert "left        2 points: 1 of 4 epochs at most" in text
    assert "nothing is left to train" in "\n".join(plan_lines(planned(["epochs=2,4"], {}, answered=2)))


def test_the_summary_says_what_is_best_how_sure_and_what_comes_next() -> None:
    text = "\n".join(summary(REPORT, None))
    for part in (
        "Search s2: 30 points, answered by 5 trainings, 2 of them trained now (101.2 s)\n",
        "failed      2 points; the leaderboard says why\n",
        "best        learning_rate=0.005, epochs=20\n",
        "accuracy 0.8634 on validation, with the weights of epoch 18\n",
        "roc_auc 0.9313, log_loss 0.3300\n",
        "how sure    These six are not told apart: a, b, c, d, e, f.\n",
        "backbones   mobilenet_v2: /data/my models/cells/searches/s2/best/mobilenet_v2/v1\n",
        "page        /data/my models/cells/searches/s2/search.html\n",
        "cells@v3; the champion is still v1.",
        "models promote '/data/my models/cells'@v3",
        "the same command with --test, once",
    ):
        assert part in text, part
    crowned = dataclasses.replace(REPORT, champion="v3", failed=0, run=0)
    text = "\n".join(summary(crowned, None))
    assert "score ARCHIVE --model '/data/my models/cells' --results RESULTS" in text
    assert "failed" not in text and "none of them trained now" in text


def test_figures_of_the_test_part_have_their_intervals_and_undefined_ones_none() -> None:
    sure, absent = {"value": 0.84, "low": 0.81, "high": 0.87}, {"value": None, "low": None, "high": None}
    tested: dict[str, Any] = {
        "page": "/data/test.html",
        "again": False,
        "backbones": {"vgg16": {"overall": {"accuracy": sure, "roc_auc": absent}}},
    }
    text = "\n".join(summary(REPORT, tested))
    assert "test part   vgg16: accuracy 0.8400 (95 % interval 0.810 to 0.870), roc_auc –\n" in text
    assert "/data/test.html" in text and "--test, once" not in text
    again = "\n".join(summary(REPORT, {**tested, "again": True}))
    assert "as it was found before; nothing was evaluated again" in again


def test_the_answer_has_what_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(json=True), REPORT, None)
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    documented = {"search", "best", "trials", "trainings", "finished", "failed", "seconds", "leaderboard"}
    assert documented <= set(answer) and answer["test"] is None
    assert captured.err == "warning: Look twice.\n"


def test_its_help_names_every_option_of_the_documents(capsys: pytest.CaptureFixture[str], checkout: Path) -> None:
    assert main(["tune", "--help"]) == 0
    told = capsys.readouterr().out
    document = (checkout / "docs" / "tuning.md").read_text()
    for option in ("--grid", "--random", "--metric", "--scheduler", "--concurrency", "--resources", "--search"):
        assert option in told and option in document
    for option in ("--limit", "--refit", "--promote", "--test", "--dry-run", "--cache", "--address"):
        assert option in told and option in document
