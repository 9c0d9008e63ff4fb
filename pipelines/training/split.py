"""Which image trains, which one validates, which one is kept for the test: seeded, by class, by group.

A group is whatever must stay together: a patient's images, copies of the same bytes, near-duplicates. Everything here
is a pure function of its arguments and blind to the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError

PARTS = ("train", "val", "test")

_PERSON = "group-"
_CONTENT = "content-"

_CURE_MADE = "Each class needs images of at least two groups (patients, or different images), one for each part."
_CURE_GIVEN = "Put images of every class into that part, or leave the split out and have one made."
_CURE_KEPT = "Add images of other patients of these classes, or say --new-split to give the earlier version's split up."

_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def part_of_name(name: str) -> str | None:
    """The part that a folder's name or a manifest's `split` value means, or None."""
    return _PART_NAMES.get(name.strip().lower())


def hash_person(person: str) -> str:
    """What a patient is called in a bundle, which travels: `group-` and 32 hexadecimal digits."""
    return _PERSON + hashlib.sha256(person.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def group_images(content: Sequence[str], people: Sequence[str | None], *links: Sequence[str | None]) -> list[str]:
    """Name the group of each image: images of one person, and images of the same bytes, are never parted.

    Args:
        content: Hash of each image's bytes.
        people: Patient (or whatever groups the data) of each image; None where unknown.
        links: Further names for each image, in the same space as those of `hash_person`: images that share one, in
            whichever of these, stay together.

    Returns:
        One name an image: the smallest of its people's names, else of its contents'.
    """
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    hashed = [None if person is None else hash_person(person) for person in people]
    for digest, *names in zip(content, hashed, *links, strict=True):
        for name in names:
            if name is not None:
                low, high = sorted((root(_CONTENT + digest), root(name)), key=_rank)
                above[high] = low
    return [root(_CONTENT + digest) for digest in content]


def _rank(name: str) -> tuple[int, str]:
    """People name a group before contents do, and these before what merely links."""
    return (0 if name.startswith(_PERSON) else 1 if name.startswith(_CONTENT) else 2), name


def make_split(
    labels: Sequence[int],
    groups: Sequence[str],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
    given: Sequence[str] | None = None,
    kept: Sequence[str | None] | None = None,
    pinned: AbstractSet[str] = frozenset(),
) -> NDArray[np.str_]:
    """Put each image into a part.

    Groups are dealt one by one, large ones first and equal ones in a seeded order, each to the part that lacks most
    of the group's classes; so every part gets its share of every class as nearly as groups allow. Labels of images
    that `given` or `kept` puts into `test` decide nothing.

    Args:
        labels: Class number of each image.
        groups: Group of each image.
        validation_share: Share of all images for `val`.
        test_share: Share of all images for `test`; 0 for none.
        seed: Another seed deals another split.
        given: The part of each image where the data say it; then only a missing `val` is dealt, out of `train`.
        kept: The part of each image that is settled already, all images of a group or none; None where it is not.
            With `given`, it settles only which of the given `train` validate.
        pinned: Groups that must go to `train` where nothing is settled.

    Returns:
        `train`, `val` or `test` for each image.

    Raises:
        UsageError: If `train` or `val` would lack a class.
    """
    numbers = np.asarray(labels, np.int64)
    shares = {"train": 1 - validation_share - test_share, "val": validation_share, "test": test_share}
    settled = np.array([part or "" for part in kept] if kept is not None else [""] * len(numbers), dtype="U5")
    if given is not None:
        parts = np.array(list(given), dtype="U5")
        free = parts == "train" if not (parts == "val").any() else np.zeros(len(parts), bool)
        settled = np.where(free, settled, parts)
        share = validation_share / (1 - test_share)
        shares = {"train": 1 - share, "val": share}
    open_rows = np.flatnonzero(settled == "")
    names = [groups[row] for row in open_rows.tolist()]
    have = _settled_counts(numbers, settled, list(shares))
    dealt = _deal(numbers[open_rows], names, shares, seed, pinned, have)
    settled[open_rows] = [dealt[name] for name in names]
    cure = _CURE_GIVEN if given is not None else _CURE_KEPT if kept is not None else _CURE_MADE
    _refuse_missing_classes(numbers, settled, cure)
    return settled


def choose_for_train(
    labels: Sequence[int], groups: Sequence[str], *, images: int, seed: int, allowed: Sequence[bool] | None = None
) -> NDArray[np.int64]:
    """Choose images that a model may look at before the split is made: whole groups, of all classes alike.

    No class gives more than a quarter of its groups, so that enough are left to deal.

    Args:
        labels: Class number of each image.
        groups: Group of each image.
        images: How many are wanted in all; fewer where the data are few.
        seed: Another seed chooses others.
        allowed: False for images that a given split keeps out of `train`.

    Returns:
        Row numbers, the classes mixed in a seeded order; their groups are to be pinned to `train`.
    """
    numbers = np.asarray(labels, np.int64)
    free = np.ones(len(numbers), bool) if allowed is None else np.asarray(allowed, bool)
    rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index in np.flatnonzero(free).tolist():
        rows[int(numbers[index]), groups[index]].append(index)
    chosen: list[int] = []
    classes = sorted({label for label, _ in rows})
    for label in classes:
        names = sorted((name for kind, name in rows if kind == label), key=lambda name: _order(seed, name))
        quota = max(1, images // len(classes))
        for name in names[: max(1, len(names) // 4)]:
            if quota <= 0:
                break
            taken = rows[label, name][:quota]
            quota -= len(taken)
            chosen += taken
    chosen.sort(key=lambda index: (_order(seed + 1, groups[index]), index))
    return np.array(chosen, np.int64)


def _order(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{group}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _settled_counts(labels: NDArray[np.int64], settled: NDArray[np.str_], parts: Sequence[str]) -> NDArray[np.float64]:
    """Images of each class that a part holds already, `[parts, K]`.

    What stands in `test` is counted without a look at its labels: as if its classes were those of the other parts.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    have = np.array([np.bincount(labels[settled == part], minlength=classes) for part in parts], np.float64)
    if "test" in parts:
        row = parts.index("test")
        others = np.delete(have, row, axis=0).sum(axis=0)
        have[row] = (settled == "test").sum() * others / max(others.sum(), 1)
    return have


def _deal(
    labels: NDArray[np.int64],
    groups: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    pinned: AbstractSet[str],
    have: NDArray[np.float64],
) -> dict[str, str]:
    """Part of each group; see `make_split`. `have` is what each part of `shares` holds already, `[parts, K]`."""
    classes = have.shape[1]
    counts: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(classes))
    for label, group in zip(labels, groups, strict=True):
        counts[group][label] += 1
    open_parts = [row for row, share in enumerate(shares.values()) if share > 0]
    parts, have = [list(shares)[row] for row in open_parts], have[open_parts].copy()
    total = np.bincount(labels, minlength=classes) + have.sum(axis=0)
    wanted = np.array([[shares[part]] for part in parts]) * np.maximum(total, 1)
    result: dict[str, str] = {}
    for group in sorted(counts, key=lambda name: (name not in pinned, -counts[name].sum(), _order(seed, name))):
        lack = ((wanted - have) / wanted) @ counts[group]
        # Rounding: equal needs must compare equal, or the order of the classes would decide.
        best = 0 if group in pinned else int(np.argmax(np.round(lack, 9)))
        have[best] += counts[group]
        result[group] = parts[best]
    return result


def _refuse_missing_classes(labels: NDArray[np.int64], parts: NDArray[np.str_], cure: str) -> None:
    classes = set(labels.tolist())
    for part in ("train", "val"):
        missing = classes - set(labels[parts == part].tolist())
        if missing:
            raise UsageError(
                f"The part {part!r} would hold no image of {len(missing)} of the {len(classes)} classes.", cure
            )
