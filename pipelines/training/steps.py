"""The training step, many of them in one call of TensorFlow, alone or shared by several workers.

A step's loss is the sum over its images of weight · cross-entropy, divided by the images of the whole batch; each
worker computes the sum over its own images, and the gradients are added over the workers. So one worker and many take
the same step, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.models.backbones import import_keras
from pipelines.training.batches import EpochPlan
from pipelines.training.feeding import Fed
from pipelines.training.job import FitJob
from pipelines.training.trainee import Trainee


class Place:
    """Where a worker stands among those that share a fit.

    Args:
        strategy: A `tf.distribute` strategy; None for the one that is active, which is right for a single worker.
        rank: 0 to workers - 1. The first one measures, writes and tells.
        workers: How many there are.
        threads: For what is done beside TensorFlow.
    """

    def __init__(self, strategy: Any = None, rank: int = 0, workers: int = 1, threads: int = 1) -> None:
        import_keras()
        import tensorflow as tf

        self.strategy = tf.distribute.get_strategy() if strategy is None else strategy
        self.rank, self.workers, self.threads = rank, workers, threads

        @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
        def add(array: Any) -> Any:
            def one(own: Any) -> Any:
                # The copy lies on a device; an argument of a graph does not, and cannot be reduced.
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(own))

            return self.strategy.run(one, args=(array,))

        self._add = add

    @property
    def leads(self) -> bool:
        """Whether this worker is the first."""
        return self.rank == 0

    def add(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum of the workers' arrays, which have one shape; every worker must call it."""
        if self.workers == 1:
            return array
        import tensorflow as tf

        return np.asarray(self.strategy.experimental_local_results(self._add(tf.constant(array)))[0])

    def from_leader(self, values: Sequence[float]) -> list[float]:
        """What the first worker says, for all."""
        own = np.array(values if self.leads else np.zeros(len(values)), np.float64)
        return [float(value) for value in self.add(own)]


@dataclass(frozen=True)
class Rates:
    """What the host decides for each step of a block.

    Attributes:
        learning: Learning rates, float32 `[steps]`.
        averaging: Decay of the averaged weights, float32 `[steps]`.
    """

    learning: NDArray[np.float32]
    averaging: NDArray[np.float32]


class Stepper:
    """Trains some of a trainee's variables with an optimizer of its own.

    Args:
        trainee: Built within the place's strategy.
        job: Says loss, optimizer and class weights.
        place: Which worker this is.
        averages: TensorFlow variables that follow `trainee.variables`; empty for none.
        head_only: Whether only the head's variables are trained.
    """

    def __init__(self, trainee: Trainee, job: FitJob, place: Place, averages: Sequence[Any], head_only: bool) -> None:
        self._trainee, self._job, self._place, self._averages = trainee, job, place, averages
        self._trained = [*(() if head_only else trainee.backbone_variables), *trainee.head_variables]
        with place.strategy.scope():
            self._optimizer = _optimizer(job)
            self._optimizer.build(self._trained)
        self._first = self.arrays()
        self._run = self._blocks()

    def begin(self) -> None:
        """Make the optimizer as it was at first."""
        self.assign(self._first)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Copies of the optimizer's arrays."""
        return tuple(np.array(one.numpy()) for one in self._optimizer.variables)

    def assign(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Set the optimizer's arrays."""
        for variable, array in zip(self._optimizer.variables, arrays, strict=True):
            variable.assign(array)

    def run(self, fed: Fed, plan: EpochPlan, rates: Rates) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take the steps of a block.

        Returns:
            This worker's share of each step's loss, float32 `[steps]`, and the logits of its images as the steps saw
            them, `[P, K]`.
        """
        import tensorflow as tf

        block = fed.block
        losses, logits = self._run(
            tf.convert_to_tensor(fed.data),
            *map(tf.constant, (fed.index, fed.labels, fed.shares, block.bounds, block.offsets, block.sizes)),
            *map(tf.constant, (rates.learning, rates.averaging, plan.dropout_key)),
            tf.constant(block.first_step, tf.int32),
        )
        return np.asarray(losses), np.asarray(logits)

    def _blocks(self) -> Any:
        import tensorflow as tf

        images = 2 if self._job.recipe.mixup else 1
        one, optimizer, place = self._step(), self._optimizer, self._place
        units = int(self._trainee.logits.units)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def run(
            data: Any,
            index: Any,
            labels: Any,
            shares: Any,
            bounds: Any,
            offsets: Any,
            sizes: Any,
            learning: Any,
            averaging: Any,
            key: Any,
            first_step: Any,
        ) -> Any:
            index, labels = tf.ensure_shape(index, [images, None]), tf.ensure_shape(labels, [images, None])
            steps = tf.shape(sizes)[0]
            losses = tf.TensorArray(tf.float32, size=steps)
            logits = tf.TensorArray(tf.float32, size=steps, infer_shape=False, element_shape=[None, units])
            for step in tf.range(steps):
                optimizer.learning_rate.assign(learning[step])
                low, high = bounds[step], bounds[step + 1]
                seed = tf.stack([key[0], key[1] + first_step + step])
                found = place.strategy.run(
                    one,
                    args=(
                        data,
                        index[:, low:high],
                        labels[:, low:high],
                        shares[low:high],
                        offsets[step],
                        sizes[step],
                        averaging[step],
                        seed,
                    ),
                )
                loss, answer = (place.strategy.experimental_local_results(part)[0] for part in found)
                losses, logits = losses.write(step, loss), logits.write(step, answer)
            return losses.stack(), logits.concat()

        return run

    def _step(self) -> Any:
        """One step of one worker."""
        import tensorflow as tf

        trainee, trained, optimizer, averages = self._trainee, self._trained, self._optimizer, self._averages
        prepared, each_loss = input_function(self._job), _loss_function(self._job)

        def one(
            data: Any, index: Any, labels: Any, shares: Any, offset: Any, size: Any, decay: Any, seed: Any
        ) -> tuple[Any, Any]:
            inputs = prepared(data, index[0])
            if index.shape[0] == 2:
                share = tf.reshape(shares, [-1] + [1] * (len(inputs.shape) - 1))
                inputs = share * inputs + (1 - share) * prepared(data, index[1])
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([variable.value for variable in trained])
                hidden = trainee.neck(inputs, training=True)
                logits = trainee.logits(_dropped(hidden, trainee.dropout, offset, size, seed))
                each = each_loss(labels[0], logits)
                if index.shape[0] == 2:
                    each = shares * each + (1 - shares) * each_loss(labels[1], logits)
                loss = tf.reduce_sum(each) / tf.cast(size, tf.float32)
            gradients = tape.gradient(loss, [variable.value for variable in trained])
            optimizer.apply(gradients, trained)
            for average, variable in zip(averages, trainee.variables, strict=True) if averages else ():
                average.assign(average * decay + variable.value * (1 - decay))
            return loss, logits

        return tf.autograph.experimental.do_not_convert(one)


def _optimizer(job: FitJob) -> Any:
    recipe, optimizers = job.recipe, import_keras().optimizers
    if recipe.optimizer == "sgd":
        return optimizers.SGD(learning_rate=recipe.learning_rate, momentum=recipe.momentum)
    if recipe.optimizer == "adamw":
        return optimizers.AdamW(learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return optimizers.Adam(learning_rate=recipe.learning_rate)


def input_function(job: FitJob) -> Any:
    """From rows `[B]` of data `[R, D]` to what a trainee's neck takes: float32 `[B, D]`, or pixels `[B, S, S, 3]`."""
    import tensorflow as tf

    side = job.recipe.input_size

    def prepared(data: Any, rows: Any) -> Any:
        inputs = tf.cast(tf.gather(data, rows), tf.float32)
        return tf.reshape(inputs, [-1, side, side, 3]) if job.pixels else inputs

    return prepared


def _loss_function(job: FitJob) -> Any:
    """Weighted cross-entropy of each image, with label smoothing s: each label 1 - s plus s / K for every class."""
    import tensorflow as tf

    smooth, classes = job.recipe.label_smoothing, job.classes
    weights = np.array(job.class_weights, np.float32)

    def each(labels: Any, logits: Any) -> Any:
        if job.recipe.loss == "binary_crossentropy":
            wanted = tf.cast(labels, tf.float32) * (1 - smooth) + smooth / 2
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits[:, 0])
        else:
            wanted = tf.one_hot(labels, classes) * (1 - smooth) + smooth / classes
            entropy = tf.nn.softmax_cross_entropy_with_logits(wanted, logits)
        return entropy * tf.gather(tf.constant(weights), labels)

    return each


def _dropped(hidden: Any, share: float, offset: Any, size: Any, seed: Any) -> Any:
    """Dropout whose mask is drawn for the whole batch, of which a worker takes its rows."""
    import tensorflow as tf

    if not share:
        return hidden
    drawn = tf.random.stateless_uniform([size, hidden.shape[-1]], seed, alg="philox")
    kept = drawn[offset : offset + tf.shape(hidden)[0]] >= share
    return tf.where(kept, hidden / (1 - share), 0.0)
