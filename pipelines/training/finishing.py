"""The finished scorers: calibrated, compiled, run on every validation image, the thresholds fitted to their answers.

Validation's probabilities in the bundle are the float32 scorer's own, so `score` will give the same ones, and its
threshold and refer band decide as recorded. The 8-bit scorer is made as well, and kept where it earned its place
(`int8_gate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import ModelRefused
from pipelines.evaluation.calibration import class_logits, fit_temperature, probabilities
from pipelines.evaluation.patients import fit_patients
from pipelines.evaluation.thresholds import OperatingPoint, fit_point, sum_positive
from pipelines.models.bundle import threshold_unit
from pipelines.models.compile import CALIBRATION_IMAGES, compile_scorer, compile_scorer_int8
from pipelines.models.runtime import ScorerIO
from pipelines.scoring.answers import answer_images
from pipelines.training.int8_gate import Int8Verdict, judge_int8
from pipelines.training.network import prepared_pixels

LARGEST_DIFFERENCE = 0.02
"""Of a probability, between the compiled model on pixels and the head on cached features.

Measured: at most 0.001 where the features are kept as float16 (253 images, a MobileNetV2 cut 30, 60 and 100 layers from
its end), 3e-6 where as float32. A network that was put together wrongly answers otherwise by far more.
"""

Answers = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """A network with the weights that training kept.

    Attributes:
        backbone: Keras model, pixels 0-255 `[B, S, S, 3]` to a feature map.
        head: Keras model, to logits `[B, K]` (`[B, 1]`: of the second of two classes).
        input_size: S.
        pooling: How the map becomes a vector where the head takes one.
        flip: Whether the scorer averages the answers to the picture and its mirror image.
    """

    backbone: Any
    head: Any
    input_size: int
    pooling: str
    flip: bool = False


@dataclass(frozen=True)
class Validation:
    """The validation part.

    Attributes:
        images: image_uri, content_sha256; one row an image, N.
        labels: Class numbers, int64 `[N]`.
        logits: What the trained head answers to the cached features, `[N, K]` or `[N, 1]`.
        patients: Patient of each image, None where unknown; None where the data know of none.
    """

    images: pa.Table
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    patients: tuple[str | None, ...] | None = None


@dataclass(frozen=True)
class Finished:
    """What is written into the bundle.

    Attributes:
        temperature: What the logits are divided by, inside both scorers.
        scorer: LiteRT bytes: pixels to calibrated probabilities.
        io: How it is fed and read.
        probabilities: Its answers to the validation part, float32 `[N, K]`.
        point: Its threshold and refer band.
        int8: How the 8-bit scorer compares, and its own threshold and band.
        int8_scorer: That scorer and its input and output; None unless it earned its place.
        patients: Threshold and band by unit of the bundle, such as `patient_max` and `patient_max_int8`; {} where
            validation knows no patients.
    """

    temperature: float
    scorer: bytes
    io: ScorerIO
    probabilities: Answers
    point: OperatingPoint
    int8: Int8Verdict
    int8_scorer: tuple[bytes, ScorerIO] | None
    patients: Mapping[str, OperatingPoint] = field(default_factory=dict)


def finish(
    trained: Trained,
    validation: Validation,
    calibration_uris: Sequence[str],
    positive: Sequence[int],
    targets: tuple[float, float],
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> Finished:
    """Fit the temperature, compile both scorers, run them on all of validation, fit the thresholds.

    Args:
        trained: The network.
        validation: What is fitted to.
        calibration_uris: Training images for the 8-bit scorer, as `choose_calibration` gives them.
        positive: Numbers of the positive classes.
        targets: Sensitivity wanted of the thresholds; that and specificity wanted outside of the refer bands.
        tell: Called with the number of validation images done and that of all.

    Raises:
        ModelRefused: If the scorer has no finite answer, or answers otherwise than the head on the cached features.
        TryLater: If an image cannot be read any more, or changed.
    """
    images = validation.images.num_rows
    logits = _logits(trained, validation, lambda done: tell(done, images))
    temperature = fit_temperature(logits, validation.labels)
    scorer, io = _compile(trained, temperature, trained.flip), ScorerIO(trained.input_size, logits.shape[-1])
    small = _compile_int8(trained, temperature, calibration_uris, scorer)
    models = [(scorer, io)] if isinstance(small, str) else [(scorer, io), small]
    answers, *others = answer_images(models, validation.images, lambda done: tell(done, images))
    _refuse_difference(answers, probabilities(logits, temperature))
    truth = np.isin(validation.labels, positive)
    point = fit_point(sum_positive(answers, positive), truth, *targets)
    patients = fit_patients(point, sum_positive(answers, positive), truth, validation.patients)
    if isinstance(small, str):
        return Finished(temperature, scorer, io, answers, point, Int8Verdict(0, (small,)), None, patients)
    verdict = judge_int8(answers, others[0], validation.labels, positive, point)
    if not verdict.offered:
        return Finished(temperature, scorer, io, answers, point, verdict, None, patients)
    own = fit_patients(point, sum_positive(others[0], positive), truth, validation.patients)
    patients |= {threshold_unit("int8", unit): fitted for unit, fitted in own.items()}
    return Finished(temperature, scorer, io, answers, point, verdict, small, patients)


def finish_again(trained: Trained, before: Finished) -> Finished:
    """Compile a network that was trained again on validation too; what was fitted to validation stays as it was.

    No image is left that could calibrate it, so there is no 8-bit scorer, which could not be judged.

    Args:
        trained: The network.
        before: Of the same network, before it saw validation.

    Raises:
        ModelRefused: If the scorer has no finite answer.
    """
    why = "the model was trained again on its validation images, and none are left to judge it on"
    return replace(
        before,
        scorer=_compile(trained, before.temperature, trained.flip),
        int8=Int8Verdict(0, (why,)),
        int8_scorer=None,
        patients={unit: point for unit, point in before.patients.items() if not unit.endswith("_int8")},
    )


def choose_calibration(uris: Sequence[str], labels: Sequence[int], contents: Sequence[str]) -> list[str]:
    """Training images to calibrate the 8-bit scorer on: the same number of each class where there are so many.

    Args:
        uris: Of the images of the train part.
        labels: Class number of each.
        contents: Hash of each one's bytes; the images are taken in the order of these, which is chance to everything
            else, and the same wherever the data lie.
    """
    ordered = sorted(range(len(uris)), key=lambda row: (contents[row], uris[row]))
    taken_of = dict.fromkeys(labels, 0)
    turns = []
    for row in ordered:
        turns.append((taken_of[labels[row]], labels[row], row))
        taken_of[labels[row]] += 1
    return [uris[row] for _, _, row in sorted(turns)[:CALIBRATION_IMAGES]]


def _logits(trained: Trained, validation: Validation, tell: Callable[[int], None]) -> NDArray[np.float64]:
    """What the temperature divides: the head's logits `[N, K]`; with those of the mirror images, `[2, N, K]`.

    Nobody has computed the latter so far; a scorer without temperature does, up to a constant of each image.
    """
    logits = class_logits(validation.logits)
    if not trained.flip:
        return logits
    uncalibrated = _compile(trained, 1.0, flip=False), ScorerIO(trained.input_size, logits.shape[1])
    answers = answer_images([uncalibrated], validation.images, tell, mirrored=True)[0]
    return np.stack([logits, np.log(np.maximum(answers, np.finfo(np.float32).tiny).astype(np.float64))])


def _compile(trained: Trained, temperature: float, flip: bool) -> bytes:
    return compile_scorer(trained.backbone, trained.head, temperature, trained.input_size, trained.pooling, flip)


def _compile_int8(
    trained: Trained, temperature: float, uris: Sequence[str], scorer: bytes
) -> tuple[bytes, ScorerIO] | str:
    """The 8-bit scorer, or why there is none."""
    pixels = prepared_pixels(uris, trained.input_size)
    try:
        return compile_scorer_int8(
            trained.backbone,
            trained.head,
            temperature,
            trained.input_size,
            trained.pooling,
            pixels,
            scorer,
            trained.flip,
        )
    except ModelRefused as refused:
        return refused.message.rstrip(".")


def _refuse_difference(answers: Answers, wanted: NDArray[np.float64]) -> None:
    """Refuse a scorer that was put together wrongly: its files would score another model than the one trained."""
    if not np.isfinite(answers).all():
        raise ModelRefused(
            f"The compiled model has no finite answer for {int((~np.isfinite(answers).all(axis=1)).sum())} validation "
            "images, so nothing was written.",
            "Train again with a lower learning_rate.",
        )
    if answers.shape != wanted.shape or not float(np.abs(answers - wanted).max()) <= LARGEST_DIFFERENCE:
        raise ModelRefused(
            "The compiled model answers otherwise on validation images than the head that was trained, so nothing was "
            "written.",
            "Delete the training's work folder, whose caches may be damaged, and run the command again.",
        )
