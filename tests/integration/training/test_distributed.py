"""Fits on the workers of a real Ray: one against two, killed with -9, refused, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.session import ClusterSize, start_or_join
from pipelines.errors import TryLater, UsageError
from pipelines.training import checkpoint, reach
from pipelines.training.job import FitJob
from pipelines.training.resources import Resources, choose_resources

sys.path.insert(0, str(Path(__file__).parent))
from test_loop import features, fit, save_job

pytestmark = pytest.mark.slow

WORKER, DIRECTOR = "ray::RayTrainWorker", "ray::TrainController"


@pytest.fixture(scope="module")
def ray_of_this_file() -> Iterator[ClusterSize]:
    """One Ray for all."""
    with start_or_join("local") as size:
        yield size


def train(job: FitJob, workers: int = 1, tell: Any = lambda row: None) -> Any:
    from pipelines.training.distributed import train_on_ray

    return train_on_ray(job, Resources(workers), tell)


def workers_of(driver: int, title: str | None = None) -> list[int]:
    """Process ids of the training workers below a driver, or of what is called otherwise."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    below = {driver}
    for _ in rows:
        more = {int(pid) for pid, parent, _ in rows if int(parent) in below} - below
        if not more:
            break
        below |= more
    return [int(pid) for pid, _, args in rows if int(pid) in below and (title or WORKER) in args]


def test_two_workers_take_the_steps_of_one_and_a_killed_one_is_replaced(
    tmp_path: Path, ray_of_this_file: ClusterSize, capfd: pytest.CaptureFixture[str]
) -> None:
    """Dropout, a synchronised batch normalisation, and a last batch of one image, which one worker has no part in."""
    changes: dict[str, Any] = {"epochs": 12, "dropout": 0.4, "dense_units": 8, "batch_norm": "true", "batch_size": 32}
    changes |= {"learning_rate": 0.002}
    data, killed, rows = features(images=97), [], []

    def kill_once(row: Any) -> None:
        rows.append(row)
        if row["epoch"] >= 4 and not killed:
            killed.extend(workers_of(os.getpid()))
            os.kill(killed[-1], signal.SIGKILL)

    capfd.readouterr()
    together = train(save_job(tmp_path / "together", data, 3, **changes), 2, kill_once)
    assert capfd.readouterr() == ("", "")
    assert len(killed) == 2
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    alone = fit(save_job(tmp_path / "alone", data, 3, **changes))
    for one, two in zip(alone.history, together.history, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-3)
    for a, b in zip(alone.variables, together.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_killed_director_of_the_workers_costs_no_epoch_and_no_core(
    tmp_path: Path, ray_of_this_file: ClusterSize
) -> None:
    import ray

    cluster: Any = ray
    cores = cluster.available_resources()["CPU"]
    rows: list[Any] = []

    def kill_once(row: Any) -> None:
        rows.append(row)
        if row["epoch"] == 2:
            (director,) = workers_of(os.getpid(), DIRECTOR)
            os.kill(director, signal.SIGKILL)

    train(save_job(tmp_path, features(), 3, epochs=5), tell=kill_once)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    for _ in range(100):
        if cluster.available_resources().get("CPU") == cores:
            break
        time.sleep(0.1)
    assert cluster.available_resources()["CPU"] == cores


def test_workers_that_die_at_start_again_and_again_are_a_clear_end(
    tmp_path: Path, ray_of_this_file: ClusterSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.training import distributed

    monkeypatch.setattr(distributed, "MOST_DEATHS", 2)  # each death takes a group of processes to be started anew
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.3):
            for worker in workers_of(os.getpid()):
                os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(TryLater, match="died 2 times in epoch 1"):
            train(save_job(tmp_path, features(), 3))
    finally:
        over.set()
        killer.join()


def test_what_a_worker_says_reaches_the_user(tmp_path: Path, ray_of_this_file: ClusterSize) -> None:
    data = features()
    data["inputs"][:, 0] *= 1e15
    job = save_job(tmp_path, data, 3, optimizer="sgd", learning_rate=10.0, epochs=9, dense_units=8)
    with pytest.raises(UsageError, match=r"epoch \d, batch \d of 4"):
        train(job)
    with pytest.raises(UsageError, match=f"--workers {ray_of_this_file.cpus + 1}"):
        choose_resources(ray_of_this_file.cpus + 1, {}, ray_of_this_file)


STOPPED = """
import signal
import socket
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background ignores it
sys.path.insert(0, sys.argv[1])
from test_loop import features, save_job
from cluster.session import start_or_join
from pipelines.training.resources import Resources
job = save_job(Path(sys.argv[2]), features(), 3, epochs=100000)
with start_or_join("local"):
    from pipelines.training.distributed import train_on_ray
    train_on_ray(job, Resources(1), lambda row: print(int(row["epoch"]), flush=True))
"""


def runs(pid: int) -> bool:
    """Whether a process runs; one that ended but was not waited for, as in a container without init, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_workers_of_a_stopped_driver_end(tmp_path: Path, environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-c", STOPPED, str(Path(__file__).parent), str(tmp_path)]
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if int(line) >= 5:
            break
    workers = workers_of(driver.pid)
    assert len(workers) == 1
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=150)
    deadline = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(filter(runs, workers))
    assert errors.rstrip().endswith("KeyboardInterrupt"), (driver.returncode, errors)
    job = save_job(tmp_path, features(), 3, epochs=100000)
    standing = checkpoint.load(job.checkpoint, job.key())
    assert standing is not None and standing.epoch >= 1


def test_a_folder_that_every_node_sees_is_taken_and_left_clean(ray_of_this_file: ClusterSize, tmp_path: Path) -> None:
    reach.refuse_unseen(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_see_what_was_written_is_named(
    ray_of_this_file: ClusterSize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other bytes than the token lie there, as on a node with a disk of its own at the same place.
    monkeypatch.setattr(reach.files, "write_atomic", lambda place, _token: Path(place).write_bytes(b"another disk"))
    with pytest.raises(UsageError, match=socket.gethostname()):
        reach.refuse_unseen(str(tmp_path))
