"""Which engine scores a run: LiteRT in the actors that decode (`direct`), or GPUs that they send batches to (`split`).

Both give the same rows, to 1e-4 of a probability, so a run that one of them began may be finished by the other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import NightreadError, UsageError
from pipelines.models.bundle import WEIGHTS_FILE, Bundle
from pipelines.models.golden import golden_images
from pipelines.models.runtime import Scorer
from pipelines.scoring.config import ScoreConfig
from pipelines.scoring.report import ASKED_FOR, NO_GPU
from pipelines.scoring.scorer import KernelMaker, ScoreKernel
from pipelines.scoring.sizing import DECODER_CORES, ClusterGpus, Machines, Rates, SplitPlan, plan_split

if TYPE_CHECKING:
    from pipelines.scoring.gpu_actors import GpuAddress, Ready

_DIRECT = "Say --engine direct: LiteRT answers on processors."


@dataclass(frozen=True)
class Engine:
    """What scores.

    Attributes:
        name: `direct` or `split`.
        kernel: Makes what answers for an image.
        least: Decoding actors that the pool begins with.
        most: Decoding actors that it grows to.
        at_once: How many can really run at once.
        cores: What each takes of a core.
        facts: What `run.json` says of it.
    """

    name: str
    kernel: KernelMaker
    least: int
    most: int
    at_once: int
    cores: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def open_engine(config: ScoreConfig, bundle: Bundle, size: Any) -> Iterator[Engine]:
    """Choose the engine and hold its GPUs for a `with` block; Ray must be connected.

    `auto` takes GPUs that are free, that TensorFlow sees, whose answers are LiteRT's, and that make the night shorter;
    whatever speaks against one of these is a reason for the direct engine and no error.

    Args:
        config: What was asked for.
        bundle: The model, whose LiteRT scorer has passed its self-test.
        size: The cluster: `cpus`, `nodes`, `local`, `may_carry_pixels`.

    Raises:
        UsageError: If the split engine was asked for and cannot be had.
        ModelRefused: If it was, and TensorFlow answers otherwise than LiteRT there.
        TryLater: If it was, and no GPU answers.
    """
    if config.engine == "direct":
        yield _direct(config, bundle, size, ASKED_FOR)
        return
    with contextlib.ExitStack() as stack:
        try:
            found = _split(config, bundle, size, stack)
        except NightreadError as error:
            if config.engine == "split":
                raise
            found = error.message
        if isinstance(found, str):
            stack.close()
            found = _direct(config, bundle, size, found)
        yield found


def check_rebuildable(bundle: Bundle, precision: str) -> None:
    """Refuse a model that only LiteRT can answer with.

    Raises:
        UsageError: If its network is not known, or 8-bit answers are asked for, which TensorFlow does not give.
    """
    from pipelines.models.rebuild import why_not_rebuilt

    if precision != "float32":
        raise UsageError(f"GPUs answer in float32, and --precision {precision} was asked for.", _DIRECT)
    if reason := why_not_rebuilt(bundle):
        raise UsageError(f"The split engine builds a model's network again. {reason}", _DIRECT)


def check_encrypted(size: Any) -> None:
    """Refuse to send pixels between nodes in the clear.

    Args:
        size: The cluster: `nodes`, `may_carry_pixels`.

    Raises:
        UsageError: If it must not carry them.
    """
    if not size.may_carry_pixels:
        raise UsageError(
            f"The split engine sends pixels between the cluster's {size.nodes} nodes, and Ray's TLS is off.",
            "Set it up on every node and here (RAY_USE_TLS=1 and its certificates), say --engine direct, or "
            "--insecure if nobody else can read that network.",
        )


def why_direct(config: ScoreConfig, bundle: Bundle, size: Any, gpus: ClusterGpus) -> str:
    """Why `auto` does without GPUs, as far as that is known before one is asked; "" where nothing speaks against them.

    Args:
        config: What was asked for.
        bundle: The model.
        size: As for `open_engine`.
        gpus: Of the cluster. Where a Ray of this command's own has none, a processor stands in for one.

    Raises:
        UsageError: If the split engine cannot score this.
    """
    if config.engine == "auto" and not gpus.free:
        return "the cluster's GPUs are in use" if gpus.there else NO_GPU
    check_rebuildable(bundle, config.precision)
    if _cores(config, size) < 2:
        raise UsageError("The split engine needs two cores: one decodes, one feeds the GPU.", _DIRECT)
    check_encrypted(size)
    if not (size.local or gpus.there or gpus.promised):
        raise UsageError(
            "The split engine was asked for, and the cluster has no GPU and tells of none that it could start.",
            "Have one running when the night begins, or say --engine direct.",
        )
    return ""


def _cores(config: ScoreConfig, size: Any) -> int:
    """Cores to plan for: those of a cluster may be started when actors ask for them."""
    wanted = config.pool.most or 0
    return int(size.cpus if size.local else max(size.cpus, wanted))


def _direct(config: ScoreConfig, bundle: Bundle, size: Any, why: str) -> Engine:
    _, io = bundle.scorer(config.precision)
    least, most = config.pool.within(size.cpus)
    # On this machine no more actors can run than there are cores; a joined cluster may grow.
    at_once = min(most, size.cpus) if size.local else most
    return Engine("direct", ScoreKernel(io), least, most, at_once, facts={"name": "direct", "why": why})


def _split(config: ScoreConfig, bundle: Bundle, size: Any, stack: contextlib.ExitStack) -> Engine | str:
    """The split engine with its GPUs held by `stack`; or why `auto` does without it."""
    from pipelines.scoring.gpu_actors import GpuActors, GpuOrder, cluster_gpus, store_bytes

    gpus = cluster_gpus()
    if reason := why_direct(config, bundle, size, gpus):
        return reason
    asked = config.engine == "split"
    wanted, kernel_rate = _golden(bundle)
    number = gpus.free or gpus.there or gpus.promised
    actors = stack.enter_context(GpuActors(GpuOrder(bundle, bundle.read(WEIGHTS_FILE), wanted, number > 0)))
    number = max(1, number)
    cores, shard = _cores(config, size), config.images_a_shard
    machines = Machines(cores, number, store=store_bytes())
    batch = plan_split(machines, Rates(kernel=kernel_rate), bundle.input_size, shard).batch
    found = list(actors.start(1, batch))
    ready = found[0][1]
    machines = replace(machines, gpu_memory=ready.memory)
    plan = plan_split(machines, Rates(kernel=kernel_rate, gpu=ready.rate), bundle.input_size, shard)
    if not asked and not plan.worth_it:
        return f"GPUs would give {plan.split_rate:,.0f} images/s and the cores alone {plan.direct_rate:,.0f}"
    found += actors.start(plan.gpus - 1, batch)
    return _of_plan(config, bundle, size, plan, found, ASKED_FOR if asked else "faster")


def _of_plan(
    config: ScoreConfig, bundle: Bundle, size: Any, plan: SplitPlan, found: list[tuple[GpuAddress, Ready]], why: str
) -> Engine:
    from pipelines.scoring.gpu_actors import SplitKernel

    _, io = bundle.scorer("float32")
    addresses = tuple(address for address, _ in found)
    kernel = SplitKernel(io, addresses, plan.sizes, plan.in_flight, plan.answer_seconds)
    facts = {
        "name": "split",
        "why": why,
        "devices": sorted({ready.device for _, ready in found}),
        "gpus": len(found),
        "decoders": plan.decoders,
        "batch": plan.batch,
        "gpu_images_per_second": round(sum(ready.rate for _, ready in found), 1),
    }
    # A pool that was asked for may grow with its cluster, as far as the GPUs can answer.
    most = min(config.pool.most or plan.decoders, plan.decoders if size.local else plan.useful)
    least = min(config.pool.least or plan.decoders, most)
    return Engine("split", kernel, least, most, most, DECODER_CORES, facts)


def _golden(bundle: Bundle) -> tuple[npt.NDArray[np.float32], float]:
    """What LiteRT answers to the golden images here, float32 `[6, K]`, and images a second of one core."""
    scorer, images = Scorer(*bundle.scorer("float32")), golden_images(bundle.input_size)
    answers = [scorer(images[0])]  # the first one takes longer
    began = time.perf_counter()
    answers += [scorer(image) for image in images[1:]]
    return np.stack(answers), len(answers[1:]) / (time.perf_counter() - began)
