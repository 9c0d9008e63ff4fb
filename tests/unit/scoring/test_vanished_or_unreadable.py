"""Images that stay unreadable in an archive that is there become rows; an archive that is not there never does."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ImageFailure
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring import parts
from pipelines.scoring.features import CacheKernel, CacheModel
from pipelines.scoring.scorer import FeatureMaker, ShardScorer, ShardWork
from pipelines.scoring.vanished import MOST_IN_A_ROW, ArchiveLost, ArchiveWatch
from pipelines.scoring.witnesses import witnesses

SIZE = 4
PIXELS = CacheModel(None, None, SIZE * SIZE * 3, "uint8")
FAILURES = {code: ImageFailure(code, "It was not read.") for code in ("not_found", "permission", "storage")}
PATIENCE = 300.0


class Scene:
    """An archive of two folders, a watch over it, and time that passes by pauses alone.

    `other/0.jpg` can be read as long as it is there and not locked; nothing in `study` can.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "archive"
        self.study, self.other = self.root / "study", self.root / "other"
        for place in (self.study, self.other):
            place.mkdir(parents=True)
            (place / "0.jpg").touch()
        self.witness = str(self.other / "0.jpg")
        self.asked: list[str] = []
        self.locked = False
        self.now = 0.0
        self.each_read = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def readable(self, uri: str) -> bool:
        self.asked.append(uri)
        self.now += self.each_read
        return Path(uri).parent == self.other and Path(uri).exists() and not self.locked

    def watch(self, others: Sequence[str] | None = None, listed: bool = True, root: bool = True) -> ArchiveWatch:
        known = (self.witness,) if others is None else others
        place = str(self.root) if root else None
        return ArchiveWatch(place, listed, PATIENCE, self.readable, lambda: known, self.sleep, lambda: self.now)

    def fail(
        self,
        seen: ArchiveWatch,
        code: str,
        count: int = MOST_IN_A_ROW,
        version: str = "1-1",
        folder: Path | None = None,
    ) -> bool:
        """Show it failures; True if it stops, which has to be at the last."""
        stops = [
            seen.saw(str((folder or self.study) / f"{number}.jpg"), version, FAILURES[code]) for number in range(count)
        ]
        assert not any(stops[:-1])
        return stops[-1]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("code", list(FAILURES))
def test_what_stays_unreadable_in_a_living_archive_is_waited_for_once(code: str, root: bool, scene: Scene) -> None:
    seen = scene.watch(root=root)
    assert scene.fail(seen, code)
    seen.wait()
    assert scene.now == pytest.approx(PATIENCE)
    for _ in range(20):  # read again, and those that follow, image by image
        assert not scene.fail(seen, code)
    seen.wrote(0, pa.table({}))
    assert not seen.doubtful  # what was settled is not read again
    assert scene.now == pytest.approx(PATIENCE)
    # Another kind of failure is waited for on its own, with all of the patience.
    another = "permission" if code == "not_found" else "not_found"
    assert scene.fail(seen, another)
    seen.wait()
    assert scene.now == pytest.approx(2 * PATIENCE)


def test_a_folder_that_was_deleted_whole_is_no_lost_share(scene: Scene) -> None:
    seen = scene.watch()
    assert scene.fail(seen, "not_found", folder=scene.study / "series" / "deep")
    seen.wait()


def lose_root(scene: Scene) -> None:
    shutil.rmtree(scene.root)


def empty_root(scene: Scene) -> None:
    shutil.rmtree(scene.root)
    scene.root.mkdir()


def empty_study(scene: Scene) -> None:
    (scene.study / "0.jpg").unlink()


def break_study(scene: Scene) -> None:
    shutil.rmtree(scene.study)
    scene.study.symlink_to(scene.study)  # a folder that gives an error, like a share whose server is gone


def lock_the_other(scene: Scene) -> None:
    scene.locked = True


def delete_the_other(scene: Scene) -> None:
    Path(scene.witness).unlink()


LOSSES = (lose_root, empty_root, empty_study, break_study, lock_the_other, delete_the_other)


@pytest.mark.parametrize("code", list(FAILURES))
@pytest.mark.parametrize("loss", LOSSES)
def test_without_the_proof_the_run_ends(loss: Callable[[Scene], None], code: str, scene: Scene) -> None:
    seen = scene.watch()
    assert not seen.saw(scene.witness, "1-1", None)
    assert not scene.fail(seen, code, MOST_IN_A_ROW - 1)
    loss(scene)
    assert seen.saw(str(scene.study / "last.jpg"), "1-1", FAILURES[code])
    with pytest.raises(ArchiveLost) as lost:
        seen.wait()
    assert scene.now == pytest.approx(PATIENCE) and ".jpg" not in str(lost.value)
    assert ("gone or empty" in lost.value.message) == (loss in (lose_root, empty_root))


@pytest.mark.parametrize("code", list(FAILURES))
@pytest.mark.parametrize("loss", LOSSES)
def test_what_was_settled_once_is_waited_for_again_when_the_archive_goes(
    loss: Callable[[Scene], None], code: str, scene: Scene
) -> None:
    seen = scene.watch()
    assert scene.fail(seen, code)
    seen.wait()
    assert not scene.fail(seen, code)
    assert not scene.fail(seen, code, MOST_IN_A_ROW - 1)
    loss(scene)
    assert seen.saw(str(scene.study / "last.jpg"), "1-1", FAILURES[code])
    with pytest.raises(ArchiveLost):
        seen.wait()
    assert scene.now == pytest.approx(2 * PATIENCE)


def test_one_empty_folder_of_many_is_enough(scene: Scene) -> None:
    seen = scene.watch()
    (scene.root / "mount").mkdir()
    assert not seen.saw(str(scene.root / "mount" / "x.jpg"), "1-1", FAILURES["not_found"])
    assert scene.fail(seen, "not_found", MOST_IN_A_ROW - 1)
    with pytest.raises(ArchiveLost):
        seen.wait()


@pytest.mark.parametrize(("version", "listed"), [("", True), ("of-the-manifest", False)])
def test_the_folder_of_images_that_nobody_saw_is_not_asked(version: str, listed: bool, scene: Scene) -> None:
    seen = scene.watch(listed=listed)
    empty_study(scene)  # it may be one that this user cannot look into
    assert scene.fail(seen, "permission", version=version)
    seen.wait()
    assert not scene.fail(seen, "permission", version=version)


@pytest.mark.parametrize("loss", [lose_root, empty_root])
def test_nothing_is_proven_without_the_root(loss: Callable[[Scene], None], scene: Scene) -> None:
    (elsewhere := scene.root.parent / "elsewhere").mkdir()
    scene.other = elsewhere
    (elsewhere / "0.jpg").touch()
    seen = scene.watch(others=[str(elsewhere / "0.jpg")])
    assert scene.fail(seen, "permission", version="")
    loss(scene)
    with pytest.raises(ArchiveLost, match="gone or empty"):
        seen.wait()


def test_the_image_that_was_read_last_is_tried_first_and_others_after_it(scene: Scene) -> None:
    newer = scene.other / "1.jpg"
    newer.touch()
    seen = scene.watch()
    assert not seen.saw(str(newer), "1-1", ImageFailure("truncated", "It ends early."))  # it was read all the same
    assert scene.fail(seen, "storage")
    seen.wait()
    assert scene.asked[-1] == str(newer)
    newer.unlink()
    assert not scene.fail(seen, "storage")
    assert scene.asked[-2:] == [str(newer), scene.witness]
    before = len(scene.asked)
    assert not scene.fail(seen, "storage")
    assert scene.asked[before:] == [scene.witness]


def test_an_image_of_the_row_is_no_witness(scene: Scene) -> None:
    seen = scene.watch()
    assert not scene.fail(seen, "storage", 3)
    assert not seen.saw(scene.witness, "1-1", FAILURES["storage"])  # none of the three that are tried in a pause
    assert scene.fail(seen, "storage", MOST_IN_A_ROW - 4)
    with pytest.raises(ArchiveLost):
        seen.wait()


def test_witnesses_are_not_tried_for_ever(scene: Scene) -> None:
    slow = [str(scene.study / f"slow-{number}.jpg") for number in range(100)]
    seen = scene.watch(others=[*slow, scene.witness])
    assert scene.fail(seen, "storage")
    began = scene.now
    scene.each_read = 12.0
    with pytest.raises(ArchiveLost):
        seen.wait()
    # Three images of the row in each pause until the patience ends, and then a minute of others.
    assert scene.now - began < PATIENCE + 3 * 12 + 60 + 12 + 1
    assert slow[4] in scene.asked and slow[6] not in scene.asked


def test_a_proof_that_comes_and_goes_ends(scene: Scene) -> None:
    seen = scene.watch()
    assert scene.fail(seen, "storage")
    seen.wait()
    scene.locked = True
    assert scene.fail(seen, "storage")
    with pytest.raises(ArchiveLost):
        seen.wait()
    assert scene.now == pytest.approx(PATIENCE)


def test_prefixes_of_an_object_store(scene: Scene) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/unreadable/a/kept/other.jpg", b"x")

    def watch_of(folder: str) -> ArchiveWatch:
        seen = ArchiveWatch(
            "memory://unreadable",
            True,
            PATIENCE,
            lambda uri: uri == "memory://unreadable/a/kept/other.jpg",
            lambda: ["memory://unreadable/a/kept/other.jpg"],
            scene.sleep,
            lambda: scene.now,
        )
        for number in range(MOST_IN_A_ROW):
            stops = seen.saw(f"memory://unreadable/{folder}/{number}.jpg", "1-1", FAILURES["not_found"])
        assert stops
        return seen

    try:
        watch_of("a/kept").wait()
        watch_of("a/deleted").wait()
        with pytest.raises(ArchiveLost):
            watch_of("share/deleted").wait()
    finally:
        store.rm("/unreadable", recursive=True)


CLASSES = ["benign", "malignant"]


def commit_rows(results: Path, run_id: str, day: int, codes: dict[str, str | None]) -> None:
    schema = prediction_schema(CLASSES, None)
    empty = dict.fromkeys(schema.names)
    rows = [
        {**empty, "run_id": run_id, "scored_date": datetime.date(2026, 3, day), "image_uri": uri, "error_code": code}
        for uri, code in codes.items()
    ]
    commit.commit_run(str(results), run_id, schema, pa.Table.from_pylist(rows, schema).to_batches(), lambda: None)


def plan(folder: RunFolder, uris: list[str], size: int) -> Iterator[tuple[int, pa.Table]]:
    """Write a run's plan; yields its shards."""
    Path(folder.root).mkdir(parents=True)
    numbers = pa.array(np.arange(len(uris), dtype=np.int32) // size)
    table = pa.table({"shard": numbers, "image_uri": uris, "image_version": ["1-1"] * len(uris)})
    pq.write_table(table, folder.plan, row_group_size=16 * size)
    with parts.open_plan(folder) as opened:
        for group in range(len(opened.groups)):
            yield from opened.read_group(group).items()


def test_witnesses_are_of_the_newest_rows_and_of_all_the_plan(tmp_path: Path) -> None:
    results, folder = tmp_path / "results", RunFolder(str(tmp_path / "results"), "run")
    assert list(witnesses(folder, "/a")) == []
    planned = [f"/a/{number:04d}.jpg" for number in range(1000)]
    list(plan(folder, planned, 10))
    from_plan = list(witnesses(folder, "/a"))
    assert 10 <= len(from_plan) <= 20 and from_plan[0] == planned[0] and from_plan[-1] >= planned[990]
    assert np.diff([planned.index(uri) for uri in from_plan]).max() < 100
    commit.ensure_table(str(results))
    commit_rows(results, "r1", 1, {f"/a/old-{number}.jpg": None for number in range(100)})
    commit_rows(results, "r3", 3, {f"/a/bad-{number}.jpg": "permission" for number in range(100)})
    commit_rows(results, "r2", 2, {"/ab/x.jpg": None, "/a/new.jpg": None, "/a/torn.jpg": "truncated", "/b/a/y": None})
    found = list(witnesses(folder, "/a"))
    assert found[0] == "/a/new.jpg" and found[1] == "/a/old-0.jpg" and found[4] == "/a/old-99.jpg"
    assert found[5:] == from_plan
    assert next(iter(witnesses(folder, "/"))) in ("/ab/x.jpg", "/a/new.jpg", "/b/a/y")
    assert list(witnesses(folder, None)) == from_plan
    # What cannot be read tells of nothing, and ends no run.
    shutil.rmtree(results / "predictions" / "_delta_log")
    (results / "predictions" / "_delta_log").mkdir()
    (results / "predictions" / "_delta_log" / f"{0:020d}.json").write_text("{")
    Path(folder.plan).write_bytes(b"no plan")
    assert list(witnesses(folder, "/a")) == []


def drawn(place: Path, count: int) -> list[str]:
    place.mkdir(parents=True)
    for number in range(count):
        (place / f"{number:03d}.png").write_bytes(
            cv2.imencode(".png", np.full((5, 6, 3), number, np.uint8))[1].tobytes()
        )
    return [str(path) for path in sorted(place.iterdir())]


@pytest.mark.parametrize("known_from", ["plan", "table"])
@pytest.mark.parametrize("code", ["not_found", "storage"])
def test_a_night_of_images_that_nobody_can_read_ends_with_their_rows(
    code: str, known_from: str, tmp_path: Path
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    bad, good = drawn(archive / "study", 130), drawn(archive / "other", 3)
    for uri in bad[:-1] if code == "not_found" else bad:
        Path(uri).unlink()
        if code == "storage":
            Path(uri).symlink_to("/proc/self/mem")  # opens well; its first byte is an input/output error
    unread = bad[:-1] if code == "not_found" else bad
    folder = RunFolder(str(results), "run")
    if known_from == "table":
        commit.ensure_table(str(results))
        commit_rows(results, "r1", 1, {good[1]: None})
    shards = list(plan(folder, unread + (good if known_from == "plan" else []), 16))
    slept: list[float] = []
    work = ShardWork(
        folder, 1, SIZE, CacheKernel(PIXELS, None), FeatureMaker(PIXELS.size), str(archive), patience_seconds=0.05
    )
    actor = ShardScorer(work, b"", slept.append)
    receipts = [actor.score(shard, images) for shard, images in shards]
    rows = [row for shard, _ in shards for row in (parts.read_part(folder, shard) or pa.table({})).to_pylist()]
    codes = {row["image_uri"]: row["error_code"] for row in rows}
    assert len(rows) == len(codes) == sum(images.num_rows for _, images in shards)
    assert {uri for uri, found in codes.items() if found == code} == set(unread)
    assert sum(receipt.storage_failed for receipt in receipts) == len(unread)


def test_a_night_in_which_nothing_can_be_read_ends_without_a_row(tmp_path: Path) -> None:
    archive, folder = tmp_path / "archive", RunFolder(str(tmp_path / "results"), "run")
    uris = drawn(archive / "study", 80)
    (archive / "README").touch()
    shards = list(plan(folder, uris, 16))
    for uri in uris:
        Path(uri).unlink()
        Path(uri).symlink_to("/proc/self/mem")
    work = ShardWork(
        folder, 1, SIZE, CacheKernel(PIXELS, None), FeatureMaker(PIXELS.size), str(archive), patience_seconds=0.05
    )
    actor = ShardScorer(work, b"", lambda _seconds: None)
    with pytest.raises(ArchiveLost):
        for shard, images in shards:
            actor.score(shard, images)
    assert folder.finished_shards() == set()
