"""How large the two halves of the split graph are: actors that decode, and actors with a GPU that answer batches.

A rule and no measurement: it knows rates of one core and one GPU, and says how many of each go together, how large a
batch is, and whether all of it would be faster than scoring on the cores alone. `doctor` prints what it says here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Images a second that one core reads, checks and decodes (JPEGs of 1024x768 to 224 px).
DECODE_RATE = 300.0
# What LiteRT answers on one core: MobileNetV2 at 224 px.
KERNEL_RATE = 150.0
# What a small data-centre GPU answers of the same; nothing of ours has measured it, and an actor does when it starts.
GPU_RATE = 2500.0

# Feeds a GPU: calls TensorFlow, and copies pixels to the device.
FEEDING_CORES = 1
# A decoding actor waits for the last batch of each shard; with five actors on four cores another one decodes meanwhile.
DECODER_CORES = 0.8
IN_FLIGHT = 2
LARGEST_BATCH = 128
SMALLEST_BATCH = 8
# Two of the widest layers of the published backbones (64 channels of float32 each), and room to choose an algorithm.
BYTES_A_PIXEL = 1280
# Where a GPU does not say how much memory it has.
GPU_MEMORY = 8 << 30
# A restarted actor loads TensorFlow and builds its network first.
LEAST_PATIENCE = 60.0
# Below this gain the simpler graph is taken.
WORTH_IT = 1.1


@dataclass(frozen=True)
class Rates:
    """Images a second.

    Attributes:
        decode: One core that reads, checks and decodes.
        kernel: One core that answers with LiteRT.
        gpu: One GPU, or what stands in for it, that answers batches.
    """

    decode: float = DECODE_RATE
    kernel: float = KERNEL_RATE
    gpu: float = GPU_RATE


@dataclass(frozen=True)
class ClusterGpus:
    """GPUs of the cluster that this process is connected to.

    Attributes:
        there: On the nodes that run.
        free: Of these, which nobody uses.
        promised: On the nodes that an autoscaler may start, those that run included; 0 without one.
    """

    there: int
    free: int
    promised: int


@dataclass(frozen=True)
class Machines:
    """What there is to be shared out.

    Attributes:
        cores: Processor cores, all nodes together.
        gpus: GPUs, all nodes together; where one core stands in for a GPU, 1.
        gpu_memory: Bytes of the smallest of them; None where it is not known.
        store: Bytes of the object store that pixels may lie in, all nodes together; None where it is not known.
    """

    cores: int
    gpus: int
    gpu_memory: int | None = None
    store: int | None = None


@dataclass(frozen=True)
class SplitPlan:
    """How the split graph is made up.

    Attributes:
        gpus: Actors with a GPU.
        decoders: Actors that read, decode and write.
        useful: Of these, as many as the GPUs can answer: more, on cores that come later, only wait.
        batch: Images in a full batch.
        in_flight: Batches that a decoding actor has under way before it waits.
        answer_seconds: How long it waits for one before it takes the GPU for lost.
        split_rate: Images a second that this should give.
        direct_rate: What the same cores should give without a GPU.
    """

    gpus: int
    decoders: int
    useful: int
    batch: int
    in_flight: int
    answer_seconds: float
    split_rate: float
    direct_rate: float

    @property
    def worth_it(self) -> bool:
        """Whether the GPUs should make the night shorter."""
        return self.split_rate >= WORTH_IT * self.direct_rate

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that are ever computed, rising: TensorFlow prepares itself once for each."""
        return tuple(sorted({max(1, self.batch // 8), max(1, self.batch // 2), self.batch}))

    def sentence(self) -> str:
        """The plan for a person."""
        return (
            f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} for {self.decoders} decoding "
            f"actor{'s' if self.decoders > 1 else ''}, batches of {self.batch}, {self.in_flight} of each under way, "
            f"about {self.split_rate:,.0f} images/s"
        )


def plan_split(machines: Machines, rates: Rates, input_size: int, shard_size: int) -> SplitPlan:
    """Share cores and GPUs out.

    As many GPUs as the cores can feed; as many decoding actors as those GPUs can answer, and a quarter more, because
    they also wait; batches no larger than a shard, than half of the GPU's memory holds, and than what lets all that is
    under way lie in half of the object store.

    Args:
        machines: What there is: at least two cores and one GPU.
        rates: Measured or assumed.
        input_size: Side of the pictures, in pixels.
        shard_size: Images in a shard.
    """
    feedable = range(1, min(machines.gpus, machines.cores // (1 + FEEDING_CORES)) + 1)
    gpus = next((g for g in feedable if g * rates.gpu >= _decoding(machines, g) * rates.decode), feedable[-1])
    cores = _decoding(machines, gpus)
    useful = math.ceil(gpus * rates.gpu / rates.decode / DECODER_CORES)
    decoders = min(int(cores / DECODER_CORES), useful)
    batch = _batch(machines, input_size, shard_size, decoders)
    under_way = decoders * IN_FLIGHT * batch / (gpus * rates.gpu)
    return SplitPlan(
        gpus=gpus,
        decoders=decoders,
        useful=useful,
        batch=batch,
        in_flight=IN_FLIGHT,
        answer_seconds=max(LEAST_PATIENCE, 10 * under_way),
        split_rate=min(cores * rates.decode, gpus * rates.gpu),
        direct_rate=direct_rate(machines.cores, rates),
    )


def direct_rate(cores: int, rates: Rates) -> float:
    """Images a second where each core decodes and answers."""
    return cores / (1 / rates.decode + 1 / rates.kernel)


def padded(images: int, sizes: tuple[int, ...]) -> int:
    """The smallest of some rising sizes that holds so many images.

    Raises:
        ValueError: If none does.
    """
    for size in sizes:
        if images <= size:
            return size
    raise ValueError(f"{images} images in a batch of at most {sizes[-1]}")


def _decoding(machines: Machines, gpus: int) -> int:
    """Cores that are left to decode."""
    return machines.cores - gpus * FEEDING_CORES


def _batch(machines: Machines, input_size: int, shard_size: int, decoders: int) -> int:
    """The largest power of two within every limit, and at least `SMALLEST_BATCH`."""
    pixels = input_size * input_size
    limits = [LARGEST_BATCH, 1 << (shard_size - 1).bit_length()]
    limits.append((machines.gpu_memory or GPU_MEMORY) // 2 // (pixels * BYTES_A_PIXEL))
    if machines.store is not None:
        limits.append(machines.store // 2 // (decoders * IN_FLIGHT * pixels * 3))
    most = max(SMALLEST_BATCH, min(limits))
    return 1 << (most.bit_length() - 1)
