"""What stands on the board of a search while its trials come along."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.training.history import VALIDATION_COLUMNS
from pipelines.training.recipes import load_recipe
from pipelines.tuning.answers import load_answer, save_answer, weights_kept
from pipelines.tuning.board import Board
from pipelines.tuning.plan import Plan, make_plan, without
from pipelines.tuning.points import DONE, FAILED, STOPPED, Answer, Point
from pipelines.tuning.progress import SearchProgress, TrialNews

WEIGHTS = (np.arange(3, dtype=np.float32),)


def grid(**values: Any) -> Plan:
    base = load_recipe("skin-lesion")
    made = [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]
    return make_plan([Point(number, own, replace(base, **own)) for number, own in enumerate(made)])


def answer(point: Point, accuracy: float, status: str = DONE, error: str | None = None) -> Answer:
    row = {column: 0.5 for column in VALIDATION_COLUMNS.values()}
    history = tuple(
        {"epoch": epoch, **row, "val_accuracy": accuracy, "learning_rate": 0.1, "seconds": 0.25}
        for epoch in range(1, point.recipe.epochs + 1)
    )
    kept = 0 if status == FAILED else len(history)
    return Answer(point.key, "t", status, error, history, kept, kept, None)


def save(folder: Path, point: Point, accuracy: float, status: str = DONE, error: str | None = None) -> None:
    save_answer(str(folder), answer(point, accuracy, status, error), None if status == FAILED else WEIGHTS)


def news(plan: Plan, point: Point, status: str = DONE, epoch: int | None = None, error: str | None = None) -> TrialNews:
    training = next(one for one in plan.trainings if point in one.points)
    epochs = training.recipe.epochs
    return TrialNews(training.key, status, epochs if epoch is None else epoch, epochs, 0.5, error)


def board_of(folder: Path, plan: Plan, told: list[Any] | None = None) -> Board:
    clock = itertools.count(0.0, 10.0)
    return Board(str(folder), plan, "accuracy", (told if told is not None else []).append, lambda: next(clock))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)), values=st.lists(st.sampled_from([0.5, 0.7, 0.9]), min_size=6, max_size=6))
def test_the_leaders_and_their_weights_do_not_depend_on_who_ends_first(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], values: list[float]
) -> None:
    plan, folder = grid(backbone=("mobilenet_v2", "vgg16"), dropout=(0.0, 0.2, 0.4)), tmp_path_factory.mktemp("search")
    board = board_of(folder, plan)
    board.begin(plan)
    for number in order:
        save(folder, plan.points[number], values[number])
        board.hear(news(plan, plan.points[number]))
    for first, backbone in ((0, "mobilenet_v2"), (3, "vgg16")):
        own = values[first : first + 3]
        assert board.leaders[backbone] is plan.points[first + own.index(max(own))]
    assert weights_kept(str(folder)) == {point.key for point in board.leaders.values()}
    assert board.best is board.ranked()[0]
    assert board.value(board.ranked()[0]) == max(values)


def test_points_of_fewer_epochs_stand_on_the_board_before_their_training_ends(tmp_path: Path) -> None:
    plan, told = grid(epochs=(2, 5, 9)), list[Any]()
    board = board_of(tmp_path, plan, told)
    board.begin(plan)
    save(tmp_path, plan.points[0], 0.8)
    board.hear(news(plan, plan.points[0], "running", 3))
    assert [board.status(point) for point in plan.points] == [DONE, None, None]
    shown = told[-1]
    assert isinstance(shown, SearchProgress)
    assert (shown.done, shown.total, shown.best, shown.best_value) == (1, 3, {"epochs": "2"}, 0.8)
    assert [(one.epoch, one.epochs) for one in shown.running] == [(3, 9)]


def test_a_failed_training_is_a_row_with_its_reason_and_leads_nothing(tmp_path: Path) -> None:
    plan, told = grid(dropout=(0.0, 0.5, 0.9)), list[Any]()
    board = board_of(tmp_path, plan, told)
    board.begin(plan)
    save(tmp_path, plan.points[0], 0.99, FAILED, "The loss is no number any more.")
    board.hear(news(plan, plan.points[0], FAILED, 1, "The loss is no number any more."))
    board.hear(news(plan, plan.points[1], FAILED, 1, "Its process died three times."))
    save(tmp_path, plan.points[2], 0.6)
    board.hear(news(plan, plan.points[2]))
    rows = {row["point"]: row for row in board.table().to_pylist()}
    assert [rows[point.key]["error"] for point in plan.points] == [
        "The loss is no number any more.", "Its process died three times.", None,
    ]  # fmt: skip
    assert board.best is plan.points[2]
    assert (told[-1].failed, told[-1].done) == (2, 3)
    assert load_answer(str(tmp_path), plan.points[1].key) is None, "what nobody answered is tried again"


def test_an_answer_that_is_nowhere_to_be_seen_is_a_failed_row(tmp_path: Path) -> None:
    plan, told = grid(dropout=(0.0, 0.5)), list[Any]()
    board = board_of(tmp_path, plan, told)
    board.begin(plan)
    board.hear(news(plan, plan.points[0]))
    assert board.status(plan.points[0]) == FAILED
    assert "all nodes" in {row["point"]: row["error"] for row in board.table().to_pylist()}[plan.points[0].key]
    assert (told[-1].done, told[-1].failed) == (1, 1)


def test_a_stopped_point_stands_behind_one_that_was_trained_as_asked(tmp_path: Path) -> None:
    plan = grid(dropout=(0.0, 0.5))
    save(tmp_path, plan.points[0], 0.9, STOPPED)
    save(tmp_path, plan.points[1], 0.6)
    board = board_of(tmp_path, plan)
    board.take_answered()
    assert board.best is plan.points[1]
    assert (board.count(STOPPED), board.count(DONE)) == (1, 1)


def test_a_later_command_takes_what_stands_and_leaves_other_grids_weights_alone(tmp_path: Path) -> None:
    whole, part = grid(dropout=(0.0, 0.1, 0.2)), grid(dropout=(0.1, 0.2))
    for point, value in zip(whole.points, (0.9, 0.7, 0.8), strict=True):
        save(tmp_path, point, value)
    board = board_of(tmp_path, part)
    board.take_answered()
    assert weights_kept(str(tmp_path)) == {point.key for point in whole.points}, "nothing is lost by looking"
    board.drop_beaten()
    assert board.best is part.points[1]
    assert weights_kept(str(tmp_path)) == {whole.points[0].key, whole.points[2].key}
    assert without(part, [point.key for point in part.points if board.status(point)]).points == ()


def test_a_point_can_be_made_to_wait_again(tmp_path: Path) -> None:
    plan = grid(dropout=(0.0, 0.1))
    save(tmp_path, plan.points[0], 0.9)
    board = board_of(tmp_path, plan)
    board.take_answered()
    save(tmp_path, plan.points[1], 0.6)
    board.take_answered()
    board.forget(plan.points[0])
    assert board.ranked() == [board.best] == [plan.points[1]]
    board.forget(plan.points[1])
    assert board.ranked() == []
    assert not board.leaders
    assert board.status(plan.points[0]) is None
    assert math.isnan(board.value(plan.points[0]))


def test_the_written_leaderboard_has_a_row_for_every_point_at_any_time(tmp_path: Path) -> None:
    plan = grid(learning_rate=(0.001, 0.01), epochs=(1, 2))
    board = board_of(tmp_path, plan)
    board.begin(plan)
    save(tmp_path, plan.points[0], 0.7)
    board.hear(news(plan, plan.points[0], "running", 1))
    rows = pq.read_table(board.write()).to_pylist()
    assert sorted(row["point"] for row in rows) == sorted(point.key for point in plan.points)
    assert sorted(row["status"] for row in rows) == [DONE, "waiting", "waiting", "waiting"]


def test_time_left_is_told_from_the_epochs_since_the_first_were_heard_of(tmp_path: Path) -> None:
    plan, told, now = grid(epochs=(40, 80)), list[Any](), [0.0]
    board = Board(str(tmp_path), plan, "accuracy", told.append, lambda: now[0])
    board.begin(plan)
    for now[0], epoch in ((100.0, 2), (110.0, 7)):
        board.hear(news(plan, plan.points[0], "running", epoch))
    assert told[-2].seconds_left is None
    assert told[-1].seconds_left == pytest.approx(10.0 / 5 * 73)


def test_a_backbones_training_counts_once_however_many_points_it_answers(tmp_path: Path) -> None:
    plan = grid(learning_rate=(0.001, 0.01), epochs=(4, 8))
    for point in plan.points:
        save(tmp_path, point, 0.7)
    board = board_of(tmp_path, plan)
    board.take_answered()
    assert board.training_seconds("mobilenet_v2") == pytest.approx(2 * 8 * 0.25)
