"""What Ray Tune runs: an actor that takes one training after the other."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import traceback
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ray.tune import Trainable

from pipelines.errors import NightreadError
from pipelines.evaluation.metrics import LOWER_IS_BETTER
from pipelines.models.backbones import import_keras
from pipelines.scoring.worker_process import begin_worker
from pipelines.training.distributed import use_resources
from pipelines.training.feeding import TrainingArrays, open_arrays
from pipelines.training.job import Arrays, FitJob
from pipelines.training.steps import Place
from pipelines.tuning.capacity import TrialRoom
from pipelines.tuning.trial import RUNNING, TrainingRun, TrialSpec, TrialStanding

SECONDS_A_STEP = 2.0
"""Between two words of a training to the driver, where its epochs are short enough."""
LOWEST = -1e30
"""The score of a figure that is no number: Tune could not compare NaN."""
_NOTHING = {"epoch": 0, "score": LOWEST, "done": True}


@dataclass(frozen=True)
class Assignment:
    """What an actor is told of a training.

    Attributes:
        spec: The training.
        metric: What the search ranks by.
        rungs: Numbers of epochs after which it must say where it stands.
        room: What the actor has.
        scratch: The driver's temporary folder, for what a killed actor leaves behind on the same machine.
    """

    spec: TrialSpec
    metric: str
    rungs: tuple[int, ...]
    room: TrialRoom
    scratch: str


class TrainingActor(Trainable):
    """Trains one training after the other; TensorFlow and the arrays are there from the second one on.

    Errors are answers here, not exceptions: Tune tries what raises again, and only a death is worth that.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first training; only what cannot fail, the rest is made by the first step."""
        begin_worker()
        self._place: Place | None = None
        self._opened: _OpenArrays | None = None
        self._earlier: TrainingRun | None = None
        self._run: TrainingRun | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next training."""
        self._task: Assignment = new_config["assignment"]
        self._earlier, self._run = self._run or self._earlier, None
        return True

    def step(self) -> dict[str, Any]:
        """Train for about two seconds, or to the next rung.

        Returns:
            `standing`, or why there is none: `raised`, an error of ours; `lacks_memory`; or `defect`, a traceback.
            `epoch` and `score`, the more the better, are for Tune's scheduler.
        """
        try:
            standing = self._trained()
        except NightreadError as error:
            return _NOTHING | {"raised": error}
        except Exception as error:
            return _NOTHING | _of_exception(error)
        score = -standing.value if self._task.metric in LOWER_IS_BETTER else standing.value
        return {
            "standing": standing,
            "epoch": standing.epoch,
            "score": LOWEST if math.isnan(score) else score,
            "done": standing.status != RUNNING,
        }

    def end_early(self) -> TrialStanding | None:
        """Answer what is left of a training that the scheduler ends; None where there is none."""
        return self._run.end_early(self._task.metric) if self._run else None

    def cleanup(self) -> None:
        """Remove what was fetched."""
        if self._opened:
            self._opened.close()

    def get_auto_filled_metrics(
        self,
        now: datetime | None = None,
        time_this_iter: float | None = None,
        timestamp: int | None = None,
        debug_metrics_only: bool = False,
    ) -> dict[str, Any]:
        """Nothing: Tune keeps the course of every number of every trial on the driver, for good."""
        return {}

    def _trained(self) -> TrialStanding:
        task = self._task
        if self._place is None:
            self._place = _started(task)
        if self._run is None:
            arrays = self._arrays(task.spec.job)
            self._run, self._earlier = TrainingRun(task.spec, self._place, arrays, self._earlier), None
        return self._run.go_on(SECONDS_A_STEP, task.rungs, task.metric)

    def _arrays(self, job: FitJob) -> TrainingArrays:
        if self._opened is None or self._opened.of != job.arrays:
            if self._opened:
                self._opened.close()
            self._opened = _OpenArrays(job)
        return self._opened.arrays


class _OpenArrays:
    """The arrays that trainings share, and the folder into which those of a bucket are fetched."""

    def __init__(self, job: FitJob) -> None:
        self.of: Arrays = job.arrays
        self._folder = tempfile.mkdtemp(prefix="nightread-arrays-")
        self.arrays = open_arrays(job, self._folder)

    def close(self) -> None:
        """Remove what was fetched; what is still mapped stays readable."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _started(task: Assignment) -> Place:
    """Start TensorFlow with what the actor has."""
    if os.path.isdir(task.scratch):
        tempfile.tempdir = task.scratch
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    import_keras()
    threads = max(1, int(task.room.cpus))
    use_resources(threads, on_gpu=task.room.gpus > 0)
    return Place(threads=threads)


def _of_exception(error: Exception) -> dict[str, Any]:
    kind = type(error)
    if kind.__module__.startswith("tensorflow") and kind.__name__ == "ResourceExhaustedError":
        return {"lacks_memory": True}
    return {"defect": "".join(traceback.format_exception(error))}
