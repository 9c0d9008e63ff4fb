"""One training of a search: epoch by epoch, its points read off and answered on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.errors import UsageError
from pipelines.storage import files
from pipelines.training.history import VALIDATION_COLUMNS
from pipelines.training.job import FitJob
from pipelines.tuning.answers import answered, save_answer
from pipelines.tuning.points import DONE, FAILED, STOPPED, Answer

if TYPE_CHECKING:
    from pipelines.training.feeding import TrainingArrays
    from pipelines.training.loop import Fit
    from pipelines.training.steps import Place

RUNNING = "running"


@dataclass(frozen=True)
class TrialSpec:
    """A training to run, and what is read off it; plain data that can be sent anywhere.

    Attributes:
        training: Its key.
        job: What to train on what; its checkpoint is removed when the training is over.
        marks: Number of epochs to the keys of the points that are read off there. The job's recipe has the largest.
        folder: Of the search, where the answers are written.
    """

    training: str
    job: FitJob
    marks: Mapping[int, tuple[str, ...]]
    folder: str

    def __post_init__(self) -> None:
        if not self.marks or max(self.marks) != self.job.recipe.epochs or min(self.marks) < 1:
            raise ValueError(f"marks {sorted(self.marks)} of a training of {self.job.recipe.epochs} epochs")


@dataclass(frozen=True)
class TrialStanding:
    """Where a training stands.

    Attributes:
        status: `running`, `done`, `stopped` or `failed`; `done` where all its points are answered.
        epoch: Epochs done.
        value: The figure asked for, on validation after the last epoch; NaN before the first.
        error: Why it failed, one sentence; None otherwise.
    """

    status: str
    epoch: int
    value: float
    error: str | None = None


class TrainingRun:
    """A training under way in this process.

    Points are answered before the training goes on. Where a kill came between a checkpoint and the answers that belong
    to it, the training begins anew, because what it would have left then cannot be had any more.

    Args:
        spec: What to train.
        place: For one worker.
        arrays: The job's, open.
        earlier: A training of this process that is over, whose compiled steps may be taken up again.
    """

    def __init__(
        self, spec: TrialSpec, place: Place, arrays: TrainingArrays, earlier: TrainingRun | None = None
    ) -> None:
        self._spec = spec
        self._fit: Fit = _opened(spec, place, arrays, earlier._fit if earlier else None)
        self._epochs = self._fit.epochs()
        behind = self._fit.standing.epoch - self._fit.standing.finished
        self._marks = sorted(mark for mark in spec.marks if mark > behind)

    def go_on(self, seconds: float, rungs: tuple[int, ...], metric: str) -> TrialStanding:
        """Train for a while: to the next rung, to the end, or for so long, whichever comes first.

        Args:
            seconds: Given up after an epoch.
            rungs: Numbers of epochs after which to return.
            metric: A name of `METRIC_NAMES`.

        Returns:
            Where it stands now. A loss that is no number any more ends it as failed, with answers that say so for the
            points that it had not come to.

        Raises:
            TryLater: If the disk is full or storage does not answer.
        """
        until = time.monotonic() + seconds
        self._answer()
        while not self._fit.standing.finished:
            try:
                next(self._epochs)
            except UsageError as refused:
                self._give_up(refused.message)
                return self._standing(FAILED, metric, refused.message)
            self._answer()
            if time.monotonic() >= until or self._fit.standing.epoch in rungs:
                break
        if not self._fit.standing.finished:
            return self._standing(RUNNING, metric)
        self._close()
        return self._standing(DONE, metric)

    def end_early(self, metric: str) -> TrialStanding:
        """Answer the points that it has not come to by what there is now, and be done."""
        self._save(self._marks, STOPPED)
        self._close()
        return self._standing(STOPPED, metric)

    def _standing(self, status: str, metric: str, error: str | None = None) -> TrialStanding:
        standing = self._fit.standing
        value = standing.history[-1][VALIDATION_COLUMNS[metric]] if standing.history else math.nan
        return TrialStanding(status, standing.epoch, value, error)

    def _answer(self) -> None:
        """Read off what has been reached."""
        standing = self._fit.standing
        reached = [mark for mark in self._marks if standing.finished or mark == standing.epoch]
        if standing.epoch and reached:
            self._save(reached, DONE)

    def _save(self, marks: list[int], status: str) -> None:
        read = self._fit.read_off()
        for point in self._points(marks):
            answer = Answer(
                point=point,
                training=self._spec.training,
                status=status,
                error=None,
                history=read.result.history,
                best_epoch=self._fit.standing.best_epoch,
                kept_epoch=read.result.best_epoch,
                logits=read.logits,
            )
            save_answer(self._spec.folder, answer, read.result.variables)
        self._marks = [mark for mark in self._marks if mark not in marks]

    def _give_up(self, reason: str) -> None:
        standing = self._fit.standing
        for point in self._points(self._marks):
            answer = Answer(
                point=point,
                training=self._spec.training,
                status=FAILED,
                error=reason,
                history=standing.history,
                best_epoch=standing.best_epoch,
                kept_epoch=0,
                logits=None,
            )
            save_answer(self._spec.folder, answer, None)
        self._close()

    def _points(self, marks: list[int]) -> list[str]:
        return [point for mark in marks for point in self._spec.marks[mark]]

    def _close(self) -> None:
        self._marks = []
        files.delete(self._spec.job.checkpoint)


def _opened(spec: TrialSpec, place: Place, arrays: TrainingArrays, earlier: Fit | None) -> Fit:
    """The fit, from its checkpoint unless points of an earlier number of epochs lack their answer."""
    from pipelines.training.loop import open_fit

    fit = open_fit(spec.job, place, arrays, earlier)
    standing = fit.standing
    if standing.epoch:
        there = answered(spec.folder)
        missing = [mark for mark, points in spec.marks.items() if not there.issuperset(points)]
        lost = [mark for mark in missing if mark < standing.epoch + (not standing.finished)]
        if lost:
            files.delete(spec.job.checkpoint)
            fit.begin(spec.job)
    return fit
