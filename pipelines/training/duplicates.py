"""Near-duplicates: every pair of 256-bit difference hashes at most ten bits apart, found exactly and fast.

**Exact.** Ten differing bits touch at most ten of twelve blocks of bits, so two near hashes agree in at least two
whole blocks. Hashes are sorted by each of the 66 pairs of blocks (42 bits and more); only neighbours with the same
key are compared, and a pair is taken only under the first key that it shares. Memory grows with the number of hashes,
not of pairs: equal hashes stand as one, and pairs are handed on in batches. 100,000 hashes like those of chest X-rays
take 1 to 2 s on one core, with 1,000 of them near each other 4 s (`tests/benchmarks/bench_split.py`).

**Hashes that say too little.** A picture that is even, black but for a spot, or one smooth shape on a plain ground
has long runs of equal bits, and different patients' pictures of that kind hash alike; single linkage would chain them
into one group. What tells them is the number of turns, places in a row where a bit differs from its right neighbour,
not the number of set bits (a bright disc on black has half of them set). Measured on real sets: brain MRI 48 to 142
turns, chest X-rays 56 to 114. Of their 216,531 pairs of different files 17 are at most 10 bits apart, all of them one
picture twice when looked at; the next are 11, 16 and 18 apart (MRI; copies that this rule misses), X-rays of
different people never fewer than 16. Measured on drawn pictures, 1,500 of a kind, all different: smooth discs on
black 20 to 38 turns and 811,618 pairs at most 10 bits apart, smooth lesions on skin 22 to 54 turns and 60 pairs;
taking only hashes of at least 32 turns leaves 0 and 25, and with faint texture (8 of 255) there is none anyway.
So a hash with fewer turns is compared by its image's bytes only, and
counted.

The hash is made from pixels of the model's input size: between 96 and 224 px it moves by up to 10 bits, between 150
and 224 px by up to 6 (real sets). Copies of the same bytes are known by their content hash whatever the size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 10
LEAST_TURNS = 32
HASH_BYTES = 32
NAMED = 3

# Two more than may differ, so that two agree.
_BLOCKS = NEAR_BITS + 2
_SIDE = 16
_BATCH = 1 << 18
_ROWS_AT_ONCE = 1 << 15

Hashes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Apart:
    """Near-duplicates that differ in something: their part, their label.

    Attributes:
        pairs: How many.
        first: The first `NAMED` of them, as pairs of row numbers, the smaller first.
    """

    pairs: int
    first: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """What is alike among N images.

    Attributes:
        alike: Int64 `[N]`; images of the same bytes, and those joined by near-duplicates, over others too, have the
            same number.
        compared: Bool `[N]`; False for hashes with fewer than `LEAST_TURNS` turns.
        pairs: Pairs of near-duplicates; copies of the same bytes count as one image.
        apart: For each kind asked for, the pairs that differ in it.
    """

    alike: Numbers
    compared: NDArray[np.bool_]
    pairs: int
    apart: Mapping[str, Apart]

    def links(self) -> list[str]:
        """`alike` as names, for `split.group_images`."""
        return [f"alike-{number}" for number in self.alike.tolist()]


def count_turns(hashes: Hashes) -> Numbers:
    """Places where a bit differs from its right neighbour, 0 to 240.

    Args:
        hashes: Uint8 `[N, 32]`.

    Returns:
        Int64 `[N]`.
    """
    words = np.ascontiguousarray(hashes).view(">u2").astype(np.uint16)
    # Of the 16 bits of a row, 15 have a right neighbour.
    changed = (words ^ (words >> np.uint16(1))) & np.uint16(0x7FFF)
    return np.asarray(np.bitwise_count(changed).sum(axis=1), np.int64)


def find_near_pairs(hashes: Hashes) -> Iterator[tuple[Numbers, Numbers]]:
    """Every pair of hashes at most `NEAR_BITS` bits apart, each once.

    Args:
        hashes: Uint8 `[N, 32]`, no two the same (they would be found, in a time that grows with their square).

    Yields:
        Row numbers of both, in batches; in no particular order.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)
    blocks = _cut_into_blocks(hashes)
    for first, second in combinations(range(_BLOCKS), 2):
        key = (blocks[first].astype(np.uint64) << np.uint64(32)) | blocks[second]
        for left, right in _neighbours(key):
            near = np.bitwise_count(words[left] ^ words[right]).sum(axis=1) <= NEAR_BITS
            if near.any():
                left, right = left[near], right[near]
                agree = blocks[:, left] == blocks[:, right]
                earlier = agree[:first].any(axis=0) | agree[first + 1 : second].any(axis=0)
                if not earlier.all():
                    yield left[~earlier], right[~earlier]


def survey(content: Sequence[str], hashes: Hashes, kinds: Mapping[str, Numbers]) -> Survey:
    """Find what is alike, and which near-duplicates differ in a kind.

    Args:
        content: Hash of each image's bytes.
        hashes: Uint8 `[N, 32]`.
        kinds: Numbers `[N]` under a name, such as the number of each image's part; what is negative is unknown and
            differs from nothing. Images of the same bytes must not differ.

    Returns:
        The same whatever the order of the rows, but for `Apart.first`, which takes the first rows.
    """
    _, first, file = np.unique(np.array(content, np.str_), return_index=True, return_inverse=True)
    enough = count_turns(hashes) >= LEAST_TURNS
    rows = np.sort(first[enough[first]])
    distinct, owner = np.unique(hashes[rows], axis=0, return_inverse=True)
    owner = owner.reshape(-1)
    amount = np.bincount(owner, minlength=len(distinct))
    tallies = {name: _Tally(values[rows], owner, amount) for name, values in kinds.items()}
    label = np.arange(len(distinct))
    pairs = int((amount * (amount - 1) // 2).sum())
    for left, right in _gathered(find_near_pairs(distinct)):
        label = _joined(label, left, right)
        pairs += int((amount[left] * amount[right]).sum())
        for tally in tallies.values():
            tally.add(left, right)
    alike = np.arange(len(hashes))
    smallest = np.full(len(distinct), len(hashes))
    np.minimum.at(smallest, label[owner], rows)
    alike[rows] = smallest[label[owner]]
    # Copies of the same bytes as the first of them.
    alike = alike[first[file.reshape(-1)]]
    return Survey(alike, enough, pairs, {name: tally.result(rows) for name, tally in tallies.items()})


class _Tally:
    """Counts near-duplicates that differ in one kind. Rows here are those compared, hashes those that are distinct."""

    def __init__(self, kind: Numbers, owner: Numbers, amount: Numbers) -> None:
        self._kind = kind
        self._pairs = 0
        self._first: list[tuple[int, int]] = []
        order = np.argsort(owner, kind="stable")
        self._rows_of = np.split(order, np.cumsum(amount)[:-1]) if len(amount) else []
        self._first_row = np.array([rows[0] for rows in self._rows_of], np.int64)
        # One kind for all images of a hash, as nearly always: they are counted at once. -2: several.
        self._pure = np.array([_only(kind[rows]) for rows in self._rows_of], np.int64)
        self._amount = amount
        for number in np.flatnonzero(self._pure == -2).tolist():
            rows = self._rows_of[number]
            self._count_rows(rows, rows)

    def add(self, left: Numbers, right: Numbers) -> None:
        """Count pairs of distinct hashes."""
        one, other = self._pure[left], self._pure[right]
        differ = np.flatnonzero((one >= 0) & (other >= 0) & (one != other))
        self._pairs += int((self._amount[left[differ]] * self._amount[right[differ]]).sum())
        for number in differ[self._earliest(left[differ], right[differ])].tolist():
            some = self._rows_of[left[number]][:NAMED], self._rows_of[right[number]][:NAMED]
            self._name((int(a), int(b)) for a in some[0] for b in some[1])
        for number in np.flatnonzero((one == -2) | (other == -2)).tolist():
            self._count_rows(self._rows_of[left[number]], self._rows_of[right[number]])

    def result(self, rows: Numbers) -> Apart:
        """The count, with rows numbered as in `survey`."""
        return Apart(self._pairs, tuple((int(rows[a]), int(rows[b])) for a, b in self._first))

    def _earliest(self, left: Numbers, right: Numbers) -> Numbers:
        """Which of some pairs of hashes hold the first `NAMED` pairs of images."""
        one, other = self._first_row[left], self._first_row[right]
        return np.lexsort((np.maximum(one, other), np.minimum(one, other)))[:NAMED]

    def _count_rows(self, left: Numbers, right: Numbers) -> None:
        """Count the images of two hashes; within one hash `left` is `right`, and each pair is met twice."""
        one, other = Counter(self._kind[left].tolist()), Counter(self._kind[right].tolist())
        met = sum(one[a] * other[b] for a in one for b in other if a >= 0 and b >= 0 and a != b)
        self._pairs += met // 2 if left is right else met
        if met:
            first, second = self._first_of_each(left), self._first_of_each(right)
            self._name((a, b) for a in first for b in second if self._kind[a] != self._kind[b])

    def _first_of_each(self, rows: Numbers) -> list[int]:
        """The first `NAMED` rows of each known kind: the first pairs that differ are among these."""
        seen: Counter[int] = Counter()
        found = []
        for row, kind in zip(rows.tolist(), self._kind[rows].tolist(), strict=True):
            seen[kind] += 1
            if kind >= 0 and seen[kind] <= NAMED:
                found.append(row)
        return found

    def _name(self, pairs: Iterable[tuple[int, int]]) -> None:
        ordered = {(min(pair), max(pair)) for pair in pairs}
        self._first = sorted(ordered.union(self._first))[:NAMED]


def _only(kinds: Numbers) -> int:
    """The one kind of all, -1 if all are unknown, -2 if there are several."""
    return int(kinds[0]) if (kinds == kinds[0]).all() else -2


def _cut_into_blocks(hashes: Hashes) -> NDArray[np.uint32]:
    """The bits as `[12, N]` numbers of 21 or 22 bits, each from all over the picture.

    Neighbouring cells turn together, so that blocks of neighbours would agree far too often.
    """
    blocks = np.zeros((_BLOCKS, len(hashes)), np.uint32)
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        bits = np.unpackbits(hashes[start : start + _ROWS_AT_ONCE], axis=1)
        for number in range(_BLOCKS):
            own = bits[:, number::_BLOCKS].astype(np.uint32)
            weights = np.uint32(1) << np.arange(own.shape[1], dtype=np.uint32)
            blocks[number, start : start + _ROWS_AT_ONCE] = own @ weights
    return blocks


def _neighbours(key: NDArray[np.uint64]) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of rows with the same key: those one place apart in sorted order, then two, and so on."""
    order = np.argsort(key)
    ordered = key[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(key) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(key)])
    ends = np.repeat(starts + lengths, lengths)
    active = np.flatnonzero(ends - np.arange(len(key)) > 1)
    step = 1
    while len(active):
        yield order[active], order[active + step]
        step += 1
        active = active[active + step < ends[active]]


def _gathered(batches: Iterator[tuple[Numbers, Numbers]]) -> Iterator[tuple[Numbers, Numbers]]:
    """Small batches put together, so that joining groups is not done once for each."""
    waiting: list[tuple[Numbers, Numbers]] = []
    held = 0
    for batch in batches:
        waiting.append(batch)
        held += len(batch[0])
        if held >= _BATCH:
            yield np.concatenate([left for left, _ in waiting]), np.concatenate([right for _, right in waiting])
            waiting, held = [], 0
    if waiting:
        yield np.concatenate([left for left, _ in waiting]), np.concatenate([right for _, right in waiting])


def _joined(label: Numbers, left: Numbers, right: Numbers) -> Numbers:
    """Labels of components after links were added."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(left), np.int8), (label[left], label[right])), shape=(len(label), len(label)))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)[label]
