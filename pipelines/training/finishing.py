"""The finished scorer: compiled, checked from the file to the answer, and the threshold that its own answers fit.

The threshold is fitted to what the head answers to cached features, but `score` compares it with what the compiled
scorer answers to files. So the scorer is run on the validation images next to the threshold, its answers take the place
of the head's, and the threshold is lowered by the largest relative difference that was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ModelRefused
from pipelines.models.compile import compile_scorer
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.training.calibration import OperatingPoint, fit_threshold
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset
from pipelines.training.fitting import Fitted
from pipelines.training.network import Network, prepared_pixels

CHECKED_AT_ONCE = 16
MOST_CHECKED = 256
"""Validation images that the compiled scorer is run on; more than 32 only where many lie at the threshold."""
LARGEST_DIFFERENCE = 1e-3
"""Of a probability, between the compiled model on pixels and the head on cached features."""

Answer = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Finished:
    """What is written into the bundle.

    Attributes:
        scorer: LiteRT bytes: pixels to calibrated probabilities.
        probabilities: Of the validation part, float32 `[N, K]`: the scorer's where it was run, else the head's.
        point: The threshold.
    """

    scorer: bytes
    probabilities: NDArray[np.float32]
    point: OperatingPoint


def finish(config: TrainConfig, network: Network, fitted: Fitted, data: Dataset, positive: Sequence[int]) -> Finished:
    """Compile the scorer, check it on validation images, and place the threshold.

    Args:
        config: How.
        network: The backbone.
        fitted: The head and its temperature.
        data: Says which images validate.
        positive: Numbers of the positive classes.

    Raises:
        ModelRefused: If the scorer answers otherwise than the head did on the cached features.
    """
    size = config.recipe.input_size
    model = compile_scorer(network.backbone, fitted.head, fitted.temperature, size, config.recipe.pooling)
    scorer = Scorer(model, ScorerIO(size, len(data.classes)))
    validation = data.parts == "val"
    uris = data.images["image_uri"].to_numpy(zero_copy_only=False)[validation]

    def answer(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([scorer(picture) for picture in prepared_pixels(uris[rows], size)])

    truth = np.isin(data.labels[validation], positive)
    probabilities, point = place_threshold(fitted.probabilities, truth, positive, config.target_sensitivity, answer)
    return Finished(model, probabilities, point)


def place_threshold(
    probabilities: NDArray[np.float64],
    is_positive: NDArray[np.bool_],
    positive: Sequence[int],
    target: float,
    answer: Answer,
) -> tuple[NDArray[np.float32], OperatingPoint]:
    """Fit the threshold to the answers that `score` will give.

    Args:
        probabilities: The head's on the validation part, calibrated, `[N, K]`.
        is_positive: Truth, `[N]`.
        positive: Numbers of the positive classes.
        target: Sensitivity wanted.
        answer: Runs the compiled scorer on some rows: float32 `[n, K]`.

    Returns:
        The probabilities with the scorer's answers in place, and the threshold. Its sensitivity and specificity are
        those of the returned probabilities; no row that the scorer was not run on lies so near to the threshold that
        the largest difference seen would turn it, as far as `MOST_CHECKED` rows reach.

    Raises:
        ModelRefused: If an answer differs by more than `LARGEST_DIFFERENCE`.
    """
    known = probabilities.astype(np.float32)
    checked = np.zeros(len(known), bool)
    difference = 0.0
    score = _p_positive(known, positive)
    point = fit_threshold(score, is_positive, target)
    rows = np.union1d(_nearest(score, point.threshold), _spread(score))
    while len(rows):
        answers = answer(rows)
        _refuse_difference(answers, known[rows])
        before, after = score[rows], _p_positive(answers, positive)
        relative = np.abs(after - before) / np.maximum(np.maximum(after, before), np.finfo(np.float32).tiny)
        difference = min(max(difference, float(relative.max())), LARGEST_DIFFERENCE)
        known[rows], checked[rows] = answers, True
        score = _p_positive(known, positive)
        point = fit_threshold(score, is_positive, target, difference)
        doubtful = ~checked & (np.abs(score - point.threshold) <= difference * point.threshold)
        rows = np.flatnonzero(doubtful)[:CHECKED_AT_ONCE] if checked.sum() < MOST_CHECKED else rows[:0]
    return known, point


def _p_positive(probabilities: NDArray[np.float32], positive: Sequence[int]) -> NDArray[np.float64]:
    """As `score` compares it: summed in double precision, kept in single."""
    summed = probabilities[:, list(positive)].astype(np.float64).sum(axis=1)
    return np.asarray(np.minimum(summed, 1.0).astype(np.float32), np.float64)


def _nearest(score: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    return np.argsort(np.abs(score - threshold), kind="stable")[:CHECKED_AT_ONCE]


def _spread(score: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows at even steps of rank, the lowest and the highest among them."""
    ranks = np.linspace(0, len(score) - 1, CHECKED_AT_ONCE).round().astype(np.int64)
    return np.argsort(score, kind="stable")[ranks]


def _refuse_difference(answers: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    if answers.shape != wanted.shape or not float(np.abs(answers - wanted).max()) <= LARGEST_DIFFERENCE:
        raise ModelRefused(
            "The compiled model answers otherwise on validation images than the head that was trained, so nothing was "
            "written.",
            "If images changed while training ran, run the command again; else delete the model's work folder.",
        )
