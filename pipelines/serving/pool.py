"""The answering processes and the one queue before them.

A process has one image in its hands. When it dies or hangs, that image fails and another process takes its place, while
the others go on. A new model is loaded and tested in new processes; then they take over, and the old ones finish what
they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import ImageFailure, NightreadError
from pipelines.serving.answering import Answer, NotReady, QueueFull, ServedModel, ServiceState
from pipelines.serving.answering_process import LEAVE_SECONDS, AnsweringProcess, Died, Late, start_process
from pipelines.serving.served_model import LoadedModel

# As long as the night gives a decoder: the largest picture that the limits allow takes a few seconds.
IMAGE_SECONDS = 30.0
# Between attempts to replace a process that does not start.
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# Of the newest answer in the running mean of what one takes.
_NEWEST_SHARE = 0.05

_STARTING = "The model is being loaded and tested."
_NOBODY = "The processes that answer images do not start; it is tried again and again."
_ENDED = "The server is ending."


@dataclass(eq=False)
class _Job:
    """An image that waits, or is in work.

    Attributes:
        told: What the process is told of it.
        data: The file.
        reply: What it replied.
        suspect: Whether somebody else killed a process that had it in its hands.
    """

    told: dict[str, Any]
    data: bytes
    reply: asyncio.Future[tuple[dict[str, Any], bytes]]
    suspect: bool = False

    def fail(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


class _Place:
    """One of the pool's places for a process.

    Attributes:
        process: Who has it; None while another is started.
        retired: Whether its model was replaced: it takes no further image.
        waker: Set where it waits for an image.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.process: AnsweringProcess | None = None
        self.retired = False
        self.waker: asyncio.Future[None] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and not self.process.gone.is_set()

    def wake(self) -> None:
        if self.waker is not None and not self.waker.done():
            self.waker.set_result(None)


class Pool:
    """Answers images in processes of its own; all of it in one event loop.

    Args:
        workers: How many processes.
        queue_per_worker: Images that may wait for each of them.
        tell: Gets a sentence when something happens that an operator wants to know.
        seconds: Time for one image.
    """

    def __init__(
        self, workers: int, queue_per_worker: int, tell: Callable[[str], None], seconds: float = IMAGE_SECONDS
    ) -> None:
        self._workers = workers
        self._limit = workers * queue_per_worker
        self._tell = tell
        self._seconds = seconds
        self._waiting: deque[_Job] = deque()
        self._idle: deque[_Place] = deque()
        self._places: list[_Place] = []
        self._spare: list[AnsweringProcess] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._endings: set[asyncio.Task[str]] = set()
        self._in_work = 0
        self._restarts = 0
        self._mean_seconds = 0.05
        self._loaded_at: datetime | None = None
        self._why_not: str | None = _STARTING
        self.promotion_failed: str | None = None

    def model(self) -> ServedModel | None:
        """The model that answers; None before the first."""
        return self._places[0].model.served if self._places else None

    def state(self) -> ServiceState:
        """How the pool does."""
        alive = sum(place.alive for place in self._places)
        return ServiceState(
            ready=self._why_not is None,
            why_not=self._why_not,
            queued=len(self._waiting),
            queue_limit=self._limit,
            workers=self._workers,
            workers_alive=alive,
            worker_restarts=self._restarts,
            promotion_failed=self.promotion_failed,
            loaded_at=self._loaded_at,
        )

    async def answer(self, data: bytes) -> Answer:
        """As `Service.answer`."""
        told, _ = await self._asked({}, data)
        return Answer(**told["answer"])

    async def preview(self, data: bytes, side: int) -> bytes:
        """As `Service.preview`."""
        _, png = await self._asked({"side": side}, data)
        return png

    async def _asked(self, told: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        if self._why_not is not None:
            raise NotReady(self._why_not)
        free = max(0, self._workers - self._in_work)  # these take one of those that wait in a moment
        if len(self._waiting) >= self._limit + free:
            raise QueueFull(self._seconds_until_room())
        job = _Job(told, data, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._wake_one()
        try:
            reply, following = await job.reply
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # one in work stays there
                self._waiting.remove(job)
            raise
        if "failure" in reply:
            raise ImageFailure(reply["failure"]["code"], reply["failure"]["message"])
        return reply, following

    def _seconds_until_room(self) -> int:
        """When a place in the queue will be free for sure: when all that wait now are answered."""
        alive = max(1, sum(place.alive for place in self._places))
        return max(1, math.ceil(len(self._waiting) * self._mean_seconds / alive))

    def _wake_one(self) -> None:
        if self._idle:
            self._idle.popleft().wake()

    async def warm_up(self) -> None:
        """Start the processes already, while the model is still being read."""
        while len(self._spare) < self._workers:
            self._spare.append(await start_process(self._seconds))

    async def serve(self, model: LoadedModel) -> None:
        """Load a model, test it in each of its processes, and let it take over from the one before.

        Raises:
            ModelRefused, UsageError: If a process refuses it; what served before goes on.
            TryLater: If a process does not start.
        """
        places = [_Place(model) for _ in range(self._workers)]
        # Where another model serves, one process tries the new one first.
        groups = [places[:1], places[1:]] if self._places else [places]
        try:
            for group in groups:
                # To the end of all of them, so that none is left behind that comes after another's failure.
                for failure in await asyncio.gather(*map(self._fill, group), return_exceptions=True):
                    if failure is not None:
                        raise failure
        except BaseException:
            for place in places:
                if place.process is not None:
                    self._let_go(place.process)
            raise
        before, self._places, self._why_not = self._places, places, None
        self._loaded_at = datetime.now(UTC)
        for place in before:
            place.retired = True
            place.wake()
        for place in places:
            task = asyncio.get_running_loop().create_task(self._work(place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all processes; whoever still waits is told that nobody answers any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in [place.process for place in self._places if place.process is not None] + self._spare:
            self._let_go(process, LEAVE_SECONDS)
        self._places, self._spare = [], []
        self._fail_waiting(_ENDED)
        await asyncio.gather(*self._endings)

    def _let_go(self, process: AnsweringProcess, patience: float = 0.0) -> None:
        """End a process without waiting for it."""
        task = asyncio.get_running_loop().create_task(process.end(patience))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _fill(self, place: _Place) -> None:
        """Put a process into a place, with the place's model tested in it."""
        process = self._spare.pop() if self._spare else await start_process(self._seconds)
        try:
            await process.load(place.model)
        except BaseException:
            self._let_go(process)
            raise
        place.process = process

    async def _work(self, place: _Place) -> None:
        """Answer images in one place until it is retired."""
        while not place.retired:
            process = place.process
            if process is None:
                await self._replace(place)
            elif process.gone.is_set():
                self._tell(f"An answering process {await self._lose(place, process)} between two images.")
            elif self._waiting:
                await self._answer_next(place, process)
            else:
                await self._wait(place, process)
        if self._waiting:
            self._wake_one()  # what woke this place is for another one
        if place.process is not None:
            self._let_go(place.process, LEAVE_SECONDS)

    async def _wait(self, place: _Place, process: AnsweringProcess) -> None:
        """Wait for an image, for retirement or for the process's death."""
        place.waker = waker = asyncio.get_running_loop().create_future()
        process.on_gone = place.wake
        self._idle.append(place)
        try:
            await waker
        finally:
            place.waker, process.on_gone = None, None
            with contextlib.suppress(ValueError):
                self._idle.remove(place)

    async def _answer_next(self, place: _Place, process: AnsweringProcess) -> None:
        job = self._waiting.popleft()
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._in_work += 1
        try:
            reply = await process.ask(job.told, self._seconds, job.data)
        except Late:
            job.fail(ImageFailure("timed_out", f"Decoding took longer than {self._seconds:g} s."))
            how = await self._lose(place, process)
            self._tell(f"An answering process took longer than {self._seconds:g} s for one image and {how}.")
        except Died:
            await self._died(job, place, process)
        except asyncio.CancelledError:
            job.fail(NotReady(_ENDED))
            raise
        else:
            self._mean_seconds += (loop.time() - began - self._mean_seconds) * _NEWEST_SHARE
            if not job.reply.done():
                job.reply.set_result(reply)
        finally:
            self._in_work -= 1

    async def _died(self, job: _Job, place: _Place, process: AnsweringProcess) -> None:
        """Tell of a process that died over an image, or try the image once more where others have killed it.

        The kernel kills for want of memory whom it likes, and a person may too; an image at whose hands that happens
        twice is to blame.
        """
        try:
            how = await self._lose(place, process)
        except asyncio.CancelledError:
            job.fail(NotReady(_ENDED))
            raise
        self._tell(f"An answering process {how} with an image in its hands.")
        if process.was_killed_by_others and not job.suspect and not job.reply.done():
            job.suspect = True
            self._waiting.appendleft(job)
            self._wake_one()
        else:
            job.fail(ImageFailure("decoder_crashed", "The process that decoded the image ended."))

    async def _lose(self, place: _Place, process: AnsweringProcess) -> str:
        """End a process that died or hangs, and say how it ended."""
        place.process = None
        self._restarts += 1
        return await process.end()

    async def _replace(self, place: _Place) -> None:
        """Start another process in the place of one that is gone, as often as it takes."""
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                await self._fill(place)
                self._why_not = None
                return
            except NightreadError as error:
                self._tell(f"{error.message} The next attempt begins in {pause:g} s.")
            if place.retired:
                return
            if not any(other.alive for other in self._places):
                self._fail_waiting(_NOBODY)
            await asyncio.sleep(pause)

    def _fail_waiting(self, why_not: str) -> None:
        """Answer nothing until a process is there again, not even what waits already."""
        self._why_not = why_not
        while self._waiting:
            self._waiting.popleft().fail(NotReady(why_not))
