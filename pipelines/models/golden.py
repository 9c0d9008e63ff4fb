"""Golden outputs: what a model answered to synthetic pictures when its bundle was made.

A night compares before it scores its first patient, so that another processor, library or a damaged file cannot
give other answers silently. The pictures are drawn from a seed by integer arithmetic and numpy's frozen legacy
generator, and are no photographs: the bundle holds their hash and the answers only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.runtime import Pixels, Vector

if TYPE_CHECKING:
    from pipelines.models.bundle import Bundle

GOLDEN_FILE = "golden.json"
FORMAT = 1
SEED = 20
TOLERANCE = 1e-4
# Where float32 differs in its last bit, a number near the edge of an 8-bit step falls on the other side, and the next
# layers carry that on: with a genuine MobileNetV2 the golden answers moved by up to 0.03 when the first layers' weights
# were changed by one bit, and by as much under other kernels. What is damaged answers further away than this.
TOLERANCE_INT8 = 0.1


def golden_images(size: int, seed: int = SEED) -> Pixels:
    """Synthetic pictures, uint8 [6, size, size, 3]: noise, blobs, a gradient, a checkerboard, dark and bright.

    They are the same for ever for one size and seed.
    """
    # RandomState's stream is frozen by numpy's policy; default_rng's is not.
    state = np.random.RandomState(seed)
    noise = np.frombuffer(state.bytes(size * size * 3), dtype=np.uint8).reshape(size, size, 3)
    coarse = np.frombuffer(state.bytes(8 * 8 * 3), dtype=np.uint8).reshape(8, 8, 3)
    index = np.arange(size)
    blobs = coarse[(index * 8 // size)[:, np.newaxis], (index * 8 // size)[np.newaxis, :]]
    ramp = (index * 255 // max(size - 1, 1)).astype(np.uint8)
    across, down = np.broadcast_arrays(ramp[np.newaxis, :], ramp[:, np.newaxis])
    gradient = np.stack([across, down, across[:, ::-1]], axis=-1)
    board = ((index[:, np.newaxis] // 4 + index[np.newaxis, :] // 4) % 2 * 255).astype(np.uint8)
    checks = np.repeat(board[:, :, np.newaxis], 3, axis=-1)
    return np.ascontiguousarray(np.stack([noise, blobs, gradient, checks, noise // 8, 255 - noise // 8]))


def golden_answers(score: Callable[[Pixels], Vector], size: int) -> npt.NDArray[np.float32]:
    """What `score` answers to the golden images: float32 [6, K]."""
    return np.stack([score(picture) for picture in golden_images(size)])


def make_golden(answers: Mapping[str, npt.NDArray[np.float32]], size: int) -> bytes:
    """The content of the bundle's golden file.

    Args:
        answers: Per precision, the output of `golden_answers`: float32 [6, K].
        size: Side of the pictures, in pixels.
    """
    value = {
        "format": FORMAT,
        "input_size": size,
        "seed": SEED,
        "images_sha256": hashlib.sha256(golden_images(size).tobytes()).hexdigest(),
        "tolerance": {precision: tolerance_of(precision) for precision in answers},
        "answers": {
            precision: [[float(number) for number in row] for row in rows] for precision, rows in answers.items()
        },
    }
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def tolerance_of(precision: str) -> float:
    """How far answers of one model may be apart on two machines."""
    return TOLERANCE if precision == "float32" else TOLERANCE_INT8


def agree(answers: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], tolerance: float) -> bool:
    """Whether two sets of answers, float32 `[N, K]`, are of one shape and nowhere further apart; NaN never agrees."""
    return answers.shape == wanted.shape and bool(np.abs(answers - wanted).max() <= tolerance)


def self_test(bundle: Bundle, scorer: Callable[[Pixels], Vector], precision: str = "float32") -> bool:
    """Compare a loaded scorer with the bundle's golden outputs.

    Args:
        bundle: Where the scorer came from.
        scorer: What is about to score patients.
        precision: Which of the bundle's scorers it is.

    Returns:
        True if it was compared; False where the bundle has no golden outputs for it, which is allowed.

    Raises:
        ModelRefused: If an answer differs by more than the tolerance, or the file is not what it should be.
        UsageError: If a newer release wrote the file.
    """
    return GOLDEN_FILE in bundle.files and compare_golden(bundle.read(GOLDEN_FILE), bundle.uri, scorer, precision)


def compare_golden(golden: bytes, uri: str, scorer: Callable[[Pixels], Vector], precision: str) -> bool:
    """Compare as `self_test`, where the bundle itself is elsewhere.

    Args:
        golden: The content of its golden file, verified.
        uri: The bundle's folder, for messages.
        scorer: What is about to score patients.
        precision: Which of the bundle's scorers it is.
    """
    try:
        value: dict[str, Any] = json.loads(golden)
        if value["format"] > FORMAT:
            raise UsageError(
                f"{GOLDEN_FILE} of {uri} has format {value['format']}.", "A newer nightread wrote it: upgrade."
            )
        if precision not in value["answers"]:
            return False
        wanted = np.array(value["answers"][precision], dtype=np.float32)
        tolerance, size, seed = float(value["tolerance"][precision]), int(value["input_size"]), int(value["seed"])
        known = str(value["images_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelRefused(f"{GOLDEN_FILE} of {uri} cannot be read.", "Make or import the bundle again.") from error
    images = golden_images(size, seed)
    if hashlib.sha256(images.tobytes()).hexdigest() != known:
        raise ModelRefused(f"The golden images of {uri} come out differently here.", "Check the installation of numpy.")
    answers = np.stack([scorer(picture) for picture in images])
    if not agree(answers, wanted, tolerance):
        raise ModelRefused(
            f"The model {uri} fails its self-test: here it answers otherwise than when it was made.",
            "Compare the versions that `nightread doctor` prints with those of the machine that made it.",
        )
    return True
