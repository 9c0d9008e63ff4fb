"""A temperature, thresholds and refer bands for the answers that a finished model gives to new images.

The temperature is applied to what the compiled scorers answer. Where p is the softmax of logits divided by T,
log(p) · T are the logits up to a constant of each image; so p to the power of 1 / f, made to sum to 1, is what the same
graph would answer with the temperature T · f. The graphs stay as they are, and the factor stands in what the bundle
says of them (`ScorerIO.temperature`); for an imported model likewise. Of a model that averages the answers to a picture
and to its mirror image it is the average that is calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.calibration import fit_temperature, log_loss, probabilities
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.curves import Bin, reliability_bins
from pipelines.evaluation.patients import fit_patients
from pipelines.evaluation.recalibration import fit_recalibration
from pipelines.evaluation.thresholds import OperatingPoint, fit_point, sum_positive
from pipelines.models.bundle import Bundle, threshold_unit
from pipelines.models.runtime import ScorerIO
from pipelines.training.int8_gate import Int8Verdict, judge_int8
from pipelines.training.judging import Judged, judge
from pipelines.training.labelled_cases import LabelledCases

LEAST_PROBABILITY = 1e-12
"""What `runtime` takes a graph's probability to be at least, before a temperature is applied to it."""

Answers = NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """How far probabilities can be taken at their word.

    Attributes:
        log_loss: Mean negative log likelihood of the true class.
        calibration_error: Of `p_positive`, over bins of equal mass.
        slope: Of the logistic recalibration of `p_positive`; NaN where it is not defined.
        bins: The reliability diagram's.
    """

    log_loss: float
    calibration_error: float
    slope: float
    bins: tuple[Bin, ...]

    def record(self) -> dict[str, Any]:
        """Plain values for bundle and answer."""
        return {"log_loss": self.log_loss, "calibration_error": self.calibration_error, "calibration_slope": self.slope}


@dataclass(frozen=True, eq=False)
class NewImages:
    """What a model is calibrated on.

    Attributes:
        labelled: Images, answers and what decoding gave, without those that were left out.
        groups: Group of each image, in the names of a split.
        left_out: Images that were left out, by reason.
    """

    labelled: LabelledCases
    groups: tuple[str, ...]
    left_out: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """What was fitted to the new images.

    Attributes:
        precision: Of the scorer that it was fitted to: `float32`, or `int8` where there is no other.
        factor: What the model's temperature is multiplied with.
        probabilities: Its answers with the new temperature, float32 `[N, K]`.
        points: Threshold and refer band by unit of the bundle.
        before: With the old temperature.
        after: With the new one, on the images that it was fitted to.
        judged: Figures, intervals and warnings.
        int8: How the 8-bit scorer compares; None where there is no second scorer.
    """

    precision: str
    factor: float
    probabilities: Answers
    points: Mapping[str, OperatingPoint]
    before: Quality
    after: Quality
    judged: Judged
    int8: Int8Verdict | None


def recalibrate(
    bundle: Bundle, precision: str, new: NewImages, small: Answers | None, targets: tuple[float, float]
) -> Recalibrated:
    """Fit the temperature to the answers of one scorer, and thresholds and bands to what follows from it.

    Args:
        bundle: The model.
        precision: The scorer that answered.
        new: The images with its answers.
        small: Answers of the 8-bit scorer beside it, `[N, K]`; None where there is none.
        targets: Sensitivity and specificity.
    """
    cases = new.labelled.cases
    io = bundle.spec.scorers[precision].io
    logits = graph_logits(cases.probabilities, io)
    temperature = fit_temperature(logits, cases.labels)
    answers = probabilities(logits, temperature).astype(np.float32)
    score, truth = sum_positive(answers, cases.positive), cases.truth
    point = fit_point(score, truth, *targets)
    patients = fit_patients(point, score, truth, cases.patients)
    points = {threshold_unit(precision): point} | {
        threshold_unit(precision, unit): fitted for unit, fitted in patients.items()
    }
    verdict = None
    if small is not None:
        own = bundle.spec.scorers["int8"].io
        shifted = probabilities(graph_logits(small, own), temperature / io.temperature * own.temperature)
        verdict, more = _judge_small(answers, shifted.astype(np.float32), cases, point)
        points |= more
    return Recalibrated(
        precision=precision,
        factor=temperature / io.temperature,
        probabilities=answers,
        points=points,
        before=quality(cases.probabilities, cases),
        after=quality(answers, cases),
        judged=judge(
            cases.classes,
            [cases.classes[number] for number in cases.positive],
            answers,
            cases.labels,
            new.groups,
            point,
            0,
            patients=patients.get("patient_max"),
        ),
        int8=verdict,
    )


def _judge_small(
    answers: Answers, small: Answers, cases: Cases, point: OperatingPoint
) -> tuple[Int8Verdict, dict[str, OperatingPoint]]:
    """Whether the 8-bit scorer keeps its place on the new images, and its own thresholds where it does."""
    verdict = judge_int8(answers, small, cases.labels, cases.positive, point)
    if not verdict.offered or verdict.point is None:
        return verdict, {}
    patients = fit_patients(point, sum_positive(small, cases.positive), cases.truth, cases.patients)
    units = {"image": verdict.point, **patients}
    return verdict, {threshold_unit("int8", unit): fitted for unit, fitted in units.items()}


def graph_logits(answers: NDArray[np.floating[Any]], io: ScorerIO) -> NDArray[np.float64]:
    """What a scorer's own temperature divides, up to a constant of each image, float64 `[N, K]`.

    Args:
        answers: Its probabilities, `[N, K]`.
        io: How it is read.
    """
    if io.outputs == "probabilities":
        least = LEAST_PROBABILITY ** (1 / io.temperature)
    else:
        least = float(np.finfo(np.float32).tiny)
    return np.asarray(np.log(np.maximum(answers.astype(np.float64), least)) * io.temperature, np.float64)


def quality(answers: Answers, cases: Cases) -> Quality:
    """How far some probabilities can be taken at their word, `[N, K]`."""
    p, truth = sum_positive(answers, cases.positive), cases.truth
    bins = reliability_bins(p, truth)
    slope = fit_recalibration(p, truth).slope
    sure = np.log(np.maximum(answers.astype(np.float64), LEAST_PROBABILITY))
    error = sum(one.n * abs(one.mean_predicted - one.observed) for one in bins) / len(cases)
    return Quality(log_loss(sure, cases.labels), error, slope, tuple(bins))


def class_counts(cases: Cases) -> dict[str, int]:
    """How many images each class has."""
    return dict(zip(cases.classes, np.bincount(cases.labels, minlength=len(cases.classes)).tolist(), strict=True))
