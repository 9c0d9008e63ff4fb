"""A search of drawn images from end to end: what it answers, what it does not do twice, and what it leaves behind."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.demo.archive import draw_archive
from pipelines.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES
from pipelines.images.preprocess import Preprocessing
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
from pipelines.training.arrays import make_job, write_inputs
from pipelines.training.config import TrainConfig
from pipelines.training.labelled import DataConfig
from pipelines.training.loop import FitResult, fit_job
from pipelines.training.preparation import prepare
from pipelines.training.recipes import load_recipe
from pipelines.training.run import train
from pipelines.training.steps import Place
from pipelines.tuning.answers import answered, weights_kept
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.progress import TuneReport
from pipelines.tuning.run import tune
from pipelines.tuning.space import make_points, read_space

pytestmark = pytest.mark.slow

Connect = Callable[[], AbstractContextManager[Any]]
BASE = {
    "alpha": "0.35",
    "input_size": "64",
    "dense_units": "0",
    "dropout": "0.3",
    "batch_size": "16",
    "metric": "log_loss",
    "restore_best": "true",
}
RATES, EPOCHS = ("0.002", "0.02", "0.2"), ("2", "6")
GRID = (f"learning_rate={','.join(RATES)}", f"epochs={','.join(EPOCHS)}")
NOT_THE_SAME_TWICE = ["seconds"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty drawn images."""
    return draw_archive(tmp_path_factory.mktemp("drawn"), 5, labelled=80, archive=1).labelled


@dataclass(frozen=True)
class Searched:
    """A search, and its leaderboard as it was at the end."""

    config: TuneConfig
    report: TuneReport
    table: pa.Table


def train_config(labelled: Path, models: Path, settings: Mapping[str, str] = BASE, **changes: Any) -> TrainConfig:
    """As `nightread train` makes it; all of one MODELS folder share a cache."""
    recipe = load_recipe("skin-lesion", settings)
    values = {"name": "moles", "weights": "none", "cache": str(models.parent / f"{models.name}-cache")} | changes
    return TrainConfig(DataConfig(str(labelled)), str(models), recipe=recipe, **values)


def search(train_on: TrainConfig, grid: Sequence[str], connect: Connect, **changes: Any) -> Searched:
    """Search a grid as `nightread tune` does, ranked by accuracy, in which many points are equal."""
    points = make_points(read_space(grid, None), train_on.recipe, 1000, train_on.seed)
    said = dict(text.split("=") for text in grid)
    config = TuneConfig(train_on, points, grid=said, **({"metric": "accuracy", "concurrency": 1} | changes))
    report = tune(config, connect, lambda _progress: None)
    return Searched(config, report, pq.read_table(report.leaderboard))


@contextlib.contextmanager
def never() -> Iterator[Any]:
    """What a search connects with that has no need of Ray."""
    raise AssertionError("Ray was asked for")
    yield


@pytest.fixture(scope="module")
def searched(labelled: Path, connect: Connect, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Six points."""
    return search(train_config(labelled, tmp_path_factory.mktemp("models")), GRID, connect)


@pytest.fixture(scope="module")
def backwards(labelled: Path, connect: Connect, searched: Searched) -> Searched:
    """The same points in another order, trained again, all of them at a time on a part of a core."""
    models = Path(searched.config.train.models)
    grid = ("epochs=6,2", "learning_rate=0.2,0.02,0.002")
    room = {"cpu": 0.5}
    return search(train_config(labelled, models, name="backwards"), grid, connect, room=room, concurrency=None)


def trained_alone(labelled: Path, folder: Path, cache: str, grid: Sequence[Mapping[str, str]]) -> list[FitResult]:
    """What `nightread train --set …` trains, in this process and without what comes after."""
    ready = prepare(train_config(labelled, folder / "models", cache=cache), never, lambda _progress: None)
    inputs = write_inputs(str(folder), ready.kept.network, ready.data, ready.kept.plain, None)
    fits = []
    for number, settings in enumerate(grid):
        config = train_config(labelled, folder / "models", BASE | settings)
        checkpoint = str(folder / f"{number}.npz")
        job = make_job(config.recipe, inputs, ready.found.positive, config.seed, checkpoint)
        fits.append(fit_job(job, Place(), lambda _row: None))
    return fits


def rows_by(table: pa.Table, *keys: str) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(str(row[key]) for key in keys): row for row in table.to_pylist()}


def test_the_six_points_are_what_trainings_of_each_alone_leave(
    searched: Searched, labelled: Path, tmp_path: Path
) -> None:
    assert (searched.report.trials, searched.report.trainings, searched.report.run) == (6, 3, 3)
    rows = rows_by(searched.table, "learning_rate", "epochs")
    grid = [{"learning_rate": rate, "epochs": epochs} for rate in RATES for epochs in EPOCHS]
    fits = trained_alone(labelled, tmp_path, searched.config.train.work, grid)
    kept_before_the_end = 0
    for settings, fit in zip(grid, fits, strict=True):
        row, epochs = rows[tuple(settings.values())], int(settings["epochs"])
        assert row["status"] == "done"
        assert (row["kept_epoch"], row["best_epoch"], row["epochs_run"]) == (fit.best_epoch, fit.best_epoch, epochs)
        best, last = fit.history[fit.best_epoch - 1], fit.history[-1]
        assert row["best_log_loss"] == pytest.approx(best["val_loss"], abs=1e-5)
        assert row["last_log_loss"] == pytest.approx(last["val_loss"], abs=1e-5)
        assert row["value"] == row["best_accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-9)
        kept_before_the_end += fit.best_epoch < epochs
    assert kept_before_the_end  # else the best epoch would say nothing


def test_the_best_point_is_the_bundle_that_training_it_alone_writes(
    searched: Searched, labelled: Path, connect: Connect, tmp_path: Path
) -> None:
    settings = {key: str(value) for key, value in searched.report.best["settings"].items()}
    config = train_config(labelled, tmp_path / "models", BASE | settings, cache=searched.config.train.work)
    report = train(config, connect, lambda _progress: None)
    one, other = resolve(report.path), resolve(searched.report.path or "")
    assert other.name == "moles"
    losses = [read_history(bundle.read("history.csv")) for bundle in (one, other)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    assert other.temperature == pytest.approx(one.temperature, rel=1e-4)
    image = next((labelled / "malignant").iterdir())
    answers = [score(bundle, image) for bundle in (one, other, resolve(searched.report.backbones["mobilenet_v2"]))]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    np.testing.assert_array_equal(answers[2], answers[1])
    assert other.provenance["best_epoch"] == one.provenance["best_epoch"] == searched.report.best["kept_epoch"]


def read_history(data: bytes) -> np.ndarray:
    return np.array([float(row["val_loss"]) for row in csv.DictReader(io.StringIO(data.decode()))])


def score(bundle: Any, image: Path) -> np.ndarray:
    return Scorer(*bundle.scorer("float32"))(Preprocessing(bundle.input_size).prepare(image.read_bytes()).pixels)


def test_the_same_command_again_trains_nothing(searched: Searched) -> None:
    again = search(searched.config.train, GRID, never)
    assert again.report.run == 0
    assert again.report.search == searched.report.search
    assert again.report.model == searched.report.model
    assert again.table.equals(searched.table)


def test_a_larger_grid_trains_what_is_new_and_nothing_else(searched: Searched, connect: Connect) -> None:
    points = Path(searched.report.folder) / "points"
    before = {path.name: path.read_bytes() for path in points.iterdir() if not path.name.endswith(".weights.npz")}
    larger = search(searched.config.train, (f"{GRID[0]},1e-7", GRID[1]), connect)
    assert (larger.report.search, larger.report.trials) == (searched.report.search, 8)
    assert (larger.report.trainings, larger.report.run) == (4, 1)
    assert {name: (points / name).read_bytes() for name in before} == before
    old, new = (rows_by(table, "point") for table in (searched.table, larger.table))
    assert all(drop(new[key], "rank") == drop(row, "rank") for key, row in old.items())
    assert [row["point"] for row in larger.table.to_pylist() if (row["point"],) in old] == (
        searched.table["point"].to_pylist()
    )


def drop(row: Mapping[str, Any], *columns: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in columns}


def test_another_order_gives_the_same_leaderboard(searched: Searched, backwards: Searched) -> None:
    assert backwards.report.run == 3
    assert backwards.table.num_rows == searched.table.num_rows
    accuracies = searched.table["value"].to_pylist()
    assert len(set(accuracies)) < len(accuracies)  # some are equal, and something else must decide
    for one, other in zip(searched.table.to_pylist(), backwards.table.to_pylist(), strict=True):
        assert drop(other, *NOT_THE_SAME_TWICE) == pytest.approx(drop(one, *NOT_THE_SAME_TWICE), abs=1e-6)


def test_another_metric_ranks_anew_and_trains_only_whose_weights_are_gone(
    backwards: Searched, connect: Connect
) -> None:
    folder, leader = backwards.report.folder, backwards.report.best["point"]
    assert weights_kept(folder) == {leader}
    assert len(answered(folder)) == 6
    leaders = {metric: leader_by(backwards.table, metric) for metric in METRIC_NAMES}
    same = next(metric for metric in METRIC_NAMES if leaders[metric] == leader and metric != "accuracy")
    other = next(metric for metric in METRIC_NAMES if leaders[metric] != leader)
    train_on, grid = backwards.config.train, [f"{key}={text}" for key, text in backwards.config.grid.items()]
    kept = search(train_on, grid, never, metric=same)
    assert (kept.report.run, kept.report.best["point"], kept.report.model) == (0, leader, backwards.report.model)
    moved = search(train_on, grid, connect, metric=other)
    assert (moved.report.run, moved.report.best["point"]) == (1, leaders[other])
    assert moved.report.model != backwards.report.model
    assert weights_kept(folder) == {leaders[other]}
    for found, metric in ((kept, same), (moved, other)):
        values = found.table["value"].to_pylist()
        assert values == sorted(values, reverse=metric not in LOWER_IS_BETTER)
        assert values == found.table[f"best_{metric}"].to_pylist()


def leader_by(table: pa.Table, metric: str) -> str:
    """The best point by a metric; among equals the one of the smaller rate, then of fewer epochs."""
    sign = 1 if metric in LOWER_IS_BETTER else -1

    def place(row: Mapping[str, Any]) -> tuple[float, ...]:
        value = row[f"best_{metric}"]
        return math.inf if value is None else sign * value, row["learning_rate"], row["epochs"]

    return str(min(table.to_pylist(), key=place)["point"])


def test_each_of_two_backbones_leaves_a_bundle(labelled: Path, connect: Connect, tmp_path: Path) -> None:
    base = train_config(labelled, tmp_path / "models", BASE | {"alpha": "1.0", "input_size": "32", "epochs": "2"})
    found = search(base, ("backbone=mobilenet_v2,vgg16", "epochs=1,2"), connect)
    assert set(found.report.backbones) == {"mobilenet_v2", "vgg16"}
    image = next((labelled / "benign").iterdir())
    rows = found.table.to_pylist()
    record = json.loads((Path(found.report.folder) / "search.json").read_text())
    for backbone, place in found.report.backbones.items():
        assert Path(place) == Path(found.report.folder) / "best" / backbone / "v1"
        bundle = resolve(place)
        assert bundle.backbone["name"] == backbone
        assert score(bundle, image).sum() == pytest.approx(1, abs=1e-6)
        best = next(row for row in rows if row["backbone"] == backbone)
        assert record["best_of"][backbone]["point"] == best["point"]
        assert bundle.provenance["search"]["point"] == best["point"]
    won = resolve(found.report.path or "")
    assert won.backbone["name"] == rows[0]["backbone"]
    np.testing.assert_array_equal(score(won, image), score(resolve(found.report.backbones[rows[0]["backbone"]]), image))
