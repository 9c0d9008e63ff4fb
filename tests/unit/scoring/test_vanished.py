"""An archive that goes away: told from deleted images, waited for, and never written into a part that stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import ImageFailure
from pipelines.predictions.runs import RunFolder
from pipelines.scoring import parts
from pipelines.scoring.features import CacheKernel, CacheModel
from pipelines.scoring.kernels import Kernel
from pipelines.scoring.scorer import FeatureMaker, ShardScorer, ShardWork
from pipelines.scoring.vanished import MOST_IN_A_ROW, ArchiveLost, ArchiveWatch
from pipelines.storage import reading

SIZE = 4
PIXELS = CacheModel(None, None, SIZE * SIZE * 3, "uint8")
MISSING = ImageFailure("not_found", "The file was gone when it was read.")
REFUSED = ImageFailure("permission", "The file may not be read with these rights.")
BROKEN = ImageFailure("truncated", "It ends early.")


class Clock:
    """Time that passes only by pauses; something may happen in each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.meanwhile()

    def read(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "one.jpg").touch()
    return folder


def watch(
    archive: Path | None,
    clock: Clock,
    readable: Callable[[str], bool] = lambda _uri: False,
    listed: bool = True,
    others: Sequence[str] = (),
) -> ArchiveWatch:
    root = str(archive) if archive else None
    return ArchiveWatch(root, listed, 300, readable, lambda: others, clock.sleep, clock.read)


def failures(seen: ArchiveWatch, count: int, failure: ImageFailure = MISSING, version: str = "1-1") -> int:
    """Show it failed images; how many until it stops."""
    for number in range(count):
        if seen.saw(f"/a/{number}", version, failure):
            return number + 1
    return count + 1


def test_single_failures_of_a_living_archive_are_rows(archive: Path, clock: Clock) -> None:
    seen = watch(archive, clock)
    for ends in (None, BROKEN):  # whatever was read, a broken image too, ends a row
        assert failures(seen, MOST_IN_A_ROW - 1) == MOST_IN_A_ROW
        assert not seen.seems_gone()
        assert not seen.saw("/a/x", "1-1", ends)
    assert failures(seen, MOST_IN_A_ROW) == MOST_IN_A_ROW


@pytest.mark.parametrize("failure", [MISSING, REFUSED])
@pytest.mark.parametrize("gone", ["renamed", "empty"])
def test_the_first_failure_below_a_root_that_is_gone_is_enough(
    failure: ImageFailure, gone: str, archive: Path, clock: Clock
) -> None:
    seen = watch(archive, clock)
    shutil.rmtree(archive)
    if gone == "empty":
        archive.mkdir()
    assert seen.saw("/a/1", "1-1", failure)


def test_the_root_is_asked_every_few_seconds_and_again_before_failures_are_written(archive: Path, clock: Clock) -> None:
    seen = watch(archive, clock)
    assert not seen.saw("/a/1", "1-1", MISSING)
    shutil.rmtree(archive)
    assert not seen.saw("/a/2", "1-1", MISSING)
    assert seen.seems_gone()
    assert not seen.saw("/a/3", "1-1", None) and not seen.seems_gone()
    assert not seen.saw("/a/4", "1-1", MISSING)
    clock.now += 3
    assert seen.saw("/a/5", "1-1", MISSING)


def test_images_that_were_not_there_when_the_plan_was_made_are_not_missed(archive: Path, clock: Clock) -> None:
    seen = watch(archive, clock)
    assert failures(seen, 500, version="") == 501
    assert failures(seen, MOST_IN_A_ROW - 1) == MOST_IN_A_ROW
    # They neither lengthen a row nor end it.
    assert failures(seen, 10, version="") == 11
    assert failures(seen, 1) == 1


def test_the_root_alone_decides_about_images_that_were_not_there(archive: Path, clock: Clock) -> None:
    seen = watch(archive, clock)
    assert not seen.saw("/a/1", "", MISSING)
    shutil.rmtree(archive)  # at once, or when the plan was made
    assert not seen.saw("/a/2", "", MISSING)  # it was asked a moment ago
    assert seen.seems_gone()
    archive.mkdir()
    assert failures(watch(archive, clock), 5, version="") == 1
    with pytest.raises(ArchiveLost, match="gone or empty"):
        seen.wait()


def test_a_manifest_with_versions_of_its_own_is_judged_by_its_root_and_by_what_is_refused(
    archive: Path, clock: Clock
) -> None:
    seen = watch(archive, clock, listed=False)
    assert failures(seen, 500) == 501
    assert failures(seen, 60, REFUSED) == MOST_IN_A_ROW
    shutil.rmtree(archive)
    assert failures(watch(archive, clock, listed=False), 5) == 1


def test_an_archive_that_comes_back_is_waited_for(archive: Path, tmp_path: Path, clock: Clock) -> None:
    seen = watch(archive, clock)
    away = archive.rename(tmp_path / "away")
    assert seen.saw("/a/1", "1-1", MISSING)

    def return_after_a_minute() -> None:
        if clock.now > 60 and away.exists():
            away.rename(archive)

    clock.meanwhile = return_after_a_minute
    seen.wait()
    assert 60 < clock.now < 60 + 16
    # It had no images without a root: the row begins anew.
    assert failures(seen, MOST_IN_A_ROW) == MOST_IN_A_ROW


@pytest.mark.parametrize("back", [0, 25, 49])
def test_a_share_below_a_living_root_is_back_when_one_of_three_images_is(
    back: int, archive: Path, clock: Clock
) -> None:
    seen = watch(archive, clock, readable=lambda uri: clock.now > 100 and uri == f"/a/{back}")
    assert failures(seen, MOST_IN_A_ROW) == MOST_IN_A_ROW
    seen.wait()
    assert 100 < clock.now < 116


@pytest.mark.parametrize("root", ["gone", "living", "none"])
def test_an_archive_that_stays_away_ends_the_run_and_says_what_was_seen(root: str, archive: Path, clock: Clock) -> None:
    seen = watch(None if root == "none" else archive, clock)
    assert failures(seen, MOST_IN_A_ROW - 1) == MOST_IN_A_ROW
    if root == "gone":
        shutil.rmtree(archive)
        assert seen.seems_gone()
    else:
        assert failures(seen, 1) == 1
    with pytest.raises(ArchiveLost) as caught:
        seen.wait()
    assert clock.now == pytest.approx(300) and caught.value.exit_code == 75
    said = {
        "gone": f"The archive {str(archive)!r} is gone or empty",
        "living": f"50 images in a row could not be read, though {str(archive)!r} still lists something",
        "none": "50 images in a row could not be read, and none",
    }[root]
    assert caught.value.message.startswith(said) and "/a/" not in str(caught.value)
    assert max(clock.pauses) <= 15 and len(clock.pauses) > 20


@pytest.mark.parametrize("others", [(), ("/w",)])
def test_a_root_that_comes_and_goes_without_one_image_is_given_up_too(
    others: tuple[str, ...], archive: Path, clock: Clock
) -> None:
    seen = watch(archive, clock, lambda uri: uri == "/w", others=others)

    def flap() -> None:
        if archive.exists():
            shutil.rmtree(archive)
        else:
            archive.mkdir()
            (archive / "x").touch()

    clock.meanwhile = flap
    shutil.rmtree(archive)

    def read_on() -> None:
        for _ in range(1000):
            if seen.saw("/a/1", "1-1", MISSING) or seen.seems_gone():
                seen.wait()
            flap()
            clock.now += 3

    with pytest.raises(ArchiveLost):
        read_on()
    assert clock.now < 320


class Disturbing:
    """A kernel that does something when it is given certain images, by number."""

    def __init__(self, actions: dict[int, Callable[[], object]]) -> None:
        self.actions = actions
        self.count = 0

    def __call__(self, model: bytes) -> Kernel:
        plain = CacheKernel(PIXELS, None)(model)

        def kernel(prepared: object) -> np.ndarray:
            self.actions.pop(self.count, lambda: None)()
            self.count += 1
            return plain(prepared)  # type: ignore[arg-type]

        return kernel


def picture(number: int) -> bytes:
    return cv2.imencode(".png", np.full((5, 6, 3), number % 251, np.uint8))[1].tobytes()


def filled(archive: Path, count: int) -> pa.Table:
    """An archive and its plan."""
    archive.mkdir(parents=True, exist_ok=True)
    uris = []
    for number in range(count):
        path = archive / f"{number:04d}.png"
        path.write_bytes(picture(number))
        uris.append(str(path))
    versions = [reading.ImageReader(10_000).read(uri).version for uri in uris]
    return pa.table({"image_uri": uris, "image_version": versions})


def scorer(
    folder: RunFolder, archive: Path, kernel: Disturbing, sleep: Callable[[float], None], patience: float
) -> ShardScorer:
    work = ShardWork(folder, 1, SIZE, kernel, FeatureMaker(PIXELS.size), str(archive), patience_seconds=patience)
    return ShardScorer(work, b"", sleep)


def in_shards(plan: pa.Table, size: int) -> list[pa.Table]:
    return [plan.slice(start, size) for start in range(0, plan.num_rows, size)]


def codes_of(folder: RunFolder, shards: int) -> dict[str, str | None]:
    """What the parts say of each image."""
    rows = [row for shard in range(shards) for row in (parts.read_part(folder, shard) or pa.table({})).to_pylist()]
    codes = {Path(row["image_uri"]).stem: row["error_code"] for row in rows}
    assert len(codes) == len(rows)
    return codes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(
    size=st.sampled_from([3, 7, 30, 200]),
    goes=st.integers(0, 79),
    deleted=st.sets(st.integers(0, 79), max_size=40),
    empty=st.booleans(),
)
def test_an_archive_that_was_away_for_a_while_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, size: int, goes: int, deleted: set[int], empty: bool
) -> None:
    base = tmp_path_factory.mktemp("vanishing")
    archive, folder = base / "archive", RunFolder(str(base), "run")
    shards = in_shards(filled(archive, 80), size)
    for number in deleted:
        (archive / f"{number:04d}.png").unlink()

    def unmount() -> None:
        archive.rename(base / "away")
        if empty:
            archive.mkdir()

    def mount(_seconds: float) -> None:
        if (base / "away").exists():
            shutil.rmtree(archive, ignore_errors=True)
            (base / "away").rename(archive)

    actor = scorer(folder, archive, Disturbing({goes: unmount}), mount, patience=60)
    for shard, images in enumerate(shards):
        actor.score(shard, images)
    expected = {f"{number:04d}": "not_found" if number in deleted else None for number in range(80)}
    assert codes_of(folder, len(shards)) == expected
    shutil.rmtree(base)


@pytest.mark.parametrize("what", ["root", "share"])
def test_nothing_of_an_archive_that_stays_away_is_left_in_a_part(what: str, tmp_path: Path) -> None:
    archive, folder = tmp_path / "archive", RunFolder(str(tmp_path), "run")
    plan = filled(archive / "share", 120)
    (archive / "README").touch()
    gone = archive if what == "root" else archive / "share"
    # All at once, as a share goes: images that are read ahead meanwhile are there or not, in one order.
    leave = Disturbing({33: lambda: gone.rename(tmp_path / "away")})
    actor = scorer(folder, archive, leave, lambda _seconds: None, 0.05)
    shards = in_shards(plan, 10)
    receipts = []
    with pytest.raises(ArchiveLost) as caught:
        for shard, images in enumerate(shards):
            receipts.append(actor.score(shard, images))
    assert ("gone or empty" in caught.value.message) == (what == "root")
    # What was read ahead when it happened was read well.
    codes = codes_of(folder, len(shards))
    assert 30 <= len(codes) <= 50 and set(codes.values()) == {None}
    # Parts of whole shards are there; those of the row were, and are not any more.
    assert folder.finished_shards() == set(range(len(codes) // 10))
    assert [receipt.storage_failed > 0 for receipt in receipts[: len(codes) // 10]] == [False] * (len(codes) // 10)
    assert len(receipts) == len(codes) // 10 if what == "root" else all(r.storage_failed for r in receipts[5:])


def test_forty_nine_deleted_images_are_forty_nine_rows(tmp_path: Path) -> None:
    archive, folder = tmp_path / "archive", RunFolder(str(tmp_path), "run")
    plan = filled(archive, 120)
    for number in range(30, 79):
        (archive / f"{number:04d}.png").unlink()
    slept: list[float] = []
    actor = scorer(folder, archive, Disturbing({}), slept.append, 60)
    receipts = [actor.score(shard, images) for shard, images in enumerate(in_shards(plan, 16))]
    assert sum(receipt.storage_failed for receipt in receipts) == 49 and slept == []
    assert sum(code == "not_found" for code in codes_of(folder, 8).values()) == 49


def test_a_manifest_whose_share_is_not_mounted_is_waited_for(tmp_path: Path) -> None:
    archive, folder = tmp_path / "archive", RunFolder(str(tmp_path), "run")
    plan = filled(archive, 9).set_column(1, "image_version", pa.array([""] * 9))
    away = archive.rename(tmp_path / "away")
    archive.mkdir()

    def mount(_seconds: float) -> None:
        archive.rmdir()
        away.rename(archive)

    scorer(folder, archive, Disturbing({}), mount, 60).score(0, plan)
    assert set(codes_of(folder, 1).values()) == {None}
    shutil.rmtree(archive)
    with pytest.raises(ArchiveLost):
        scorer(folder, archive, Disturbing({}), lambda _seconds: None, 0.05).score(1, plan)
    assert folder.finished_shards() == {0}
