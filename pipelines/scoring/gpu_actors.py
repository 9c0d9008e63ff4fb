"""The actors with a GPU: started by the driver, asked by the actors that decode.

Ray starts a lost one again and repeats what it was asked. A decoding actor waits for that as long as the plan says,
and answers with LiteRT itself after that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pipelines.errors import NightreadError, TryLater
from pipelines.models.bundle import Bundle
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.scoring.batches import Answers, Away, BatchKernel, Pictures
from pipelines.scoring.gpus import gpus_here
from pipelines.scoring.graph import understood
from pipelines.scoring.sizing import FEEDING_CORES, ClusterGpus, padded
from pipelines.scoring.worker_process import begin_worker

# The next batch is on its way to the device while one is computed.
AT_ONCE = 2
# A GPU whose driver fails kills its process again and again.
RESTARTS = 20
# A node may have to be started for the first one.
START_SECONDS = 600.0


@dataclass(frozen=True)
class GpuOrder:
    """What an actor with a GPU is to answer with.

    Attributes:
        bundle: The model.
        arrays: Content of its weights: the nodes need not reach the bundle's folder.
        wanted: What LiteRT answers to the golden images, float32 `[6, K]`.
        on_gpu: False where a processor stands in for the GPU.
    """

    bundle: Bundle
    arrays: bytes
    wanted: npt.NDArray[np.float32]
    on_gpu: bool


@dataclass(frozen=True)
class Ready:
    """An actor that has passed its self-test.

    Attributes:
        node: The node that it runs on.
        pid: Its process there.
        device: What it computes on.
        memory: Bytes of the GPU; None where it is not known.
        rate: Images a second, measured.
    """

    node: str
    pid: int
    device: str
    memory: int | None
    rate: float


class GpuActor:
    """Answers batches with TensorFlow.

    Args:
        order: Object reference of what with. In a list, Ray does not fetch it before the actor does.
    """

    def __init__(self, order: list[ray.ObjectRef[GpuOrder]]) -> None:
        # Only what cannot fail, as in `ShardActor`: it would reach nobody without its kind.
        begin_worker()
        self._order = order[0]
        self._lock = threading.Lock()
        self._scorer: Any = None
        self._refused: NightreadError | None = None

    def ready(self, size: int) -> Ready:
        """Build the network, test it and measure it with batches of `size`.

        Raises:
            UsageError: If TensorFlow sees no GPU.
            ModelRefused: If the network cannot be built, or answers otherwise than LiteRT.
        """
        scorer = self._tested()
        memory = [gpu.memory for gpu in gpus_here() if gpu.memory is not None] if scorer.on_gpu else []
        node = ray.get_runtime_context().get_node_id()
        return Ready(node, os.getpid(), scorer.device, min(memory, default=None), scorer.rate(size))

    def back(self) -> None:
        """Return as soon as batches can be answered."""
        self._tested()

    def answer(self, pictures: Pictures, size: int) -> Answers:
        """Answer uint8 `[n, S, S, 3]` with float32 `[n, K]`, computed as a batch of `size`."""
        scorer = self._tested()
        try:
            answers: Answers = scorer(pictures, size)
        except scorer.device_errors:
            # Nobody knows what state a device is in that fails after it has passed its test: Ray starts a new process,
            # which is tested again, and asks it the same.
            os._exit(1)
        return answers

    def _tested(self) -> Any:
        """The scorer; also after a restart, maybe on another device, no batch is answered before its self-test."""
        with self._lock:
            if self._refused is not None:
                raise self._refused
            if self._scorer is None:
                from pipelines.scoring.tensorflow_scorer import TensorFlowScorer  # the only place that loads it

                order = ray.get(self._order)
                try:
                    scorer = TensorFlowScorer(order.bundle, order.arrays, order.on_gpu, FEEDING_CORES)
                    scorer.check(order.wanted)
                except NightreadError as error:
                    self._refused = error
                    raise
                self._scorer = scorer
            return self._scorer


@dataclass(frozen=True)
class GpuAddress:
    """Where an actor with a GPU is found."""

    handle: Any
    node: str


class GpuServer:
    """An actor with a GPU as one decoding actor sees it; a `Server`.

    Args:
        address: Where it is.
        seconds: How long an answer is waited for.
        sizes: Batch sizes that it computes, rising.
    """

    def __init__(self, address: GpuAddress, seconds: float, sizes: tuple[int, ...]) -> None:
        self.near = address.node == ray.get_runtime_context().get_node_id()
        self._handle = address.handle
        self._seconds = seconds
        self._sizes = sizes
        self._sign: Any = None

    def here(self) -> bool:
        """Whether it may be asked: it was not lost, or has given a sign of life since."""
        if self._sign is None:
            return True
        if not ray.wait([self._sign], timeout=0)[0]:
            return False
        try:
            ray.get(self._sign)
        except ray.exceptions.RayError:
            self._wait_for_sign()
            return False
        self._sign = None
        return True

    def ask(self, pictures: Pictures) -> Callable[[], Answers]:
        """Send a batch; what is returned waits for its answers, or raises `Away`."""
        try:
            answers = self._handle.answer.remote(pictures, padded(len(pictures), self._sizes))
        except ray.exceptions.RayError as error:  # the object store is full
            raise Away from error

        def answer() -> Answers:
            try:
                found: Answers = ray.get(answers, timeout=self._seconds)
            except ray.exceptions.RayError as error:
                self._wait_for_sign()
                raise Away from error
            return found

        return answer

    def _wait_for_sign(self) -> None:
        self._sign = self._handle.back.remote()


@dataclass(frozen=True)
class SplitKernel:
    """Makes, in a decoding actor, what sends its images to the GPUs.

    Attributes:
        io: How LiteRT is fed and read, where no GPU answers.
        addresses: The actors with a GPU.
        sizes: Batch sizes that they compute, rising; the last is that of a full one.
        in_flight: Batches under way.
        answer_seconds: How long one is waited for.
    """

    io: ScorerIO
    addresses: tuple[GpuAddress, ...]
    sizes: tuple[int, ...]
    in_flight: int
    answer_seconds: float

    def __call__(self, model: bytes) -> BatchKernel:
        """Find the GPUs, each decoding actor beginning with another one; LiteRT is loaded once it is needed."""
        first = os.getpid() % len(self.addresses)
        turned = (*self.addresses[first:], *self.addresses[:first])
        servers = [GpuServer(address, self.answer_seconds, self.sizes) for address in turned]
        return BatchKernel(servers, lambda: Scorer(model, self.io), self.sizes[-1], self.in_flight)


def cluster_gpus() -> ClusterGpus:
    """Ask Ray which GPUs there are."""
    promised = 0
    # Ray has no public question for what its autoscaler may start, and the older one tells nobody: then only what runs
    # counts.
    with contextlib.suppress(Exception):
        from ray._private.state import state

        promised = int((state.get_max_resources_from_cluster_config() or {}).get("GPU", 0))
    cluster: Any = ray  # these two are untyped
    there, free = cluster.cluster_resources().get("GPU", 0), cluster.available_resources().get("GPU", 0)
    return ClusterGpus(int(there), int(free), promised)


def store_bytes() -> int | None:
    """Bytes of the object store, all nodes together; None where Ray does not tell."""
    cluster: Any = ray
    told = int(cluster.cluster_resources().get("object_store_memory", 0))
    return told or None


class GpuActors:
    """The actors with a GPU of one command; they end with the `with` block.

    Args:
        order: What they answer with.
    """

    def __init__(self, order: GpuOrder) -> None:
        self._on_gpu = order.on_gpu
        # Held here as long as an actor may have to be started again.
        self._order = ray.put(order)
        self._started: list[Any] = []

    def __enter__(self) -> GpuActors:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._started:
            with contextlib.suppress(Exception):  # whatever Ray says of one that is gone already
                ray.kill(handle)

    def start(self, count: int, size: int) -> Iterator[tuple[GpuAddress, Ready]]:
        """Start some more; yields each once it has passed its self-test.

        Args:
            count: How many.
            size: Images in the batches that they are measured with.

        Raises:
            UsageError, ModelRefused: As `GpuActor.ready`.
            TryLater: If one does not start.
        """
        kind: Any = ray.remote(GpuActor)
        kind = kind.options(
            num_cpus=FEEDING_CORES,
            num_gpus=1 if self._on_gpu else 0,
            max_restarts=RESTARTS,
            max_task_retries=-1,
            max_concurrency=AT_ONCE,
        )
        started = [kind.remote([self._order]) for _ in range(count)]
        self._started += started
        until = time.monotonic() + START_SECONDS
        for handle, answer in [(handle, handle.ready.remote(size)) for handle in started]:
            try:
                ready: Ready = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
            except ray.exceptions.GetTimeoutError as error:
                raise TryLater(
                    f"No GPU answered within {START_SECONDS:.0f} s.",
                    "Look whether the cluster's GPU nodes start, or say --engine direct.",
                ) from error
            except ray.exceptions.RayError as error:
                raise _explained(error) from error
            yield GpuAddress(handle, ready.node), ready


def _explained(error: ray.exceptions.RayError) -> Exception:
    found = understood(error)
    if isinstance(found, NightreadError):
        return found
    # TensorFlow itself failed on that node: what it says is for who looks after it.
    cause = getattr(error, "cause", None) or error
    text = (str(cause).strip().splitlines() or [""])[0][:200]
    return TryLater(
        f"TensorFlow cannot compute on a GPU node: {type(cause).__name__} {text}".rstrip(". ") + ".",
        "Look at its driver and memory, or say --engine direct.",
    )
