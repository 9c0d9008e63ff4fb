"""Score one image at a time with LiteRT: one thread, no TensorFlow.

A model that we compiled takes uint8 pixels and answers calibrated probabilities. A `.tflite` that somebody else made
is kept as it came, and `ScorerIO` then says what has to happen outside its graph: scaling and quantising of the
pixels, dequantising of the output, softmax, temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ModelRefused
from pipelines.models.quiet import quiet_stderr

DTYPES = ("uint8", "int8", "float32")
OUTPUTS = ("probabilities", "logits", "features")

Pixels = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quantisation:
    """How an integer tensor stands for real numbers: real = scale * (integer - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class ScorerIO:
    """What goes into a LiteRT model, what comes out, and what is done outside its graph.

    Attributes:
        input_size: Side S of the square picture, in pixels.
        size: Length K of the answer: classes, or D for features.
        input_dtype: Element type of the model's input, one of `DTYPES`.
        scale: Per channel of the RGB pixels 0-255, in RGB order: real input = pixel * scale + offset.
        offset: See `scale`.
        reverse_channels: True where the model wants BGR.
        input_quantisation: For integer inputs; None where the integer is the pixel itself.
        output_quantisation: For integer outputs; None where the output is float32.
        outputs: What the graph answers, one of `OUTPUTS`.
        sigmoid_unit: True where the graph has one unit, that of the second of two classes.
        temperature: Applied outside the graph; 1 where the graph has it inside.
    """

    input_size: int
    size: int
    input_dtype: str = "uint8"
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    reverse_channels: bool = False
    input_quantisation: Quantisation | None = None
    output_quantisation: Quantisation | None = None
    outputs: str = "probabilities"
    sigmoid_unit: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.input_dtype not in DTYPES or self.outputs not in OUTPUTS:
            raise ValueError(f"input_dtype {self.input_dtype!r}, outputs {self.outputs!r}")
        if self.input_size < 1 or self.size < 1 or not 0 < self.temperature < float("inf"):
            raise ValueError(f"input_size {self.input_size}, size {self.size}, temperature {self.temperature}")
        if self.sigmoid_unit and self.size != 2:
            raise ValueError(f"one sigmoid unit answers for two classes, not {self.size}")

    @property
    def pixels_go_in_unchanged(self) -> bool:
        """True where the model takes the uint8 RGB pixels as they are."""
        return (
            self.input_dtype == "uint8"
            and self.input_quantisation is None
            and not self.reverse_channels
            and self.scale == (1.0, 1.0, 1.0)
            and self.offset == (0.0, 0.0, 0.0)
        )

    @property
    def answers_probabilities_as_they_are(self) -> bool:
        """True where nothing is left to do with what the model answers."""
        plain = self.output_quantisation is None and self.temperature == 1.0 and not self.sigmoid_unit
        return self.outputs == "probabilities" and plain

    def to_json(self) -> dict[str, Any]:
        """The plain values that `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ScorerIO:
        """Rebuild from `to_json`.

        Raises:
            ValueError: If a value is of the wrong kind.
            TypeError: If a key is missing or unknown.
            KeyError: If a quantisation lacks a key.
        """
        given = dict(value)
        for name in ("scale", "offset"):
            if name in given:
                red, green, blue = (float(number) for number in given[name])
                given[name] = (red, green, blue)
        for name in ("input_quantisation", "output_quantisation"):
            if given.get(name) is not None:
                given[name] = Quantisation(float(given[name]["scale"]), int(given[name]["zero_point"]))
        return cls(**given)


class Scorer:
    """A LiteRT model, loaded once and called for one image after the other.

    It is not thread-safe and is not pickled: send the bytes and the `ScorerIO`, and make it where it works.

    Args:
        model: The bytes of the `.tflite` file, already verified.
        io: What goes in and what comes out.

    Raises:
        ModelRefused: If LiteRT does not load the model, or its input or output is not what `io` says.
    """

    def __init__(self, model: bytes, io: ScorerIO) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.io = io
        shape = (1, io.input_size, io.input_size, 3)
        try:
            with quiet_stderr():
                interpreter = Interpreter(model_content=model, num_threads=1)
                details = interpreter.get_input_details()[0]
                if tuple(int(side) for side in details["shape"]) != shape:
                    interpreter.resize_tensor_input(details["index"], shape)
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError, IndexError) as error:
            raise ModelRefused("LiteRT cannot load the model.", "Make or import the bundle again.") from error
        self._interpreter = interpreter
        self._input = int(details["index"])
        self._output = int(interpreter.get_output_details()[0]["index"])
        self._batch = None if io.pixels_go_in_unchanged else np.empty(shape, dtype=io.input_dtype)
        self._table = None if io.pixels_go_in_unchanged else _pixel_table(io)
        self._check_tensors()

    def _check_tensors(self) -> None:
        details = self._interpreter.get_input_details()[0]
        answer = self._interpreter.get_output_details()[0]
        units = int(np.prod(answer["shape"]))
        wanted = 1 if self.io.sigmoid_unit else self.io.size
        if np.dtype(details["dtype"]).name != self.io.input_dtype or units != wanted:
            raise ModelRefused(
                f"The model takes {np.dtype(details['dtype']).name} and answers {units} numbers, but its bundle "
                f"declares {self.io.input_dtype} and {wanted}.",
                "Make or import the bundle again.",
            )

    def __call__(self, pixels: Pixels) -> Vector:
        """Score one image.

        Args:
            pixels: uint8 [S, S, 3], RGB, 0-255.

        Returns:
            float32 [K]: probabilities in the bundle's order of classes (features for a headless model). The array
            is the caller's own.

        Raises:
            ModelRefused: If any number of the answer is not finite. The fault is the model's: 8-bit pixels cannot
                hold one. No other image's answer can be trusted either.
        """
        if self._batch is None:
            self._interpreter.set_tensor(self._input, pixels[np.newaxis])
        else:
            self._fill(pixels)
            self._interpreter.set_tensor(self._input, self._batch)
        self._interpreter.invoke()
        answer = self._interpreter.get_tensor(self._output).reshape(-1)
        if not np.isfinite(answer).all():
            raise ModelRefused(
                "The model answered a number that is not finite.",
                "It cannot be trusted for any image: train or import it again.",
            )
        return finished(answer, self.io)

    def _fill(self, pixels: Pixels) -> None:
        """Write the scaled (and quantised) pixels [S, S, 3] into the input buffer, in the model's channel order."""
        assert self._batch is not None and self._table is not None
        picture = self._batch[0]
        for channel in range(3):
            place = 2 - channel if self.io.reverse_channels else channel
            picture[:, :, place] = self._table[channel][pixels[:, :, channel]]


def finished(answer: npt.NDArray[Any], io: ScorerIO) -> Vector:
    """From what the graph answers for one image [units] to float32 [K]: what is left to do outside of it.

    Args:
        answer: Of the graph.
        io: How it is read.
    """
    if io.answers_probabilities_as_they_are:
        return answer.astype(np.float32, copy=False)
    real: npt.NDArray[np.float64] = answer.astype(np.float64)
    if io.output_quantisation is not None:
        step, zero = io.output_quantisation.scale, io.output_quantisation.zero_point
        real = np.multiply(real - zero, step)
    if io.outputs == "features":
        return real.astype(np.float32)
    return _probabilities(real, io).astype(np.float32)


def _pixel_table(io: ScorerIO) -> npt.NDArray[Any]:
    """What each of the 256 pixel values of each channel becomes: [3, 256] of the model's input type."""
    values = np.arange(256, dtype=np.float64)
    real: npt.NDArray[np.float64] = (
        values[np.newaxis, :] * np.array(io.scale)[:, np.newaxis] + np.array(io.offset)[:, np.newaxis]
    )
    if io.input_dtype == "float32":
        return real.astype(np.float32)
    if io.input_quantisation is not None:
        real = real / io.input_quantisation.scale + io.input_quantisation.zero_point
    limits = np.iinfo(io.input_dtype)
    whole: npt.NDArray[Any] = np.clip(np.rint(real), limits.min, limits.max).astype(io.input_dtype)
    return whole


def _probabilities(answer: npt.NDArray[np.float64], io: ScorerIO) -> npt.NDArray[np.float64]:
    """Softmax or sigmoid and temperature: float64 [units] to [K] that sums to 1."""
    if io.outputs == "probabilities":
        # A quantised probability can be a step below 0 or above 1, and log(0) has no temperature.
        inside = np.clip(answer, 1e-12, 1.0)
        if io.temperature == 1.0:
            return np.array([1.0 - inside[0], inside[0]]) if io.sigmoid_unit else inside / inside.sum()
        if io.sigmoid_unit:
            inside = np.clip(inside, 1e-12, 1.0 - 1e-12)
            logits = np.array([0.0, np.log(inside[0]) - np.log1p(-inside[0])])
        else:
            logits = np.log(inside)
    else:
        logits = np.array([0.0, answer[0]]) if io.sigmoid_unit else answer
    scaled = logits / io.temperature
    powers = np.exp(scaled - scaled.max())
    return np.asarray(powers / powers.sum(), dtype=np.float64)
