"""A bundle's network in TensorFlow, answering batches: what a GPU does in place of LiteRT, to 1e-4 the same.

Only an actor of the split graph loads this. Reduced precision of any kind stays off: TensorFloat-32 alone, which newer
GPUs use unasked, changes probabilities by more than that.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.backbones import import_keras
from pipelines.models.bundle import Bundle
from pipelines.models.compile import TOLERANCE, classifier_graph, freeze
from pipelines.models.golden import agree, golden_images
from pipelines.models.rebuild import rebuild
from pipelines.models.runtime import finished

TIMED_BATCHES = 3

Pictures = npt.NDArray[np.uint8]
Answers = npt.NDArray[np.float32]


class TensorFlowScorer:
    """A bundle's network on a GPU, or on processors where there is none.

    It is thread-safe, as TensorFlow is.

    Args:
        bundle: The model.
        arrays: Content of its weights.
        on_gpu: Whether it must be a GPU; else none is touched.
        threads: Processor threads that TensorFlow may compute with.

    Attributes:
        device: The GPU's name, or `processor`.
        on_gpu: Which of the two.
        device_errors: What is raised where the device fails.

    Raises:
        UsageError: If TensorFlow sees no GPU.
        ModelRefused: If the network cannot be built.
    """

    def __init__(self, bundle: Bundle, arrays: bytes, on_gpu: bool, threads: int) -> None:
        self._io = bundle.spec.scorers["float32"].io
        self.on_gpu = on_gpu
        self.device = _prepare_device(on_gpu, threads)
        network = rebuild(bundle, arrays)
        recipe = bundle.provenance.get("recipe") or {}
        graph = classifier_graph(
            network.backbone,
            network.head,
            # What the scorer applies outside of its graph is applied outside of this one too.
            bundle.temperature / self._io.temperature,
            network.head_spec.pooling,
            bool(recipe.get("flip_at_prediction", False)),
        )
        self._graph = freeze(graph, bundle.input_size, None)
        import tensorflow as tf

        self.device_errors: tuple[type[Exception], ...] = (tf.errors.OpError,)

    def __call__(self, pictures: Pictures, size: int) -> Answers:
        """Answer a batch.

        Args:
            pictures: uint8 `[n, S, S, 3]`.
            size: Images that are computed, at least n: the rest is padding. Few different sizes are fast, because a
                GPU's library looks for its best algorithm for each anew.

        Returns:
            float32 `[n, K]`, calibrated; not finite where the network's answer is not.
        """
        count = len(pictures)
        if count < size:
            pictures = np.concatenate([pictures, np.zeros((size - count, *pictures.shape[1:]), np.uint8)])
        import tensorflow as tf

        answers: npt.NDArray[Any] = self._graph(tf.constant(pictures))[0].numpy()[:count]
        if self._io.answers_probabilities_as_they_are:
            return answers.astype(np.float32, copy=False)
        return np.stack([finished(answer, self._io) for answer in answers])

    def check(self, wanted: Answers) -> None:
        """Compare with what LiteRT answers to the golden images: no patient is scored on a device that differs.

        Args:
            wanted: float32 `[6, K]`.

        Raises:
            ModelRefused: If an answer differs by more than 1e-4.
        """
        answers = self(golden_images(self._io.input_size), len(wanted))
        if not agree(answers, wanted, TOLERANCE):
            raise ModelRefused(
                f"The model fails its self-test in TensorFlow on {self.device}: it answers otherwise than LiteRT.",
                "Score with --engine direct, and compare the versions that `nightread doctor` prints there with those "
                "of the machine that made the model.",
            )

    def rate(self, size: int) -> float:
        """Images a second in full batches, the pixels' way to the device included."""
        images = golden_images(self._io.input_size)
        batch = images[np.arange(size) % len(images)]
        self(batch, size)  # the first one prepares
        began = time.perf_counter()
        for _ in range(TIMED_BATCHES):
            self(batch, size)
        return TIMED_BATCHES * size / (time.perf_counter() - began)


def _prepare_device(on_gpu: bool, threads: int) -> str:
    """Set TensorFlow up before its first operation; returns what it will compute on."""
    import_keras()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.optimizer.set_jit(False)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if not on_gpu:
        tf.config.set_visible_devices([], "GPU")
        return "processor"
    found = tf.config.list_physical_devices("GPU")
    if not found:
        raise UsageError(
            "Ray gave an actor a GPU, and TensorFlow does not see it.",
            "Install tensorflow[and-cuda] and NVIDIA's driver on the GPU nodes, or say --engine direct.",
        )
    for gpu in found:
        tf.config.experimental.set_memory_growth(gpu, True)
    return str(tf.config.experimental.get_device_details(found[0]).get("device_name", "GPU"))
