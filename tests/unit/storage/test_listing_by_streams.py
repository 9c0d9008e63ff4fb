"""Several streams over one line of keys, in every order of events, against a store that answers as libraries do."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.storage import bucket_listing, bucket_pages
from pipelines.storage.bucket_listing import NotInOrder, Stretch, list_all, list_ranges
from pipelines.storage.key_ranges import EVERYTHING, NOT_EXPRESSIBLE, KeyRange, apart, gaps
from pipelines.storage.throttle import Throttle

PAGE = 3
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
PARTS = st.text(st.sampled_from("01aZ.-~é😀\t"), min_size=1, max_size=3)
# A key and how many bytes it has; those that end with a slash have none, as S3's own tools make them.
KEYS = st.dictionaries(
    st.builds("/".join, st.lists(PARTS, min_size=1, max_size=4)).flatmap(lambda key: st.sampled_from([key, key + "/"])),
    st.sampled_from([0, 5, 5, 5]),
    max_size=60,
).map(lambda found: {key: 0 if key.endswith("/") else size for key, size in found.items()})


class Store:
    """Objects, and what two libraries show of them."""

    def __init__(self, objects: dict[str, int], page: int = PAGE) -> None:
        self.keys = sorted(objects)
        self.sizes = objects
        self.page = page
        self.asked: list[str] = []
        self.ignores_start = False

    def _after(self, key: str) -> Sequence[str]:
        self.asked.append(key)
        return self.keys if self.ignores_start else self.keys[bisect.bisect_right(self.keys, key) :]

    def list(self, prefix: str | None, offset: str | None, chunk_size: int, return_arrow: bool) -> Iterator[Any]:
        """As obstore does: no slashes at ends, and no page that holds a key that it cannot express."""
        assert return_arrow and not (offset and NOT_EXPRESSIBLE.search(offset))
        found = [key for key in self._after(offset or "") if key.startswith(f"{prefix}/" if prefix else "")]
        for start in range(0, len(found), chunk_size):
            page = found[start : start + chunk_size]
            if any(NOT_EXPRESSIBLE.search(key.rstrip("/")) for key in page):
                raise ValueError("Could not parse path")
            yield self.columns(page)

    def columns(self, page: Sequence[str]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict(
            {
                "path": [key.rstrip("/") for key in page],
                "size": pa.array([self.sizes[key] for key in page], pa.uint64()),
                "e_tag": [f'"{key}"' for key in page],
                "last_modified": pa.array([WHEN] * len(page), pa.timestamp("us", "UTC")),
            }
        )

    def list_objects_v2(
        self, Bucket: str, Prefix: str, StartAfter: str = "", ContinuationToken: str = ""
    ) -> dict[str, Any]:
        """As botocore does; pages may have nothing on them that has the prefix."""
        self.asked.append(StartAfter)
        begin = 0 if self.ignores_start else bisect.bisect_right(self.keys, StartAfter)
        start = int(ContinuationToken or begin)
        page = [key for key in self.keys[start : start + self.page] if key.startswith(Prefix)]
        contents = [{"Key": key, "Size": self.sizes[key], "ETag": f'"{key}"', "LastModified": WHEN} for key in page]
        return {
            "Contents": contents,
            "IsTruncated": start + self.page < len(self.keys),
            "NextContinuationToken": str(start + self.page),
        }


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a store in the place of both libraries."""

    def put(store: Store) -> Store:
        monkeypatch.setattr(bucket_pages, "PAGE", store.page)
        monkeypatch.setattr(bucket_pages, "open_store", lambda *_, **__: store)
        client = SimpleNamespace(botocore_client=lambda tries: store)
        monkeypatch.setattr(bucket_pages, "settings_of", lambda _place: client)
        return store

    return put


def in_order(stretches: list[Stretch]) -> list[str]:
    """The keys without slashes at their ends, in the order of the bucket."""
    ordered = sorted(stretches, key=lambda stretch: stretch.keys.after)
    return [uri.removeprefix("s3://b/").rstrip("/") for stretch in ordered for uri in stretch.files.uris.to_pylist()]


def listed_by_turns(place: str, ranges: list[KeyRange], schedule: Any, streams: int, most: int) -> list[Stretch]:
    """Let streams take turns as the schedule says, until all is listed or `most` pages are."""
    work, throttle = bucket_listing._Work(place, ranges), Throttle()
    running: list[Iterator[Stretch]] = []
    found: list[Stretch] = []
    while len(found) < most:
        while len(running) < streams and (mine := work.free_range()) is not None:
            running.append(bucket_listing._listed(place, mine, work, throttle))
        if not running:
            break
        turn = schedule.randrange(len(running))
        stretch = next(running[turn], None)
        if stretch is None:
            running.pop(turn)
        else:
            found.append(stretch)
    return found


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(KEYS, st.sampled_from(["", "a", "0/a"]), st.integers(0, 10**6), st.integers(1, 5), st.lists(st.integers(1, 9)))
def test_every_key_is_there_once_and_in_order_however_streams_run_and_are_killed(
    serve: Any, objects: dict[str, int], prefix: str, seed: int, streams: int, kills: list[int]
) -> None:
    store = serve(Store(objects))
    place = f"s3://b/{prefix}".rstrip("/")
    schedule = random.Random(seed)
    stretches: list[Stretch] = []
    for most in [*kills, 10**6]:
        rest = gaps(apart(stretch.keys for stretch in stretches))
        stretches += listed_by_turns(place, rest, schedule, streams, most)
    ranges = [stretch.keys for stretch in stretches]
    assert len(apart(ranges)) == len(ranges), "two stretches overlap"
    assert gaps(apart(ranges)) == []
    inside = [key for key in store.keys if key.startswith(f"{prefix}/" if prefix else "") and key != f"{prefix}/"]
    assert in_order(stretches) == [key.rstrip("/") for key in inside]


def test_streams_share_flat_buckets_and_any_folders_evenly(serve: Any) -> None:
    source = random.Random(5)
    shapes = {
        "flat": [f"{number:07d}.jpg" for number in range(4000)],
        "random": [f"{source.getrandbits(64):016x}.jpg" for _ in range(4000)],
        "dates": [
            f"h/xray/{2015 + n // 700}/{n // 60 % 12:02d}/p{source.randrange(9999)}/{n}.jpg" for n in range(4000)
        ],
        "uneven": [f"a/{n}.jpg" for n in range(90)] + [f"b/a/long/way/down/{n:06d}.jpg" for n in range(3910)],
        "other letters": [f"患者{chr(0x4E00 + n // 20)}/{n}.jpg" for n in range(4000)],
    }
    for name, keys in shapes.items():
        store = serve(Store(dict.fromkeys(keys, 7), page=20))
        work, rounds, requests = bucket_listing._Work("s3://b", [EVERYTHING]), 0, Throttle()
        running: list[Iterator[Stretch]] = []
        found: list[Stretch] = []
        while True:
            while len(running) < 8 and (mine := work.free_range()) is not None:
                running.append(bucket_listing._listed("s3://b", mine, work, requests))
            if not running:
                break
            answers = [next(one, None) for one in running]
            found += [answer for answer in answers if answer is not None]
            running = [one for one, answer in zip(running, answers, strict=True) if answer is not None]
            rounds += 1
        assert in_order(found) == store.keys
        # One stream takes 200 rounds, eight that know where to cut 25. A range takes one more round to end.
        assert rounds < 70, (name, rounds)
        assert requests.requests < 200 * 1.6, (name, requests.requests)


def test_threads_list_what_was_asked_for(serve: Any) -> None:
    keys = [f"p{number // 50:03d}/{number:06d}.jpg" for number in range(5000)]
    store = serve(Store(dict.fromkeys(keys, 1), page=10))
    throttle = Throttle()
    parts = [KeyRange("p010/", "p020/x"), KeyRange("p050/002525.jpg", None)]
    found = list(list_ranges("s3://b", parts, throttle))
    assert in_order(found) == [key for key in keys if "p010/" < key < "p020/x" or key > "p050/002525.jpg"]
    assert throttle.requests >= len(found)
    assert all("p010/" <= key <= "p020/x" or key >= "p050/002525.jpg" for key in store.asked)
    assert sorted(uri for batch in list_all("s3://b", Throttle()) for uri in batch.uris.to_pylist()) == [
        f"s3://b/{key}" for key in keys
    ]


def test_a_low_rate_has_one_stream_that_wastes_no_request(serve: Any) -> None:
    store = serve(Store({f"{number:05d}.jpg": 1 for number in range(995)}, page=10))
    throttle = Throttle(5, sleep=lambda _seconds: None)
    assert len(in_order(list(list_ranges("s3://b", [EVERYTHING], throttle)))) == 995
    assert (throttle.requests, store.asked) == (100, [""])


@pytest.mark.parametrize("fault", ["ignores where to start", "keeps no order"])
def test_a_store_without_order_is_noticed_and_listed_in_turn(serve: Any, fault: str) -> None:
    keys = [f"p{number // 10:03d}/{number:06d}.jpg" for number in range(300)]
    store = serve(Store(dict.fromkeys(keys, 1), page=10))
    if fault == "keeps no order":
        random.Random(2).shuffle(store.keys)
    store.ignores_start = True
    with pytest.raises(NotInOrder):
        list(list_ranges("s3://b", [KeyRange("", "p011"), KeyRange("p011", None)], Throttle()))
    listed = [uri for batch in list_all("s3://b", Throttle()) for uri in batch.uris.to_pylist()]
    assert sorted(listed) == [f"s3://b/{key}" for key in keys]


def test_whoever_stops_asking_leaves_no_thread_behind(serve: Any) -> None:
    import threading

    serve(Store({f"{number:05d}.jpg": 1 for number in range(5000)}, page=10))
    before = threading.active_count()
    stretches = list_ranges("s3://b", [EVERYTHING], Throttle())
    next(stretches)
    stretches.close()
    assert threading.active_count() == before
