"""One image's bytes to the answer that the night would write: plain functions, without HTTP and without processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np

from pipelines.errors import ImageFailure, ModelRefused
from pipelines.images.preprocess import Prepared, Preprocessing
from pipelines.models.decision import decide, sum_positive
from pipelines.models.runtime import Pixels, Vector


@dataclass(frozen=True)
class ServedModel:
    """The model that answers: plain values, nothing of its bytes.

    Attributes:
        ref: What the user named; may be a place in a bucket, so that it is for logs and not for clients.
        name: The model's name.
        version: v1, v2 …
        model_id: SHA-256 of bundle.json, 64 hexadecimal digits.
        preprocessing_id: Identity of the preprocessing, 64 hexadecimal digits.
        precision: `float32` or `int8`.
        classes: Class names in the order of the probabilities.
        positive_classes: Those that `p_positive` sums.
        input_size: Side of the model's input in pixels.
        thresholds: What was fitted to images and this precision: `threshold`, and perhaps `refer_low`, `refer_high`
            and what they reach on validation; None where nothing was.
        card: What `/model` and the page tell: validation figures with intervals, counts of data, provenance; nothing of
            a user, host, path or patient.
    """

    ref: str
    name: str
    version: str
    model_id: str
    preprocessing_id: str
    precision: str
    classes: tuple[str, ...]
    positive_classes: tuple[str, ...]
    input_size: int
    thresholds: Mapping[str, Any] | None
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, str]:
        """What every answer says of it."""
        return {"name": self.name, "version": self.version, "model_id": self.model_id}


@dataclass(frozen=True)
class Answer:
    """The answer to one image, the same as in the night's row.

    Attributes:
        content_sha256: SHA-256 of the file's bytes, 64 hexadecimal digits.
        predicted_label: The class of the highest probability, of equals the first; the table's `predicted_class`.
        probabilities: By class in the model's order; exactly the float32 values, 0–1.
        p_positive: The sum over the positive classes, exactly the table's float32 value.
        decision: `negative`, `refer` or `positive`; None for a model without fitted thresholds.
        model: Its name, version and model_id.
        width: Pixels of the original, upright.
        height: Likewise.
        decoder: `simplejpeg`, `opencv` or `pillow`.
        milliseconds: From the bytes to the answer, in the process that gave it.
    """

    content_sha256: str
    predicted_label: str
    probabilities: dict[str, float]
    p_positive: float | None
    decision: str | None
    model: dict[str, str]
    width: int
    height: int
    decoder: str
    milliseconds: float

    def as_json(self, request_id: str) -> dict[str, Any]:
        """The answer of `POST /predict`, in its order."""
        return {
            "request_id": request_id,
            "content_sha256": self.content_sha256,
            "predicted_label": self.predicted_label,
            "probabilities": self.probabilities,
            "p_positive": self.p_positive,
            "decision": self.decision,
            "model": self.model,
            "width": self.width,
            "height": self.height,
            "decoder": self.decoder,
            "milliseconds": self.milliseconds,
        }


@dataclass(frozen=True)
class ServiceState:
    """How the service does.

    Attributes:
        ready: Whether it answers images now.
        why_not: One sentence where it does not.
        queued: Images that wait for a process that answers; those in work are not among them.
        queue_limit: How many may wait.
        workers: Processes that shall answer.
        workers_alive: Those that can, now.
        worker_restarts: How many were replaced after a death or a hang since the start.
        promotion_failed: One sentence where the champion could not be loaded and the model before goes on.
        loaded_at: When the model that answers took over, UTC; None before the first.
    """

    ready: bool
    why_not: str | None
    queued: int
    queue_limit: int
    workers: int
    workers_alive: int
    worker_restarts: int
    promotion_failed: str | None
    loaded_at: datetime | None


class QueueFull(Exception):
    """As many images wait as may.

    Args:
        retry_after_seconds: When there will be room, by the rate of the last answers; at least 1.
    """

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"The queue is full; there is room in about {retry_after_seconds} s.")
        self.retry_after_seconds = retry_after_seconds


class NotReady(Exception):
    """No model answers yet, or none any more.

    Args:
        sentence: Why, in one sentence for the client.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Service(Protocol):
    """What the app needs of what answers behind it."""

    def model(self) -> ServedModel | None:
        """The model that answers; None while the first one starts."""

    def state(self) -> ServiceState:
        """How it does, at this moment."""

    async def answer(self, data: bytes) -> Answer:
        """Answer one image. A caller that is cancelled leaves its place in the queue free.

        Raises:
            ImageFailure: What is wrong with the image.
            QueueFull: As many wait as may.
            NotReady: Nothing answers.
        """

    async def preview(self, data: bytes, side: int) -> bytes:
        """A PNG of the image, its longest side at most `side` pixels, for what a browser cannot draw.

        Raises:
            ImageFailure, QueueFull, NotReady: As `answer`.
        """


def preprocessing_of(model: ServedModel) -> Preprocessing:
    """The preprocessing that a model was made for.

    Raises:
        ModelRefused: If this version of nightread prepares images otherwise.
    """
    preprocessing = Preprocessing(model.input_size)
    if preprocessing.id != model.preprocessing_id:
        raise ModelRefused(
            f"The model expects images prepared as {model.preprocessing_id[:12]}, and this version of nightread "
            f"prepares them as {preprocessing.id[:12]}.",
            "Use the version that the model was trained with, or train it again.",
        )
    return preprocessing


def answer_image(
    data: bytes, prepare: Callable[[bytes], Prepared], scorer: Callable[[Pixels], Vector], model: ServedModel
) -> Answer:
    """Decode and score one image: the night's own functions, and the night's own rules about their failures.

    Args:
        data: A whole file.
        prepare: `Preprocessing.prepare`: bytes to pixels uint8 `[S, S, 3]`.
        scorer: `Scorer`: pixels to probabilities, float32 `[K]`.
        model: Whose classes and thresholds these are.

    Returns:
        The answer.

    Raises:
        ImageFailure: `not_an_image`, `unsupported`, `truncated` or `too_large`.
    """
    began = time.perf_counter()
    try:
        prepared = prepare(data)
        probabilities = scorer(prepared.pixels)
    except MemoryError as error:
        raise ImageFailure("too_large", "There was not enough memory to decode the image.") from error
    except ModelRefused as error:
        # As in the night: a picture for which the model has no finite number gets no answer, the others keep theirs.
        raise ImageFailure("unsupported", "The model has no finite answer for this image.") from error
    # As a float32, which is what the table keeps and what its decision was taken from.
    positive = float(np.float32(sum_positive(probabilities, model.classes, model.positive_classes)))
    return Answer(
        content_sha256=prepared.content_sha256,
        predicted_label=model.classes[int(probabilities.argmax())],
        probabilities={name: float(value) for name, value in zip(model.classes, probabilities, strict=True)},
        p_positive=positive,
        decision=None if model.thresholds is None else str(decide(positive, model.thresholds)),
        model=model.identity,
        width=prepared.width,
        height=prepared.height,
        decoder=prepared.decoder,
        milliseconds=round((time.perf_counter() - began) * 1000, 3),
    )
