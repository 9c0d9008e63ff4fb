"""Ending poor trainings early: asynchronous successive halving. Plain Python: no Ray."""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 3
"""The best one of so many trainings goes on from each rung."""
LEAST = 27
"""Every training gets one of so many of the longest one's epochs."""


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving (Li and others, MLSys 2020) over numbers of epochs.

    A training that comes to a rung is ended there unless its figure is among the best third of those that came there
    before it. What is ended therefore depends on the order in which trainings come along, and no two searches end
    quite the same ones.

    Attributes:
        epochs: Of the longest training; at least 1.
    """

    epochs: int

    @property
    def first(self) -> int:
        """Epochs that every training gets."""
        return max(1, self.epochs // LEAST)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Numbers of epochs after which a training may be ended, rising; each is three times the one before."""
        rungs = []
        rung = self.first
        while rung < self.epochs:
            rungs.append(rung)
            rung *= KEPT
        return tuple(rungs)
