"""From images to patients: a patient is positive if any image is, and as suspicious as the images say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.thresholds import OperatingPoint, fit_alike

AGGREGATES: Final = ("max", "mean")
"""How the images' `p_positive` become the patient's; `patient_max` and so on are the units of a bundle's thresholds."""


@dataclass(frozen=True, eq=False)
class Patients:
    """P patients, by name.

    Attributes:
        names: Patient of each.
        p_positive: Aggregated over the patient's images, float64 `[P]`.
        truth: Whether any image of the patient is positive, bool `[P]`.
        images: How many images each has, int64 `[P]`.
        without_patient: Images that were left out, because nothing says whose they are.
    """

    names: tuple[str, ...]
    p_positive: NDArray[np.float64]
    truth: NDArray[np.bool_]
    images: NDArray[np.int64]
    without_patient: int

    def __len__(self) -> int:
        return len(self.names)


def group_patients(p_positive: ArrayLike, truth: ArrayLike, patients: Sequence[str | None], how: str) -> Patients:
    """Bring the images of each patient together.

    Args:
        p_positive: Probability of the positive classes of each image, `[N]`.
        truth: Whether each image is positive, bool `[N]`.
        patients: Patient of each image; None where unknown, and then the image is left out.
        how: One of `AGGREGATES`.

    Raises:
        ValueError: For another `how`.
    """
    if how not in AGGREGATES:
        raise ValueError(f"{how!r} is none of {AGGREGATES}")
    known = [row for row, patient in enumerate(patients) if patient is not None]
    names = sorted({patient for patient in patients if patient is not None})
    number = {name: index for index, name in enumerate(names)}
    owner = np.array([number[str(patients[row])] for row in known], np.int64)
    score, positive = np.asarray(p_positive, np.float64)[known], np.asarray(truth, bool)[known]
    images = np.bincount(owner, minlength=len(names)).astype(np.int64)
    if how == "max":
        together = np.full(len(names), -np.inf)
        np.maximum.at(together, owner, score)
    else:
        together = np.bincount(owner, score, minlength=len(names)) / np.maximum(images, 1)
    sick = np.bincount(owner, positive, minlength=len(names)) > 0
    return Patients(tuple(names), together, sick, images, len(patients) - len(known))


def fit_patients(
    point: OperatingPoint, p_positive: ArrayLike, truth: ArrayLike, patients: Sequence[str | None] | None
) -> dict[str, OperatingPoint]:
    """Threshold and refer band of each way to aggregate, fitted to the patients as the images' were to the images.

    Args:
        point: The images' own; its targets are taken.
        p_positive: Probability of the positive classes of each image, `[N]`.
        truth: Whether each image is positive, bool `[N]`.
        patients: Patient of each image, None where unknown; None where the data know of none.

    Returns:
        `patient_max` and `patient_mean`; {} where no patient is known, or no known one is positive.
    """
    fitted = {}
    for how in AGGREGATES if patients is not None else ():
        together = group_patients(p_positive, truth, patients or (), how)
        if together.truth.any():
            fitted[f"patient_{how}"] = fit_alike(point, together.p_positive, together.truth)
    return fitted
