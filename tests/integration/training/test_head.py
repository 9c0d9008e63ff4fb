"""The head's training loop, with TensorFlow, on features made of numbers."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.models.heads import HeadSpec, build_head
from pipelines.training.calibration import log_loss
from pipelines.training.head import (
    HeadConfig,
    Part,
    TrainedHead,
    balanced_weights,
    epoch_order,
    history_csv,
    logits_of,
    train_head,
)


def parts(seed: int = 0, images: int = 150) -> tuple[Part, Part]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    features = (rng.normal(0, 1, (images, 12)) + np.eye(3, 12)[labels] * 1.5).astype(np.float32)
    cut = images * 2 // 3
    return Part(features[:cut], labels[:cut]), Part(features[cut:], labels[cut:])


def config(**changes: object) -> HeadConfig:
    values: dict[str, object] = {
        "optimizer": "adam",
        "learning_rate": 0.02,
        "epochs": 12,
        "batch_size": 32,
        "class_weights": (1.0, 1.0, 1.0),
        "early_stopping": 0,
        "metric": "log_loss",
        "positive": (2,),
        "seed": 7,
    }
    return HeadConfig(**{**values, **changes})  # type: ignore[arg-type]


def trained(how: HeadConfig, spec: HeadSpec | None = None) -> tuple[object, TrainedHead]:
    train, validation = parts()
    head = build_head(spec or HeadSpec(3, dropout=0.3), (12,), seed=how.seed)
    return head, train_head(head, train, validation, how)


def test_the_same_seed_gives_the_same_arrays_and_another_one_others() -> None:
    (first, one), (second, two), (third, _) = (trained(config(seed=seed)) for seed in (7, 7, 8))
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):  # type: ignore[attr-defined]
        np.testing.assert_array_equal(a, b)
    assert [{**row, "seconds": 0} for row in one.history] == [{**row, "seconds": 0} for row in two.history]
    assert (first.get_weights()[0] != third.get_weights()[0]).any()  # type: ignore[attr-defined]


def test_one_epoch_of_plain_descent_is_that_of_numpy() -> None:
    train, validation = parts()
    weights = (0.5, 1.0, 2.0)
    how = config(optimizer="sgd", learning_rate=0.1, epochs=1, batch_size=32, class_weights=weights)
    head = build_head(HeadSpec(3), (12,), seed=1)
    kernel, bias = (array.astype(np.float64) for array in head.get_weights())
    train_head(head, train, validation, how)
    order = epoch_order(how.seed, 1, len(train.labels))
    for first in range(0, len(order), 32):  # the last batch holds the 4 that are left
        rows = order[first : first + 32]
        x, y = train.features[rows].astype(np.float64), train.labels[rows]
        raised = np.exp(x @ kernel + bias)
        slope = (raised / raised.sum(axis=1, keepdims=True) - np.eye(3)[y]) * np.array(weights)[y][:, None] / len(rows)
        kernel, bias = kernel - 0.1 * x.T @ slope, bias - 0.1 * slope.sum(axis=0)
    np.testing.assert_allclose(head.get_weights()[0], kernel, atol=1e-5)
    np.testing.assert_allclose(head.get_weights()[1], bias, atol=1e-5)


def test_the_best_epoch_is_kept_and_training_stops_after_it() -> None:
    head, result = trained(config(learning_rate=0.3, epochs=200, early_stopping=4))
    losses = [row["val_loss"] for row in result.history]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert len(result.history) == result.best_epoch + 4 < 200
    _, validation = parts()
    assert log_loss(logits_of(head, validation.features), validation.labels) == pytest.approx(min(losses), rel=1e-5)


def test_a_metric_where_more_is_better() -> None:
    _, result = trained(config(metric="roc_auc", epochs=8))
    areas = [row["val_roc_auc"] for row in result.history]
    assert result.best_epoch == int(np.argmax(areas)) + 1


def test_without_a_metric_the_last_epoch_is_kept() -> None:
    train, validation = parts()
    only_one_class = Part(validation.features, np.zeros_like(validation.labels))  # has no ROC AUC
    how = config(metric="roc_auc", epochs=5, early_stopping=2)
    head = build_head(HeadSpec(3), (12,), seed=how.seed)
    before = head.get_weights()[0].copy()
    result = train_head(head, train, only_one_class, how)
    assert (result.best_epoch, len(result.history), result.metric_defined) == (5, 5, False)
    assert (head.get_weights()[0] != before).any()
    assert log_loss(logits_of(head, train.features), train.labels) == pytest.approx(
        result.history[-1]["loss"], rel=1e-5
    )


def test_a_loss_that_is_no_number_names_epoch_and_batch() -> None:
    with pytest.raises(UsageError, match=r"epoch \d+, batch \d+ of 4"):
        trained(config(optimizer="sgd", learning_rate=1e30, epochs=50), HeadSpec(3, dense_units=(8,)))


def test_weights_balance_the_classes() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    weights = balanced_weights(labels, 2)
    assert weights == pytest.approx((2 / 3, 2.0))
    assert np.array(weights)[labels].mean() == pytest.approx(1.0)


def test_the_history_is_a_table() -> None:
    _, result = trained(config(epochs=3))
    lines = history_csv(result.history).decode().splitlines()
    assert lines[0].split(",")[:3] == ["epoch", "loss", "accuracy"]
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3"]
