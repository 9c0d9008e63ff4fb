from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.errors import TryLater
from pipelines.training.config import TrainConfig
from pipelines.training.labelled import DataConfig
from pipelines.training.recipes import load_recipe
from pipelines.tuning.answers import answered, drop_variables, load_answer, load_answers, load_variables, save_answer
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.folder import create_search, find_search, save_search
from pipelines.tuning.leaderboard import leaderboard_row, leaderboard_table, write_leaderboard
from pipelines.tuning.points import DONE, Answer
from pipelines.tuning.space import make_points, read_space

POINTS = make_points(read_space(["epochs=1,2,3"], None), load_recipe("skin-lesion"), 10, 0)


def config(models: str, search_id: str | None = None) -> TuneConfig:
    train = TrainConfig(DataConfig("s3://lab/moles"), models, "moles", load_recipe("skin-lesion"))
    return TuneConfig(train, POINTS, search=search_id)


def test_searches_are_claimed_found_and_saved(s3: Any) -> None:
    models = f"{s3.uri}/models"
    assert find_search(models, "moles", {"data": "a"}, None) is None
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _number: create_search(config(models), {"data": "a"}, 0), range(4)))
    assert {search.id for search in made} == {"s1", "s2", "s3", "s4"}
    with pytest.raises(TryLater):
        create_search(config(models, "s2"), {"data": "a"}, 0)
    changed = replace(made[0], tested="2026-11-21T16:00:00+00:00", counts={"points": 3})
    save_search(changed)
    assert find_search(models, "moles", {"data": "a"}, changed.id) == changed
    newest = max(made, key=lambda search: (search.started_at, search.id))
    assert (find_search(models, "moles", {"data": "a"}, None) or changed).id == newest.id
    assert find_search(models, "moles", {"data": "b"}, None) is None


def test_answers_and_the_leaderboard_lie_in_a_bucket(s3: Any) -> None:
    folder = f"{s3.uri}/models/moles/searches/s1"
    assert answered(folder) == set()
    logits = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
    for point in POINTS[:2]:
        row = {"epoch": 1, "val_accuracy": 0.5 + point.recipe.epochs / 10, "seconds": 0.5}
        save_answer(folder, Answer(point.key, "t", DONE, None, (row,), 1, 1, logits), [np.arange(9.0)])
    s3.filesystem.pipe_file(f"{folder}/points/{POINTS[2].key}.npz", b"PK torn")
    keys = [point.key for point in POINTS]
    assert answered(folder) == set(keys)
    assert [answer.point for answer in load_answers(folder, keys)] == keys[:2]
    read = load_answer(folder, keys[0])
    assert read is not None and read.logits is not None and np.array_equal(read.logits, logits)
    drop_variables(folder, keys[1:])
    kept, dropped = load_variables(folder, keys[0]), load_variables(folder, keys[1])
    assert kept is not None and np.array_equal(kept[0], np.arange(9.0)) and dropped is None

    rows = [leaderboard_row(point, load_answer(folder, point.key), "accuracy", "waiting") for point in POINTS]
    place = write_leaderboard(folder, leaderboard_table(rows, POINTS, "accuracy"))
    table = pq.read_table(io.BytesIO(s3.filesystem.cat_file(place)))
    assert table["epochs"].to_pylist() == [2, 1, 3] and table["status"].to_pylist() == ["done", "done", "waiting"]
    assert s3.filesystem.cat_file(f"{folder}/leaderboard.csv").count(b"\r\n") == 4
