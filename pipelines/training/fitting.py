"""What is fitted on features: the head, then on validation its temperature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.models.heads import build_head
from pipelines.training.calibration import fit_temperature, probabilities
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset
from pipelines.training.head import HeadConfig, TrainedHead, balanced_weights, logits_of, train_head
from pipelines.training.network import head_spec


@dataclass(frozen=True)
class Fitted:
    """A head with the temperature that was fitted on validation.

    Attributes:
        head: Keras model of its best epoch.
        trained: Its history.
        temperature: What its logits are divided by.
        probabilities: Calibrated, of the validation part, float64 `[N, K]`.
    """

    head: Any
    trained: TrainedHead
    temperature: float
    probabilities: NDArray[np.float64]


def fit(
    config: TrainConfig, data: Dataset, positive: list[int], on_epoch: Callable[[dict[str, float]], None]
) -> Fitted:
    """Fit head and temperature; the test part is not looked at.

    Args:
        config: How.
        data: Features and split.
        positive: Numbers of the positive classes.
        on_epoch: Called with each row of the history.

    Raises:
        UsageError: If the loss stops being a number.
    """
    recipe, classes = config.recipe, len(data.classes)
    train_part, validation = data.part("train"), data.part("val")
    head = build_head(head_spec(recipe, classes), train_part.features.shape[1:], config.seed)
    balanced = balanced_weights(train_part.labels, classes)
    how = HeadConfig(
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        class_weights=balanced if recipe.class_balance == "weights" else (1.0,) * classes,
        early_stopping=recipe.early_stopping,
        metric=recipe.metric,
        positive=tuple(positive),
        seed=config.seed,
    )
    trained = train_head(head, train_part, validation, how, on_epoch)
    logits = logits_of(head, validation.features)
    temperature = fit_temperature(logits, validation.labels)
    return Fitted(head, trained, temperature, probabilities(logits, temperature))
