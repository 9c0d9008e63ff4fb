"""What a person declares about a model that somebody else made, and whether its answers agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import UsageError
from pipelines.models.scaling import Scaling, scaling_of

OUTPUTS = ("probabilities", "logits")


@dataclass(frozen=True)
class Declaration:
    """What cannot be read from a model file.

    Attributes:
        classes: How many classes it tells apart.
        input_size: Side of the square picture, in pixels.
        scaling: A name of `scaling.SCALINGS`.
        outputs: One of `OUTPUTS`.

    Raises:
        UsageError: If a value is not possible.
    """

    classes: int
    input_size: int
    scaling: str
    outputs: str = "probabilities"

    def __post_init__(self) -> None:
        scaling_of(self.scaling)
        if self.outputs not in OUTPUTS:
            raise UsageError(f"There are no outputs {self.outputs!r}.", f"Say one of: {', '.join(OUTPUTS)}.")

    @property
    def numbers(self) -> Scaling:
        """The numbers of the scaling."""
        return scaling_of(self.scaling)

    def check_side(self, sides: tuple[int | None, int | None]) -> None:
        """Refuse a size that the model does not take; None stands for any.

        Raises:
            UsageError: If a side differs.
        """
        if any(side is not None and side != self.input_size for side in sides):
            raise UsageError(
                f"--input-size is {self.input_size}, but the model takes {sides[0]}×{sides[1]} pixels.",
                "Say the size that it was trained with.",
            )

    def check_units(self, units: int) -> None:
        """Refuse a number of outputs that does not go with the classes.

        Raises:
            UsageError: If there are neither as many as classes, nor one for two classes.
        """
        if units != self.classes and not (units == 1 and self.classes == 2):
            raise UsageError(
                f"The model answers {units} numbers, but {self.classes} classes were declared.",
                "Name every class in the model's order (one sigmoid unit has two: the second is its 1).",
            )

    def check_answers(self, answers: npt.NDArray[Any], tolerance: float) -> None:
        """Refuse outputs that are not what was declared.

        Args:
            answers: What the model answers to the golden images: [N, units].
            tolerance: How far a sum of probabilities may be from 1.

        Raises:
            UsageError: If declared probabilities are none, or declared logits are probabilities: then softmax would
                be applied twice, and every answer be near chance.
        """
        inside = bool((answers >= -tolerance).all() and (answers <= 1 + tolerance).all())
        sums_to_one = bool((np.abs(answers.sum(axis=1) - 1) <= tolerance).all())
        if self.outputs == "probabilities" and not (inside and (answers.shape[1] == 1 or sums_to_one)):
            low, high = float(answers.min()), float(answers.max())
            raise UsageError(
                f"The model's outputs are no probabilities: they go from {low:.3g} to {high:.3g}"
                f"{'' if answers.shape[1] == 1 else ' and do not sum to 1'}.",
                "Say --outputs logits if that is what they are; a model of several labels at once is not supported.",
            )
        if self.outputs == "logits" and answers.shape[1] > 1 and inside and sums_to_one:
            raise UsageError("The model's outputs are probabilities, not logits.", "Say --outputs probabilities.")
