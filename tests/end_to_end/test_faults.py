"""What a night must survive: poison files, two writers, images that change, a full disk, broken input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "jobs"]
INJECTOR = Path(__file__).parent / "injector"


def faulty(environment: dict[str, str], faults: str, **more: str) -> dict[str, str]:
    """The environment in which the injector is loaded."""
    return {**environment, "PYTHONPATH": f"{INJECTOR}{os.pathsep}{environment['PYTHONPATH']}", "FAULTS": faults, **more}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def arguments(archive: Path, results: Path, tiny_models: Path) -> list[str]:
    return ["score", str(archive), "--model", f"{tiny_models}/cells", "--results", str(results), "--json"]


def test_poison_files_become_rows_and_cost_nobody_else(
    archive: Path,
    arguments: list[str],
    results: Path,
    environment: dict[str, str],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    paths = draw(archive, 60)
    paths[10].write_bytes(paths[10].read_bytes() + b"ABORT-HERE")
    paths[41].write_bytes(paths[41].read_bytes() + b"HANG-HERE")
    done = nightread(*arguments, "--shard-size", "8", env=faulty(environment, "poison"))
    assert done.code == 3, done.err
    assert done.answer["failed_by_code"] == {"decoder_crashed": 1, "timed_out": 1}
    codes = {row["image_uri"]: row["error_code"] for row in rows_of(results)}
    assert codes == {str(path): None for path in paths} | {
        str(paths[10]): "decoder_crashed",
        str(paths[41]): "timed_out",
    }
    # The reason lies in the images: the next night leaves them alone.
    again = nightread(*arguments)
    assert (again.code, again.answer["new"], again.answer["unchanged"]) == (0, 0, 60)
    # Asked to, it tries them again, now with a decoder that survives them.
    retried = nightread(*arguments, "--retry-failed")
    assert (retried.code, retried.answer["scored"]) == (0, 2)


def test_two_at_once(
    archive: Path,
    arguments: list[str],
    results: Path,
    environment: dict[str, str],
    shared_ray: Callable[[], dict[str, str]],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    paths = draw(archive, 400)
    env = {**environment, **shared_ray()}
    first = subprocess.Popen([*COMMAND, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while first.poll() is None and not list(results.glob("runs/*/plan.parquet")):
        time.sleep(0.01)
    began = time.monotonic()
    second = nightread(*arguments)
    assert second.code == 75, second.err
    assert time.monotonic() - began < 30
    assert second.answer["error"]["code"] == "try_later" and second.answer["exit_code"] == 75
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}


@pytest.mark.parametrize("same_configuration", [True, False])
def test_a_paused_writer_that_wakes_up_doubles_nothing(
    same_configuration: bool,
    archive: Path,
    arguments: list[str],
    results: Path,
    tmp_path: Path,
    environment: dict[str, str],
    shared_ray: Callable[[], dict[str, str]],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    """SIGSTOP between the last look at the lease and the commit, and another machine takes over meanwhile."""
    paths = draw(archive, 40)
    joining = shared_ray()  # both faults are the command's own: no worker has a part in them
    seen = tmp_path / "stopped"
    paused = subprocess.Popen(
        [*COMMAND, *arguments],
        env=faulty(environment, "pause,foreign", FAULT_SEEN=str(seen), FAULT_HOST="one", **joining),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while paused.poll() is None and not seen.exists():
        time.sleep(0.02)
    assert paused.poll() is None
    other = [] if same_configuration else ["--exclude", "no-such-name*"]
    done = nightread(*arguments, *other, env=faulty(environment, "foreign", FAULT_HOST="two", **joining))
    assert done.code == 0, done.err
    assert done.answer["scored"] == 40
    assert (done.answer["resumed"] is not None) == same_configuration
    os.kill(paused.pid, signal.SIGCONT)
    _, errors = paused.communicate(timeout=120)
    assert paused.returncode in ((0, 75) if same_configuration else (75,)), errors
    assert "Traceback" not in errors
    rows = rows_of(results)
    assert Counter(row["image_uri"] for row in rows) == {str(path): 1 for path in paths}
    again = nightread(*arguments)
    assert (again.code, again.answer["new"]) == (0, 0)


def test_a_full_disk_is_75_and_goes_on(
    archive: Path,
    arguments: list[str],
    results: Path,
    environment: dict[str, str],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    paths = draw(archive, 60)
    full = nightread(*arguments, "--shard-size", "4", env=faulty(environment, "full", FAULT_AFTER="5"))
    assert full.code == 75, full.err
    assert "Traceback" not in full.err and "full" in full.answer["error"]["message"]
    done = nightread(*arguments, "--shard-size", "4")
    assert (done.code, done.answer["scored"]) == (0, 60), done.err
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}


def test_images_that_change_between_listing_and_reading(
    archive: Path,
    arguments: list[str],
    results: Path,
    environment: dict[str, str],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    paths = draw(archive, 30)
    deleted, replaced = archive / "deleted.jpg", archive / "replaced.jpg"
    shutil.copy(paths[0], deleted)
    shutil.copy(paths[1], replaced)
    (archive / "other-bytes").write_bytes(paths[2].read_bytes() + b" ")
    done = nightread(*arguments, "--fail-threshold", "1", env=faulty(environment, "vanish"))
    assert done.code == 0, done.err
    assert done.answer["failed_by_code"] == {"not_found": 1}
    rows = {row["image_uri"]: row for row in rows_of(results)}
    assert len(rows) == 32
    assert rows[str(deleted)]["error_code"] == "not_found"
    # The row tells the version that was read, so the next night has nothing to do.
    state = replaced.stat()
    assert rows[str(replaced)]["image_version"] == f"{state.st_size}-{state.st_mtime_ns}"
    again = nightread(*arguments)
    assert (again.answer["found"], again.answer["new"], again.answer["changed"]) == (31, 0, 0)
    # A file that really changes is scored again.
    paths[3].write_bytes(paths[4].read_bytes())
    changed = nightread(*arguments)
    assert (changed.answer["changed"], changed.answer["new"], changed.answer["scored"]) == (1, 0, 1)


def without_roots_rights() -> list[str]:
    """Puts a command under the file rights that everybody else has: root may read and write everything."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux) where the tests run as root")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]


def test_what_may_not_be_read_or_written(
    archive: Path, arguments: list[str], results: Path, environment: dict[str, str], draw: Callable, rows_of: Callable
) -> None:
    paths = draw(archive, 10)
    draw(archive / "closed", 3, start=100)
    paths[0].chmod(0)
    (archive / "closed").chmod(0)

    def run() -> subprocess.CompletedProcess[str]:
        command = [*without_roots_rights(), *COMMAND, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    try:
        done = run()
        assert done.returncode == 3, done.stderr
        answer = json.loads(done.stdout)
        assert answer["failed_by_code"] == {"permission": 1}
        assert answer["unlistable"] == [str(archive / "closed")]
        rows = rows_of(results)
        assert Counter(row["image_uri"] for row in rows) == {str(path): 1 for path in paths}
        # Storage's fault, not the image's: it is tried again every night.
        paths[0].chmod(0o644)
        (archive / "closed").chmod(0o755)
        again = json.loads(run().stdout)
        assert (again["new"], again["scored"], again["exit_code"]) == (4, 4, 0)
        shutil.rmtree(results)
        results.mkdir(mode=0o555)
        refused = run()
        assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
        assert json.loads(refused.stdout)["error"]["cure"]
    finally:
        (archive / "closed").chmod(0o755)
