"""A figure as it is reported: its value, its interval, and in words why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.evaluation.intervals import NO_INTERVAL, Interval


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        value: None where the data do not define it.
        low: Lower end of its 95 % interval; None where nothing is known of it.
        high: Upper end.
        reason: Why there is no value; "" where there is one.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """As it stands in metrics.json: `value`, `low`, `high`, and `reason` where there is no value."""
        told = {"value": self.value, "low": self.low, "high": self.high}
        return told if self.value is not None else {**told, "reason": self.reason}


def undefined(reason: str) -> Figure:
    """The figure that the data do not define."""
    return Figure(None, None, None, reason)


def make_figure(value: float, interval: Interval = NO_INTERVAL) -> Figure:
    """A defined figure; an interval is widened to hold it, and NaN ends become None.

    Args:
        value: A number.
        interval: Low and high, or NaN and NaN.
    """
    if math.isnan(interval[0]) or math.isnan(interval[1]):
        return Figure(value, None, None)
    return Figure(value, min(value, interval[0]), max(value, interval[1]))


@dataclass(frozen=True)
class Wording:
    """What the members of a sample and one side of a question are called.

    Attributes:
        classes: Names of the classes of this side.
        noun: `image` or `patient`.
        where: What narrows the sample down, such as ` outside the refer band`; "" for all of it.
    """

    classes: Sequence[str]
    noun: str = "image"
    where: str = ""

    @property
    def _names(self) -> str:
        return " or ".join(self.classes)

    def nobody_there(self) -> str:
        """None is of this side."""
        kind = "class" if len(self.classes) == 1 else "classes"
        return f"no {self.noun} of the {kind} {self._names}{self.where}"

    def everybody_there(self) -> str:
        """None is of another side."""
        return f"no {self.noun} of any class but {self._names}{self.where}"

    def nobody_called(self) -> str:
        """None is called so."""
        return f"no {self.noun}{self.where} is called {self._names}"

    def everybody_called(self) -> str:
        """All are called so."""
        return f"no {self.noun}{self.where} is called anything but {self._names}"

    def why(self, name: str, true: float, rest: float) -> str:
        """Why a figure of this side against the rest is not defined, given that it is not.

        Args:
            name: `ppv`, `npv`, `f1`, or one that lacks a kind: `roc_auc`, `sensitivity` and so on.
            true: How many are of this side.
            rest: How many are not.
        """
        if not true + rest:
            return f"no {self.noun}{self.where}"
        if name == "ppv":
            return self.nobody_called()
        if name == "npv":
            return self.everybody_called()
        if name == "f1":
            return f"{self.nobody_there()}, and {self.nobody_called()}"
        return self.everybody_there() if true else self.nobody_there()
