"""Run the trainings of a search on a Ray cluster: Ray Tune gives them to actors, the driver hears how they come along.

Tune keeps nothing for us: answers and checkpoints are files that the actors write, its own storage is a temporary
folder, and what a search resumes from is what has an answer.
"""

from __future__ import annotations

import contextlib
import os
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator

from pipelines.errors import TryLater, last_line
from pipelines.storage.scratch import Scratch
from pipelines.tuning.capacity import TrialRoom
from pipelines.tuning.progress import TrialNews
from pipelines.tuning.scheduling import Asha
from pipelines.tuning.trial import TrialSpec

MOST_AT_ONCE = 100
"""Trainings that run or wait for room, unless fewer are asked for: what waits is what a cluster grows for."""
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_END = 30.0
"""For Tune to notice that its actors are gone: a thread of it that lives on could hold up this process' end."""

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": str(10**9),
}


def run_trials(
    specs: Iterable[TrialSpec],
    room: TrialRoom,
    concurrency: int | None,
    scheduler: Asha | None,
    metric: str,
    hear: Callable[[TrialNews], None],
) -> None:
    """Run trainings on the cluster that this process is connected to; returns when all are over.

    The answers are files; what is heard of a training as `done`, `stopped` or `failed` is on disk. One whose process
    dies is tried again from its checkpoint, twice; then it fails without an answer, so that the next search tries it
    again.

    Args:
        specs: Taken one after the other, as there is room for them; in another thread.
        room: What each gets.
        concurrency: At most so many at a time; None: as many as the cluster can come to hold.
        scheduler: Ends poor trainings early; None runs all to their end.
        metric: What the search ranks by.
        hear: Called in this thread.

    Raises:
        NightreadError: What an actor could not go on for, as it raised it.
        TryLater: If Ray itself failed.
    """
    most = concurrency or MOST_AT_ONCE
    with (
        Scratch() as scratch,
        _quietly({"TUNE_MAX_PENDING_TRIALS_PG": str(most)}),
    ):
        from pipelines.tuning.tuner import Tuning

        # Tune takes Ctrl-C over where it runs in the main thread; it is ours.
        tuning = Tuning(iter(specs), room, most, scheduler, metric, str(scratch))
        try:
            while tuning.running:
                _pass_on(tuning.news, hear)
            _pass_on(tuning.news, hear)
        except BaseException:  # Ctrl-C, or the display
            tuning.end(SECONDS_TO_END)
            raise
    _raise_understood(tuning.failure)


def _pass_on(news: queue.SimpleQueue[TrialNews], hear: Callable[[TrialNews], None]) -> None:
    """Pass on all that there is, and wait a moment for more."""
    with contextlib.suppress(queue.Empty):
        while True:
            hear(news.get(timeout=SECONDS_BETWEEN_LOOKS))


@contextlib.contextmanager
def _quietly(more: dict[str, str]) -> Iterator[None]:
    """Have Tune say nothing, and read settings from the environment, as it does."""
    values = _QUIET | more
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _raise_understood(failure: BaseException | None) -> None:
    """Raise what ended the search, if anything did: what Ray says as something that waiting helps."""
    if failure is None:
        return
    from ray.exceptions import RayError

    if isinstance(failure, RayError):
        raise TryLater(
            f"Ray stopped the search: {last_line(failure)}.", "The same command goes on from the answered points."
        )
    raise failure
