"""Drawn searches, by the same code as real ones: what the tests of their pages and charts read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from pipelines.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES
from pipelines.training.history import VALIDATION_COLUMNS, Row
from pipelines.training.recipes import load_recipe
from pipelines.tuning.leaderboard import leaderboard_row, leaderboard_table
from pipelines.tuning.page_content import BackboneRow, Near, SearchContent, Sureness
from pipelines.tuning.points import DONE, FAILED, STOPPED, Answer, Point

BACKBONES = ("mobilenet_v2", "resnet50_v2", "efficientnet_v2_b0", "vgg16")
RATES = (1e-5, 1e-4, 5e-4, 1e-3, 5e-3)
EPOCHS = (10, 20, 30, 40, 50, 100)
PUBLISHED_GRID = {"backbone": BACKBONES, "learning_rate": RATES, "epochs": EPOCHS}


@dataclass(frozen=True)
class DrawnSearch:
    """A search: what its page is made of, and the answers behind it."""

    content: SearchContent
    answers: Mapping[str, Answer]

    def value(self, point: Point) -> float:
        """The metric at the kept epoch, looked up in the history."""
        answer = self.answers.get(point.key)
        if answer is None or answer.status == FAILED:
            return math.nan
        return float(answer.history[answer.kept_epoch - 1][VALIDATION_COLUMNS[self.content.metric]])


def draw_points(settings: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    base = load_recipe("skin-lesion")
    return tuple(Point(number, own, replace(base, **own)) for number, own in enumerate(settings))


def all_combinations(**values: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]


def draw_history(point: Point, epochs: int) -> tuple[Row, ...]:
    """Figures that rise, more or less; those where lower is better fall. All of them differ."""
    rng = np.random.default_rng(int(point.key[:12], 16))
    risen = 0.9 - 0.4 * np.exp(-np.arange(1, epochs + 1) * rng.uniform(0.01, 0.3)) + rng.normal(0, 0.01, epochs)
    rows = []
    for epoch, level in enumerate(risen.tolist(), start=1):
        row: Row = {"epoch": epoch, "seconds": 0.25}
        for place, name in enumerate(METRIC_NAMES):
            value = level - 0.001 * place
            row[VALIDATION_COLUMNS[name]] = 1 - value if name in LOWER_IS_BETTER else value
        rows.append(row)
    return tuple(rows)


def draw_answer(point: Point, status: str, error: str) -> Answer:
    """The answer of a point; its kept epoch is its last, as the recipe has it."""
    if status == FAILED:
        return Answer(point.key, "t", FAILED, error, draw_history(point, 2), 0, 0, None)
    ran = point.recipe.epochs if status == DONE else max(1, point.recipe.epochs // 3)
    history = draw_history(point, ran)
    best = 1 + int(np.argmax([row["val_accuracy"] for row in history]))
    return Answer(point.key, "t", status, None, history, best, ran, np.zeros((4, 1), np.float32))


def draw_search(
    settings: Sequence[Mapping[str, Any]],
    metric: str = "accuracy",
    statuses: Mapping[int, str] | None = None,
    error: str = "The loss was no number in epoch 2.",
    **changed: Any,
) -> DrawnSearch:
    """A search of the points of some settings.

    Args:
        settings: Of each point.
        metric: The search's.
        statuses: What became of points, by number; `waiting` for those without an answer, `done` where not said.
        error: Of the failed ones.
        changed: Attributes of the content that shall be others.
    """
    points, known = draw_points(settings), statuses or {}
    answers = {
        point.key: draw_answer(point, known.get(point.number, DONE), error)
        for point in points
        if known.get(point.number) != "waiting"
    }
    rows = [leaderboard_row(point, answers.get(point.key), metric, "waiting") for point in points]
    board = leaderboard_table(rows, points, metric)
    ranked = [row["point"] for row in board.to_pylist() if row["rank"] is not None]
    near = tuple(Near(key, 0.002 * place, 0.002 * place - 0.01, 0.03) for place, key in enumerate(ranked[1:4], 1))
    given: dict[str, Any] = {
        "name": "moles",
        "search": "s1",
        "data": "hospital/labelled",
        "counts": {"train": {"benign": 1152, "malignant": 958}, "val": {"benign": 288, "malignant": 239}},
        "recipe": "skin-lesion",
        "searched": {key: ", ".join(str(one[key]) for one in settings) for key in settings[0]},
        "random": None,
        "scheduler": "asha" if STOPPED in known.values() else "none",
        "metric": metric,
        "seed": 0,
        "points": points,
        "leaderboard": board,
        "histories": {key: answer.history for key, answer in answers.items()},
        "trainings": 20,
        "passes": 4,
        "seconds": 812.2,
        "best": ranked[0] if ranked else None,
        "sureness": Sureness("These four are not told apart.", near[0], near, len(ranked) - 1, 498) if near else None,
        "backbones": tuple(draw_backbones(points, ranked)),
        "provenance": (("nightread", "0.1.0"), ("Seed", "0")),
    }
    return DrawnSearch(SearchContent(**given | changed), answers)


def draw_backbones(points: Sequence[Point], ranked: Sequence[str]) -> list[BackboneRow]:
    backbone_of = {point.key: point.recipe.backbone for point in points}
    found = []
    for name in dict.fromkeys(backbone_of.values()):
        best = next((key for key in ranked if backbone_of[key] == name), None)
        own = list(backbone_of.values()).count(name)
        found.append(BackboneRow(name, "none", 2386085, 9.5, own, 5, 61.3, 181.2, best, best and f"best/{name}/v1"))
    return found


@pytest.fixture(scope="session")
def make_search() -> Callable[..., DrawnSearch]:
    return draw_search


@pytest.fixture(scope="session")
def combinations() -> Callable[..., list[dict[str, Any]]]:
    return all_combinations


@pytest.fixture(scope="session")
def published_search() -> DrawnSearch:
    """The grid of the study: 4 backbones, 5 rates, 6 numbers of epochs."""
    from pipelines.training.published import published

    return draw_search(all_combinations(**PUBLISHED_GRID), published=published("skin-lesion"))


@pytest.fixture(scope="session")
def random_search() -> DrawnSearch:
    """40 points drawn over four keys, some stopped, one failed, one not yet answered."""
    rng = np.random.default_rng(1)
    settings = [
        {
            "dropout": float(rng.uniform(0.1, 0.9)),
            "learning_rate": float(10 ** rng.uniform(-5, -2)),
            "dense_units": int(rng.integers(32, 1024)),
            "activation": str(rng.choice(["relu", "elu", "tanh"])),
        }
        for _ in range(40)
    ]
    statuses = {3: STOPPED, 8: STOPPED, 11: STOPPED, 5: FAILED, 17: "waiting"}
    return draw_search(settings, statuses=statuses, random=40)
