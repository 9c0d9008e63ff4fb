"""The report's folder: what is refused, what is written and what is left after a failure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.errors import TryLater, UsageError
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.gathered import refuse_one_class
from pipelines.evaluation.writing import WORK, check_folder, prediction_table, work_folder, write_report
from pipelines.models.record import plain


def cases(labels: list[int], p_last: list[float], patients: tuple[str | None, ...] | None = None) -> Cases:
    """Images of the classes `a b` and `c`, of which `c` is positive; the rest of each answer goes to `a b`."""
    last = np.float32(p_last)
    names = tuple(f"/img/{number}.png" for number in range(len(labels)))
    return Cases(
        classes=("a b", "c"),
        positive=(1,),
        uris=names[::-1],
        contents=names,
        labels=np.array(labels, np.int64),
        probabilities=np.stack([1 - last, last], axis=1),
        groups=names,
        patients=patients,
        mean_intensity=np.full(len(labels), np.nan),
    )


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    check_folder(str(tmp_path / "new"), False)
    (tmp_path / WORK).mkdir()
    check_folder(str(tmp_path), False)  # what an interrupted evaluation left
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"there already and holds notes\.txt"):
        check_folder(str(tmp_path), False)
    check_folder(str(tmp_path), True)


def test_what_is_computed_meanwhile_stays_only_where_starting_again_helps(tmp_path: Path) -> None:
    for error, stays in ((TryLater("later"), True), (UsageError("never"), False), (KeyboardInterrupt(), True)):
        with pytest.raises(type(error)), work_folder(str(tmp_path)) as place:
            Path(place).mkdir(exist_ok=True)
            (Path(place) / "part").write_text("answers")
            raise error
        assert (tmp_path / WORK / "part").exists() is stays
    with work_folder(str(tmp_path)) as place:
        assert (Path(place) / "part").read_text() == "answers"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own_is_never_taken_for_what_an_evaluation_left(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="there already and holds work"):
        check_folder(str(tmp_path), False)
    check_folder(str(tmp_path), True)
    with work_folder(str(tmp_path)):
        pass
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"


def test_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        check_folder(str(tmp_path / "report"), True)


def test_the_three_files(tmp_path: Path) -> None:
    rows = prediction_table(cases([0, 1], [0.2, 0.9]), ("test", "test"), None)
    place = write_report(
        str(tmp_path / "r"), b"<p>page</p>", {"x": np.float64("nan"), "é": (np.int64(3),), "p": "\udce9"}, rows
    )
    assert place == f"{tmp_path}/r/report.html"
    assert (tmp_path / "r" / "report.html").read_bytes() == b"<p>page</p>"
    assert json.loads((tmp_path / "r" / "metrics.json").read_text()) == {"x": None, "é": [3], "p": "\udce9"}
    assert pq.read_table(tmp_path / "r" / "predictions.parquet").equals(rows)


def test_a_page_never_stands_beside_figures_of_another_evaluation(tmp_path: Path) -> None:
    rows = prediction_table(cases([0, 1], [0.2, 0.9]), ("test", "test"), None)
    write_report(str(tmp_path), b"old", {}, rows)
    with pytest.raises(TypeError):
        write_report(str(tmp_path), b"new", {"x": object()}, rows)
    assert not (tmp_path / "report.html").exists()


def test_the_rows_of_predictions() -> None:
    fitted = {"threshold": 0.4, "refer_low": 0.3, "refer_high": 0.6}
    rows = prediction_table(cases([0, 1, 1, 0], [0.1, 0.3, 0.6, 0.5], ("p", "p", None, "q")), ("val",) * 4, fitted)
    assert rows.column_names == [
        "image_uri", "label", "patient_id", "part", "group", "predicted_class", "score", "p_a_b", "p_c", "p_positive",
        "decision",
    ]  # fmt: skip
    assert rows["image_uri"].to_pylist() == [f"/img/{number}.png" for number in range(4)]
    assert rows["decision"].to_pylist() == ["refer", "positive", "refer", "negative"]
    assert rows["label"].to_pylist() == ["a b", "c", "c", "a b"]
    assert rows["predicted_class"].to_pylist() == ["a b", "c", "a b", "a b"]  # of equals the first
    np.testing.assert_array_equal(rows["p_positive"].to_numpy(), np.float32([0.5, 0.6, 0.3, 0.1]))
    np.testing.assert_array_equal(rows["score"].to_numpy(), np.float32([0.5, 0.6, 0.7, 0.9]))
    without = prediction_table(cases([0, 1], [0.1, 0.3]), ("val",) * 2, None)
    assert "patient_id" not in without.column_names
    assert without["decision"].to_pylist() == [None, None]


def test_one_class_tells_nothing() -> None:
    refuse_one_class(cases([0, 1], [0.1, 0.2]), "the test part")
    with pytest.raises(UsageError, match="All 2 images in the test part are of one class, 'c'"):
        refuse_one_class(cases([1, 1], [0.1, 0.2]), "the test part")
    with pytest.raises(UsageError, match="No image is left"):
        refuse_one_class(cases([], []), "the test part")
    with pytest.raises(UsageError, match="made from all 7"):
        refuse_one_class(cases([], []), "all images", 7)


def test_what_json_cannot_hold_becomes_null() -> None:
    told = plain({1: [math.inf, np.float32(0.5), np.array([1, 2])], "b": np.bool_(True), "c": None})
    assert told == {"1": [None, 0.5, [1, 2]], "b": True, "c": None}
    assert json.dumps(told, allow_nan=False)
