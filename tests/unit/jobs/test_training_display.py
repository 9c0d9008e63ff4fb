"""What `train` shows while it runs and when it ends."""

from __future__ import annotations

import dataclasses
import math
import os
import pty
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from jobs.console import Console, plain
from jobs.training_display import TrainDisplay, heading, show, summary
from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.scoring.report import ScoreProgress
from pipelines.training.history import HISTORY_FIGURES, VALIDATION_COLUMNS
from pipelines.training.report import EpochProgress, TrainReport, Unreadable

REPORT = TrainReport(
    model="cells",
    version="v2",
    path="/data/my models/cells/v2",
    model_id="0" * 64,
    champion="v1",
    classes=("benign", "malignant"),
    positive_classes=("malignant",),
    parts={"train": {"benign": 1200, "malignant": 800}, "val": {"benign": 30, "malignant": 20}},
    groups=1900,
    without_patient=1,
    epochs=23,
    best_epoch=18,
    validation={"accuracy": 0.9, "log_loss": 0.3, "roc_auc": 0.95},
    intervals={"accuracy": (0.8, 0.96), "roc_auc": (0.88, 0.99)},
    roc_auc=0.95,
    roc_auc_interval=(0.88, 0.99),
    confusion_matrix=((27, 3), (2, 18)),
    classification_report="  precision recall\n",
    temperature=1.2,
    threshold=0.31,
    target_sensitivity=0.95,
    sensitivity=0.95,
    specificity=0.8,
    thresholds={
        "image": {
            "threshold": 0.31,
            "target_sensitivity": 0.95,
            "sensitivity": 0.95,
            "specificity": 0.8,
            "refer_low": 0.21,
            "refer_high": 0.44,
            "target_specificity": 0.9,
            "cases": 50,
            "referred": 12,
            "referred_positive": 4,
            "decided": {"positives": 16, "negatives": 22, "sensitivity": 0.9625, "specificity": None},
        },
    },
    int8={"offered": True, "sentence": "int8 earned its place on 50 validation images."},
    versus={"champion": "v1", "verdict": "better", "sentence": "better than the champion v1"},
    audit={"origin": "inherited", "predecessor": "v1", "exact_copies": 1, "near_duplicate_pairs": 2},
    started_from=None,
    workers=2,
    unreadable=(Unreadable("/data/broken.jpg", "truncated", "The file is cut short."),),
    left_out={"suffix": 3, "hidden": 0},
    warnings=("Look twice.",),
    seconds=61.25,
)


def row(epoch: int, val_loss: float) -> Mapping[str, float]:
    figures = dict.fromkeys((*HISTORY_FIGURES, *VALIDATION_COLUMNS.values()), 0.5)
    return {"epoch": epoch, **figures, "val_loss": val_loss, "learning_rate": 1e-3, "seconds": 0.25}


def rows(losses: list[float]) -> Iterator[EpochProgress]:
    for number, loss in enumerate(losses, 1):
        yield EpochProgress("training", number, len(losses), row=row(number, loss))


def told(losses: list[float], metric: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with TrainDisplay(Console(), metric) as display:
        display.tell(ScoreProgress("listing"))
        for progress in rows(losses):
            display.tell(progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_each_epoch_is_one_line_and_the_best_so_far_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told([0.5, 0.4, 0.45, 0.3], "log_loss", capsys)
    assert lines[0] == heading()
    assert [line.split()[0] for line in lines[1:]] == ["1/4", "2/4", "3/4", "4/4"]
    assert [line.endswith("*") for line in lines[1:]] == [True, True, False, True]
    assert "0.4500" in lines[3] and "0.001" in lines[3] and "0.25" in lines[3]
    assert len({len(line.removesuffix(" *")) for line in lines}) == 1 and len(lines[0]) <= 90


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_the_best_by_any_figure_is_marked(metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    falls = metric == "log_loss"  # of these rows that alone; the others stay as they are
    assert [line.endswith("*") for line in told([0.5, 0.4], metric, capsys)[1:]] == [True, falls]


def test_what_is_no_number_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    assert told([math.nan], "log_loss", capsys)[1].split()[4] == "–"


def test_a_log_has_about_fifty_lines_however_many_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told([1 / number for number in range(1, 502)], "log_loss", capsys)[1:]
    assert [int(line.split("/")[0]) for line in lines] == [1, *range(11, 501, 11), 501]


def test_a_terminal_gets_every_epoch_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with TrainDisplay(Console(), "log_loss") as display:
            for progress in rows([1.0] * 60):
                display.tell(progress)
        terminal.flush()
        text = b""
        os.set_blocking(ours, False)
        try:
            while True:
                text += os.read(ours, 65536)
        except (BlockingIOError, OSError):
            pass
    os.close(ours)
    assert all(f" {number}/60 " in text.decode() for number in range(1, 61))


def test_the_summary_says_what_the_papers_programs_print_and_what_comes_next() -> None:
    text = summary(REPORT)
    for part in (
        "train 1,200 benign, 800 malignant; val 30 benign, 20 malignant",
        "left out    3 suffix\n",
        "split       that of v1",
        "1 exact copy, 2 near-duplicate pairs",
        "not known for 1 image:",
        "epochs      23 on 2 workers; the weights of epoch 18 were kept",
        "accuracy 0.9000 (95 % interval 0.800 to 0.960), loss 0.3000",
        "ROC AUC 0.9500 (95 % interval 0.880 to 0.990), malignant against the rest",
        "sensitivity 0.950 (asked for: 0.95), specificity 0.800",
        "refer       from 0.21 to below 0.44: 12 of 50 validation images (24.0 %) go to a person\n",
        "outside of it sensitivity 0.963 (asked for: 0.95), specificity – (asked for: 0.9)\n",
        "int8        int8 earned its place",
        "compared    better than the champion v1",
        "champion    still v1; to score with this one:",
        "models promote '/data/my models/cells'@v2",
        "61.2 s",
    ):
        assert part in text, part
    matrix = [line.split() for line in text.splitlines() if line.startswith(("benign", "malignant"))]
    assert matrix == [["benign", "27", "3"], ["malignant", "2", "18"]]
    assert "mean of each class" not in text and "patients    by the highest" not in text


def test_patients_have_a_line_and_a_band_without_cases_refers_nobody() -> None:
    nobody = {**REPORT.thresholds["image"], "refer_low": 0.31, "refer_high": 0.31, "referred": 0}
    one_kind = {**nobody, "decided": {**nobody["decided"], "positives": 50, "negatives": 0}}
    said = summary(dataclasses.replace(REPORT, thresholds={"image": one_kind}))
    assert "nobody of 50 validation images, of which none is negative: nothing is known of such\n" in said
    never = {**REPORT.thresholds["image"], "refer_low": 0.0, "refer_high": 1.00001, "threshold": 0.375, "cases": 24}
    text = summary(dataclasses.replace(REPORT, thresholds={"image": nobody, "patient_max": never, "patient_mean": {}}))
    assert "refer       nobody of 50 validation images: the threshold alone reaches both targets\n" in text
    assert "patients    by the highest p_positive of each one's images: threshold 0.375\n" in text
    assert "refer any: 12 of 24 patients of validation (50.0 %) go to a person\n" in text
    assert "refer" not in summary(dataclasses.replace(REPORT, thresholds={"image": {"threshold": 0.31}}))


def test_a_first_version_is_champion_and_three_classes_have_two_areas() -> None:
    changes: dict[str, Any] = {
        "champion": "v2",
        "versus": None,
        "classes": ("a", "b", "c"),
        "positive_classes": ("b", "c"),
        "confusion_matrix": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        "intervals": {},
        "without_patient": 0,
        "audit": {"origin": "made"},
        "workers": 1,
        "started_from": "cells@v1",
    }
    text = summary(dataclasses.replace(REPORT, **changes))
    assert "score ARCHIVE --model '/data/my models/cells' --results RESULTS" in text
    assert "b or c against the rest" in text and "ROC AUC 0.9500, mean of each class against the rest" in text
    assert "epochs      23, from cells@v1; the weights" in text
    assert "duplicates" not in text and "patients" not in text and "split" not in text


def test_warnings_and_what_was_left_out_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(), REPORT)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "warning: /data/broken.jpg was left out: truncated (The file is cut short.)",
        "warning: Look twice.",
    ]
    assert captured.out == summary(REPORT) + "\n"


def test_the_json_answer_keeps_its_keys() -> None:
    answer = plain(REPORT.as_json())
    assert {"model", "version", "path", "model_id", "champion", "epochs", "best_epoch", "validation", "seconds"} <= set(
        answer
    )
    assert answer["int8"]["offered"] is True and answer["versus"]["verdict"] == "better"
    assert answer["thresholds"]["image"]["decided"]["positives"] == 16
    assert answer["audit"]["exact_copies"] == 1 and answer["intervals"]["accuracy"] == [0.8, 0.96]
