"""Which image trains, which one validates, which one is kept for the test: seeded, by class, by group.

A group is whatever must stay together: a patient's images, and copies of the same bytes. Everything here is a pure
function of its arguments and blind to the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError

PARTS = ("train", "val", "test")

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


def group_images(content: Sequence[str], people: Sequence[str | None]) -> list[str]:
    """Name the group of each image: images of one person, and images of the same bytes, are never parted.

    Args:
        content: Hash of each image's bytes.
        people: Patient (or whatever groups the data) of each image; None where unknown.

    Returns:
        One name an image. A person's name is hashed: the split is kept in the bundle, which travels.
    """
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for digest, person in zip(content, people, strict=True):
        first = root(f"content-{digest}")
        if person is not None:
            second = root("group-" + hashlib.sha256(person.encode("utf-8", "surrogateescape")).hexdigest()[:32])
            # "group-…" stays the root, so that a person's images are named by the person; else the smaller name.
            low, high = sorted((first, second), key=lambda name: (name.startswith("content-"), name))
            above[high] = low
    return [root(f"content-{digest}") for digest in content]


def make_split(
    labels: Sequence[int],
    groups: Sequence[str],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
    given: Sequence[str] | None = None,
    pinned: AbstractSet[str] = frozenset(),
    names: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Put each image into a part.

    Groups are dealt one by one, large ones first and equal ones in a seeded order, each to the part that lacks most
    of the group's classes; so every part gets its share of every class as nearly as groups allow.

    Args:
        labels: Class number of each image.
        groups: Group of each image.
        validation_share: Share of all images for `val`.
        test_share: Share of all images for `test`; 0 for none.
        seed: Another seed deals another split.
        given: The part of each image where the data say it; then only a missing `val` is dealt, out of `train`.
        pinned: Groups that must go to `train`.
        names: What to call each image in an error.

    Returns:
        `train`, `val` or `test` for each image.

    Raises:
        UsageError: If a given split parts a group, or `train` or `val` would lack a class.
    """
    numbers = np.asarray(labels, np.int64)
    if given is None:
        shares = {"train": 1 - validation_share - test_share, "val": validation_share, "test": test_share}
        dealt = _deal(numbers, groups, shares, seed, pinned)
        parts = np.array([dealt[group] for group in groups], dtype="U5")
    else:
        parts = np.array(list(given), dtype="U5")
        _refuse_parted_groups(groups, parts, names or groups)
        if not (parts == "val").any():
            inside = np.flatnonzero(parts == "train").tolist()
            share = validation_share / (1 - test_share)
            some = [groups[index] for index in inside]
            dealt = _deal(numbers[inside], some, {"train": 1 - share, "val": share}, seed, pinned)
            parts[inside] = [dealt[group] for group in some]
    _refuse_missing_classes(numbers, parts)
    return parts


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


def _deal(
    labels: NDArray[np.int64], groups: Sequence[str], shares: dict[str, float], seed: int, pinned: AbstractSet[str]
) -> dict[str, str]:
    """Part of each group; see `make_split`."""
    classes = int(labels.max()) + 1 if len(labels) else 0
    counts: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(classes))
    for label, group in zip(labels, groups, strict=True):
        counts[group][label] += 1
    parts = [part for part in PARTS if shares.get(part, 0) > 0]
    total = np.bincount(labels, minlength=classes).astype(np.float64)
    wanted = np.array([[shares[part]] for part in parts]) * np.maximum(total, 1)
    have = np.zeros_like(wanted)
    result: dict[str, str] = {}
    for group in sorted(counts, key=lambda name: (name not in pinned, -counts[name].sum(), _order(seed, name))):
        lack = ((wanted - have) / wanted) @ counts[group]
        # Rounding: equal needs must compare equal, or the order of the classes would decide.
        best = 0 if group in pinned else int(np.argmax(np.round(lack, 9)))
        have[best] += counts[group]
        result[group] = parts[best]
    return result


def _refuse_parted_groups(groups: Sequence[str], parts: NDArray[np.str_], names: Sequence[str]) -> None:
    """A given split that shows the same bytes, or the same patient, to two parts measures nothing."""
    first: dict[str, int] = {}
    parted: dict[str, str] = {}
    for index, group in enumerate(groups):
        seen = first.setdefault(group, index)
        if parts[seen] != parts[index]:
            parted[group] = f"{names[seen]} ({parts[seen]}) and {names[index]} ({parts[index]})"
    if parted:
        raise UsageError(
            f"The given split has {len(parted)} groups (copies of one image, or images of one patient) in two parts, "
            f"among them {'; '.join(sorted(parted.values())[:3])}.",
            "Move each group into one part, or leave the split out and have one made.",
        )


def _refuse_missing_classes(labels: NDArray[np.int64], parts: NDArray[np.str_]) -> None:
    classes = set(labels.tolist())
    for part in ("train", "val"):
        missing = classes - set(labels[parts == part].tolist())
        if missing:
            raise UsageError(
                f"The part {part!r} would hold no image of {len(missing)} of the {len(classes)} classes.",
                "Each class needs images of at least two groups (patients, or different images), one for each part.",
            )
