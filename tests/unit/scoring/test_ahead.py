"""Images read ahead: in order, each once, and never more than there is room for."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ImageFailure
from pipelines.scoring import ahead
from pipelines.scoring.ahead import READ_AHEAD, ReadAhead
from pipelines.storage.reading import Blob


class Store:
    """Reads numbers; counts how often each was read, and how many were read or held and not yet taken."""

    def __init__(self, size: int = 3) -> None:
        self.reads: Counter[int] = Counter()
        self.size = size
        self.held = 0
        self.most_held = 0
        self._lock = threading.Lock()

    def read(self, number: int) -> Blob:
        with self._lock:
            self.reads[number] += 1
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        if number % 7 == 3:
            raise ImageFailure("storage", "No.")
        return Blob(b"%d" % number + b" " * self.size, "v")

    def take(self) -> None:
        with self._lock:
            self.held -= 1


def numbers_of(reader: ReadAhead[int], store: Store, wanted: range, following: range) -> list[int]:
    found = []
    for number, future in zip(wanted, reader.blobs(wanted, following), strict=True):
        failed = future.exception() is not None
        store.take()
        found.append(number if failed else int(future.result().data))
        assert failed == (number % 7 == 3)
    return found


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), foretold=st.booleans())
def test_every_image_is_read_once_and_in_order(sizes: list[int], foretold: bool) -> None:
    store, start = Store(), 0
    with ThreadPoolExecutor(4) as pool:
        reader = ReadAhead(store.read, pool)
        for size, after in zip(sizes, [*sizes[1:], 0], strict=True):
            wanted = range(start, start + size)
            following = range(start + size, start + size + after) if foretold else range(0)
            assert numbers_of(reader, store, wanted, following) == list(wanted)
            start += size
    assert store.reads == Counter(range(start))
    assert store.most_held <= READ_AHEAD + 1


def test_the_next_shard_is_begun_while_this_one_is_scored() -> None:
    store = Store()
    with ThreadPoolExecutor(4) as pool:
        reader = ReadAhead(store.read, pool)
        assert numbers_of(reader, store, range(64), range(64, 128)) == list(range(64))
        pool.shutdown()
        assert set(store.reads) == set(range(64 + READ_AHEAD - 1))


def test_what_was_begun_for_another_sequence_or_is_to_be_forgotten_is_read_again() -> None:
    store = Store()
    with ThreadPoolExecutor(4) as pool:
        reader = ReadAhead(store.read, pool)
        numbers_of(reader, store, range(20), range(20, 60))
        assert numbers_of(reader, store, range(100, 120), range(120, 160)) == list(range(100, 120))
        reader.forget()
        numbers_of(reader, store, range(120, 160), range(0))
    assert store.reads[120] == 2 and store.reads[100] == 1


def test_of_large_images_only_as_many_are_held_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "READ_AHEAD_BYTES", 3000)
    store = Store(size=1000)
    with ThreadPoolExecutor(8) as pool:
        reader = ReadAhead(store.read, pool)
        for start in (0, 50):
            numbers_of(reader, store, range(start, start + 50), range(start + 50, start + 100))
    assert store.most_held <= 3
