"""What `nightread evaluate` reads of its options, and what it says at the end."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.console import Console
from jobs.evaluate import read_share, show
from jobs.evaluation import EvaluateConfig, EvaluationReport
from jobs.evaluation_sources import CommittedRows, ModelOnImages
from pipelines.errors import UsageError
from pipelines.evaluation.labelled_rows import JoinConfig
from pipelines.evaluation.labels import LabelsConfig
from pipelines.training.labelled import DataConfig

IMAGES = ModelOnImages("models/m", DataConfig("data"))
ROWS = JoinConfig("results", LabelsConfig("labels.csv"), model="m")


def figure(value: float | None, reason: str = "") -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "reason": reason}
    return {"value": value, "low": value - 0.05, "high": value + 0.02}


def answer(**changes: Any) -> EvaluationReport:
    metrics: dict[str, Any] = {
        "model": {"name": "moles", "version": None, "model_id": "ab" * 32, "precision": "int8"},
        "n": 1200,
        "patients": 700,
        "groups": 690,
        "positive_classes": ["melanoma", "carcinoma"],
        "positive_vs_rest": {"roc_auc": figure(0.91)},
        "overall": {
            "calibration_error": figure(0.06),
            "calibration_slope": figure(None, "the regression does not converge"),
        },
        "operating_point": {
            "threshold": 0.25,
            "refer_low": 0.2,
            "refer_high": 0.5,
            "sensitivity": figure(0.96),
            "specificity": figure(0.7),
            "referred": figure(0.1),
        },
        "data": {"left_out": {"predictions without a label": 3}, "copies": 2, "unreadable": 0},
        "seen_in_training": {"known": True, "exact": 0, "near_duplicates": 4, "left_out": 7},
        "comparison": None,
        "concerns": ["Be careful.", "Be very careful."],
    }
    return EvaluationReport(
        "r/report.html", metrics | changes, "the test part", ("/a.png: truncated (Cut.)",), ("N",), 3.21
    )


def test_the_figures_that_matter_are_told_with_their_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(), answer())
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "Evaluated: the test part.",
        "  model       moles, int8",
        "  images      1,200, 700 patients, 690 groups",
        "  ROC AUC     0.9100 (95 % interval 0.860 to 0.930), melanoma or carcinoma against the rest",
        "  threshold   0.25 of p_positive, frozen when the model was made:",
        "              sensitivity 0.9600 (95 % interval 0.910 to 0.980)",
        "              specificity 0.7000 (95 % interval 0.650 to 0.720)",
        "              referred    0.1000 (95 % interval 0.050 to 0.120), p_positive from 0.2 to 0.5",
        "  calibration slope – (the regression does not converge), 1 is ideal",
        "              mean error 0.0600 (95 % interval 0.010 to 0.080)",
        "  left out    predictions without a label: 3, copies: 2, known to the model from its training: 7",
        "  seen        near-duplicates of 4 of these images",
        "  careful     Be careful.",
        "              Be very careful.",
        "  report      r/report.html (3.2 s)",
    ]
    assert told.err.splitlines() == ["warning: left out: /a.png: truncated (Cut.)", "warning: N"]


def test_without_a_threshold_the_reason_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(), answer(operating_point={"reason": "no threshold is known"}, patients=None))
    out = capsys.readouterr().out
    assert "  threshold   no threshold is known\n" in out and "patients not known" in out and "referred" not in out


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("5%", 0.05), ("0.02", 0.02)])
def test_shares(text: str, share: float) -> None:
    assert read_share("--prevalence", text) == pytest.approx(share)


def test_what_is_no_share_is_refused() -> None:
    with pytest.raises(UsageError, match="'half', which is no share"):
        read_share("--prevalence", "half")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"aggregate": "median"}, "no 'median'"),
        ({"prevalences": (0.0,)}, "above 0"),
        ({"prevalences": (float("nan"),)}, "above 0"),
        ({"by": ("site", "site")}, "twice"),
        ({"report": "results/x", "source": CommittedRows(ROWS)}, "lies in the results"),
        ({"report": "results", "source": CommittedRows(ROWS)}, "lies in the results"),
    ],
)
def test_what_can_only_fail_later_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EvaluateConfig(**{"report": "report", "source": IMAGES, **arguments})


def test_a_comparison_of_results_needs_two_names() -> None:
    with pytest.raises(UsageError, match="only one is named"):
        CommittedRows(JoinConfig("results", LabelsConfig("labels.csv")), against="other")
    with pytest.raises(UsageError, match="'float16' is unknown"):
        ModelOnImages("m", DataConfig("data"), precision="float16")
