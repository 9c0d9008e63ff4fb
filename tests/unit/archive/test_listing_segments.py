from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.archive import segments as module
from pipelines.archive.listing import ListingFilter, list_archive
from pipelines.archive.segments import USABLE_SECONDS, Gatherer, Segments
from pipelines.archive.sieve import SIFTED_SCHEMA, Sieve
from pipelines.storage.batches import MODIFIED, FileBatch
from pipelines.storage.bucket_listing import Stretch
from pipelines.storage.key_ranges import EVERYTHING, KeyRange, gaps


def files_of(keys: list[str], modified: datetime | None = None) -> FileBatch:
    return FileBatch(
        pa.array([f"s3://b/{key}" for key in keys], pa.string()),
        pa.array([f"v-{key}" for key in keys], pa.string()),
        pa.array([5] * len(keys), pa.int64()),
        pa.array([modified] * len(keys), MODIFIED),
    )


def new_sieve() -> Sieve:
    return Sieve("s3://b", ListingFilter())


def write(segments: Segments, keys: KeyRange, names: list[str]) -> None:
    sieve = new_sieve()
    segments.add(keys, sieve.kept(files_of(names)), sieve)


def listed(segments: Segments) -> list[str]:
    return [uri.removeprefix("s3://b/") for rows in segments.rows() for uri in rows.column("image_uri").to_pylist()]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 999), unique=True, max_size=60),
    st.lists(st.integers(0, 999), unique=True, max_size=25),
    st.randoms(use_true_random=False),
    st.floats(0, 3),
)
def test_pieces_and_gaps_are_everything_whatever_a_kill_leaves(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[int],
    cuts: list[int],
    chance: random.Random,
    pause: float,
) -> None:
    keys = sorted(f"{number:03d}.{'jpg' if number % 3 else 'txt'}" for number in numbers)
    folder, kept = tmp_path_factory.mktemp("s"), tmp_path_factory.mktemp("kept")
    listed_before: list[str] = []
    for life in range(4):
        clock = iter(range(10**6))
        (folder / str(life)).mkdir()
        with Segments(folder / str(life), "p", str(kept)) as segments:
            segments.load()
            assert listed(segments) == sorted(listed_before)
            gatherer = Gatherer(segments, new_sieve, lambda clock=clock: next(clock) * pause)  # type: ignore[misc]
            bounds = sorted({f"{number:03d}" for number in cuts})
            ranges = gaps(())
            if bounds:
                ranges = [KeyRange(a, b) for a, b in zip(["", *bounds], [*bounds, None], strict=True)]
            open_ranges = [
                KeyRange(max(gap.after, one.after), min((gap, one), key=lambda it: it.order).until)
                for gap in segments.gaps()
                for one in ranges
                if gap.order > (False, one.after) and one.order > (False, gap.after)
            ]
            chance.shuffle(open_ranges)
            for one in open_ranges[: None if life == 3 else chance.randrange(len(open_ranges) + 1)]:
                inside = [key for key in keys if key > one.after and (one.until is None or key <= one.until)]
                middle = inside[len(inside) // 2] if len(inside) > 1 else None
                if middle is not None and middle != one.until:
                    gatherer.add(Stretch(KeyRange(one.after, middle), files_of([k for k in inside if k <= middle])))
                    gatherer.add(Stretch(KeyRange(middle, one.until), files_of([k for k in inside if k > middle])))
                else:
                    gatherer.add(Stretch(one, files_of(inside)))
            if life == 3:
                gatherer.finish()
                assert segments.gaps() == []
                assert listed(segments) == [key for key in keys if key.endswith("jpg")]
                assert segments.found == len(listed(segments))
                assert segments.left_out()["suffix"] == segments.suffixes()["txt"] == len(keys) - segments.found
            # A kill: what was not written is lost.
            listed_before = listed(segments)


def test_large_pieces_are_written_at_once_and_small_ones_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_FILES", 4)
    now = [0.0]
    with Segments(tmp_path, "p") as segments:
        gatherer = Gatherer(segments, new_sieve, lambda: now[0])
        gatherer.add(Stretch(KeyRange("", "c"), files_of(["a.jpg", "b.jpg"])))
        assert segments.found == 0
        gatherer.add(Stretch(KeyRange("c", "f"), files_of(["d.jpg", "e.jpg"])))
        assert (segments.found, segments.gaps()) == (4, [KeyRange("f", None)])
        gatherer.add(Stretch(KeyRange("x", "z"), files_of(["y.jpg"])))
        now[0] = 1.5
        gatherer.add(Stretch(KeyRange("f", "g"), files_of(["f1.jpg"])))
        assert segments.gaps() == [KeyRange("f", "x"), KeyRange("z", None)]
        now[0] = 1000
        gatherer.add(Stretch(KeyRange("z", None), files_of([])))
        assert segments.gaps() == [KeyRange("g", "x"), KeyRange("z", None)]


def test_only_recent_and_whole_pieces_of_the_same_listing_are_taken_over(tmp_path: Path) -> None:
    kept = tmp_path / "kept"

    def run(name: str, purpose: str, at: float) -> Segments:
        (tmp_path / name).mkdir()
        return Segments(tmp_path / name, purpose, str(kept), lambda: at)

    with run("a", "p", 1000) as first:
        write(first, KeyRange("", "c"), ["a.jpg"])
        write(first, KeyRange("b", "d"), ["b1.jpg", "c.jpg"])
    with run("b", "other", 1000) as other:
        write(other, KeyRange("m", None), ["n.jpg"])
    (kept / f"{'0' * 32}.parquet").write_bytes(b"PAR1 cut short")
    pq.write_table(pa.table({"a": [1]}), kept / f"{'1' * 32}.parquet")
    (kept / "stranger.parquet").write_bytes(b"not ours")
    with run("c", "p", 1000 + USABLE_SECONDS) as again:
        again.load()
        assert listed(again) == ["a.jpg"]
        assert again.gaps() == [KeyRange("c", None)]
        assert len(os.listdir(kept)) == 2
    for name, at in (("d", 1001.0 + USABLE_SECONDS), ("e", 999.0 - USABLE_SECONDS)):
        with run("x" + name, "p", 1000) as fresh:
            write(fresh, EVERYTHING, ["z.jpg"])
        with run(name, "p", at) as late:
            late.load()
            assert late.gaps() == [EVERYTHING]
        assert os.listdir(kept) == ["stranger.parquet"]


def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with Segments(tmp_path / "a", "p", str(tmp_path / "kept")) as segments:
        write(segments, EVERYTHING, ["a.jpg"])
        segments.forget()
        assert (segments.gaps(), listed(segments)) == ([EVERYTHING], [])
        assert os.listdir(tmp_path / "kept") == []


def test_files_that_may_still_be_copied_are_left_out_and_named(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    now = time.time()
    ages = {"old.jpg": 300, "young.jpg": 30, "soon.jpg": -30, "far.jpg": -86_400 * 365, "young.txt": 1}
    for name, age in ages.items():
        (root / name).write_bytes(b"x")
        os.utime(root / name, (now - age, now - age))
    listing = list_archive(str(root), ListingFilter(), tmp_path / "o.parquet", min_age_seconds=120)
    assert pq.read_table(listing.path)["image_uri"].to_pylist() == [f"{root}/far.jpg", f"{root}/old.jpg"]
    assert (listing.found, listing.requests) == (2, 0)
    assert listing.left_out == {"suffix": 1, "too_young": 2}
    assert listing.young is not None
    assert pq.read_table(listing.young).to_pydict() == {"image_uri": [f"{root}/soon.jpg", f"{root}/young.jpg"]}
    at_once = list_archive(str(root), ListingFilter(), tmp_path / "p.parquet")
    assert (at_once.found, at_once.young) == (4, None)


def test_a_time_that_is_not_known_is_not_young() -> None:
    sieve = Sieve("s3://b", ListingFilter(), 60)
    kept = sieve.kept(files_of(["a.jpg"]))
    assert kept.schema == SIFTED_SCHEMA
    assert kept.column("young").to_pylist() == [False]
    kept = sieve.kept(files_of(["a.jpg"], datetime.now(UTC)))
    assert (kept.column("young").to_pylist(), sieve.left_out) == ([True], {"too_young": 1})
