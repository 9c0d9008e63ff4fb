"""What a trial gets of a cluster, and whether the cluster can ever give it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.errors import UsageError

LEAST = 0.01
SECONDS_TO_GROW = 30.0
"""An autoscaler that can meet a demand starts a node within this time; it looks every few seconds."""
SECONDS_TO_START = 900.0
"""So long at most is waited for nodes that are being started."""
SECONDS_BETWEEN_LOOKS = 1.0


class Cluster(Protocol):
    """What must be known of a cluster.

    Attributes:
        node_cpus: Processor cores of each node that is alive.
        node_gpus: GPUs of each, in the same order.
        local: True where it is this machine alone, which does not grow.
    """

    @property
    def node_cpus(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def node_gpus(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def local(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class TrialRoom:
    """What each trial gets.

    Attributes:
        cpus: Cores, or a part of one.
        gpus: GPUs, or a part of one; 0 trains on the cores.
    """

    cpus: float = 1
    gpus: float = 0

    def said(self) -> str:
        """For a person: `1 core`, `0.5 cores and 0.25 GPUs`."""
        parts = [(self.cpus, "core"), (self.gpus, "GPU")]
        return " and ".join(f"{amount:g} {name}" + "s" * (amount != 1) for amount, name in parts if amount)

    def fits(self, cpus: float, gpus: float) -> bool:
        """Whether one fits a node of so much."""
        return self.cpus <= cpus and self.gpus <= gpus


def parse_room(text: str) -> dict[str, float]:
    """Read `--resources cpu=0.5,gpu=0.25`.

    Returns:
        What was said of `cpu` and `gpu`.

    Raises:
        UsageError: If it is anything else, says one of them twice, or is an amount that Ray cannot give: above one
            only whole ones.
    """
    said: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        amount = _amount(value)
        if name not in ("cpu", "gpu") or amount is None or (name == "cpu" and amount == 0):
            raise UsageError(
                f"--resources {text!r} is not understood at {part!r}.",
                "Say what each trial gets, as cpu=2 or cpu=0.5,gpu=0.25; above one only whole numbers.",
            )
        if name in said:
            raise UsageError(f"--resources {text!r} says {name} twice.", "Say it once.")
        said[name] = amount
    return said


def _amount(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        amount = float(text)
        if amount == 0 or LEAST <= amount <= 1 or (amount > 1 and amount.is_integer()):
            return amount
    return None


def choose_room(said: Mapping[str, float], runs_backbone: bool, cluster: Cluster) -> TrialRoom:
    """What each trial gets: what was said, else a core, and a GPU where it has use of one.

    A head alone trains no faster on a GPU than on a core.

    Args:
        said: As `parse_room` answers.
        runs_backbone: Whether layers of a backbone run in some training.
        cluster: Its nodes.
    """
    has_gpu = any(cluster.node_gpus)
    return TrialRoom(said.get("cpu", 1), said.get("gpu", 1 if runs_backbone and has_gpu else 0))


def refuse_impossible(room: TrialRoom, cluster: Cluster) -> None:
    """Refuse what the cluster that this process is connected to can never give; it is not waited for.

    A living node that is large enough is enough. Else a cluster that is told how it may grow is asked; where it is
    not, the room is demanded, and an autoscaler shows what it can do by beginning to start a node.

    Args:
        room: Of one trial.
        cluster: Its nodes.

    Raises:
        UsageError: Naming the demand and what there is.
    """
    nodes = list(zip(cluster.node_cpus, cluster.node_gpus, strict=True))
    if any(room.fits(*node) for node in nodes):
        return
    kinds = [] if cluster.local else _node_types()
    if any(room.fits(*kind) for kind in kinds) or (not kinds and not cluster.local and _comes(room)):
        return
    have = ", ".join(dict.fromkeys(TrialRoom(*node).said() or "nothing" for node in nodes))
    could = ", ".join(dict.fromkeys(TrialRoom(*kind).said() or "nothing" for kind in kinds))
    grown = f", and it can add only nodes of {could}" if kinds else "" if cluster.local else ", and no other came"
    raise UsageError(
        f"A trial needs {room.said()}, and no node of the cluster has that: its nodes have {have}{grown}.",
        "Say less in --resources, as cpu=1.",
    )


def _node_types() -> list[tuple[float, float]]:
    """Cores and GPUs of the node types that can still be added; empty where nobody told the cluster."""
    import ray._private.state

    state: Any = ray._private.state.state
    config = state.get_cluster_config()
    types = [] if config is None else [kind for kind in config.node_group_configs if kind.max_count]
    return [(kind.resources.get("CPU", 0), kind.resources.get("GPU", 0)) for kind in types]


def _comes(room: TrialRoom) -> bool:
    """Demand the room once and see whether it comes, or a node for it is being started."""
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = {"CPU": room.cpus} | ({"GPU": room.gpus} if room.gpus else {})
    demand = placement_group([bundle])
    began = quiet_since = time.monotonic()
    try:
        while time.monotonic() - quiet_since < SECONDS_TO_GROW and time.monotonic() - began < SECONDS_TO_START:
            if demand.wait(SECONDS_BETWEEN_LOOKS):
                return True
            if _is_starting():
                quiet_since = time.monotonic()
    finally:
        remove_placement_group(demand)
    return False


def _is_starting() -> bool:
    """Whether the cluster's autoscaler, of either version, says that it is starting a node."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    told = _internal_kv_get("__autoscaling_status")
    first: dict[str, Any] = (json.loads(told).get("autoscaler_report") or {}) if told else {}
    second = get_cluster_status(ray.get_runtime_context().gcs_address)
    waited = (first.get("pending_launches"), first.get("pending_nodes"), second.pending_launches, second.pending_nodes)
    return any(waited)
