"""A fit on the workers of a Ray cluster: Ray Train starts them, TensorFlow joins them, the driver hears each epoch."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import ray
from ray.util.placement_group import get_current_placement_group, remove_placement_group

from pipelines.errors import NightreadError, TryLater
from pipelines.models.backbones import import_keras
from pipelines.scoring.worker_process import begin_worker
from pipelines.training.history import Row
from pipelines.training.job import FitJob
from pipelines.training.loop import FitResult, finished_fit, fit_job
from pipelines.training.mailbox import Mailbox
from pipelines.training.resources import Resources
from pipelines.training.steps import Place

MOST_DEATHS = 3
"""So many deaths of workers in a row without one more epoch end the fit."""
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_END = 30.0
"""For Ray Train to notice that its workers are gone: a thread that asks Ray after its end would end this process."""


def train_on_ray(job: FitJob, resources: Resources, tell: Callable[[Row], None]) -> FitResult:
    """Train on the cluster that this process is connected to.

    A worker that dies has the whole group started anew, from the checkpoint. What the workers raise as an error of
    ours is raised here, as they raised it.

    Args:
        job: What to train on what.
        resources: As `choose_resources` answers.
        tell: Called with each row of the history, once.

    Raises:
        UsageError: If the loss stops being a number.
        TryLater: If workers die again and again, or the cluster does not give them room.
    """
    earlier = finished_fit(job)
    if earlier is not None:
        for row in earlier.history:
            tell(row)
        return earlier
    import_keras()  # Ray Train imports TensorFlow, and would do it aloud
    told, deaths = 0, 0
    while True:
        before = told
        failure, told = _fit_once(job, resources, tell, told)
        if failure is None:
            break
        deaths = deaths + 1 if told == before else 1
        _raise_understood(failure)
        if deaths >= MOST_DEATHS:
            raise TryLater(
                f"A training worker died {deaths} times in epoch {told + 1}, and no epoch was finished between.",
                "See whether the machine has memory enough; the same command goes on after the last checkpoint.",
            ) from failure
    result = finished_fit(job)
    if result is None:
        raise TryLater(f"The checkpoint {job.checkpoint} is not there any more.", "Run the same command again.")
    return result


def _fit_once(
    job: FitJob, resources: Resources, tell: Callable[[Row], None], told: int
) -> tuple[Exception | None, int]:
    """Start a group of workers and wait for its end.

    Returns:
        What it failed with, and the last epoch that was told.
    """
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    failures: list[Exception] = []
    # Python takes a thread for ended whose `join` was interrupted.
    ended = threading.Event()

    def fit() -> None:
        try:
            _run_trainer(job, resources, mailbox)
        except Exception as error:
            failures.append(error)
        finally:
            ended.set()

    def hear() -> None:
        nonlocal told
        for row in ray.get(mailbox.take.remote()):
            if row["epoch"] > told:
                told = int(row["epoch"])
                tell(row)

    # Ray Train takes Ctrl-C over where it runs in the main thread; it is ours.
    threading.Thread(target=fit, name="fit", daemon=True).start()
    try:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            hear()
        hear()
        room = ray.get(mailbox.room.remote())
        if failures and room is not None:
            # What directs the workers may have died before it gave their cores back.
            remove_placement_group(room)
    except BaseException:
        # Ctrl-C, or the display: Ray Train ends by itself once its workers are gone.
        with contextlib.suppress(ray.exceptions.RayError):
            for worker in ray.get(mailbox.workers.remote(), timeout=SECONDS_TO_END):
                ray.kill(worker)
        ended.wait(SECONDS_TO_END)
        raise
    finally:
        ray.kill(mailbox)
    return (failures[0] if failures else None), told


def _run_trainer(job: FitJob, resources: Resources, mailbox: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="nightread-train-") as folder:
        from ray.train import BackendConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.config import FailureConfig  # ray.train's own name hides its arguments

        trainer = _trainer()(
            _work,
            # Ray's own would have the controller import TensorFlow before the workers do, which takes as long again,
            # and ask for the Keras of old, which our models are not. `_join` does what is left of it.
            tensorflow_config=cast(Any, BackendConfig()),
            train_loop_config={"job": job, "resources": resources, "mailbox": mailbox, "folder": folder},
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
            ),
            # Restarts are counted here: an error of ours must not be tried again, and an epoch done forgives a death.
            run_config=RunConfig(
                name="fit",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        trainer.fit()


_NOT_NEEDED = ("DatasetsCallback", "PlacementGroupCleanerCallback")


def _trainer() -> Any:
    """Ray Train's trainer without two actors that a fit does not need.

    One deals datasets of Ray Data out; the other gives cores back when the first of Ray Train's own dies, and takes
    twelve seconds to end where the cluster has no dashboard. Where a later Ray makes its callbacks elsewhere, both are
    started as before.
    """
    from ray.train.tensorflow import TensorflowTrainer

    base: Any = TensorflowTrainer

    class Trainer(base):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            made: list[Any] = super()._create_default_callbacks()
            return [callback for callback in made if type(callback).__name__ not in _NOT_NEEDED]

    return Trainer


def _work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    from ray.train import get_context

    begin_worker()
    if os.path.isdir(config["folder"]):
        # On this machine the driver removes what a killed worker, and TensorFlow in every worker, leaves behind.
        tempfile.tempdir = config["folder"]
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    import_keras()  # takes seconds, in which another program could take the port that is said below
    job, resources, mailbox = config["job"], config["resources"], config["mailbox"]
    context: Any = get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    addresses = _meet(mailbox, workers, rank)
    if workers > 1:
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        os.environ["TF_CONFIG"] = json.dumps(task)
    strategy = _join(workers, resources)
    place = Place(strategy, rank, workers, resources.cpus)
    sent: list[Any] = []

    def tell(row: Row) -> None:
        # The answer to the last row is awaited while this one is on its way: no epoch waits for the driver, and a
        # driver that has gone ends the fit.
        sent.append(mailbox.tell.remote(row))
        if len(sent) > 1:
            ray.get(sent.pop(0))

    fit_job(job, place, tell)
    ray.get(sent)


def _meet(mailbox: Any, workers: int, rank: int) -> list[str]:
    """Tell where this worker is and wait for the others; Ray Train ends those that wait for a dead one.

    Returns:
        Where TensorFlow reaches each, by rank.
    """
    addresses: list[str] = []
    host = str(cast(Any, ray.util).get_node_ip_address())
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    room = get_current_placement_group()
    ray.get(mailbox.enter.remote(ray.get_runtime_context().current_actor, rank, address, room))
    while len(addresses) < workers:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        addresses = ray.get(mailbox.addresses.remote())
    return addresses


def _join(workers: int, resources: Resources) -> Any:
    """Have TensorFlow use what this worker was given, and join the others.

    Returns:
        The strategy; None for one worker.
    """
    import tensorflow as tf

    use_resources(resources.cpus, on_gpu=resources.gpus > 0)
    return tf.distribute.MultiWorkerMirroredStrategy() if workers > 1 else None


def use_resources(cpus: int, on_gpu: bool) -> None:
    """Have TensorFlow use what this process was given, and answer the same each time; before it computes anything.

    Args:
        cpus: Cores, at least 1.
        on_gpu: Whether it was given a GPU, or a part of one.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cpus)
    # With one thread for whole operations, one that waits for other workers would block what they wait for.
    tf.config.threading.set_inter_op_parallelism_threads(max(2, cpus))
    if not on_gpu:
        tf.config.set_visible_devices([], "GPU")
    for card in tf.config.get_visible_devices("GPU"):
        tf.config.experimental.set_memory_growth(card, True)
    tf.config.experimental.enable_op_determinism()


def _raise_understood(failure: Exception) -> None:
    """Raise what the same command would only meet again; return where a worker just died."""
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(failure, WorkerGroupError):
        errors = list(failure.worker_failures.values())
        for error in errors:
            if isinstance(error, NightreadError):
                raise error from failure
        lost = [error for error in errors if _is_loss(error)]
        if not lost:
            raise failure  # a defect of ours in the worker: its traceback belongs on the screen
    elif isinstance(failure, ControllerError):
        name = type(failure.controller_failure).__name__
        if name == "WorkerGroupStartupTimeoutError":
            raise TryLater(
                "The cluster gave the training workers no room within a minute.",
                "Wait until others are done, or say fewer --workers.",
            ) from failure
    elif not isinstance(failure, ray.exceptions.RayError):
        raise failure


def _is_loss(error: Exception) -> bool:
    """Whether a worker died, or failed because another one did."""
    if type(error).__module__.startswith("tensorflow"):
        return type(error).__name__ in ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
    return isinstance(error, ray.exceptions.RayError) or type(error).__module__.startswith("ray.")
