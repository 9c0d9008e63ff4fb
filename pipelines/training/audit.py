"""The leak audit: what the data repeat, what is refused before training, and what the bundle remembers of it.

Refused, each with names: the same bytes under two labels; in a split that the data bring, the same bytes or a patient
in two parts; in an inherited split, a patient whose known images stand in two parts. Counted and warned of:
near-duplicates across parts of such a split (of a split made here, none can stand there), near-duplicates under two
labels, images that cannot be compared, one group that holds much of the data, new images that no part can take.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.errors import UsageError
from pipelines.training.duplicates import NAMED, NEAR_BITS

ORIGINS = ("made", "given", "inherited")

_LARGE_GROUP = 0.1
_SHARE_UNCOMPARED = 0.1


@dataclass(frozen=True)
class LeakAudit:
    """What was counted; and for the terminal, names.

    Attributes:
        origin: Where the split comes from: `made` here, `given` by the data, `inherited` from the predecessor.
        predecessor: Its version, where there is one and its split was kept.
        images: Readable images that stand in a part.
        patients: Different patients known among them.
        without_patient: Images of which nothing says whose they are.
        exact_copies: Images whose bytes another one has already.
        near_duplicate_pairs: Pairs of different files that show the same picture.
        uncompared: Images whose difference hash says too little to be compared but by bytes.
        groups: How many groups there are.
        largest_group: Images of the largest.
        across_parts: Near-duplicates in two parts, pairs.
        across_labels: Near-duplicates under two labels, pairs.
        known: Images that the predecessor knows and that kept its part.
        left_out: New images whose group reaches into several parts of the predecessor's split.
        named_across_parts: The first of those pairs; not in the bundle.
        named_across_labels: Likewise.
        named_left_out: Likewise, images.
    """

    origin: str
    predecessor: str | None
    images: int
    patients: int
    without_patient: int
    exact_copies: int
    near_duplicate_pairs: int
    uncompared: int
    groups: int
    largest_group: int
    across_parts: int
    across_labels: int
    known: int = 0
    left_out: int = 0
    named_across_parts: tuple[str, ...] = ()
    named_across_labels: tuple[str, ...] = ()
    named_left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The counts for the bundle: no name of a file or a patient."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("named_")}

    def warnings(self) -> list[str]:
        """What a person should know, one sentence each; names of files are for the terminal alone."""
        told = []
        if self.left_out:
            told.append(
                f"Left out: {_count(self.left_out, 'new image')} of patients, or near-duplicates of images, that stand "
                f"in several parts of {self.predecessor}'s split, where they would leak: "
                f"{_listed(self.named_left_out, self.left_out)}."
            )
        if self.across_parts:
            told.append(
                f"{_count(self.across_parts, 'pair')} of near-duplicates (difference hashes at most {NEAR_BITS} of 256 "
                f"bits apart) stand in two parts of the {self.origin} split, so its figures flatter the model: "
                f"{_listed(self.named_across_parts, self.across_parts)}."
            )
        if self.across_labels:
            told.append(
                f"{_count(self.across_labels, 'pair')} of near-duplicates have two labels, of which one may be wrong: "
                f"{_listed(self.named_across_labels, self.across_labels)}."
            )
        if self.uncompared > _SHARE_UNCOMPARED * self.images:
            told.append(
                f"{self.uncompared} of {self.images} images show too little structure to find near-duplicates among "
                "them; only copies of the same bytes and patients keep them together."
            )
        if self.largest_group > max(_LARGE_GROUP * self.images, NAMED):
            told.append(
                f"One group (a patient's images, copies, near-duplicates) holds {self.largest_group} of {self.images} "
                "images and stands in one part."
            )
        return told


def refuse_two_labels(content: Sequence[str], labels: Sequence[str], uris: Sequence[str]) -> None:
    """Refuse the same bytes under two labels: one of them is wrong.

    Raises:
        UsageError: Naming the first three pairs.
    """
    torn = _torn(content, labels)
    if torn:
        raise UsageError(
            f"{len(torn)} images stand in two classes under different names, among them {_pairs(torn, labels, uris)}.",
            "Remove the wrong copies.",
        )


def refuse_two_parts(
    content: Sequence[str], people: Sequence[str | None], parts: Sequence[str], uris: Sequence[str]
) -> None:
    """Refuse a given split that shows the same bytes, or the same patient, to two parts: it measures nothing.

    Raises:
        UsageError: Naming the first three pairs of images, never a patient.
    """
    torn = _torn(content, parts)
    if torn:
        raise UsageError(
            f"The given split has copies of {_count(len(torn), 'image')} in two parts, among them "
            f"{_pairs(torn, parts, uris)}.",
            "Keep each image in one part, or leave the split out and have one made.",
        )
    torn = _torn(people, parts)
    if torn:
        raise UsageError(
            f"The given split has images of {_count(len(torn), 'patient')} in two parts, among them "
            f"{_pairs(torn, parts, uris)}.",
            "Move each patient into one part, or leave the split out and have one made.",
        )


def refuse_parted_patients(
    people: Sequence[str | None], parts: Sequence[str | None], uris: Sequence[str], version: str
) -> None:
    """Refuse to keep a split that, with what the data now say of patients, has one in two parts.

    Args:
        people: Patient of each image; None where unknown.
        parts: Part of each image whose bytes the predecessor knows, None for others.
        uris: What to call each.
        version: The predecessor.

    Raises:
        UsageError: Naming the first three pairs of images, never a patient.
    """
    known = [row for row, part in enumerate(parts) if part is not None]
    torn = [(known[a], known[b]) for a, b in _torn([people[row] for row in known], [parts[row] for row in known])]
    if torn:
        raise UsageError(
            f"The split of {version} has images of {_count(len(torn), 'patient')} in two parts, as the data tell "
            f"patients now, among them {_pairs(torn, parts, uris)}.",
            "Say --new-split to give it up, or correct the patients.",
        )


def _torn(keys: Sequence[str | None], values: Sequence[Hashable]) -> list[tuple[int, int]]:
    """For each key with two values, the first row and the first that differs from it."""
    first: dict[str, int] = {}
    found: dict[str, tuple[int, int]] = {}
    for row, key in enumerate(keys):
        if key is not None and values[first.setdefault(key, row)] != values[row]:
            found.setdefault(key, (first[key], row))
    return sorted(found.values())


def _pairs(rows: Sequence[tuple[int, int]], values: Sequence[object], uris: Sequence[str]) -> str:
    return "; ".join(f"{uris[a]} ({values[a]}) and {uris[b]} ({values[b]})" for a, b in rows[:NAMED])


def _listed(names: Sequence[str], count: int) -> str:
    return "; ".join(names) + ("; …" if count > len(names) else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
