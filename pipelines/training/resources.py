"""What a fit takes of a cluster, and what it must be able to reach there. Plain Python: no Ray, no TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.errors import UsageError
from pipelines.training.reach import refuse_unseen


class Cluster(Protocol):
    """What must be known of a cluster.

    Attributes:
        node_cpus: Processor cores of each node that is alive.
        node_gpus: GPUs of each, in the same order.
    """

    @property
    def node_cpus(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def node_gpus(self) -> tuple[int, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class Resources:
    """What a fit takes of a cluster.

    Attributes:
        workers: Processes that share each batch.
        cpus: Cores of each.
        gpus: GPUs of each; 0 trains on the cores.
    """

    workers: int = 1
    cpus: int = 1
    gpus: int = 0


def parse_resources(text: str) -> dict[str, int]:
    """Read `--resources cpu=2,gpu=1`.

    Returns:
        What was said of `cpu` and `gpu`.

    Raises:
        UsageError: If it is anything else.
    """
    said: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ("cpu", "gpu") or not value.isdigit() or (name == "cpu" and value.strip("0") == ""):
            raise UsageError(
                f"--resources {text!r} is not understood at {part!r}.",
                "Say whole numbers for each worker, as cpu=2 or cpu=2,gpu=1.",
            )
        said[name] = int(value)
    return said


def choose_resources(workers: int, said: dict[str, int], cluster: Cluster) -> Resources:
    """What each worker gets: what was said, else its share of what the cluster has.

    Args:
        workers: At least 1.
        said: As `parse_resources` answers.
        cluster: Its nodes.

    Raises:
        UsageError: If the cluster has no room for them, naming what there is.
    """
    gpus = said.get("gpu", 1 if _room(cluster, 0, 1) >= workers else 0)
    shares = range(max(cluster.node_cpus, default=1), 0, -1)
    cpus = said.get("cpu", next((share for share in shares if _room(cluster, share, gpus) >= workers), 1))
    if _room(cluster, cpus, gpus) < workers:
        need, nodes = _said(cpus, gpus), zip(cluster.node_cpus, cluster.node_gpus, strict=True)
        have = ", ".join(_said(*node) for node in nodes)
        most = _room(cluster, cpus, gpus)
        raise UsageError(
            f"--workers {workers} with {need} each do not fit the cluster, whose nodes have {have}.",
            f"Say --workers {most}, or fewer --resources for each." if most else "Say fewer --resources for each.",
        )
    return Resources(workers, cpus, gpus)


def _said(cpus: int, gpus: int) -> str:
    cores = f"{cpus} core" + "s" * (cpus != 1)
    return cores + (f" and {gpus} GPU" + "s" * (gpus != 1) if gpus else "")


def _room(cluster: Cluster, cpus: int, gpus: int) -> int:
    """How many workers of this kind fit, none of them across two nodes."""
    nodes = zip(cluster.node_cpus, cluster.node_gpus, strict=True)
    return sum(min(cores // cpus if cpus else cores, cards // gpus if gpus else cores) for cores, cards in nodes)


def checking(
    connect: Callable[[], AbstractContextManager[Any]], workers: int, said: dict[str, int], work: str
) -> Callable[[], AbstractContextManager[Any]]:
    """What connects and refuses, before anything is computed there, a cluster on which training could not end.

    Args:
        connect: Starts or joins Ray, and yields a `Cluster`.
        workers: As for `choose_resources`.
        said: Likewise.
        work: Where caches and checkpoints lie.

    Returns:
        `connect` that raises `UsageError` where the workers have no room, or do not reach what the driver writes.
    """

    @contextlib.contextmanager
    def checked() -> Iterator[Any]:
        with connect() as cluster:
            choose_resources(workers, said, cluster)
            if cluster.nodes > 1:
                refuse_unseen(work)
            yield cluster

    return checked
