"""One image, from its bytes to what became of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from pipelines.errors import ImageFailure, ModelRefused
from pipelines.images.preprocess import Prepared
from pipelines.scoring.rows import Outcome, Promise
from pipelines.storage.reading import Blob

Kernel = Callable[[Prepared], np.ndarray | Promise]


@dataclass(frozen=True)
class KnownBlob(Blob):
    """A file's content that the table has an answer for."""


def score_image(blob: Future[Blob], prepare: Callable[[bytes], Prepared], kernel: Kernel) -> Outcome:
    """Decode and score one image; whatever is wrong with it becomes an outcome, never an exception.

    Args:
        blob: The bytes, or the failure to read them.
        prepare: Bytes to pixels uint8 `[S, S, 3]`.
        kernel: From the prepared image to its answer.
    """
    version = ""
    try:
        bytes_read = blob.result()
        version = bytes_read.version
        if isinstance(bytes_read, KnownBlob):
            return Outcome(version, kept=True)
        prepared = prepare(bytes_read.data)
        answer = kernel(prepared)
    except ImageFailure as failure:
        return Outcome(version, failure=failure)
    except MemoryError:
        return Outcome(version, failure=ImageFailure("too_large", "There was not enough memory to decode the image."))
    except ModelRefused:
        return _without_answer(version)
    if isinstance(answer, np.ndarray):
        return Outcome(version, prepared, answer)
    return Outcome(version, prepared, promise=answer)


def fulfilled(outcome: Outcome) -> Outcome:
    """An outcome with the answer that its kernel promised, waited for; one without a promise as it is."""
    if outcome.promise is None:
        return outcome
    try:
        answer = outcome.promise()
    except ModelRefused:
        return replace(_without_answer(outcome.version), seconds=outcome.seconds)
    return replace(outcome, answer=answer, promise=None, stood_in=outcome.promise.stood_in)


def _without_answer(version: str) -> Outcome:
    # No finite number, as from a model that divides by the contrast of an evenly black picture: no score is better
    # than a wrong one, and the other images keep theirs.
    return Outcome(version, failure=ImageFailure("unsupported", "The model has no finite answer for this image."))
