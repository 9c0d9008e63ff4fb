"""Where a run stands, in a small file of its folder, so that any host can tell while it scores."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable
from typing import Final

from pipelines.errors import NightreadError
from pipelines.predictions.runs import FORMAT, RunFolder
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import files, paths

SECONDS: Final = 5.0
BUCKET_SECONDS: Final = 15.0


class ProgressFile:
    """Writes `RunFolder.progress`, whole each time; seldom, however often it is told.

    Args:
        folder: The run.
        clock: Seconds, monotonic.
    """

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = folder.progress
        self._clock = clock
        self._pause = SECONDS if paths.is_local(folder.progress) else BUCKET_SECONDS
        self._next = clock()
        self._phase = ""

    def tell(self, progress: ScoreProgress) -> None:
        """Write down where the run stands, if it is time, or another phase has begun.

        The night does not depend on it: storage that fails is tried again at the next time.
        """
        now = self._clock()
        if now < self._next and progress.phase == self._phase:
            return
        self._next, self._phase = now + self._pause, progress.phase
        document = {
            "format": FORMAT,
            "phase": progress.phase,
            "done": progress.done,
            "total": progress.total,
            "failed": progress.failed,
            "rate": progress.images_per_second,
            "seconds_left": progress.seconds_left,
            "note": progress.note,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with contextlib.suppress(NightreadError):
            files.write_atomic(self._place, (json.dumps(document) + "\n").encode())
