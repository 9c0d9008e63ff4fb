"""One fit, from arrays to the weights to keep: the same loop for every recipe, for one worker or many."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import TryLater, UsageError
from pipelines.storage.scratch import Scratch
from pipelines.training import checkpoint
from pipelines.training.batches import EpochPlan, plan_epoch
from pipelines.training.checkpoint import Array, Keeper, Standing
from pipelines.training.feeding import Feeder, TrainingArrays, open_arrays
from pipelines.training.history import Answers, Row, history_row
from pipelines.training.job import FitJob
from pipelines.training.schedules import is_better, is_over, learning_rates
from pipelines.training.steps import Place, Rates, Stepper, input_function
from pipelines.training.trainee import Trainee
from pipelines.training.worker_trainee import worker_trainee

Tell = Callable[[Row], None]


@dataclass(frozen=True)
class FitResult:
    """What training left.

    Attributes:
        history: One row an epoch.
        best_epoch: The epoch (from 1) whose weights are kept.
        metric_defined: False where the recipe's metric was no number after any epoch; then the last epoch's are kept.
        variables: The kept weights, in the order of `Trainee.variables`.
    """

    history: tuple[Row, ...]
    best_epoch: int
    metric_defined: bool
    variables: tuple[Array, ...]


def finished_fit(job: FitJob) -> FitResult | None:
    """What an earlier fit of the same job left, if it came to its end."""
    standing = checkpoint.load(job.checkpoint, job.key())
    return _result(standing, job) if standing and standing.finished else None


def _result(standing: Standing, job: FitJob) -> FitResult:
    kept = standing.best_epoch if job.recipe.restore_best and standing.best_epoch else standing.epoch
    return FitResult(standing.history, kept, standing.best_epoch > 0, standing.variables)


@dataclass(frozen=True)
class ReadOff:
    """What a fit would have left, had it ended after some epoch.

    Attributes:
        result: The history up to there, and the weights that would be kept.
        logits: What these answer to validation, float32 `[M, K]` or `[M, 1]`.
    """

    result: FitResult
    logits: NDArray[np.float32]


def fit_job(job: FitJob, place: Place, tell: Tell) -> FitResult:
    """Train to the end, from the checkpoint where there is one.

    Every worker of the place calls it with the same job; the history is the first one's.

    Args:
        job: What to train on what.
        place: Which worker this is.
        tell: Called on the first worker with each row of the history, those of the checkpoint among them.

    Raises:
        UsageError: If the loss stops being a number, naming the epoch and the batch.
        TryLater: If the disk is full or storage does not answer.
    """
    earlier = finished_fit(job)
    if earlier is not None:
        for row in earlier.history if place.leads else ():
            tell(row)
        return earlier
    with Scratch() as folder:
        fit = open_fit(job, place, open_arrays(job, str(folder)))
        for row in fit.standing.history if place.leads else ():
            tell(row)
        for standing in fit.epochs():
            if place.leads:
                tell(standing.history[-1])
        return _result(fit.standing, job)


def open_fit(job: FitJob, place: Place, arrays: TrainingArrays, earlier: Fit | None = None) -> Fit:
    """Make a fit ready to go on from its checkpoint, or to begin.

    Args:
        job: What to train.
        place: Which worker this is.
        arrays: The job's, open; several fits of one process may share them.
        earlier: A fit of this process that is over. Where it computes the same steps it is taken up again: TensorFlow
            takes half a second to compile them, and never gives their memory back.
    """
    if earlier is not None and earlier.computes(job, arrays):
        earlier.begin(job)
        return earlier
    with place.strategy.scope():
        trainee = worker_trainee(job, arrays.size)
    return Fit(job, place, trainee, arrays)


@contextlib.contextmanager
def _swapped(trainee: Trainee, arrays: Sequence[Array]) -> Iterator[None]:
    """Have a trainee hold other weights for a while; none given, its own."""
    if not arrays:
        yield
        return
    own = trainee.arrays()
    trainee.assign(arrays)
    try:
        yield
    finally:
        trainee.assign(own)


class Fit:
    """A fit on one worker; `open_fit` makes it.

    Args:
        job: What.
        place: Which worker.
        trainee: Built within the place's strategy.
        arrays: Its images.

    Attributes:
        standing: After the last epoch.
    """

    def __init__(self, job: FitJob, place: Place, trainee: Trainee, arrays: TrainingArrays) -> None:
        import tensorflow as tf

        self._place, self._trainee, self._arrays = place, trainee, arrays
        self._labels, self._validation_labels = arrays.labels, arrays.validation_labels
        self._units = int(trainee.logits.units)
        self._first = trainee.arrays()
        averaged = self._first if job.recipe.weight_averaging else []
        self._averages = [tf.Variable(array, trainable=False) for array in averaged]
        self._steppers: dict[bool, Stepper] = {}
        self.begin(job)
        self._answer = self._answer_function()

    def computes(self, job: FitJob, arrays: TrainingArrays) -> bool:
        """Whether another job takes the same steps, on the same images, from the same first weights."""
        return arrays is self._arrays and job.structure() == self._job.structure()

    def begin(self, job: FitJob) -> None:
        """Take up a job that `computes` says yes to, from its checkpoint or its first weights."""
        import tensorflow as tf

        place = self._place
        self._job, self._recipe = job, job.recipe
        self.standing = checkpoint.load(job.checkpoint, job.key()) or Standing()
        self._keeper = Keeper(job.checkpoint, job.key())
        self._feeder = Feeder(
            job, self._arrays, rank=place.rank, workers=place.workers, threads=place.threads, to_memory=tf.constant
        )
        self._trainee.assign(self._first)
        for variable, array in zip(self._averages, self._first, strict=False):
            variable.assign(array)

    def epochs(self) -> Iterator[Standing]:
        """Train to the end from where the fit stands; every worker must take all of it.

        Yields:
            `standing` after each epoch, checkpointed now and then.

        Raises:
            UsageError: If the loss stops being a number.
            TryLater: If the disk is full or storage does not answer.
        """
        standing = self.standing
        if not standing.finished:
            self._take_up(standing)
        stepper: Stepper | None = None
        while not standing.finished:
            if stepper is None or standing.epoch == self._recipe.head_epochs:
                stepper = self._stepper(standing)
            self.standing = standing = self._after_epoch(standing, stepper)
            if self._place.leads and (standing.finished or self._keeper.due()):
                self._keeper.keep(standing if standing.finished else self._with_arrays(standing, stepper))
            yield standing

    def read_off(self) -> ReadOff:
        """What the fit would leave if it ended where it stands; it costs one pass over validation.

        Raises:
            ValueError: Before the first epoch.
        """
        standing = self.standing
        if not standing.epoch:
            raise ValueError("nothing was trained yet")
        if standing.finished:
            kept = standing.variables
        elif self._recipe.restore_best and standing.best:
            kept = standing.best
        else:
            kept = tuple(np.array(one.numpy()) for one in self._averages) or tuple(self._trainee.arrays())
        with _swapped(self._trainee, kept):
            logits = self._validate().logits
        return ReadOff(replace(_result(standing, self._job), variables=kept), logits)

    def _take_up(self, standing: Standing) -> None:
        """Begin where the checkpoint ends, the same for all workers."""
        if self._place.from_leader([standing.epoch]) != [standing.epoch]:
            raise TryLater("The workers do not see the same checkpoint.", "Run the same command again.")
        if standing.variables:
            self._trainee.assign(standing.variables)
            for variable, array in zip(self._averages, standing.average, strict=True):
                variable.assign(array)

    def _stepper(self, standing: Standing) -> Stepper:
        """The optimizer of the phase that comes next, fresh or as it was."""
        head_only = standing.epoch < self._recipe.head_epochs
        if head_only not in self._steppers:
            self._steppers[head_only] = Stepper(self._trainee, self._job, self._place, self._averages, head_only)
        stepper = self._steppers[head_only]
        stepper.begin()
        if standing.epoch not in (0, self._recipe.head_epochs):
            stepper.assign(standing.optimizer)
        return stepper

    def _with_arrays(self, standing: Standing, stepper: Stepper) -> Standing:
        averages = tuple(np.array(one.numpy()) for one in self._averages)
        return replace(standing, variables=tuple(self._trainee.arrays()), optimizer=stepper.arrays(), average=averages)

    def _after_epoch(self, before: Standing, stepper: Stepper) -> Standing:
        """Train one epoch and judge it."""
        began, epoch = time.monotonic(), before.epoch + 1
        plan = plan_epoch(
            self._labels,
            seed=self._job.seed,
            epoch=epoch,
            batch_size=self._recipe.batch_size,
            oversample=self._recipe.class_balance == "oversample",
            mixup=self._recipe.mixup,
        )
        rates = self._rates(before, epoch, plan)
        loss, train = self._train(stepper, plan, epoch, rates)
        with self._averaged_weights():
            validation = self._validate()
            if not np.isfinite(validation.logits).all():  # the last step's doing, which no later loss tells
                raise _no_number(epoch, plan.steps, plan.steps)
            row, judged, watched = self._judge(epoch, loss, train, validation, float(rates.learning[-1]), began)
            better = is_better(self._recipe.metric, judged, before.best_value)
            best = tuple(self._trainee.arrays()) if better else before.best
            best_epoch = epoch if better else before.best_epoch
            finished = is_over(self._recipe, epoch, best_epoch) or epoch == self._job.until
            kept: tuple[Array, ...] = ()
            if finished:
                kept = best if self._recipe.restore_best and best else tuple(self._trainee.arrays())
        in_second_phase = epoch > self._recipe.head_epochs
        return Standing(
            epoch=epoch,
            step=before.step + plan.steps,
            history=(*before.history, row),
            best_epoch=best_epoch,
            best_value=judged if better else before.best_value,
            plateau=before.plateau.after(watched, self._recipe)
            if self._recipe.reduce_on_plateau and in_second_phase
            else before.plateau,
            finished=finished,
            variables=kept,
            best=() if finished else best,
        )

    def _rates(self, before: Standing, epoch: int, plan: EpochPlan) -> Rates:
        """Learning rate and averaging of each step.

        The averaged weights follow at first faster than the recipe says, at (1 + t) / (10 + t) after t steps, so that
        the network's first weights do not stay in them.
        """
        done = before.step + np.arange(plan.steps)
        averaging = np.minimum(self._recipe.weight_averaging, (1 + done) / (10 + done))
        learning = learning_rates(self._recipe, epoch, plan.steps)
        factor = before.plateau.factor if epoch > self._recipe.head_epochs else 1.0
        if self._job.factors:
            factor = self._job.factors[epoch - 1]
        return Rates((learning * factor).astype(np.float32), averaging.astype(np.float32))

    def _train(self, stepper: Stepper, plan: EpochPlan, epoch: int, rates: Rates) -> tuple[float, Answers]:
        """The steps of an epoch: their mean loss and what they answered, in the order of the plan."""
        logits = np.zeros((len(plan.rows), self._units), np.float32)
        total = 0.0
        for fed in self._feeder.blocks(plan, epoch):
            first = fed.block.first_step
            steps = slice(first, first + len(fed.block.sizes))
            own, logits[fed.block.places] = stepper.run(fed, plan, Rates(rates.learning[steps], rates.averaging[steps]))
            losses = self._place.add(own)
            _refuse_nan(losses, epoch, first, plan.steps)
            total += float(losses.astype(np.float64) @ fed.block.sizes)
        labels = self._main_labels(plan)
        return total / len(plan.rows), Answers(self._place.add(logits), labels)

    def _main_labels(self, plan: EpochPlan) -> NDArray[np.int64]:
        """The label of each image; of a mixture that of its greater share."""
        labels = self._labels[plan.rows]
        if plan.partners is None or plan.shares is None:
            return labels
        return np.where(plan.shares >= 0.5, labels, labels[plan.partners])

    def _answer_function(self) -> Any:
        import tensorflow as tf

        prepared, trainee, strategy = input_function(self._job), self._trainee, self._place.strategy

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def answer(data: Any) -> Any:
            def one(rows: Any) -> Any:
                return trainee.answer(prepared(rows, tf.range(tf.shape(rows)[0])))

            return strategy.experimental_local_results(strategy.run(one, args=(data,)))[0]

        return answer

    def _validate(self) -> Answers:
        """The answers to the validation images; each worker computes a part."""
        import tensorflow as tf

        logits = np.zeros((len(self._validation_labels), self._units), np.float32)
        low, _ = self._feeder.validation_rows
        for piece in self._feeder.validation():
            answers = np.asarray(self._answer(tf.convert_to_tensor(piece)))
            logits[low : low + len(answers)] = answers
            low += len(answers)
        return Answers(self._place.add(logits), self._validation_labels)

    def _averaged_weights(self) -> Any:
        return _swapped(self._trainee, [np.array(one.numpy()) for one in self._averages])

    def _judge(
        self, epoch: int, loss: float, train: Answers, validation: Answers, learning_rate: float, began: float
    ) -> tuple[Row, float, float]:
        """The row of the history, the figure that chooses the epoch and the one that the plateau watches.

        The first worker measures for all, so that none decides otherwise by a rounding of its own.
        """
        row: Row = {}
        judged = watched = 0.0
        if self._place.leads:
            figures = validation.figures(self._job.positive)
            seconds = time.monotonic() - began
            row = history_row(epoch, loss, train.figures(self._job.positive), figures, learning_rate, seconds)
            judged, watched = figures[self._recipe.metric], figures[self._recipe.reduce_metric]
        judged, watched = self._place.from_leader([judged, watched])
        return row, judged, watched


def _refuse_nan(losses: NDArray[np.float32], epoch: int, first_step: int, steps: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(losses))
    if len(wrong):
        raise _no_number(epoch, int(first_step + wrong[0] + 1), steps)


def _no_number(epoch: int, batch: int, batches: int) -> UsageError:
    return UsageError(
        f"The loss is no number any more, at epoch {epoch}, batch {batch} of {batches}.",
        "Lower the learning rate: --set learning_rate=…",
    )
