"""Train a head on cached features: one TensorFlow call an epoch, every batch a function of (seed, epoch, step)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.models.backbones import import_keras
from pipelines.training.calibration import probabilities
from pipelines.training.measures import LOWER_IS_BETTER, measure

HISTORY_FIGURES = {
    "loss": "log_loss",
    "accuracy": "accuracy",
    "precision": "ppv",
    "recall": "sensitivity",
    "roc_auc": "roc_auc",
}
"""Column of the history (for validation with `val_` before it): the figure that it holds."""


@dataclass(frozen=True)
class Part:
    """One part of the data as a head sees it.

    Attributes:
        features: float32 `[N, …]`.
        labels: Class numbers, int64 `[N]`.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class HeadConfig:
    """How a head is trained; the recipe's keys of the same names.

    Attributes:
        optimizer: `adam`, `adamw` or `sgd`.
        learning_rate: Constant step size.
        epochs: At most so many.
        batch_size: Images a step; the last step of an epoch takes what is left.
        class_weights: Weight of each class in the loss, `[K]`.
        early_stopping: Epochs without improvement before the end; 0 never.
        metric: What validation is judged by.
        positive: Numbers of the positive classes.
        seed: Decides the order of the images and what dropout drops.
    """

    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int
    class_weights: tuple[float, ...]
    early_stopping: int
    metric: str
    positive: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class TrainedHead:
    """What training left.

    Attributes:
        history: One row an epoch: `epoch` (from 1), the figures of `HISTORY_FIGURES`, `learning_rate`, `seconds`.
        best_epoch: The epoch (from 1) whose weights the head holds now.
        metric_defined: False where `metric` was no number after any epoch; then the last epoch's weights are held.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    metric_defined: bool = True


def balanced_weights(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """Weights that make every class count the same in all: N / (K · N_class)."""
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(len(labels) / (classes * count)) if count else 0.0 for count in counts)


def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The order in which an epoch (from 1) takes the images: a permutation, a function of the seed and the epoch."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def train_head(
    head: Any,
    train: Part,
    validation: Part,
    config: HeadConfig,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> TrainedHead:
    """Train a head; at the end it holds the weights of its best epoch, or of its last if none could be judged.

    Args:
        head: Keras model from features to logits `[N, K]`; trained in place.
        train: What the weights are fitted to.
        validation: What chooses the epoch.
        config: How.
        on_epoch: Called with each row of the history.

    Raises:
        UsageError: If the loss stops being a number, naming the epoch and the batch.
    """
    run_epoch = _epoch_function(head, train, config)
    sign = -1.0 if config.metric in LOWER_IS_BETTER else 1.0
    history: list[dict[str, float]] = []
    best_value, best_epoch, best_weights = -np.inf, 0, head.get_weights()
    for epoch in range(1, config.epochs + 1):
        began = time.monotonic()
        _seed_dropout(head, config.seed, epoch)
        losses = run_epoch(epoch_order(config.seed, epoch, len(train.labels)))
        _refuse_nan(losses, epoch)
        row, value = _history_row(head, train, validation, config, epoch)
        row["seconds"] = time.monotonic() - began
        history.append(row)
        if on_epoch:
            on_epoch(row)
        if sign * value > best_value:
            best_value, best_epoch, best_weights = sign * value, epoch, head.get_weights()
        if config.early_stopping and best_epoch and epoch - best_epoch >= config.early_stopping:
            break
    if not best_epoch:
        return TrainedHead(tuple(history), len(history), metric_defined=False)
    head.set_weights(best_weights)
    return TrainedHead(tuple(history), best_epoch)


def logits_of(head: Any, features: NDArray[np.float32], batch_size: int = 1024) -> NDArray[np.float32]:
    """A head's answers in inference mode, float32 `[N, K]`."""
    parts = [
        np.asarray(head(features[first : first + batch_size], training=False), np.float32)
        for first in range(0, len(features), batch_size)
    ]
    return np.concatenate(parts)


def _epoch_function(head: Any, train: Part, config: HeadConfig) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """One epoch as one graph: order of the images in, loss of each batch out."""
    keras = import_keras()
    import tensorflow as tf

    makers = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}
    optimizer = makers[config.optimizer](learning_rate=config.learning_rate)
    variables = head.trainable_variables
    optimizer.build(variables)
    features, labels = tf.constant(train.features), tf.constant(train.labels)
    weights = tf.constant(config.class_weights, tf.float32)
    images, size = len(train.labels), config.batch_size
    steps = -(-images // size)

    @tf.function  # type: ignore[untyped-decorator]
    def run(order: Any) -> Any:
        losses = tf.TensorArray(tf.float32, size=steps)
        for step in tf.range(steps):
            rows = order[step * size : (step + 1) * size]
            truth = tf.gather(labels, rows)
            with tf.GradientTape() as tape:
                logits = head(tf.gather(features, rows), training=True)
                each = tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits)
                loss = tf.reduce_mean(each * tf.gather(weights, truth))
            optimizer.apply(tape.gradient(loss, variables), variables)
            losses = losses.write(step, loss)
        return losses.stack()

    return lambda order: np.asarray(run(tf.constant(order)), np.float32)


def _seed_dropout(head: Any, seed: int, epoch: int) -> None:
    """What an epoch drops depends on the seed and the epoch alone, so that a resumed training drops the same."""
    for layer in head._flatten_layers():
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            generator.state.assign(np.array([seed & 0x7FFFFFFF, epoch], generator.state.dtype))


def _refuse_nan(losses: NDArray[np.float32], epoch: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(losses))
    if len(wrong):
        raise UsageError(
            f"The loss is no number any more, at epoch {epoch}, batch {wrong[0] + 1} of {len(losses)}.",
            "Lower the learning rate: --set learning_rate=…",
        )


def _history_row(
    head: Any, train: Part, validation: Part, config: HeadConfig, epoch: int
) -> tuple[dict[str, float], float]:
    """The history's row after an epoch, and the validation figure that it is judged by."""
    row: dict[str, float] = {"epoch": epoch}
    value = np.nan
    for prefix, part in (("", train), ("val_", validation)):
        figures = measure(probabilities(logits_of(head, part.features)), part.labels, config.positive)
        row.update({prefix + column: figures[name] for column, name in HISTORY_FIGURES.items()})
        value = figures[config.metric]
    row["learning_rate"] = config.learning_rate
    return row, value


def history_csv(history: Sequence[dict[str, float]]) -> bytes:
    """The history as CSV, one line an epoch, columns as in `TrainedHead.history`."""
    lines = [",".join(history[0])]
    lines += [",".join(f"{value:.7g}" for value in row.values()) for row in history]
    return ("\n".join(lines) + "\n").encode()
