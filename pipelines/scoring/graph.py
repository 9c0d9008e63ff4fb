"""The Ray Data graph: blocks of shard numbers to a pool of actors, receipts back to the driver.

Only shard numbers and receipts cross the object store. Actors read their rows of the plan themselves, so the
driver's memory does not grow with the archive.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray._private import state, worker
from ray.data import ActorPoolStrategy, DataContext

from pipelines.errors import NightreadError, TryLater, last_line
from pipelines.scoring import head
from pipelines.scoring.parts import ClosingFile, PlanFile, blocks_of, open_plan
from pipelines.scoring.patience import patiently
from pipelines.scoring.scorer import Receipt, ShardScorer, ShardWork
from pipelines.scoring.worker_check import installed, refuse_others
from pipelines.scoring.worker_process import begin_worker

SHARDS_PER_BLOCK = 16
# Enough blocks that actors finish together and receipts come often, where there are shards enough.
BLOCKS_PER_ACTOR = 8
# One block at work and one waiting: more only leaves the last actors idle at the end.
BLOCKS_IN_FLIGHT = 2


Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pool:
    """An autoscaling actor pool.

    Attributes:
        least: Actors that it begins with.
        most: Actors that it grows to.
        cores: What each takes of a core.
    """

    least: int
    most: int
    cores: float = 1.0


class ShardActor:
    """What Ray runs: a `ShardScorer` that fetches its plan rows by itself.

    Args:
        work: What to do.
        model: Object reference of the model's bytes: one copy a node, however many actors.
        versions: Of what decides, as the driver has them: a node may have come later than the driver's look at all.
    """

    def __init__(self, work: ShardWork, model: ray.ObjectRef[bytes], versions: Mapping[str, str]) -> None:
        # Only what cannot fail: an error in here would reach the driver without its kind. The rest is made by the first
        # block.
        begin_worker()
        self._work = work
        self._model = model
        self._versions = versions
        self._closing = ClosingFile(work.folder) if work.may_close else None
        self._open = contextlib.ExitStack()
        self._ready: tuple[ShardScorer, PlanFile] | None = None
        self._group = -1
        self._images: dict[int, pa.Table] = {}
        self._name = f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}"

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Score the shards of a block (its one row: `shards`, `suspects`); yields one receipt for each begun."""
        if self._ready is None:
            refuse_others(self._versions, installed(), f"node {socket.gethostname()}", "the driver's machine")
            plan = self._patiently(lambda: self._open.enter_context(open_plan(self._work.folder)))
            self._ready = ShardScorer(self._work, ray.get(self._model)), plan
        scorer, plan = self._ready
        row = block.to_pylist()[0]
        for shard, suspect, next_one in zip(row["shards"], row["suspects"], [*row["shards"][1:], None], strict=True):
            if self._closing is not None and self._closing():
                break
            following = None if next_one is None else self._rows(plan, next_one)
            receipt = scorer.score(shard, self._rows(plan, shard), suspect, self._name, following)
            yield pa.table({"receipt": [json.dumps(vars(receipt))]})

    def _patiently(self, action: Callable[[], Answer]) -> Answer:
        return patiently(action, self._work.patience_seconds)

    def _rows(self, plan: PlanFile, shard: int) -> pa.Table:
        group = plan.group_of(shard)
        if group != self._group:
            self._images = self._patiently(lambda: plan.read_group(group))
            self._group = group
        return self._images[shard]


def this_node() -> str:
    """The node that this process runs on, as the names of its actors begin."""
    return str(ray.get_runtime_context().get_node_id())


def _minded() -> AbstractContextManager[head.Head]:
    """Look after the head of this process's Ray, and its daemon on this machine."""
    connected: Any = worker
    node = connected.global_worker.node
    here, own = this_node(), bool(node.is_head())
    draining = None if own else lambda: here in state.state.get_draining_nodes()
    return head.minded(ray.get_runtime_context().gcs_address, node.raylet_socket_name, own, draining)


def of_cluster() -> str:
    """Say what the cluster has, for a night that shows nothing."""
    if not head.answers(ray.get_runtime_context().gcs_address):
        return "the head of the cluster does not answer"
    cluster: Any = ray
    cores = [node["Resources"].get("CPU", 0) for node in cluster.nodes() if node["Alive"]]
    free = cluster.available_resources().get("CPU", 0)
    return f"of the cluster's cores ({sum(cores):,.0f} on {len(cores):,} nodes) {free:,.0f} are free"


def score_shards(
    work: ShardWork,
    model: bytes,
    shards: list[int],
    plan: PlanFile,
    pool: Pool,
    on_receipt: Callable[[Receipt], None],
) -> None:
    """Score shards on a pool of actors; returns when the last part is written, or the run is closing.

    Args:
        work: What each actor must know.
        model: Bytes of the LiteRT model.
        shards: Shards to score.
        plan: The run's plan.
        pool: Size of the pool.
        on_receipt: Called on the driver for every finished shard; what it raises ends the scoring.

    Raises:
        NightreadError: What an actor raised, as it raised it.
        TryLater: If Ray itself failed, or the head of the cluster is gone.
    """
    if not shards:
        return
    per_block = max(1, min(SHARDS_PER_BLOCK, len(shards) // (BLOCKS_PER_ACTOR * pool.most)))
    begun = work.folder.begun_shards()  # by an earlier driver, which did not finish them
    blocks = [
        {"shards": block, "suspects": [shard in begun for shard in block]}
        for block in blocks_of(shards, plan, per_block)
    ]
    _set_context()
    model_ref = ray.put(model)
    actors = min(pool.most, len(blocks))
    # One row a block. `from_arrow` would ask remote tasks what is in each block, and their workers start first.
    dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
        ShardActor,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=min(pool.least, actors),
            max_size=actors,
            initial_size=min(pool.least, actors),
            max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT,
        ),
        num_cpus=pool.cores,
        fn_constructor_kwargs={"work": work, "model": model_ref, "versions": installed()},
    )
    try:
        with _minded():
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                receipts: pa.Table = batch
                if not receipts.num_rows:
                    continue
                for text in receipts["receipt"].to_pylist():
                    on_receipt(Receipt(**json.loads(text)))
    except ray.exceptions.RayError as error:
        raise understood(error) from error


def _set_context() -> None:
    context: Any = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.enable_rich_progress_bars = False
    context.log_internal_stack_trace = False
    # A pool that waits for all its actors starts the night seconds later, and one that cannot grow would never start.
    context.wait_for_min_actors_s = -1


def understood(error: ray.exceptions.RayError) -> Exception:
    """What an actor raised, as it raised it; else what Ray says, as something that waiting helps."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NightreadError):
            return seen
        cause = getattr(seen, "cause", None)
        if isinstance(cause, NightreadError):
            return cause
        seen = seen.__cause__
    if isinstance(error, ray.exceptions.RayTaskError):
        return error  # a defect of ours in the actor: its traceback belongs on the screen
    return TryLater(
        f"Ray stopped the scoring: {last_line(error)}.", "The same command goes on from the finished shards."
    )
