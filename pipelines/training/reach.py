"""Whether all nodes of a cluster see a place on disk: workers elsewhere read and write what the driver writes."""

from __future__ import annotations

import secrets
from typing import Any, cast

from pipelines.errors import TryLater, UsageError
from pipelines.storage import files, paths

SECONDS_TO_LOOK = 60.0


def refuse_unseen(place: str) -> None:
    """Refuse a folder that some node of the cluster that this process is connected to does not see.

    A file is written there and looked for by a task on each node. What lies in a bucket is seen by all.

    Args:
        place: Canonical folder.

    Raises:
        UsageError: If a node does not see it.
        TryLater: If a node does not answer, or the file cannot be written.
    """
    if not paths.is_local(place):
        return
    mark, token = paths.join(place, f".seen-{secrets.token_hex(8)}"), secrets.token_bytes(16)
    files.write_atomic(mark, token)
    try:
        blind = [node for node, seen in _looks(mark, token).items() if not seen]
    finally:
        files.delete(mark)
    if blind:
        raise UsageError(
            f"{place} is not the same folder on all nodes of the cluster: {', '.join(sorted(blind))} does not see what "
            "this machine writes there.",
            "Give a bucket (s3://…) or a folder on a disk that all nodes share, or leave --address out.",
        )


def sees(mark: str, token: bytes) -> bool:
    """Whether a file is here and holds these bytes."""
    try:
        return files.read_bytes(mark) == token
    except FileNotFoundError:
        return False


def _looks(mark: str, token: bytes) -> dict[str, bool]:
    """Node by its host's name: whether it sees the file."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in cast(Any, ray).nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=0)(sees)
    tasks = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(mark, token)
        for node in alive
    ]
    try:
        found = ray.get(tasks, timeout=SECONDS_TO_LOOK)
    except ray.exceptions.RayError as error:
        raise TryLater(
            f"Not all of {len(alive)} nodes answered within {SECONDS_TO_LOOK:g} s.", "See how the cluster does."
        ) from error
    return {node["NodeManagerHostname"]: seen for node, seen in zip(alive, found, strict=True)}
