"""What training changes: the trained layers of a backbone and the head, in the pieces that a training step needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.models.backbones import BackboneSpec, build_architecture, import_keras, weights_from_bytes
from pipelines.models.compile import feature_length
from pipelines.models.cut import Cut, cut_backbone
from pipelines.models.folding import fold
from pipelines.models.heads import HeadSpec, build_head, pool


class Neck(Protocol):
    """From what is cached of the images to what the dropout before the last layer takes."""

    def __call__(self, batch: Any, training: bool = False) -> Any:
        """Compute it.

        Args:
            batch: float32 tensor `[B, D]` of cached features, or pixels 0-255 `[B, S, S, 3]` where all is trained.
            training: Whether the head's batch normalisation takes the statistics of this batch, and moves its own
                towards them. Those of the backbone stay as they were published in any case.

        Returns:
            float32 tensor `[B, units]`.
        """


@dataclass(frozen=True)
class Trainee:
    """A network as a training step sees it: `logits(drop(neck(batch, training=True)))`.

    Dropout is the step's own, because what it drops is a function of seed, epoch and step.

    Attributes:
        neck: See `Neck`.
        logits: The last layer, `[B, units]` to `[B, K]` (`[B, 1]`: of the second of two classes).
        dropout: Share of the last layer's inputs to drop, 0 to below 1.
        head_variables: The head's arrays that have gradients, in the order of its layers.
        backbone_variables: The same of the backbone.
        variables: Every array that training changes, the statistics of the head's batch normalisation among them: the
            backbone's, then the head's. The order is the same in every process.
    """

    neck: Neck
    logits: Any
    dropout: float
    head_variables: tuple[Any, ...]
    backbone_variables: tuple[Any, ...]
    variables: tuple[Any, ...]

    def answer(self, batch: Any) -> Any:
        """Logits in inference mode, of a batch as `neck` takes it."""
        return self.logits(self.neck(batch, training=False))

    def arrays(self) -> list[NDArray[np.float32]]:
        """Copies of the values of `variables`."""
        return [np.array(one.numpy(), np.float32) for one in self.variables]

    def assign(self, arrays: Sequence[NDArray[np.float32]]) -> None:
        """Set the values of `variables`.

        Raises:
            ValueError: If they are not as many, or not of the same shapes.
        """
        if [array.shape for array in arrays] != [tuple(one.shape) for one in self.variables]:
            raise ValueError("arrays of another network")
        for variable, array in zip(self.variables, arrays, strict=True):
            variable.assign(array)


def build_trainee(cut: Cut, head: Any, head_spec: HeadSpec) -> Trainee:
    """Take a network apart for training; the layers stay those of the backbone and of the head.

    Args:
        cut: The backbone, cut below its trained layers.
        head: Of pooled features, as `build_head` makes it.
        head_spec: What it was made from.
    """
    keras = import_keras()
    upper = None if cut.upper is None else fold(cut.upper)
    end = head.layers[-2].input if head_spec.dropout else head.layers[-1].input
    hidden = None if end is head.input else keras.Model(head.input, end)

    def neck(batch: Any, training: bool = False) -> Any:
        features = batch if upper is None else pool(even_if_empty(upper, batch), head_spec.pooling)
        return features if hidden is None else hidden(features, training=training)

    return Trainee(
        neck=neck,
        logits=head.layers[-1],
        dropout=head_spec.dropout,
        head_variables=tuple(head.trainable_variables),
        backbone_variables=cut.variables,
        variables=(*cut.variables, *head.weights),
    )


def even_if_empty(answer: Callable[[Any], Any], batch: Any) -> Any:
    """What a backbone's part answers in inference mode to a batch that may hold no image.

    A worker that finds no image in its part of a small last batch must still take the step with the others, and
    convolutions answer no image in a wrong shape: they get one of zeros, whose answer is dropped.

    Args:
        answer: What the part answers to a batch.
        batch: float32 tensor `[B, …]`.
    """
    import tensorflow as tf

    images = tf.shape(batch)[0]
    missing = tf.cast(images == 0, tf.int32)
    filled = tf.pad(batch, [[0, missing]] + [[0, 0]] * (len(batch.shape) - 1))
    return answer(filled)[:images]


def build_trainee_for_worker(
    spec: BackboneSpec,
    head_spec: HeadSpec,
    trainable_layers: int,
    backbone_weights: bytes | None,
    seed: int,
    size: int,
    head_start: str = "glorot",
) -> Trainee:
    """Build in a worker what the driver's network is taken apart to.

    The head starts with the same arrays as the driver's, because the seed draws them. Where it is to start with
    others, assign them.

    Args:
        spec: The backbone.
        head_spec: The head.
        trainable_layers: How many of the backbone's last layers are trained; 0 builds no backbone at all.
        backbone_weights: `weights_to_bytes` of the backbone; None where nothing of it is trained.
        seed: Of the head's first arrays.
        size: Numbers of one cached image, `Cut.size`.
        head_start: As for `build_head`.

    Raises:
        ValueError: If the weights are missing, or `size` is not that of this cut.
    """
    if not trainable_layers:
        cut, features = Cut(0, None, None, size, ()), size
    elif backbone_weights is None:
        raise ValueError("a backbone cannot be trained without its weights")
    else:
        backbone = build_architecture(spec)
        weights_from_bytes(backbone, backbone_weights)
        cut, features = (
            cut_backbone(backbone, trainable_layers, head_spec.pooling),
            feature_length(backbone, head_spec.pooling),
        )
        if cut.size != size:
            raise ValueError(f"{size} numbers of an image were cached, and {cut.size} cross this cut")
    return build_trainee(cut, build_head(head_spec, (features,), seed, head_start), head_spec)
