"""What validation says of a finished model, and what it does not bear out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.intervals import Interval, figure_intervals
from pipelines.evaluation.metrics import classification_report, confusion_matrix, measure, roc_auc
from pipelines.evaluation.thresholds import OperatingPoint, sum_positive

FEW_VALIDATION_IMAGES = 20
FEW_DECIDED = 20
"""Cases of one kind outside of a refer band: with fewer, one more mistake breaks a target of 0.95."""


@dataclass(frozen=True)
class Judged:
    """The figures of a finished model on validation.

    Attributes:
        positive: Positive classes.
        figures: By name, by the most probable class, calibrated.
        intervals: 95 % interval of each; NaN where there is none.
        roc_auc: Of the positive classes against the rest; `figures` has the mean over classes where there are more
            than two.
        roc_auc_interval: Its interval.
        matrix: Confusion matrix, a row for each true class.
        report: Precision, recall, F1 and support, text.
        warnings: What a person should know.
    """

    positive: tuple[str, ...]
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    roc_auc: float
    roc_auc_interval: Interval
    matrix: tuple[tuple[int, ...], ...]
    report: str
    warnings: tuple[str, ...]

    def record(self) -> dict[str, dict[str, float]]:
        """Figures with their intervals, for the bundle."""
        return {
            name: {"value": value, "low": self.intervals[name][0], "high": self.intervals[name][1]}
            for name, value in self.figures.items()
        }


def judge(
    classes: Sequence[str],
    positive: Sequence[str],
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: Sequence[str],
    point: OperatingPoint,
    seed: int,
    undefined_metric: str | None = None,
    patients: OperatingPoint | None = None,
) -> Judged:
    """Measure the float32 scorer's answers to validation.

    Args:
        classes: Names, in the order of the columns.
        positive: Positive classes.
        probabilities: Calibrated, `[N, K]`.
        labels: Class numbers `[N]`.
        groups: Group of each image; intervals draw these.
        point: The threshold and refer band.
        seed: Decides the resamples.
        undefined_metric: The recipe's metric, where it was no number after any epoch.
        patients: Threshold and band of patients by their highest `p_positive`; None where validation knows none.
    """
    numbers = [list(classes).index(name) for name in positive]
    called, score, truth = probabilities.argmax(axis=1), sum_positive(probabilities, numbers), np.isin(labels, numbers)
    against_rest = np.stack([1 - score, score], axis=1)
    area = roc_auc(score, truth)
    interval = figure_intervals(against_rest, truth.astype(np.int64), groups, [1], seed)["roc_auc"]
    figures = measure(probabilities, labels, numbers)
    matrix = confusion_matrix(called, labels, len(classes))
    return Judged(
        positive=tuple(positive),
        figures=figures,
        intervals=figure_intervals(probabilities, labels, groups, numbers, seed),
        roc_auc=area,
        roc_auc_interval=interval,
        matrix=tuple(tuple(int(count) for count in row) for row in matrix),
        report=classification_report(called, labels, classes),
        warnings=(
            *_warnings(area, interval, truth, point, undefined_metric),
            *_too_sure(figures["log_loss"], len(labels)),
            *band_warnings(point, "validation images", few=len(truth) >= FEW_VALIDATION_IMAGES),
            *(band_warnings(patients, "patients of validation") if patients is not None else ()),
        ),
    )


def _warnings(
    area: float, interval: Interval, truth: NDArray[np.bool_], point: OperatingPoint, undefined_metric: str | None
) -> list[str]:
    told = []
    if undefined_metric:
        told.append(
            f"{undefined_metric} on validation was no number after any epoch, so no epoch could be chosen: the last "
            "one's weights were kept."
        )
    # Written so that a NaN warns too.
    if not interval[0] > 0.5:
        told.append(
            f"On validation this model cannot be told from a coin: ROC AUC {area:.3f}, 95 % interval "
            f"{interval[0]:.3f} to {interval[1]:.3f}."
        )
    if len(truth) < FEW_VALIDATION_IMAGES:
        told.append(
            f"Only {len(truth)} images validate ({int(truth.sum())} of them positive): temperature, threshold and "
            "refer band are guesses, and every figure is uncertain."
        )
    if point.sensitivity < point.target:
        told.append(
            f"No threshold above 0 reaches a sensitivity of {point.target:g} on validation; this one reaches "
            f"{point.sensitivity:.3f}."
        )
    return told


def band_warnings(point: OperatingPoint, what: str, few: bool = True) -> list[str]:
    """What a person should know of a refer band: that it hands over most cases, or that few bear it.

    Args:
        point: With the band; without one nothing is said.
        what: What was counted, such as `validation images`.
        few: Whether to say that few cases bear it.
    """
    band = point.band
    if band is None or not band.referred:
        return []
    told = []
    if 2 * band.referred > band.cases:
        told.append(
            f"The refer band holds {band.referred:,} of {band.cases:,} {what}: to reach a sensitivity of "
            f"{point.target:g} and a specificity of {band.target_specificity:g}, most are handed to a person."
        )
    if few and min(band.decided_positives, band.decided_negatives) < FEW_DECIDED:
        told.append(
            f"The refer band is borne by few cases: outside of it lie {band.decided_positives:,} positive and "
            f"{band.decided_negatives:,} negative {what}, so its figures are rough."
        )
    return told


def _too_sure(log_loss: float, images: int) -> list[str]:
    """Where validation is told apart all but perfectly, the best temperature makes certainties of the probabilities.

    Of n images without an error the next is wrong with a chance of about 1 / (n + 2) (Laplace's rule of succession).
    """
    if log_loss >= 1 / (images + 2):
        return []
    return [
        f"Probabilities are surer than {images} validation images can bear out (log loss {log_loss:.2g}): however near "
        f"they are to 0 or 1, count on about one error in {images + 2} images."
    ]
