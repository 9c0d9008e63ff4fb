"""What turns a backbone's feature map into logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.errors import UsageError
from pipelines.models.backbones import import_keras

POOLINGS = ("avg", "max", "flatten")
OUTPUTS = ("softmax", "sigmoid")
STARTS = ("glorot", "zeros")
ACTIVATIONS = ("relu", "elu", "gelu", "selu", "silu", "tanh", "linear")


@dataclass(frozen=True)
class HeadSpec:
    """The head of a classifier.

    Attributes:
        classes: How many.
        pooling: From feature map to vector: one of `POOLINGS`.
        dense_units: Widths of the hidden layers; () for none.
        activation: Of the hidden layers.
        batch_norm: Whether each hidden layer is followed by batch normalisation; without one, whether the pooled
            features are.
        dropout: Share of the inputs of the last layer that training drops, 0 to below 1.
        output: `softmax`: one logit a class; `sigmoid`: one logit, that of the second of two classes.

    Raises:
        UsageError: If a value is not possible.
    """

    classes: int
    pooling: str = "avg"
    dense_units: tuple[int, ...] = ()
    activation: str = "relu"
    batch_norm: bool = False
    dropout: float = 0.0
    output: str = "softmax"

    def __post_init__(self) -> None:
        for key, value, legal in (
            ("pooling", self.pooling, POOLINGS),
            ("activation", self.activation, ACTIVATIONS),
            ("output", self.output, OUTPUTS),
        ):
            if value not in legal:
                raise UsageError(f"There is no {key} {value!r} of a head.", f"Say one of: {', '.join(legal)}.")
        if self.classes < 2 or (self.output == "sigmoid" and self.classes != 2):
            rule = "exactly 2" if self.output == "sigmoid" else "at least 2"
            raise UsageError(f"A {self.output} head is for {rule} classes, not {self.classes}.")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout} is not between 0 and 1.")
        if any(units < 1 for units in self.dense_units):
            raise UsageError(f"dense_units {self.dense_units} are not all at least 1.")

    @property
    def units(self) -> int:
        """How many logits the head answers."""
        return 1 if self.output == "sigmoid" else self.classes


def build_head(spec: HeadSpec, input_shape: tuple[int, ...], seed: int = 0, start: str = "glorot") -> Any:
    """Build a head.

    Args:
        spec: Which.
        input_shape: (h, w, C) of a feature map, or (D,) of features that were pooled already.
        seed: Of the first weights and of dropout.
        start: The last layer's first weights, one of `STARTS`: drawn, or `zeros`.

    Returns:
        A `keras.Model` from float32 [B, *input_shape] to logits [B, units]: pooling, hidden layers, batch
        normalisation, dropout. Its last layer is called `logits`, and dropout stands right before that, so that who
        trains can drop with random numbers of his own.
    """
    keras = import_keras()
    features = keras.Input(input_shape)
    flow = features if len(input_shape) == 1 else pool(features, spec.pooling)
    if spec.batch_norm and not spec.dense_units:
        flow = _batch_norm()(flow)
    for number, units in enumerate(spec.dense_units):
        hidden = keras.initializers.GlorotUniform(seed=seed * 1000 + number)
        flow = keras.layers.Dense(units, activation=spec.activation, kernel_initializer=hidden)(flow)
        if spec.batch_norm:
            flow = _batch_norm()(flow)
    if spec.dropout:
        flow = keras.layers.Dropout(spec.dropout, seed=seed)(flow)
    drawn = keras.initializers.GlorotUniform(seed=seed * 1000 + len(spec.dense_units))
    last = "zeros" if start == "zeros" else drawn
    logits = keras.layers.Dense(spec.units, kernel_initializer=last, name="logits")(flow)
    return keras.Model(features, logits, name="head")


def _batch_norm() -> Any:
    """Batch normalisation whose statistics are those of all workers' batches together; of its own on one worker."""
    return import_keras().layers.BatchNormalization(synchronized=True)


def pool(features: Any, pooling: str) -> Any:
    """From a feature map [B, h, w, C] to vectors [B, D]; D = C, or h*w*C for `flatten`."""
    keras = import_keras()
    kinds = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }
    return kinds[pooling]()(features)
