"""The answering processes: what they answer, and what it costs when one dies, hangs or is given another model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.errors import ImageFailure, ModelRefused, UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.runtime import Scorer
from pipelines.serving.answering import Answer, NotReady, QueueFull, answer_image
from pipelines.serving.pool import Pool
from pipelines.serving.served_model import LoadedModel, load_model

PICTURES = 12


def picture(seed: int) -> bytes:
    rough = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    _, file = cv2.imencode(".jpg", cv2.resize(rough, (640, 480), interpolation=cv2.INTER_CUBIC))
    return file.tobytes()


FILES = [picture(seed) for seed in range(PICTURES)]


@dataclass
class Running:
    """A pool in an event loop that goes on from test to test."""

    runner: asyncio.Runner
    pool: Pool
    models: Path
    told: list[str]

    def run(self, work: Awaitable[Any]) -> Any:
        return self.runner.run(work)  # type: ignore[arg-type]

    def pids(self) -> set[int]:
        """This process's children that answer, zombies too."""
        found = set()
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if f"PPid:\t{os.getpid()}\n" in status.read_text():
                    told = (status.parent / "cmdline").read_bytes()
                    if not told or b"pipelines.serving.worker" in told:
                        found.add(int(status.parent.name))
        return found


@pytest.fixture(scope="module")
def cells(tiny_models: Path) -> LoadedModel:
    return load_model(str(tiny_models / "cells"))


@pytest.fixture(scope="module")
def running(tiny_models: Path, cells: LoadedModel) -> Iterator[Running]:
    told: list[str] = []
    with asyncio.Runner() as runner:
        pool = Pool(2, 8, told.append, seconds=4.0)
        runner.run(pool.warm_up())
        with pytest.raises(NotReady, match="loaded and tested"):
            runner.run(pool.answer(FILES[0]))
        assert pool.model() is None and not pool.state().ready
        runner.run(pool.serve(cells))
        running = Running(runner, pool, tiny_models, told)
        assert len(running.pids()) == 2
        yield running
        runner.run(pool.close())
        assert running.pids() == set()  # neither an orphan nor a zombie
        with pytest.raises(NotReady, match="ending"):
            runner.run(pool.answer(FILES[0]))


@pytest.fixture(scope="module")
def right(cells: LoadedModel) -> list[Answer]:
    """What the same functions answer in this process."""
    scorer, prepare = Scorer(cells.scorer, cells.io), Preprocessing(cells.served.input_size).prepare
    return [answer_image(data, prepare, scorer, cells.served) for data in FILES]


def same(found: Answer, wanted: Answer) -> bool:
    return replace(found, milliseconds=0.0) == replace(wanted, milliseconds=0.0)


async def ask_all(
    pool: Pool, times: int, meanwhile: Callable[[int], Awaitable[None]] | None = None
) -> list[tuple[int, Answer | Exception]]:
    """Four clients, each one image after the other; what became of each."""
    done: list[tuple[int, Answer | Exception]] = []

    async def client(first: int) -> None:
        for number in range(first, times, 4):
            which = number % PICTURES
            try:
                done.append((which, await pool.answer(FILES[which])))
            except ImageFailure as failure:
                done.append((which, failure))
            if meanwhile is not None:
                await meanwhile(len(done))

    await asyncio.gather(*map(client, range(4)))
    return done


def test_answers_are_those_of_the_functions_and_failures_have_their_codes(
    running: Running, right: list[Answer]
) -> None:
    found = running.run(ask_all(running.pool, PICTURES))
    assert len(found) == PICTURES and all(same(answer, right[which]) for which, answer in found)
    for data, code in ((b"", "not_an_image"), (FILES[0][:400], "truncated"), (FILES[0][:-9], "truncated")):
        with pytest.raises(ImageFailure) as failed:
            running.run(running.pool.answer(data))
        assert failed.value.code == code
    png = running.run(running.pool.preview(FILES[0], 100))
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape == (75, 100, 3)


@pytest.mark.parametrize(("number", "costs"), [(signal.SIGSEGV, ["decoder_crashed"]), (signal.SIGKILL, [])])
def test_a_process_that_dies_costs_its_image_and_one_that_is_killed_costs_none(
    running: Running, right: list[Answer], number: signal.Signals, costs: list[str]
) -> None:
    before, restarts = running.pids(), running.pool.state().worker_restarts
    killed: list[int] = []

    async def kill_one(done: int) -> None:
        if done >= 10 and not killed:
            killed.append(next(iter(before)))
            os.kill(killed[0], number)

    found = running.run(ask_all(running.pool, 80, kill_one))
    failed = [outcome for _, outcome in found if isinstance(outcome, ImageFailure)]
    assert [failure.code for failure in failed] == costs and len(found) == 80
    assert all(same(outcome, right[which]) for which, outcome in found if isinstance(outcome, Answer))
    state = running.pool.state()
    assert state.worker_restarts == restarts + 1
    running.run(until(lambda: running.pool.state().workers_alive == 2))
    assert any(number.name in sentence for sentence in running.told)
    assert len(running.pids()) == 2 and killed[0] not in running.pids()


def test_an_image_at_whose_hands_two_processes_are_killed_is_to_blame(running: Running) -> None:
    takes_a_while = cv2.imencode(".png", np.zeros((6000, 6000), np.uint8))[1].tobytes()

    async def work() -> None:
        over = asyncio.Event()

        async def kill_who_works() -> None:
            while not over.is_set():
                for process in [place.process for place in running.pool._places]:
                    if process is not None and process._reply is not None:
                        os.kill(process.pid, signal.SIGKILL)
                        await process.gone.wait()
                await asyncio.sleep(0)

        killing = asyncio.get_running_loop().create_task(kill_who_works())
        try:
            await running.pool.answer(takes_a_while)
        finally:
            over.set()
            await killing

    with pytest.raises(ImageFailure) as failed:
        running.run(work())
    assert failed.value.code == "decoder_crashed"
    running.run(until(lambda: running.pool.state().workers_alive == 2))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.02)


def test_one_that_dies_between_two_images_costs_none(running: Running, right: list[Answer]) -> None:
    async def work() -> Answer:
        for pid in running.pids():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: running.pool.state().workers_alive == 0)
        return await running.pool.answer(FILES[1])  # waits for the next process

    assert same(running.run(work()), right[1])
    running.run(until(lambda: running.pool.state().workers_alive == 2))


def test_one_that_hangs_costs_its_image_after_the_time_limit(running: Running, right: list[Answer]) -> None:
    async def work() -> list[Any]:
        stopped = next(iter(running.pids()))
        os.kill(stopped, signal.SIGSTOP)
        outcomes = await asyncio.gather(*map(running.pool.answer, FILES[:4]), return_exceptions=True)
        await until(lambda: running.pool.state().workers_alive == 2)
        return outcomes

    outcomes = running.run(work())
    assert Counter(type(outcome) for outcome in outcomes) == {Answer: 3, ImageFailure: 1}
    assert [outcome.code for outcome in outcomes if isinstance(outcome, ImageFailure)] == ["timed_out"]
    assert all(same(outcome, right[i]) for i, outcome in enumerate(outcomes) if isinstance(outcome, Answer))


def test_as_many_wait_as_may_and_who_leaves_makes_room(running: Running) -> None:
    async def work() -> tuple[list[Any], int, list[Any]]:
        pool = running.pool
        for pid in running.pids():
            os.kill(pid, signal.SIGSTOP)  # nothing is answered for a moment
        asked = [asyncio.ensure_future(pool.answer(FILES[i % PICTURES])) for i in range(20)]
        await asyncio.sleep(0.05)
        refused = [task for task in asked if task.done()]
        waiting = pool.state().queued
        left = [task for task in asked if not task.done()][-3:]
        for task in left:
            task.cancel()
        await asyncio.wait(left)
        assert pool.state().queued == waiting - 3
        asked += [asyncio.ensure_future(pool.answer(FILES[0])) for _ in range(4)]
        await asyncio.sleep(0.05)
        refused = [task for task in asked if task.done() and not task.cancelled()]
        for pid in running.pids():
            os.kill(pid, signal.SIGCONT)
        rest = await asyncio.gather(*(task for task in asked if task not in refused and task not in left))
        return [task.exception() for task in refused], waiting, rest

    refused, waiting, rest = running.run(work())
    assert waiting == running.pool.state().queue_limit == 16
    # 20 for 2 in work and 16 that wait; then 4 for the 3 places that became free.
    assert len(refused) == 3 and all(isinstance(error, QueueFull) for error in refused)
    assert all(1 <= error.retry_after_seconds <= 10 for error in refused)
    assert len(rest) == 18 and all(isinstance(answer, Answer) for answer in rest)


def test_a_model_that_fails_its_test_leaves_the_old_one_and_a_good_one_takes_over_under_load(
    running: Running, cells: LoadedModel, right: list[Answer]
) -> None:
    other = load_model(str(running.models / "other"))
    # Whole and well-formed, but its answers are not those that its golden file holds.
    with pytest.raises(ModelRefused, match="self-test"):
        running.run(running.pool.serve(replace(cells, scorer=other.scorer)))
    strange = replace(cells.served, preprocessing_id="0" * 64)
    with pytest.raises(ModelRefused, match="prepared as 000000000000"):
        running.run(running.pool.serve(replace(cells, served=strange)))
    with pytest.raises(UsageError, match="newer"):
        newer = (cells.golden or b"").replace(b'"format": 1', b'"format": 2')
        running.run(running.pool.serve(replace(cells, golden=newer)))
    before = running.pids()

    async def work() -> list[tuple[int, Answer | Exception]]:
        swap = asyncio.ensure_future(running.pool.serve(other))

        async def linger(done: int) -> None:
            if done >= 60:
                await swap

        return await ask_all(running.pool, 120, linger)

    found = running.run(work())
    by_model = Counter(outcome.model["name"] for _, outcome in found if isinstance(outcome, Answer))
    assert sum(by_model.values()) == 120 and by_model["cells"] >= 1 and by_model["other"] >= 50
    scorer, prepare = Scorer(other.scorer, other.io), Preprocessing(96).prepare
    new = [answer_image(data, prepare, scorer, other.served) for data in FILES]
    for which, outcome in found:
        assert isinstance(outcome, Answer)
        assert same(outcome, right[which] if outcome.model["name"] == "cells" else new[which])
    running.run(until(lambda: len(running.pids()) == 2))
    assert not running.pids() & before
    served = running.pool.model()
    assert served is not None and served.name == "other"
