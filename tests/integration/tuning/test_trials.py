"""Trainings of a search on a real Ray: against each point trained alone, out of order, killed with -9, ended early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.session import ClusterSize, start_or_join
from pipelines.errors import NightreadError
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Standing
from pipelines.training.feeding import open_arrays
from pipelines.training.job import FitJob
from pipelines.training.steps import Place
from pipelines.tuning.answers import answered, load_answer, load_variables
from pipelines.tuning.capacity import TrialRoom
from pipelines.tuning.points import DONE, FAILED, STOPPED
from pipelines.tuning.progress import TrialNews
from pipelines.tuning.scheduling import Asha
from pipelines.tuning.trial import TrainingRun, TrialSpec
from pipelines.tuning.trials import SECONDS_TO_END, run_trials

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
import test_distributed
from test_distributed import runs, workers_of
from test_loop import features, fit, save_job

pytestmark = pytest.mark.slow

MARKS = (2, 5)
RATES = (0.001, 0.05)


@pytest.fixture(scope="module")
def ray_of_this_file() -> Iterator[ClusterSize]:
    """One Ray for all."""
    with start_or_join("local") as size:
        yield size


@pytest.fixture
def actor_title(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `workers_of` find the actors of Tune."""
    monkeypatch.setattr(test_distributed, "WORKER", "ray::ResourceTrainable")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> FitJob:
    """What every search of this file is made of."""
    changes: dict[str, Any] = {"dropout": 0.3, "dense_units": 8, "epochs": max(MARKS), "metric": "accuracy"}
    return save_job(tmp_path_factory.mktemp("arrays"), features(), 3, **changes)


def point(number: int, mark: int) -> str:
    return f"{number:08x}{mark:08x}"


def spec(job: FitJob, folder: Path, number: int, marks: Sequence[int] = MARKS, **keys: Any) -> TrialSpec:
    recipe = replace(job.recipe, epochs=max(marks), **keys)
    checkpoint = folder / "trainings" / f"{number:04x}-{max(marks)}.npz"
    points = {mark: (point(number, mark),) for mark in marks}
    return TrialSpec(f"{number:04x}", replace(job, recipe=recipe, checkpoint=str(checkpoint)), points, str(folder))


def search(
    specs: Sequence[TrialSpec],
    hear: Callable[[TrialNews], None] | None = None,
    cpus: float = 1,
    concurrency: int | None = None,
    scheduler: Asha | None = None,
) -> list[TrialNews]:
    """Run trainings; what was heard of them, in order."""
    heard: list[TrialNews] = []

    def both(news: TrialNews) -> None:
        heard.append(news)
        if hear:
            hear(news)

    run_trials(specs, TrialRoom(cpus), concurrency, scheduler, "accuracy", both)
    return heard


def test_a_grid_answers_as_each_point_trained_alone_in_any_order(
    tmp_path: Path, job: FitJob, ray_of_this_file: ClusterSize, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two trainings, two points each; once all at a time on half cores, once backwards and one at a time."""
    first, second = tmp_path / "first", tmp_path / "second"
    capfd.readouterr()
    specs = [spec(job, first, number, learning_rate=rate) for number, rate in enumerate(RATES)]
    heard = search(specs, cpus=0.5)
    assert capfd.readouterr() == ("", "")
    assert {(news.training, news.epoch) for news in heard if news.status == DONE} == {
        (one.training, max(MARKS)) for one in specs
    }
    assert not list((first / "trainings").iterdir())
    search([spec(job, second, number, learning_rate=rate) for number, rate in enumerate(RATES)][::-1], concurrency=1)
    for number, rate in enumerate(RATES):
        for mark in MARKS:
            changed = replace(job.recipe, learning_rate=rate, epochs=mark)
            alone = fit(replace(job, recipe=changed, checkpoint=str(tmp_path / f"{number}-{mark}.npz")))
            for folder in (first, second):
                answer = load_answer(str(folder), point(number, mark))
                assert answer is not None and answer.status == DONE and len(answer.history) == mark
                assert answer.kept_epoch == alone.best_epoch
                for row, wanted in zip(answer.history, alone.history, strict=True):
                    same = {key: value for key, value in wanted.items() if key != "seconds"}
                    assert {key: row[key] for key in same} == pytest.approx(same, abs=1e-6, nan_ok=True)
                for array, kept in zip(load_variables(str(folder), answer.point) or (), alone.variables, strict=True):
                    np.testing.assert_allclose(array, kept, atol=1e-6)


def test_a_training_that_diverges_and_one_that_is_killed_cost_nobody_else_anything(
    tmp_path: Path, job: FitJob, ray_of_this_file: ClusterSize, actor_title: None
) -> None:
    """The loss of the first becomes no number; the process of the second is killed once, between two marks."""
    slow = spec(job, tmp_path, 1, (2, 300), learning_rate=1e-4)
    before: list[Standing] = []

    def kill_once(news: TrialNews) -> None:
        standing = checkpoint.load(slow.job.checkpoint, slow.job.key())
        if standing is not None and standing.epoch > 2 and not before:
            before.append(standing)
            for worker in workers_of(os.getpid()):
                os.kill(worker, signal.SIGKILL)

    data = features()
    data["inputs"][:, 0] *= 1e15
    wild_job = save_job(tmp_path / "wild", data, 3, optimizer="sgd", dense_units=8)
    wild = spec(wild_job, tmp_path, 0, learning_rate=10.0)
    fine = [spec(job, tmp_path, number, learning_rate=rate) for number, rate in enumerate(RATES, start=2)]
    heard = search([wild, slow, *fine], kill_once)
    ends = {news.training: news for news in heard if news.status != "running"}
    assert {key: news.status for key, news in ends.items()} == {"0000": FAILED} | dict.fromkeys(
        ["0001", "0002", "0003"], DONE
    )
    assert "no number" in str(ends["0000"].error)
    for mark in MARKS:
        answer = load_answer(str(tmp_path), point(0, mark))
        assert answer is not None and (answer.status, answer.error, answer.logits) == (FAILED, ends["0000"].error, None)
    alone = fit(replace(slow.job, checkpoint=str(tmp_path / "alone.npz")))
    answer = load_answer(str(tmp_path), point(1, 300))
    assert answer is not None and len(answer.history) == 300
    assert answer.history[-1]["val_loss"] == pytest.approx(alone.history[-1]["val_loss"], abs=1e-5)
    # It went on from its checkpoint: even how long the epochs took is as it was.
    assert answer.history[: before[0].epoch] == before[0].history


def test_a_training_whose_checkpoint_is_ahead_of_its_answers_begins_anew(tmp_path: Path, job: FitJob) -> None:
    """As after a kill between the two; with the answers there it goes on, and leaves them as they are."""
    one = spec(job, tmp_path, 0, (2, 300), learning_rate=1e-4)
    arrays, place = open_arrays(one.job, str(tmp_path)), Place()
    run = TrainingRun(one, place, arrays)
    while (standing := checkpoint.load(one.job.checkpoint, one.job.key())) is None or standing.epoch <= 2:
        assert run.go_on(0, (), "accuracy").status == "running"
    early = tmp_path / "points" / f"{point(0, 2)}.npz"
    written = early.read_bytes()
    assert TrainingRun(one, place, arrays).go_on(0, (), "accuracy").epoch == standing.epoch + 1
    assert early.read_bytes() == written
    early.unlink()
    again = TrainingRun(one, place, arrays)
    assert again.go_on(0, (), "accuracy").epoch == 1
    assert again.go_on(3600, (5,), "accuracy").epoch == 5
    assert again.end_early("accuracy").status == STOPPED
    answers = [load_answer(str(tmp_path), point(0, mark)) for mark in one.marks]
    assert [answer and (answer.status, len(answer.history)) for answer in answers] == [(DONE, 2), (STOPPED, 5)]


def test_one_whose_process_dies_again_and_again_has_no_answer_and_is_tried_by_the_next_search(
    tmp_path: Path, job: FitJob, ray_of_this_file: ClusterSize, actor_title: None
) -> None:
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.3):
            for worker in workers_of(os.getpid()):
                os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        heard = search([spec(job, tmp_path, 0)])
    finally:
        over.set()
        killer.join()
    assert [(news.status, "died 3 times" in str(news.error)) for news in heard] == [(FAILED, True)]
    assert not answered(str(tmp_path))
    assert search([spec(job, tmp_path, 0)])[-1].status == DONE


def test_a_poor_training_is_ended_early_and_its_points_are_answered_by_what_there_is(
    tmp_path: Path, job: FitJob, ray_of_this_file: ClusterSize
) -> None:
    """One at a time, the best rate first: of the others, which learn nothing, none gets to the end."""
    asha, marks = Asha(27), (1, 27)
    rates = (0.01, 1e-9, 1e-8, 1e-7)
    specs = [spec(job, tmp_path, number, marks, learning_rate=rate) for number, rate in enumerate(rates)]
    heard = search(specs, concurrency=1, scheduler=asha)
    ends = [(news.training, news.status) for news in heard if news.status != "running"]
    assert ends == [("0000", DONE), *((f"{number:04x}", STOPPED) for number in (1, 2, 3))]
    for number in (1, 2, 3):
        answers = [load_answer(str(tmp_path), point(number, mark)) for mark in marks]
        assert [answer and answer.status for answer in answers] == [DONE, STOPPED]
        rung = asha.rungs[0]
        alone = fit(replace(spec(job, tmp_path, number, (rung,), learning_rate=rates[number]).job))
        assert answers[1] is not None and len(answers[1].history) == rung
        assert answers[1].history[-1]["val_loss"] == pytest.approx(alone.history[-1]["val_loss"], abs=1e-6)
    assert not list((tmp_path / "trainings").glob("000?-27.npz"))


def test_what_no_training_can_go_on_for_ends_the_search(
    tmp_path: Path, job: FitJob, ray_of_this_file: ClusterSize
) -> None:
    """The folder of the search is a file."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NightreadError, match="file"):
        search([spec(job, tmp_path / "file", number) for number in range(4)], concurrency=1)


def test_a_defect_in_an_actor_reaches_the_driver_with_its_traceback(
    tmp_path: Path, job: FitJob, ray_of_this_file: ClusterSize
) -> None:
    np.save(tmp_path / "short.npy", np.zeros(3, np.int64))
    torn = replace(job, arrays=replace(job.arrays, labels=str(tmp_path / "short.npy")))
    with pytest.raises(RuntimeError, match="ValueError: training inputs"):
        search([spec(torn, tmp_path, 0)])


STOPPED_DRIVER = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background ignores it
sys.path[:0] = sys.argv[1:3]
from test_trials import features, save_job, search, spec
from cluster.session import start_or_join
job = save_job(Path(sys.argv[3]), features(), 3)
with start_or_join("local"):
    search([spec(job, Path(sys.argv[3]), number, (2, 100000)) for number in range(5)],
           lambda news: print(news.epoch, flush=True), concurrency=1)
"""


def test_ctrl_c_ends_a_search_at_once_and_its_actors_with_it(
    tmp_path: Path, environment: Mapping[str, str], actor_title: None
) -> None:
    folders = [str(Path(__file__).parent), str(Path(test_distributed.__file__).parent)]
    driver = subprocess.Popen(
        [sys.executable, "-c", STOPPED_DRIVER, *folders, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if int(line) >= 2:
            break
    else:
        pytest.fail(f"the search ended by itself: {driver.communicate()[1]}")
    actors = workers_of(driver.pid)
    assert actors
    began = time.monotonic()
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=100)
    assert time.monotonic() - began < SECONDS_TO_END + 20
    deadline = time.monotonic() + 20
    while any(map(runs, actors)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(filter(runs, actors))
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert all((load_answer(str(tmp_path), key) or pytest.fail()).status == DONE for key in answered(str(tmp_path)))
