from __future__ import annotations

import csv
import io
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.metrics import METRIC_NAMES, measure
from pipelines.training.history import Row, history_row
from pipelines.training.recipe_rules import RULES
from pipelines.training.recipes import load_recipe
from pipelines.tuning.leaderboard import leaderboard_csv, leaderboard_row, leaderboard_table, write_leaderboard
from pipelines.tuning.points import DONE, FAILED, STOPPED, Answer, Point
from pipelines.tuning.space import make_points, read_space

GRID = ["backbone=vgg16,mobilenet_v2", "learning_rate=0.001,0.0001", "epochs=1,3", "batch_norm=true,false"]


def points_of(texts: list[str]) -> tuple[Point, ...]:
    return make_points(read_space(texts, None), load_recipe("skin-lesion"), 1000, 0)


@cache
def figures_of(seed: int) -> dict[str, float]:
    """Real figures: of a random network on 20 random images, so that many points have the same accuracy."""
    generator = np.random.default_rng(seed)
    p = generator.dirichlet((1, 1), 20)
    return measure(p, np.arange(20) % 2, (1,))


def history_of(seed: int, epochs: int) -> tuple[Row, ...]:
    return tuple(
        history_row(epoch, 0.5, figures_of(seed), figures_of(seed + epoch), 1e-3, 0.25)
        for epoch in range(1, epochs + 1)
    )


def answer_of(point: Point, status: str = DONE, error: str | None = None) -> Answer:
    history = history_of(int(point.key, 16) % 100, point.recipe.epochs)
    best = 1 + int(np.argmax([row["val_accuracy"] for row in history]))
    kept = 0 if status == FAILED else best
    return Answer(point.key, f"t-{point.key}", status, error, history, best, kept, None)


def table_of(points: tuple[Point, ...], metric: str = "accuracy", shuffled: random.Random | None = None) -> pa.Table:
    """A leaderboard in which every fifth point waits, and others failed or were stopped."""
    rows = []
    for point in points:
        which = int(point.key, 16) % 5
        status, error = {0: (FAILED, "The loss is no number."), 1: (STOPPED, None)}.get(which, (DONE, None))
        answer = None if which == 2 else answer_of(point, status, error)
        rows.append(leaderboard_row(point, answer, metric, "waiting"))
    if shuffled is not None:
        shuffled.shuffle(rows)
    return leaderboard_table(rows, points, metric)


@settings(max_examples=15)
@given(st.randoms(use_true_random=False), st.sampled_from(("accuracy", "log_loss", "roc_auc")))
def test_it_is_the_same_whatever_the_order_of_the_answers_and_of_the_grid(shuffled: random.Random, metric: str) -> None:
    expected = table_of(points_of(GRID), metric)
    assert len(set(expected["value"].to_pylist())) < len(expected), "no two points have the same value"
    axes = [f"{key}={','.join(shuffled.sample(values.split(','), 2))}" for key, values in _axes()]
    shuffled.shuffle(axes)
    other = table_of(points_of(axes), metric, shuffled)
    assert other.select(expected.column_names).to_pylist() == expected.to_pylist()


def _axes() -> list[tuple[str, str]]:
    return [(text.partition("=")[0], text.partition("=")[2]) for text in GRID]


def test_ranks_follow_the_value_and_stopped_points_stand_behind() -> None:
    for metric, falling in (("accuracy", True), ("log_loss", False)):
        rows = table_of(points_of(GRID), metric).to_pylist()
        assert [row["rank"] for row in rows] == [
            number if row["value"] is not None else None for number, row in enumerate(rows, start=1)
        ]
        for status in (DONE, STOPPED):
            values = [row["value"] for row in rows if row["status"] == status]
            assert len(values) > 1 and values == sorted(values, reverse=falling)
        seen = [row["status"] for row in rows]
        assert seen.index(STOPPED) == seen.count(DONE) and not {DONE, STOPPED} & set(seen[-seen.count(FAILED) :])


def test_a_row_holds_the_figures_of_the_epochs_that_it_names() -> None:
    (point,) = points_of(["epochs=3"])
    history = history_of(7, 3)
    row = leaderboard_row(point, Answer(point.key, "t", DONE, None, history, 2, 3, None), "ppv", "running")
    assert row["value"] == history[2]["val_precision"] and row["status"] == DONE and row["training"] == "t"
    assert (row["epochs_run"], row["best_epoch"], row["kept_epoch"], row["last_epoch"]) == (3, 2, 3, 3)
    for name in METRIC_NAMES:
        assert row[f"best_{name}"] == figures_of(7 + 2)[name] and row[f"last_{name}"] == figures_of(7 + 3)[name]
    assert row["seconds"] == 0.75


def test_a_failed_point_keeps_its_reason_and_its_epochs_and_has_no_rank() -> None:
    (point,) = points_of(["epochs=3"])
    broken = Answer(point.key, "t", FAILED, "No number\nat \udcff epoch 3.", history_of(1, 2), 1, 0, None)
    (row,) = leaderboard_table([leaderboard_row(point, broken, "accuracy", "")], [point], "accuracy").to_pylist()
    assert (row["rank"], row["value"], row["kept_epoch"], row["epochs_run"], row["last_epoch"]) == (None,) * 3 + (2, 2)
    assert row["error"] == "No number at \\udcff epoch 3." and row["last_accuracy"] is not None


def test_points_without_an_answer_are_rows_too() -> None:
    points = points_of(["epochs=3,4"])
    rows = [leaderboard_row(points[0], None, "f1", "waiting"), leaderboard_row(points[1], None, "f1", FAILED, "Gone.")]
    waiting, failed = leaderboard_table(rows, points, "f1").to_pylist()
    assert (waiting["status"], waiting["epochs"], waiting["epochs_run"], waiting["seconds"]) == (
        "waiting", 3, None, None,
    )  # fmt: skip
    assert (failed["status"], failed["error"], failed["value"]) == (FAILED, "Gone.", None)


def test_a_figure_that_is_no_number_is_null_and_is_never_best() -> None:
    points = points_of(["epochs=1,2"])
    undefined = {name: math.nan for name in METRIC_NAMES}
    row: Row = history_row(1, 0.5, figures_of(1), undefined, 1e-3, 0.1)
    answers = [Answer(points[0].key, "t", DONE, None, (row,), 0, 1, None), answer_of(points[1])]
    rows = [leaderboard_row(point, answer, "mcc", "") for point, answer in zip(points, answers, strict=True)]
    best, last = leaderboard_table(rows, points, "mcc").to_pylist()
    assert best["point"] == points[1].key and (last["rank"], last["value"], last["best_epoch"]) == (None,) * 3


def test_every_column_has_its_type_and_its_meaning_and_no_key_takes_the_name_of_one() -> None:
    schema = table_of(points_of(GRID)).schema
    assert [schema.field(key).type for key in ("backbone", "learning_rate", "epochs", "batch_norm")] == [
        pa.string(), pa.float64(), pa.int64(), pa.bool_(),
    ]  # fmt: skip
    assert schema.names.count("backbone") == 1
    assert all(len(schema.field(name).metadata[b"description"]) > 10 for name in schema.names)
    own = set(schema.names) - {"backbone", "learning_rate", "epochs", "batch_norm"}
    assert not own & set(RULES)
    assert {f"{when}_{name}" for when in ("best", "last") for name in METRIC_NAMES} <= own


def read_csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))


def test_both_files_say_the_same(tmp_path: Path) -> None:
    table = table_of(points_of(GRID))
    place = write_leaderboard(str(tmp_path / "s1"), table)
    assert place == str(tmp_path / "s1" / "leaderboard.parquet")
    read = pq.read_table(place)
    assert read.equals(table) and read.schema.equals(table.schema, check_metadata=True)
    rows = read_csv((tmp_path / "s1" / "leaderboard.csv").read_bytes())
    assert list(rows[0]) == table.column_names and len(rows) == len(table)
    parsers: dict[pa.DataType, Any] = {pa.bool_(): {"true": True, "false": False}.get, pa.string(): str}
    for row, expected in zip(rows, table.to_pylist(), strict=True):
        for name, text in row.items():
            kind = table.schema.field(name).type
            parse = parsers.get(kind, float if pa.types.is_floating(kind) else int)
            assert (parse(text) if text else None) == expected[name]


@pytest.mark.parametrize(
    "said, cell",
    [
        ('a "quoted", long one', '"a ""quoted"", long one"'), ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"),
        ("-2 is no rate", "'-2 is no rate"), ("Größe", "Größe"), ("a\r\nb", "a b"),
    ],
)  # fmt: skip
def test_a_text_cannot_leave_its_cell_nor_become_a_formula(said: str, cell: str) -> None:
    (point,) = points_of(["epochs=3"])
    table = leaderboard_table([leaderboard_row(point, None, "f1", FAILED, said)], [point], "f1")
    header, line, rest = leaderboard_csv(table).decode().split("\r\n")
    assert f",{cell}," in line and rest == "" and header.startswith("rank,point,training,status,error,backbone,epochs")


def test_a_thousand_points_are_written_in_no_time(tmp_path: Path) -> None:
    points = points_of([f"learning_rate={','.join(str(n / 1000) for n in range(1, 501))}", "epochs=1,2"])
    table = table_of(points)
    assert len(table) == 1000 and table.nbytes < 2_000_000
    write_leaderboard(str(tmp_path), table)
    assert len(read_csv((tmp_path / "leaderboard.csv").read_bytes())) == 1000
