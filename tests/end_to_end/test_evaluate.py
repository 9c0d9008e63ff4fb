"""`nightread evaluate` as its users start it: both ways in, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as theirs

sys.path.insert(0, str(Path(__file__).parent))
from serving_command import begun

from jobs.cli import main

pytestmark = pytest.mark.slow

SITES = ("north", "<script>alert(1)</script>")


@dataclass(frozen=True)
class Place:
    """Scored images and their labels.

    Attributes:
        home: The folder that holds all.
        manifest: Labels with patients and sites, paths relative to it.
        results: Results of the model `cells`.
        model: Its REF.
    """

    home: Path
    manifest: Path
    results: Path
    model: str


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: Path, draw: Callable[..., list[Path]], nightread: Callable
) -> Place:
    """Forty-five images: one broken, one whose name would be a script, labels that lean on the model's own answers."""
    home = tmp_path_factory.mktemp("evaluated")
    paths = draw(home / "images", 44)
    odd = paths[0].rename(home / "images" / "<img src=x onerror=alert(1)>.jpg")
    paths = sorted([odd, *paths[1:]])
    broken = home / "images" / "broken.jpg"
    broken.write_bytes(paths[5].read_bytes()[:700])
    results, model = home / "results", f"{tiny_models}/cells"
    done = nightread("score", home / "images", "--model", model, "--results", results, "--fail-threshold", 5)
    assert done.code == 0, done.err
    answers = nightread("query", results, "SELECT image_uri, p_positive FROM latest", "--json").answer
    middle = np.median([row["p_positive"] for row in answers])
    suspicious = {row["image_uri"]: row["p_positive"] > middle for row in answers}
    rows = [
        f"images/{path.name},{'malignant' if suspicious.get(str(path), True) ^ (at % 7 == 0) else 'benign'},"
        f"p{at // 2},{SITES[at % 2]}"
        for at, path in enumerate([*paths, broken])
    ]
    manifest = home / "labels.csv"
    manifest.write_text("\n".join(["uri,label,patient_id,site", *rows]) + "\n")
    return Place(home, manifest, results, model)


@pytest.fixture(scope="module")
def by_model(place: Place, nightread: Callable) -> tuple[Path, Any]:
    report = place.home / "by-model"
    done = nightread("evaluate", place.model, place.manifest, "--report", report, "--by", "site", "--json")
    assert done.code == 0, done.err
    return report, done


def values(metrics: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on the way in."""
    kept = ("n", "patients", "groups", "overall", "operating_point", "per_patient", "per_class", "subgroups")
    return {key: metrics[key] for key in kept}


def test_a_model_on_labelled_images(
    place: Place, by_model: tuple[Path, Any], open_to_others: Callable[..., list[str]]
) -> None:
    report, done = by_model
    assert open_to_others(report, place.results) == []
    answer = done.answer
    assert answer["report"] == str(report / "report.html") and answer["exit_code"] == 0
    assert sorted(path.name for path in report.iterdir()) == ["metrics.json", "predictions.parquet", "report.html"]
    assert json.loads((report / "metrics.json").read_text()) == answer["metrics"]
    told = answer["metrics"]
    assert (told["n"], told["patients"], told["part"]) == (44, 22, "external")
    assert told["model"]["name"] == "cells" and told["model"]["precision"] == "float32"
    assert [Path(one["image_uri"]).name for one in told["unreadable"]] == ["broken.jpg"]
    assert "broken.jpg: truncated" in done.err
    assert told["seen_in_training"]["known"] is False


def test_the_figures_are_those_of_scikit_learn(by_model: tuple[Path, Any]) -> None:
    report, done = by_model
    told, rows = done.answer["metrics"], pq.read_table(report / "predictions.parquet").to_pylist()
    truth = [row["label"] == "malignant" for row in rows]
    score = [row["p_malignant"] for row in rows]
    called = [row["predicted_class"] == "malignant" for row in rows]
    overall = told["overall"]
    assert overall["roc_auc"]["value"] == pytest.approx(theirs.roc_auc_score(truth, score), abs=1e-9)
    assert overall["accuracy"]["value"] == pytest.approx(theirs.accuracy_score(truth, called), abs=1e-9)
    decided = [row["decision"] == "positive" for row in rows]
    point = told["operating_point"]
    assert point["threshold"] == 0.5
    assert point["sensitivity"]["value"] == pytest.approx(theirs.recall_score(truth, decided), abs=1e-9)
    assert told["confusion_matrix"] == theirs.confusion_matrix(truth, called).tolist()
    for name in ("roc_auc", "accuracy", "brier"):
        figure = overall[name]
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_the_table_beside_the_report(place: Place, by_model: tuple[Path, Any], rows_of: Callable) -> None:
    rows = pq.read_table(by_model[0] / "predictions.parquet")
    assert rows.column_names == [
        "image_uri", "label", "patient_id", "part", "group", "predicted_class", "score", "p_benign", "p_malignant",
        "p_positive", "decision",
    ]  # fmt: skip
    committed = {row["image_uri"]: row for row in rows_of(place.results)}
    for row in rows.to_pylist():
        night = committed[row["image_uri"]]
        for column in ("predicted_class", "score", "p_benign", "p_malignant", "p_positive", "decision"):
            assert row[column] == night[column]


def test_serve_gives_the_same_numbers_to_the_last_bit(
    place: Place, by_model: tuple[Path, Any], rows_of: Callable, environment: dict[str, str], tmp_path: Path
) -> None:
    evaluated = {row["image_uri"]: row for row in pq.read_table(by_model[0] / "predictions.parquet").to_pylist()}
    with begun(tmp_path, environment, "--model", place.model, "--port", 0, "--workers", 1) as command:
        command.wait_until_ready()
        told = {
            row["image_uri"]: (row, command.ask("/predict", Path(row["image_uri"]).read_bytes()).json)
            for row in rows_of(place.results)
        }
    assert len(told) == 45
    for uri, (night, answer) in told.items():
        if night["status"] == "failed":
            assert (answer["error_code"], answer["detail"]) == (night["error_code"], night["error_message"])
            continue
        found = (*answer["probabilities"].values(), answer["p_positive"], answer["predicted_label"], answer["decision"])
        for row in (night, evaluated[uri]):
            assert found == tuple(
                row[column] for column in ("p_benign", "p_malignant", "p_positive", "predicted_class", "decision")
            )
        facts = ("content_sha256", "width", "height", "decoder")
        assert [answer[fact] for fact in facts] == [night[fact] for fact in facts]
        assert answer["model"]["model_id"] == night["model_id"]


def test_the_page_stands_alone_and_escapes_what_data_say(by_model: tuple[Path, Any]) -> None:
    page = (by_model[0] / "report.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "cells@v1" in page and "no medical device" in page


def test_committed_predictions_give_the_same_figures(
    place: Place, by_model: tuple[Path, Any], nightread: Callable
) -> None:
    report = place.home / "by-results"
    arguments = ["--results", place.results, "--labels", place.manifest, "--report", report, "--by", "site"]
    done = nightread("evaluate", *arguments, "--json", env={"RAY_ADDRESS": "256.256.256.256:1"})
    assert done.code == 0, done.err
    ours, other = done.answer["metrics"], by_model[1].answer["metrics"]
    assert values(ours) == values(other)
    assert [one["error_code"] for one in ours["unreadable"]] == ["truncated"]
    again = nightread("evaluate", *arguments)
    assert again.code == 2 and "there already" in again.err and "--overwrite" in again.err
    (report / "mine.txt").write_text("kept")
    replaced = nightread("evaluate", *arguments, "--overwrite", "--no-images", "--bundle", place.model)
    assert replaced.code == 0, replaced.err
    assert (report / "mine.txt").read_text() == "kept"
    assert "data:image/jpeg" not in (report / "report.html").read_text()
    for text in (
        "Evaluated: committed predictions",
        "ROC AUC",
        "sensitivity",
        "specificity",
        "95 % interval",
        str(report),
    ):
        assert text in replaced.out


def test_two_models_are_compared(place: Place, tiny_models: Path, nightread: Callable) -> None:
    arguments = [place.model, place.manifest, "--report", place.home / "two", "--against", f"{tiny_models}/other"]
    done = nightread("evaluate", *arguments, "--json", "--no-images")
    assert done.code == 0, done.err
    compared = done.answer["metrics"]["comparison"]
    assert compared["n"] == 44 and compared["against"]["name"] == "other"
    assert compared["figures"]["roc_auc"]["this"] == pytest.approx(
        done.answer["metrics"]["overall"]["roc_auc"]["value"], abs=1e-12
    )
    assert sum(map(sum, compared["predicted"])) == 44


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{model} {home}/images", "outside of any class's folder"),
        ("{model} {labels} --class-names malignant=nevus", "no class 'nevus'"),
        ("{model} {labels} --class-names malignant=benign", "only one class"),
        ("{model} {labels} --part test", "no image of the part 'test'"),
        ("{model} {labels} --by ward", "no column 'ward'"),
        ("{model} {labels} --prevalence 5", "above 0 and below 100 %"),
        ("{model} {labels} --aggregate sum", "no 'sum'"),
        ("{model} {labels} --precision int8", "no int8 scorer"),
        ("{model} {labels} --run r", "--run belongs to --results"),
        ("{model}", "DATA is missing"),
        ("--results {home}/results", "--labels is missing"),
        ("--results {home}/results --labels {labels} --root /", "No row"),
        ("--results {home}/results --labels {home}/none.csv", "There is no file"),
        ("--results {home}/results --labels {labels} --part val", "--part belongs to REF and DATA"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    place: Place, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments.format(home=place.home, model=place.model, labels=place.manifest).split()
    # In this process, because none of these may get as far as Ray.
    assert main(["evaluate", *given, "--report", str(place.home / "x"), "--json"]) == 2
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert message in error["message"] and error["cure"]
    assert "Traceback" not in told.err
    assert not (place.home / "x").exists() or not list((place.home / "x").iterdir())


def test_a_report_does_not_lie_in_what_is_only_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--results", str(place.results), "--labels", str(place.manifest)]
    assert main([*arguments, "--report", str(place.results / "report")]) == 2
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "only read" in told and "--report is missing" in told
