"""The history of a fit: a row an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.calibration import class_logits, probabilities
from pipelines.evaluation.metrics import METRIC_NAMES, measure

HISTORY_FIGURES = {
    "loss": "log_loss",
    "accuracy": "accuracy",
    "precision": "ppv",
    "recall": "sensitivity",
    "roc_auc": "roc_auc",
}
"""Column of the history (for validation with `val_` before it): the figure that it holds."""

_BY_FIGURE = {figure: column for column, figure in HISTORY_FIGURES.items()}
VALIDATION_COLUMNS = {name: f"val_{_BY_FIGURE.get(name, name)}" for name in (*_BY_FIGURE, *METRIC_NAMES)}
"""Every figure of `METRIC_NAMES`: the column of the history that holds it for validation."""

Row = dict[str, float]


@dataclass(frozen=True)
class Answers:
    """What a network said to a set of images.

    Attributes:
        logits: float32 `[N, K]`, or `[N, 1]` of the second of two classes.
        labels: int64 `[N]`.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    def figures(self, positive: Sequence[int]) -> dict[str, float]:
        """All figures by name."""
        return measure(probabilities(class_logits(self.logits)), self.labels, positive)


def history_row(
    epoch: int, loss: float, train: dict[str, float], validation: dict[str, float], learning_rate: float, seconds: float
) -> Row:
    """The row of an epoch: `epoch`, figures of training and of validation, `learning_rate`, `seconds`.

    Of training those of `HISTORY_FIGURES`, of validation all, in the columns of `VALIDATION_COLUMNS`.

    The training figures are those of the steps themselves, as Keras shows them: with dropout, augmentation and the
    weights of each step, the loss with class weights and smoothing. Validation's are those of the epoch's weights,
    its loss the plain log loss.

    Args:
        epoch: From 1.
        loss: Mean training loss.
        train: Figures of the training steps.
        validation: Figures of validation.
        learning_rate: Of the last step.
        seconds: Of the epoch.
    """
    row: Row = {"epoch": epoch}
    row |= {column: train[name] for column, name in HISTORY_FIGURES.items()}
    row |= {column: validation[name] for name, column in VALIDATION_COLUMNS.items()}
    row |= {"loss": loss, "learning_rate": learning_rate, "seconds": seconds}
    return row


def history_csv(history: Sequence[Row]) -> bytes:
    """The history as CSV, one line an epoch, columns as in `history_row`."""
    lines = [",".join(history[0])]
    lines += [",".join(f"{value:.7g}" for value in row.values()) for row in history]
    return ("\n".join(lines) + "\n").encode()
