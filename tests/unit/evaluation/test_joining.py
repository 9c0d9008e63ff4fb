"""Committed predictions and labels that came later: who finds whom, and what is refused."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.evaluation.answerer import positive_columns
from pipelines.evaluation.joining import Joined, join_predictions, pair
from pipelines.evaluation.labelled_rows import JoinConfig
from pipelines.evaluation.labels import LabelsConfig, read_labels
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema

CLASSES = ("Benign", "Malignant", "Normal")
CARRIED = pa.schema([("patient_id", pa.string()), ("accession", pa.int64()), ("site", pa.string())])
SCHEMA = prediction_schema(CLASSES, CARRIED)
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
THRESHOLDS = {"image": {"threshold": 0.25, "refer_low": None, "refer_high": None, "target_sensitivity": 0.95}}


def row(number: int, answers: Sequence[float], **changes: Any) -> dict[str, Any]:
    """A scored row of the image `/img/<number>.png`, whose content is named by its number."""
    best = int(np.argmax(answers))
    return {
        "image_uri": f"/img/{number}.png",
        "content_sha256": f"{number:064x}",
        "status": "scored",
        "predicted_class": CLASSES[best],
        "score": answers[best],
        **{f"p_{name.lower()}": value for name, value in zip(CLASSES, answers, strict=True)},
        "p_positive": answers[1],
        "in_training_set": False,
        "mean_intensity": 0.5,
        "accession": 1000 + number // 2,
        "patient_id": f"p{number // 2}",
        "site": "north" if number % 2 else "south",
        **changes,
    }


def night(results: str, number: int, rows: Sequence[Mapping[str, Any]], model: str = "moles", told: Any = None) -> None:
    """Commit a run; `told` is what its record says of the model."""
    when = START + datetime.timedelta(days=number)
    fixed = {
        "run_id": f"run{number}",
        "frame": 0,
        "model_name": model,
        "model_id": f"{model.encode().hex():0<64}",
        "precision": "float32",
        "scored_at": when,
        "scored_date": when.date(),
    }
    whole = [{**dict.fromkeys(SCHEMA.names), **fixed, **one} for one in rows]
    commit.ensure_table(results)
    commit.commit_run(results, f"run{number}", SCHEMA, pa.Table.from_pylist(whole, SCHEMA).to_batches(), lambda: None)
    said = RunRecord(f"run{number}", "f", {}, {}, {}, {}, 1, "committed", START, model=told or {})
    RunFolder(results, f"run{number}").write_record(said)


ANSWERS = {
    0: (0.1, 0.7, 0.2),
    1: (0.6, 0.3, 0.1),
    2: (0.2, 0.2, 0.6),
    3: (0.3, 0.5, 0.2),
    4: (0.8, 0.1, 0.1),
    5: (0.05, 0.9, 0.05),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six images; the newest answer to image 0 is of the second night, 6 could not be read, 5 was trained on."""
    place = str(tmp_path_factory.mktemp("joined") / "results")
    first = [row(number, answers) for number, answers in ANSWERS.items()]
    first[0] = row(0, (0.9, 0.05, 0.05))
    first[5]["in_training_set"] = True
    failed = {"image_uri": "/img/6.png", "status": "failed", "error_code": "truncated", "error_message": "Ends early."}
    told = {"classes": list(CLASSES), "positive_classes": ["Malignant"], "thresholds": THRESHOLDS}
    night(place, 0, [*first, failed])
    night(place, 1, [row(0, ANSWERS[0])], told=told)
    return place


def labels(folder: Path, header: str, rows: Sequence[str], **options: Any) -> LabelsConfig:
    path = folder / "pathology.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return LabelsConfig(str(path), **options)


def joined(results: str, config: LabelsConfig, **options: Any) -> Joined:
    return join_predictions(JoinConfig(results, config, **options))


BY_URI = ["img/0.png,Malignant,a", "img/1.png,Benign,b", "img/2.png,Normal,a", "img/3.png,Benign,c"]


def test_the_newest_answer_meets_its_label(results: str, tmp_path: Path) -> None:
    found = joined(
        results,
        labels(tmp_path, "uri,label,ward", [*BY_URI, "img/77.png,Normal,c", "img/4.png,,"], root="/"),
        by=("ward", "site"),
    )
    cases = found.cases
    assert cases.uris == tuple(f"/img/{number}.png" for number in range(4))
    assert cases.classes == CLASSES and cases.positive == (1,)
    assert cases.labels.tolist() == [1, 0, 2, 0]
    np.testing.assert_array_equal(cases.probabilities, np.float32([ANSWERS[number] for number in range(4)]))
    np.testing.assert_array_equal(cases.p_positive, np.float32([0.7, 0.3, 0.2, 0.5]))
    assert cases.patients == ("p0", "p0", "p1", "p1")
    assert cases.groups[0] == cases.groups[1] != cases.groups[2]
    assert cases.columns == {"ward": ("a", "b", "a", "c"), "site": ("south", "north", "south", "north")}
    assert (found.rows_without_label, found.labels_without_row, found.unlabelled) == (2, 1, 1)
    assert found.examples == {"rows": ("/img/4.png", "/img/5.png"), "labels": ("/img/77.png",)}
    assert found.answerer.thresholds == THRESHOLDS and found.answerer.source == "run"
    assert (found.model.name, found.model.precision) == ("moles", "float32")


def test_labels_in_the_other_unicode_form_find_their_images(tmp_path: Path) -> None:
    """`\u00e9` as one character or two; an exact name wins, and of two images that are meant alike none is taken."""
    names = ["\u00e9", "e\u0301\u00e9", "\u00e9e\u0301", "e\u03012", "plain"]
    place = str(tmp_path / "results")
    night(place, 0, [row(at, ANSWERS[at], image_uri=f"/img/{name}.png") for at, name in enumerate(names)])
    wanted = ["e\u0301", "\u00e9\u00e9", "\u00e92", "e\u03012", "plain"]
    rows = [f"/img/{name}.png,Benign" for name in wanted]
    found = joined(place, labels(tmp_path, "uri,label", rows))
    assert found.cases.uris == ("/img/e\u03012.png", "/img/plain.png", "/img/\u00e9.png")
    assert (found.rows_without_label, found.labels_without_row) == (2, 2)
    assert found.cases.labels.tolist() == [0, 0, 0]


def test_images_that_trained_the_model_are_left_out_and_counted(results: str, tmp_path: Path) -> None:
    config = labels(tmp_path, "uri,label", ["/img/4.png,Benign", "/img/5.png,Malignant"])
    left = joined(results, config)
    assert left.cases.uris == ("/img/4.png",)
    assert (left.seen.exact, left.seen.left_out, left.seen.known) == (0, 1, True)
    kept = joined(results, config, include_training=True)
    assert kept.in_training == (False, True)
    assert (kept.seen.exact, kept.seen.left_out) == (1, 0)


def test_what_an_imported_model_was_made_from_stays_unknown_once_it_is_calibrated(results: str, tmp_path: Path) -> None:
    identity = {"model_id": f"{b'moles'.hex():0<64}", "name": "moles", "version": "v2", "thresholds": THRESHOLDS}
    classes = {"classes": CLASSES, "positive_classes": ("Malignant",)}
    calibrated_on = frozenset({f"{1:064x}"})
    bundle: Any = SimpleNamespace(
        **identity, **classes, training_hashes=lambda: calibrated_on, knows_training=False
    )  # fmt: skip
    config = labels(tmp_path, "uri,label,ward", BY_URI, root="/")
    found = join_predictions(JoinConfig(results, config), bundle)
    assert (found.seen.known, found.seen.left_out, found.in_training) == (False, 1, (None, None, None))
    bundle.knows_training = True
    assert join_predictions(JoinConfig(results, config), bundle).seen.known


def test_a_labelled_image_that_could_not_be_read_is_named(results: str, tmp_path: Path) -> None:
    found = joined(results, labels(tmp_path, "uri,label", ["/img/6.png,Benign", "/img/1.png,Benign"]))
    assert [(one.image_uri, one.code) for one in found.unreadable] == [("/img/6.png", "truncated")]
    assert found.labels_without_row == 0


@pytest.fixture(scope="module")
def examinations(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two examinations of two images, one of two torn images, and one of an image and a torn one; no patients."""
    place = str(tmp_path_factory.mktemp("examinations") / "results")
    torn = {"status": "failed", "error_code": "truncated", "error_message": "Ends early."}
    rows = [row(number, ANSWERS[number]) for number in range(5)]
    rows += [{"image_uri": f"/img/torn{number}.png", "accession": 1003 - number // 2, **torn} for number in (0, 1)]
    rows.append({"image_uri": "/img/torn2.png", "accession": 1002, **torn})
    night(place, 0, [{**one, "patient_id": None} for one in rows])
    return place


def test_images_that_could_not_be_read_are_counted_apart_from_labels_without_any(
    examinations: str, tmp_path: Path
) -> None:
    rows = ["1000,Benign", "1002,Normal", "1003,Normal", "1077,Normal"]
    found = joined(examinations, labels(tmp_path, "accession,label", rows, on="accession"))
    assert [one.image_uri for one in found.unreadable] == [f"/img/torn{number}.png" for number in range(3)]
    assert (found.labels_without_row, found.examples["labels"]) == (1, ("1077",))


def test_images_of_one_label_are_drawn_together(examinations: str, tmp_path: Path) -> None:
    rows = ["1000,Benign", "1001,Normal", "1002,Normal"]
    config = labels(tmp_path, "accession,label", rows, on="accession")
    groups = joined(examinations, config).cases.groups
    assert groups[0] == groups[1] != groups[2] == groups[3] != groups[4]
    # A patient of several examinations is one group still, and images that each have a label of their own are none.
    whose = labels(tmp_path, "accession,label,patient_id", [f"{line},p" for line in rows], on="accession")
    assert len(set(joined(examinations, whose).cases.groups)) == 1
    by_uri = labels(tmp_path, "uri,label", ["/img/0.png,Benign", "/img/1.png,Normal"])
    assert len(set(joined(examinations, by_uri).cases.groups)) == 2


def test_by_content_and_by_a_column_of_numbers(results: str, tmp_path: Path) -> None:
    digests = [f"{number:064X},{label}" for number, label in ((0, "Malignant"), (2, "Normal"))]
    by_content = joined(results, labels(tmp_path, "content_sha256,label", digests, on="content_sha256"))
    assert by_content.cases.labels.tolist() == [1, 2]
    path = tmp_path / "pathology.parquet"
    pq.write_table(pa.table({"case": pa.array([1000, 1001], pa.int32()), "diagnosis": ["M", "N"]}), path)
    config = LabelsConfig(
        str(path), "accession", {"accession": "case", "label": "diagnosis"}, {"M": "Malignant", "N": "Normal"}
    )
    by_case = joined(results, config)
    assert by_case.cases.uris == tuple(f"/img/{number}.png" for number in range(4))
    assert by_case.cases.labels.tolist() == [1, 1, 2, 2]


def test_a_run_is_taken_as_it_was(results: str, tmp_path: Path) -> None:
    config = labels(tmp_path, "uri,label", ["/img/0.png,Malignant", "/img/2.png,Benign"])
    found = joined(results, config, run="run0")
    np.testing.assert_array_equal(found.cases.probabilities[0], np.float32([0.9, 0.05, 0.05]))
    # That run's record tells nothing of the model: classes come from the columns, spelled as rows and labels do.
    assert found.answerer.source == "columns" and found.answerer.thresholds == {}
    assert found.cases.classes == CLASSES and found.cases.positive == (1,)
    with pytest.raises(UsageError, match="There is no run 'run9'"):
        joined(results, config, run="run9")


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        ("uri,label", ["/img/0.png,Malignant", "/img/1.png,Nevus"], {}, "no class 'Nevus', which 1 labels"),
        ("uri,label", ["/img/0.png,Benign", "/img/0.png,Normal"], {}, r"in lines 2 and 3 with two labels, 'Benign'"),
        ("uri,label,patient_id", ["/img/0.png,Benign,a", "/img/0.png,Benign,b"], {}, "two values of 'patient_id'"),
        ("uri,label", ["/other/0.png,Benign"], {}, r"as '/other/0\.png', and the results as '/img/0\.png'"),
        ("uri,label", ["/img/0.png,"], {}, "hold no label"),
        ("uri,diagnosis", ["/img/0.png,Benign"], {}, "no column 'label'"),
        ("path,label", ["/img/0.png,Benign"], {}, "no column 'uri' to name the images by"),
        ("ward,label", ["a,Benign"], {"on": "ward"}, "results have no column 'ward'"),
        ("uri,label", ["../img/0.png,Benign"], {}, "leads out of"),
    ],
)
def test_labels_that_cannot_be_joined(
    results: str, tmp_path: Path, header: str, rows: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        joined(results, labels(tmp_path, header, rows, **options))


def test_a_column_of_subgroups_must_be_somewhere(results: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Neither labels nor results have a column 'sex'"):
        joined(results, labels(tmp_path, "uri,label", ["/img/0.png,Benign"]), by=("sex",))


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images 0-3 by two models; the second one's copy of image 2 lies elsewhere too, and it lacks image 3."""
    place = str(tmp_path_factory.mktemp("two") / "results")
    night(place, 0, [row(number, ANSWERS[number]) for number in range(4)])
    other = [row(number, ANSWERS[(number + 1) % 3]) for number in range(3)]
    other.append({**other[2], "image_uri": "/img/copy.png"})
    night(place, 1, other, model="other")
    return place


def test_models_are_not_mixed_silently(two_models: str, tmp_path: Path) -> None:
    config = labels(tmp_path, "uri,label", ["/img/0.png,Malignant", "/img/1.png,Benign", "/img/3.png,Benign"])
    with pytest.raises(
        UsageError, match=r"by 2 models \(moles, id 6d6f6c6573.*: 3 rows; other, id .*: 2 rows\)"
    ) as told:
        joined(two_models, config)
    assert "--model NAME" in told.value.cure
    assert len(joined(two_models, config, model="moles").cases) == 3
    assert len(joined(two_models, config, model=f"{b'other'.hex()}").cases) == 2
    with pytest.raises(UsageError, match="no scored row of the model 'nobody'") as told:
        joined(two_models, config, model="nobody")
    assert "moles, other" in told.value.cure


def test_two_precisions_are_not_mixed(tmp_path: Path) -> None:
    place = str(tmp_path / "results")
    night(place, 0, [row(number, ANSWERS[number]) for number in range(2)])
    told = {"classes": list(CLASSES), "positive_classes": ["Malignant"]}
    night(place, 1, [{**row(2, ANSWERS[2]), "precision": "int8"}], told=told)
    config = labels(tmp_path, "uri,label", ["/img/0.png,Malignant", "/img/2.png,Benign"])
    with pytest.raises(UsageError, match=r"one model in 2 precisions \(") as refused:
        joined(place, config, model="moles")
    assert refused.value.cure == "Choose one: --precision float32|int8, or --run ID."
    assert joined(place, config, run="run1").model.precision == "int8"
    assert joined(place, config, precision="int8").cases.uris == ("/img/2.png",)
    assert joined(place, config, precision="float32", model="moles").cases.uris == ("/img/0.png",)
    with pytest.raises(UsageError, match="'int4' is unknown"):
        joined(place, config, precision="int4")


def test_two_models_are_paired_by_image(two_models: str, tmp_path: Path) -> None:
    rows = [
        f"/img/{name}.png,{label}"
        for name, label in (("0", "Malignant"), ("1", "Benign"), ("2", "Normal"), ("3", "Benign"))
    ]
    config = labels(tmp_path, "uri,label", rows)
    this, other = joined(two_models, config, model="moles"), joined(two_models, config, model="other")
    paired, theirs = pair(this, other)
    assert paired.tolist() == [0, 1, 2]
    assert theirs.uris == this.cases.uris[:3]
    np.testing.assert_array_equal(theirs.probabilities, np.float32([ANSWERS[1], ANSWERS[2], ANSWERS[0]]))


def test_copies_count_once_and_must_agree(two_models: str, tmp_path: Path) -> None:
    rows = ["/img/0.png,Malignant", "/img/2.png,Normal", "/img/copy.png,Normal"]
    found = joined(two_models, labels(tmp_path, "uri,label", rows), model="other")
    assert (found.cases.uris, found.copies) == (("/img/0.png", "/img/2.png"), 1)
    with pytest.raises(UsageError, match="under two names with two labels"):
        joined(two_models, labels(tmp_path, "uri,label", [*rows[:2], "/img/copy.png,Benign"]), model="other")


def test_a_file_with_a_mark_and_semicolons_is_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffurl;label;patient_id;x\r\na/ü.png;yes;007;1\r\na/ü.png;yes;007;1\r\n".encode())
    found = read_labels(LabelsConfig(str(path), columns={"uri": "url"}), by=("x", "y"))
    assert found.keys == (f"{tmp_path}/a/ü.png",)
    assert (found.labels, found.patients, found.columns) == (("yes",), ("007",), {"x": ("1",)})


def test_a_column_uri_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("URI,accession,label\nx.png,007,yes\ny.png,008,no\n")
    found = read_labels(LabelsConfig(str(path), "accession"))
    assert (found.keys, found.labels) == (("007", "008"), ("yes", "no"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_folder_is_no_table_of_labels(tmp_path: Path, suffix: str) -> None:
    place = tmp_path / f"labels{suffix}"
    place.mkdir()
    with pytest.raises(UsageError, match=r"cannot be read: .*directory"):
        read_labels(LabelsConfig(str(place)))


@pytest.mark.parametrize("keys", [[f"{n}.png" for n in range(2000)], list(range(2000))])
def test_a_table_that_is_damaged_inside_is_refused(tmp_path: Path, keys: list[Any]) -> None:
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"key": keys, "label": ["yes"] * 2000}), path)
    damaged = bytearray(path.read_bytes())
    damaged[4:80] = b"\xff" * 76
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match="damaged"):
        read_labels(LabelsConfig(str(path), "key"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "labels.xlsx"}, "is no table"),
        ({"labels": "l.csv", "on": " "}, "--on is empty"),
        ({"labels": "l.csv", "columns": {"split": "x"}}, "does not know 'split'"),
        ({"labels": "l.csv", "on": "accession", "root": "/img"}, "--root belongs to --on uri"),
    ],
)
def test_options_are_refused_before_anything_is_read(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LabelsConfig(**arguments)


def test_run_and_model_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--run and --model"):
        JoinConfig("r", LabelsConfig("l.csv"), run="x", model="y")


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_positive_classes_are_found_again_from_their_sum(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    answers = random.dirichlet(np.ones(classes), 40).astype(np.float32)
    chosen = sorted(random.choice(classes, random.integers(1, classes), replace=False).tolist())
    summed = answers[:, chosen].astype(np.float64).sum(axis=1).astype(np.float32)
    assert positive_columns(answers, summed) == tuple(chosen)


def test_a_sum_that_several_classes_explain_is_no_answer() -> None:
    assert positive_columns(np.full((3, 2), 0.5, np.float32), np.full(3, 0.5, np.float32)) is None
    assert positive_columns(np.eye(3, dtype=np.float32), np.full(3, 0.2, np.float32)) is None
