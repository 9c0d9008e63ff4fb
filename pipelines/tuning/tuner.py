"""The driver's side of Ray Tune: trainings are handed out as there is room, and what becomes of them is passed on."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher

from pipelines.tuning.capacity import TrialRoom
from pipelines.tuning.points import FAILED
from pipelines.tuning.progress import TrialNews
from pipelines.tuning.scheduling import KEPT, Asha
from pipelines.tuning.trainable import Assignment, TrainingActor
from pipelines.tuning.trial import RUNNING, TrialSpec, TrialStanding

MOST_DEATHS = 3
"""So many deaths of its process end a training."""


class Tuning:
    """A run of Ray Tune, in a thread of its own.

    Args:
        specs: The trainings.
        room: What each gets.
        most: So many at a time, those that wait for room among them.
        scheduler: Ends poor trainings early; None ends none.
        metric: What the search ranks by.
        scratch: A temporary folder.

    Attributes:
        news: What has become of trainings, in order.
        failure: What ended it; None where nothing did.
    """

    def __init__(
        self,
        specs: Iterator[TrialSpec],
        room: TrialRoom,
        most: int,
        scheduler: Asha | None,
        metric: str,
        scratch: str,
    ) -> None:
        self.news: queue.SimpleQueue[TrialNews] = queue.SimpleQueue()
        self._room, self._scheduler, self._scratch = room, scheduler, scratch
        rungs = scheduler.rungs if scheduler else ()
        self._tasks = (Assignment(spec, metric, rungs, room, scratch) for spec in specs)
        self._most = most
        self._over = threading.Event()
        self.failure: BaseException | None = None
        self._listener = _Listener(self.news, self._fail)
        self._thread = threading.Thread(target=self._run, name="tune", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it is not over yet."""
        return self._thread.is_alive()

    def end(self, seconds: float) -> None:
        """End all trainings where they are, and wait for so long at most."""
        self._over.set()
        self._listener.kill()
        self._thread.join(seconds)

    def _fail(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        self._over.set()

    def _run(self) -> None:
        try:
            self._tune()
        except BaseException as error:
            self._fail(error)

    def _tune(self) -> None:
        bundle = {"CPU": self._room.cpus} | ({"GPU": self._room.gpus} if self._room.gpus else {})
        # `tune.Tuner` does the same and pickles all that it is given.
        tune.run(
            tune.with_resources(TrainingActor, tune.PlacementGroupFactory([bundle])),
            name="search",
            search_alg=_HandingOut(self._tasks, self._most),
            num_samples=-1,
            scheduler=_asynchronous_halving(self._scheduler) if self._scheduler else None,
            stop=_Ending(self._over),
            max_failures=MOST_DEATHS - 1,
            reuse_actors=True,
            storage_path=self._scratch,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[self._listener],
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            raise_on_failed_trial=False,
            verbose=0,
        )


def _asynchronous_halving(asha: Asha) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        "epoch", metric="score", mode="max", max_t=asha.epochs, grace_period=asha.first, reduction_factor=KEPT
    )


def _name(trial: Any) -> str:
    return str(trial.trial_id)


class _Ending(tune.Stopper):
    """Ends the run when it is told to.

    Args:
        over: Says so.
    """

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single training is ended."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes down all that it is given, and never reads it here."""
        return {}

    def stop_all(self) -> bool:
        """Whether all are to be ended."""
        return self._over.is_set()


class _HandingOut(Searcher):
    """Hands trainings out in their order, so many at a time.

    Args:
        tasks: Made one by one, as they are handed out.
        most: At a time.
    """

    def __init__(self, tasks: Iterator[Assignment], most: int) -> None:
        super().__init__()
        self._tasks, self._most = tasks, most
        self._next = next(tasks, None)
        self._out: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """The next one; None where there is no room for it, FINISHED after the last."""
        # Looking one ahead, so that an actor whose training was among the last is let go with it.
        if self._next is None:
            return Searcher.FINISHED
        if len(self._out) >= self._most:
            return None
        task, self._next = self._next, next(self._tasks, None)
        self._out.add(trial_id)
        return {"assignment": task}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Make room for another one."""
        self._out.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what a search resumes from is what has an answer."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Listener(tune.Callback):
    """Passes on what becomes of trainings; Tune calls it in its own thread.

    Args:
        news: Where to.
        fail: Called with what ends the search.
    """

    def __init__(self, news: queue.SimpleQueue[TrialNews], fail: Any) -> None:
        self._news, self._fail = news, fail
        self._actors: dict[str, Any] = {}

    def kill(self) -> None:
        """Kill the actors, as `kill -9` would."""
        for actor in list(self._actors.values()):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A training begins, or begins again, in a new actor or one that there is."""
        self._actors[trial.trial_id] = trial.temporary_state.ray_actor

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A step of it is done."""
        if "standing" in result:
            self._tell(trial, result["standing"])
        elif result.get("lacks_memory"):
            self._tell(trial, _lost("Its process had no memory left for what it computes on."))
        elif "raised" in result:
            self._fail(result["raised"])
        elif "defect" in result:
            self._fail(RuntimeError(result["defect"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It is over, by itself or because the scheduler ends it; Tune has not told its actor yet."""
        actor = self._actors.pop(trial.trial_id, None)
        standing = trial.last_result.get("standing")
        if actor is not None and standing is not None and standing.status == RUNNING:
            try:
                self._tell(trial, ray.get(actor.end_early.remote()))
            except ray.exceptions.RayActorError:
                self._tell(trial, _lost("Its process died when the scheduler ended it."))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process has died for the last time."""
        self._actors.pop(trial.trial_id, None)
        self._tell(trial, _lost(f"Its process died {MOST_DEATHS} times: it was killed, or found no memory."))

    def _tell(self, trial: Any, standing: TrialStanding) -> None:
        spec: TrialSpec = trial.config["assignment"].spec
        epochs = spec.job.recipe.epochs
        self._news.put(
            TrialNews(spec.training, standing.status, standing.epoch, epochs, standing.value, standing.error)
        )


def _lost(reason: str) -> TrialStanding:
    """How a training stands that left nothing: the next search tries it again."""
    return TrialStanding(FAILED, 0, float("nan"), reason)
