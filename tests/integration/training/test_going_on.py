"""A training that goes on: from a checkpoint, from what another job compiled, after a kill, or read off on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.training import checkpoint
from pipelines.training.feeding import open_arrays
from pipelines.training.history import Answers
from pipelines.training.loop import fit_job, open_fit
from pipelines.training.steps import Place

sys.path.insert(0, str(Path(__file__).parent))
from test_loop import features, fit, save_job, without_time


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3, "mixup": 0.2, "weight_averaging": 0.9, "class_balance": "oversample"},
        {"dense_units": 8, "batch_norm": "true", "dropout": 0.3, "head_epochs": 3, "schedule": "cosine"},
        {"head_epochs": 2, "reduce_on_plateau": 1, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.9},
    ],
    ids=["averaged", "two-phases", "plateau"],
)
def test_going_on_from_a_checkpoint_is_bit_equal(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = features(variants=3)
    whole = fit(save_job(tmp_path / "whole", data, 3, epochs=7, **changes))
    job = save_job(tmp_path / "torn", data, 3, epochs=7, **changes)
    rows: list[dict[str, float]] = []

    def stop_now_and_then(row: dict[str, float]) -> None:
        if row["epoch"] > len(rows):
            rows.append(row)
            if row["epoch"] in (2, 3, 6):
                raise Stop

    for _ in range(4):
        try:
            torn = fit_job(job, Place(), stop_now_and_then)
        except Stop:
            continue
    assert without_time(rows) == without_time(whole.history)
    assert without_time(torn.history) == without_time(whole.history)
    assert torn.best_epoch == whole.best_epoch
    for a, b in zip(whole.variables, torn.variables, strict=True):
        np.testing.assert_array_equal(a, b)


OTHER_STEPS = [{"dropout": 0.5}, {"label_smoothing": 0.1}, {"optimizer": "adamw", "weight_decay": 0.1}, {"seed": 8}]


def test_a_compiled_fit_is_taken_up_for_another_job_and_leaves_what_that_leaves_alone(tmp_path: Path) -> None:
    arrays = features(variants=3)
    common = {"dropout": 0.3, "weight_averaging": 0.9, "rotation": 5.0, "variants": 3, "epochs": 5}
    changes: list[dict[str, Any]] = [
        {},
        {"learning_rate": 0.3, "early_stopping": 1},
        {"head_epochs": 2, "warmup_epochs": 1},
        {"batch_size": 16, "class_balance": "oversample", "epochs": 3, "schedule": "cosine"},
        {"reduce_on_plateau": 1, "metric": "accuracy", "restore_best": "false"},
        {},
    ]
    earlier = None
    open_once = open_arrays(save_job(tmp_path / "shared", arrays, 3, **common), str(tmp_path))
    for number, own in enumerate(changes):
        alone = fit(save_job(tmp_path / f"alone{number}", arrays, 3, **common | own))
        job = replace(save_job(tmp_path / "shared", arrays, 3, **common | own), checkpoint=str(tmp_path / f"{number}"))
        again = open_fit(job, Place(), open_once, earlier)
        assert earlier in (None, again)
        for _ in again.epochs():
            pass
        left = again.read_off().result
        assert without_time(left.history) == without_time(alone.history)
        assert left.best_epoch == alone.best_epoch
        for a, b in zip(left.variables, alone.variables, strict=True):
            np.testing.assert_array_equal(a, b)
        earlier = again
    for other in OTHER_STEPS:
        assert earlier is not None
        assert not earlier.computes(save_job(tmp_path / "shared", arrays, 3, **common | other), open_once)


def test_what_is_read_off_on_the_way_is_what_a_shorter_fit_leaves(tmp_path: Path) -> None:
    changes = {"early_stopping": 3, "weight_averaging": 0.8, "dropout": 0.2}
    job = save_job(tmp_path / "long", features(), 3, epochs=8, **changes)
    long = open_fit(job, Place(), open_arrays(job, str(tmp_path)))
    for standing in long.epochs():
        if standing.epoch not in (1, 4, 8):
            continue
        short = save_job(tmp_path / f"short{standing.epoch}", features(), 3, epochs=standing.epoch, **changes)
        left, read = fit(short), long.read_off()
        assert without_time(read.result.history) == without_time(left.history)
        assert read.result.best_epoch == left.best_epoch
        for a, b in zip(read.result.variables, left.variables, strict=True):
            np.testing.assert_array_equal(a, b)
        wanted = Answers(read.logits, features()["validation_labels"]).figures([2])
        kept = left.history[left.best_epoch - 1]
        assert wanted["log_loss"] == pytest.approx(kept["val_loss"], abs=1e-6)


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    data = features()
    job = save_job(tmp_path, data, 3)
    whole = fit(job)
    other = replace(job, seed=8)
    assert checkpoint.load(job.checkpoint, other.key()) is None
    place = Path(job.checkpoint)
    place.write_bytes(place.read_bytes()[:-100])
    assert checkpoint.load(job.checkpoint, job.key()) is None
    assert without_time(fit(job).history) == without_time(whole.history)


KILLED = """
import os, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_loop import features, save_job
from pathlib import Path
from pipelines.training.loop import fit_job
from pipelines.training.steps import Place
job = save_job(Path(sys.argv[2]), features(variants=3), 3, epochs=300, dropout=0.3)
fit_job(job, Place(), lambda row: print(int(row["epoch"]), flush=True))
"""


def test_a_killed_driver_goes_on_bit_equal(tmp_path: Path, environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "torn")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 60:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    changes: dict[str, Any] = {"epochs": 300, "dropout": 0.3}
    job = save_job(tmp_path / "torn", features(variants=3), 3, **changes)
    standing = checkpoint.load(job.checkpoint, job.key())
    assert standing is not None and 0 < standing.epoch < 300
    torn, whole = fit(job), fit(save_job(tmp_path / "whole", features(variants=3), 3, **changes))
    assert [row["epoch"] for row in torn.history] == list(range(1, 301))
    assert without_time(torn.history) == without_time(whole.history)
    for a, b in zip(whole.variables, torn.variables, strict=True):
        np.testing.assert_array_equal(a, b)
