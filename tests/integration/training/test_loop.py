"""The training loop on one worker, with TensorFlow, against NumPy and against Keras' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.evaluation.calibration import class_logits, probabilities
from pipelines.models.backbones import BackboneSpec, build_backbone, import_keras, weights_to_bytes
from pipelines.models.cut import cut_backbone
from pipelines.training import checkpoint
from pipelines.training.batches import plan_epoch
from pipelines.training.history import history_csv
from pipelines.training.job import Arrays, FitJob
from pipelines.training.loop import FitResult, fit_job
from pipelines.training.recipes import load_recipe
from pipelines.training.schedules import Plateau, is_over, learning_rates
from pipelines.training.steps import Place
from pipelines.training.worker_trainee import worker_trainee

PLAIN = {
    "dense_units": 0,
    "batch_norm": "false",
    "dropout": 0.0,
    "optimizer": "adam",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "loss": "categorical_crossentropy",
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "learning_rate": 0.02,
    "schedule": "constant",
    "warmup_epochs": 0,
    "head_epochs": 0,
    "epochs": 3,
    "batch_size": 32,
    "class_balance": "none",
    "weight_averaging": 0.0,
    "trainable_layers": 0,
    "rotation": 0.0,
    "shift": 0.0,
    "shear": 0.0,
    "zoom": 0.0,
    "flip": "none",
    "variants": 0,
    "early_stopping": 0,
    "metric": "log_loss",
    "restore_best": "true",
    "reduce_on_plateau": 0,
}


def save_job(folder: Path, arrays: Mapping[str, np.ndarray], classes: int, **changes: Any) -> FitJob:
    """Write arrays and describe a fit on them; `changes` are recipe keys, or fields of the job."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    fields = {"positive": (classes - 1,), "class_weights": (1.0,) * classes, "seed": 7, "pixels": False}
    given = {key: changes.pop(key) for key in list(changes) if key in (*fields, "backbone_weights", "start")}
    recipe = load_recipe("default", {key: str(value) for key, value in (PLAIN | changes).items()})
    places = Arrays(**{name: str(folder / f"{name}.npy") for name in arrays})
    return FitJob(recipe, classes, **(fields | given), arrays=places, checkpoint=str(folder / "checkpoint.npz"))


def features(classes: int = 3, images: int = 100, variants: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels, others = rng.integers(0, classes, images), rng.integers(0, classes, 50)
    return {
        "inputs": (rng.normal(0, 1, (images, variants, 12)) + np.eye(classes, 12)[labels][:, None] * 1.5).astype("f4"),
        "labels": labels,
        "keys": rng.integers(0, 2**62, images),
        "validation_inputs": (rng.normal(0, 1, (50, 12)) + np.eye(classes, 12)[others] * 1.5).astype("f4"),
        "validation_labels": others,
    }


def fit(job: FitJob) -> FitResult:
    return fit_job(job, Place(), lambda row: None)


def without_time(history: Any) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_the_same_seed_gives_the_same_arrays_and_another_one_others(tmp_path: Path) -> None:
    one, two, other = (
        fit(save_job(tmp_path / name, features(), 3, dropout=0.3, mixup=0.2, seed=seed))
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_time(one.history) == without_time(two.history)
    assert (one.variables[0] != other.variables[0]).any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_epoch_is_that_of_numpy(tmp_path: Path, optimizer: str) -> None:
    """Class weights, label smoothing and mixup among it; the last batch holds the 4 images that are left."""
    weights, smooth, rate = (0.5, 1.0, 2.0), 0.1, 0.05
    more = {"adam": {}, "sgd": {"momentum": 0.9}, "adamw": {"weight_decay": 0.1}}[optimizer]
    data = features()
    job = save_job(
        tmp_path, data, 3, optimizer=optimizer, learning_rate=rate, epochs=1, class_weights=weights,
        label_smoothing=smooth, mixup=0.4, **more,
    )  # fmt: skip
    arrays = [array.astype(np.float64) for array in worker_trainee(job, 12).arrays()]
    found = fit(job).variables
    plan = plan_epoch(data["labels"], seed=7, epoch=1, batch_size=32, oversample=False, mixup=0.4)
    assert plan.partners is not None and plan.shares is not None
    memory, squares = [np.zeros_like(array) for array in arrays], [np.zeros_like(array) for array in arrays]
    for step in range(plan.steps):
        places = np.arange(step * 32, min(step * 32 + 32, 100))
        own, partner = plan.rows[places], plan.rows[plan.partners[places]]
        share = plan.shares[places].astype(np.float64)[:, None]
        x = share * data["inputs"][own, 0] + (1 - share) * data["inputs"][partner, 0]
        raised = np.exp(x @ arrays[0] + arrays[1])
        p = raised / raised.sum(axis=1, keepdims=True)
        slope = np.zeros_like(p)
        for part, rows in ((share, own), (1 - share, partner)):
            y = data["labels"][rows]
            slope += part * np.array(weights)[y][:, None] * (p - (np.eye(3)[y] * (1 - smooth) + smooth / 3))
        slope /= len(places)
        for number, gradient in enumerate((x.T @ slope, slope.sum(axis=0))):
            if optimizer == "sgd":
                memory[number] = 0.9 * memory[number] - rate * gradient
                arrays[number] = arrays[number] + memory[number]
                continue
            if optimizer == "adamw":
                arrays[number] = arrays[number] * (1 - rate * 0.1)
            memory[number] = 0.9 * memory[number] + 0.1 * gradient
            squares[number] = 0.999 * squares[number] + 0.001 * gradient**2
            scale = rate * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            arrays[number] = arrays[number] - scale * memory[number] / (np.sqrt(squares[number]) + 1e-7)
    for mine, theirs in zip(found, arrays, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_a_sigmoid_unit_is_that_of_keras(tmp_path: Path) -> None:
    """Loss, gradients and schedule of one epoch, with smoothing, against `train_on_batch` of a compiled model."""
    keras = import_keras()
    data = features(2)
    job = save_job(
        tmp_path, data, 2, loss="binary_crossentropy", label_smoothing=0.2, epochs=4, schedule="cosine",
        warmup_epochs=1, learning_rate=0.05, optimizer="sgd", restore_best="false",
    )  # fmt: skip
    start = worker_trainee(job, 12).arrays()
    result = fit(job)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)])
    model.set_weights(start)
    steps = 4
    decay = keras.optimizers.schedules.CosineDecay(0.0, 3 * steps, warmup_target=0.05, warmup_steps=steps)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2))
    for epoch in range(1, 5):
        plan = plan_epoch(data["labels"], seed=7, epoch=epoch, batch_size=32, oversample=False, mixup=0.0)
        losses = []
        for step in range(steps):
            rows = plan.rows[step * 32 : step * 32 + 32]
            at = (epoch - 1) * steps + step
            # While it warms up, our first step is Keras' second: its first has a rate of 0.
            model.optimizer.learning_rate.assign(decay(at + 1 if at < steps else at))
            answer = model.train_on_batch(data["inputs"][rows, 0], data["labels"][rows, None].astype("f4"))
            losses.append(float(np.ravel(answer)[0]) * len(rows))
            model.reset_metrics()
        assert result.history[epoch - 1]["loss"] == pytest.approx(sum(losses) / 100, rel=1e-4)
    for mine, theirs in zip(result.variables, model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    logits = data["validation_inputs"] @ result.variables[0] + result.variables[1]
    right = ((logits[:, 0] > 0) == data["validation_labels"]).mean()
    assert result.history[-1]["val_accuracy"] == pytest.approx(right)
    np.testing.assert_allclose(probabilities(class_logits(logits))[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-5)


def test_plateau_and_early_stopping_do_what_those_of_keras_do() -> None:
    keras = import_keras()
    rng = np.random.default_rng(3)
    for patience in (1, 2, 4):
        values = np.round(1 + 0.3 * rng.standard_normal(40).cumsum() / 8, 4)
        recipe = load_recipe(
            "default",
            {key: str(value) for key, value in (PLAIN | {
                "epochs": 40, "reduce_on_plateau": patience, "reduce_factor": 0.5, "reduce_metric": "log_loss",
                "early_stopping": 3 * patience, "learning_rate": 1.0,
            }).items()},
        )  # fmt: skip
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(1.0), "mse")
        reduce = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=patience)
        stop = keras.callbacks.EarlyStopping("val_loss", patience=3 * patience)
        for callback in (reduce, stop):
            callback.set_model(model)
            callback.on_train_begin()
        state, best, best_epoch = Plateau(), np.inf, 0
        for epoch, value in enumerate(values, start=1):
            assert float(model.optimizer.learning_rate) == pytest.approx(
                learning_rates(recipe, epoch, 1)[0] * state.factor
            )
            reduce.on_epoch_end(epoch - 1, {"val_loss": value})
            stop.on_epoch_end(epoch - 1, {"val_loss": value})
            state = state.after(float(value), recipe)
            best, best_epoch = (value, epoch) if value < best else (best, best_epoch)
            assert is_over(recipe, epoch, best_epoch) == (bool(model.stop_training) or epoch == 40)
            if model.stop_training:
                break


def test_the_best_epoch_is_kept_and_training_stops_after_it(tmp_path: Path) -> None:
    data = features()
    result = fit(save_job(tmp_path, data, 3, learning_rate=0.3, epochs=200, early_stopping=4))
    losses = [row["val_loss"] for row in result.history]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert len(result.history) == result.best_epoch + 4 < 200
    logits = data["validation_inputs"] @ result.variables[0] + result.variables[1]
    p = probabilities(logits)[np.arange(50), data["validation_labels"]]
    assert -np.log(p).mean() == pytest.approx(min(losses), rel=1e-5)
    lines = history_csv(result.history).decode().splitlines()
    assert lines[0].split(",")[:3] == ["epoch", "loss", "accuracy"] and len(lines) == len(result.history) + 1


def test_without_a_metric_the_last_epoch_is_kept(tmp_path: Path) -> None:
    data = features() | {"validation_labels": np.zeros(50, np.int64)}  # one class only has no ROC AUC
    result = fit(save_job(tmp_path, data, 3, metric="roc_auc", epochs=5, early_stopping=2))
    assert (result.best_epoch, len(result.history), result.metric_defined) == (5, 5, False)


def test_averaged_weights_are_validated_and_kept(tmp_path: Path) -> None:
    """Against the same average of the weights of a fit that averages none, epoch by epoch of one step."""
    data = features(images=32)
    plain = [fit(save_job(tmp_path / str(n), data, 3, epochs=n, restore_best="false")) for n in (1, 2, 3)]
    job = save_job(tmp_path / "averaged", data, 3, epochs=3, weight_averaging=0.15, restore_best="false")
    average = worker_trainee(job, 12).arrays()
    for step, one in enumerate(plain):
        decay = min(0.15, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, one.variables, strict=True)]
    result = fit(job)
    for mine, theirs in zip(result.variables, average, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    p = probabilities(data["validation_inputs"] @ average[0] + average[1])
    expected = -np.log(p[np.arange(50), data["validation_labels"]]).mean()
    assert result.history[-1]["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_no_number_names_epoch_and_batch_and_the_checkpoint_stays(tmp_path: Path) -> None:
    data = features()
    data["inputs"][:, 0] *= 1e15
    job = save_job(tmp_path, data, 3, optimizer="sgd", learning_rate=10.0, epochs=50, dense_units=8)
    with pytest.raises(UsageError, match=r"epoch \d+, batch \d+ of 4") as caught:
        fit(job)
    assert "learning_rate" in caught.value.cure
    standing = checkpoint.load(job.checkpoint, job.key())
    assert standing is None or all(np.isfinite(array).all() for array in standing.variables)


def test_weights_that_the_last_batch_spoils_are_refused_like_a_loss(tmp_path: Path) -> None:
    data = features()
    huge = {name: array * np.float32(1e20) if "inputs" in name else array for name, array in data.items()}
    job = save_job(tmp_path, huge, 3, optimizer="sgd", learning_rate=10, batch_size=100)
    with pytest.raises(UsageError, match="at epoch 1, batch 1 of 1"):
        fit(job)


def pictures(folder: Path, images: int, **changes: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Tiny pictures of two classes with a MobileNetV2 0.35 at 32 px."""
    rng = np.random.default_rng(1)
    labels = np.arange(images) % 2
    coarse = rng.integers(0, 200, (images, 8, 8, 3)) + 50 * labels[:, None, None, None]
    pixels = coarse.astype(np.uint8).repeat(4, 1).repeat(4, 2)
    backbone = build_backbone(BackboneSpec("mobilenet_v2", 0.35, 32, "backbone"), "none", 1, pixels[:16])
    folder.mkdir(exist_ok=True)
    (folder / "backbone.weights.h5").write_bytes(weights_to_bytes(backbone))
    keys = rng.integers(0, 2**62, images)
    arrays = {"inputs": pixels, "labels": labels, "keys": keys}
    return arrays | {"validation_inputs": pixels[:20], "validation_labels": labels[:20]}, backbone


def test_layers_above_the_cut_learn_as_they_do_on_pixels(tmp_path: Path) -> None:
    """Cached tensors below the cut, and pixels through the whole network, give the same history; last batch of one."""
    arrays, backbone = pictures(tmp_path, 33)
    lower = cut_backbone(backbone, 30, "avg").lower
    through = lambda pixels: np.asarray(lower(pixels.astype("f4")))  # noqa: E731
    cached = arrays | {
        "inputs": through(arrays["inputs"])[:, None],
        "validation_inputs": through(arrays["validation_inputs"]),
    }
    flat = arrays | {
        "inputs": arrays["inputs"].reshape(33, 1, -1),
        "validation_inputs": arrays["validation_inputs"].reshape(20, -1),
    }
    changes: dict[str, Any] = {
        "alpha": 0.35, "input_size": 32, "trainable_layers": 30, "batch_size": 16, "head_epochs": 1, "dropout": 0.2,
        "learning_rate": 0.0001, "backbone_weights": str(tmp_path / "backbone.weights.h5"),
    }  # fmt: skip
    above = fit(save_job(tmp_path / "above", cached, 2, **changes))
    whole = fit(save_job(tmp_path / "whole", flat, 2, pixels=True, **changes))
    for one, two in zip(above.history, whole.history, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-3)
    moved = save_job(tmp_path / "moved", flat, 2, pixels=True, rotation=20.0, flip="both", **changes)
    first, again = fit(moved), fit(replace(moved, checkpoint=str(tmp_path / "again.npz")))
    assert without_time(first.history) == without_time(again.history)
    assert first.history[0]["loss"] != pytest.approx(whole.history[0]["loss"], rel=1e-4)
