"""Readable images with their part of the split; of the test part there is nothing here to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.training.audit import LeakAudit, refuse_parted_patients, refuse_two_labels, refuse_two_parts
from pipelines.training.duplicates import HASH_BYTES, NAMED, Hashes, Survey, survey
from pipelines.training.inherit import Predecessor, follow_train, inherit, refuse_contradiction
from pipelines.training.labelled import LabelledImages, check_counts
from pipelines.training.recipes import Recipe
from pipelines.training.report import Unreadable
from pipelines.training.split import PARTS, group_images, hash_person, make_split

TRAINED = ("train", "val")


@dataclass(frozen=True, eq=False)
class PartImages:
    """The images of one part, in the order of the table that `make_dataset` was given.

    Attributes:
        rows: Their numbers in that table, int64 `[n]`.
        labels: Class numbers, int64 `[n]`.
        groups: Group of each.
        images: The table's columns but `features`.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    images: pa.Table


@dataclass(frozen=True, eq=False)
class Dataset:
    """The readable images and their split.

    The test part is a count and hashes: neither its labels nor its rows can be asked for.

    Attributes:
        classes: Names.
        parts: The images of `train` and of `val`.
        split: One row an image of every part: content_sha256, perceptual_hash (32 bytes), group, part, person
            (hashed; null where unknown).
        counts: Part to class to number of images, every part that has images.
        unreadable: What could not be read and was left out.
        audit: What the data repeat.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, PartImages]
    split: pa.Table
    counts: Mapping[str, Mapping[str, int]]
    unreadable: tuple[Unreadable, ...]
    audit: LeakAudit

    def trained_images(self) -> bytes:
        """What tells two splits apart for a fit: hashes and class numbers of the images that train and validate."""
        parts = [self.part(name) for name in TRAINED]
        return b"".join(
            "".join(part.images["content_sha256"].to_pylist()).encode() + part.labels.tobytes() for part in parts
        )

    def part(self, name: str) -> PartImages:
        """The images of `train` or `val`.

        Raises:
            ValueError: For `test`, which nothing that trains, tunes or calibrates may see.
        """
        if name not in self.parts:
            raise ValueError(f"The part {name!r} cannot be asked for; only {' and '.join(TRAINED)} can.")
        return self.parts[name]


@dataclass(frozen=True, eq=False)
class _Readable:
    """Columns of the readable images, as everything below needs them; one entry an image.

    Attributes:
        rows: Numbers in the table of all images.
        uris: Names.
        content: Hash of each image's bytes.
        hashes: Difference hashes, uint8 `[N, 32]`.
        names: Class names.
        people: Patients, None where unknown.
        given: Parts as the data say them; None where they say none.
    """

    rows: NDArray[np.int64]
    uris: list[str]
    content: list[str]
    hashes: Hashes
    names: list[str]
    people: list[str | None]
    given: list[str] | None


@dataclass(frozen=True, eq=False)
class _Placed:
    """What is settled about the readable images before the split is made; one entry an image.

    Attributes:
        groups: Group of each.
        kept: Part that a predecessor settles, None for an image that is dealt; None where there is no predecessor.
        known: Whether the predecessor has the same bytes.
        torn: Whether no part can take it.
    """

    groups: list[str]
    kept: list[str | None] | None
    known: list[bool]
    torn: list[bool]


def make_dataset(
    labelled: LabelledImages,
    images: pa.Table,
    recipe: Recipe,
    seed: int,
    looked_at: Sequence[int],
    predecessor: Predecessor | None,
) -> Dataset:
    """Leave out what could not be read, audit what is left, and split it.

    Args:
        labelled: What was found.
        images: Rows of `compute_features`, in the same order; `features` is not read.
        recipe: Says the shares of the split.
        seed: Decides it.
        looked_at: Rows that the backbone has seen already; their groups go to `train` where a predecessor or the data
            do not settle them.
        predecessor: The version whose split is kept; None for a first version, or a new split.

    Raises:
        UsageError: If too few images are left, the data leak (see `audit`), contradict the predecessor's split, or
            cannot be split.
    """
    readable, unreadable = _readable(labelled, images)
    if not readable.uris:
        first = unreadable[0]
        raise UsageError(
            f"Not one of {len(unreadable)} images could be read, {first.image_uri} among them: {first.error_message}",
            "Check the paths; relative ones of a manifest start at --root, or else at the manifest's folder.",
        )
    after = f" after {len(unreadable)} unreadable ones were left out" if unreadable else ""
    check_counts(readable.names, labelled.classes, after)
    refuse_two_labels(readable.content, readable.names, readable.uris)
    if readable.given is not None:
        refuse_two_parts(readable.content, readable.people, readable.given, readable.uris)
    found = _survey(readable, labelled.classes, predecessor)
    placed = _place(readable, found, predecessor)
    inside = np.flatnonzero(~np.array(placed.torn, bool))
    labels = np.array([labelled.classes.index(name) for name in readable.names], np.int64)
    pinned = set(looked_at)
    parts = np.full(len(labels), "", dtype="U5")
    parts[inside] = make_split(
        labels[inside].tolist(),
        [placed.groups[row] for row in inside.tolist()],
        validation_share=recipe.validation_share,
        test_share=recipe.test_share,
        seed=seed,
        given=None if readable.given is None else [readable.given[row] for row in inside.tolist()],
        kept=None if placed.kept is None else [placed.kept[row] for row in inside.tolist()],
        pinned=frozenset(g for g, row in zip(placed.groups, readable.rows.tolist(), strict=True) if row in pinned),
    )
    return Dataset(
        classes=labelled.classes,
        parts={part: _part_images(images, readable, labels, placed, parts == part) for part in TRAINED},
        split=_split_table(readable, placed, parts),
        counts=_count_parts(readable.names, parts, labelled.classes),
        unreadable=unreadable,
        audit=_audit(readable, placed, found, predecessor),
    )


def _readable(labelled: LabelledImages, images: pa.Table) -> tuple[_Readable, tuple[Unreadable, ...]]:
    table = labelled.table
    facts = images.select([name for name in images.column_names if name != "features"])
    readable = pc.equal(facts["status"], "scored")
    failed = facts.filter(pc.invert(readable)).select(["image_uri", "error_code", "error_message"])
    unreadable = tuple(
        Unreadable(row["image_uri"], row["error_code"], row["error_message"]) for row in failed.to_pylist()
    )
    kept, own = table.filter(readable), facts.filter(readable)
    flat = b"".join(own["perceptual_hash"].to_pylist())
    return (
        _Readable(
            rows=np.flatnonzero(readable.to_numpy(zero_copy_only=False)).astype(np.int64),
            uris=own["image_uri"].to_pylist(),
            content=own["content_sha256"].to_pylist(),
            hashes=np.frombuffer(flat, np.uint8).reshape(-1, HASH_BYTES),
            names=kept["label"].to_pylist(),
            people=kept["person"].to_pylist(),
            given=kept["part"].to_pylist() if labelled.has_split else None,
        ),
        unreadable,
    )


def _survey(readable: _Readable, classes: Sequence[str], predecessor: Predecessor | None) -> Survey:
    """Near-duplicates, and which of them differ in their label, or in a part that is not ours to choose."""
    labels = np.array([classes.index(name) for name in readable.names], np.int64)
    known = predecessor.part_of if predecessor else {}
    inherited: list[str | None] = [known.get(digest) for digest in readable.content]
    settled = inherited if readable.given is None else readable.given
    parts = np.array([-1 if part is None else PARTS.index(part) for part in settled], np.int64)
    return survey(readable.content, readable.hashes, {"labels": labels, "parts": parts})


def _place(readable: _Readable, found: Survey, predecessor: Predecessor | None) -> _Placed:
    """Group the images, and settle the parts of those that a predecessor knows."""
    nobody = [False] * len(readable.uris)
    groups = group_images(readable.content, readable.people, found.links())
    if predecessor is None:
        return _Placed(groups, None, nobody, nobody)
    if readable.given is not None:
        settled = refuse_contradiction(predecessor, readable.content, readable.people, readable.given, readable.uris)
        known = [digest in predecessor.part_of for digest in readable.content]
        return _Placed(groups, follow_train(groups, readable.given, settled), known, nobody)
    inherited = inherit(predecessor, readable.content, readable.hashes, readable.people)
    own = [predecessor.part_of.get(digest) for digest in readable.content]
    refuse_parted_patients(readable.people, own, readable.uris, predecessor.version)
    return _Placed(inherited.groups, inherited.kept, inherited.known, inherited.torn)


def _part_images(
    images: pa.Table, readable: _Readable, labels: NDArray[np.int64], placed: _Placed, inside: NDArray[np.bool_]
) -> PartImages:
    own = np.flatnonzero(inside)
    rows = readable.rows[own]
    facts = images.select([name for name in images.column_names if name != "features"]).take(pa.array(rows))
    return PartImages(rows, labels[own], tuple(placed.groups[row] for row in own.tolist()), facts)


def _split_table(readable: _Readable, placed: _Placed, parts: NDArray[np.str_]) -> pa.Table:
    own = np.flatnonzero(parts != "").tolist()
    people = [readable.people[row] for row in own]
    return pa.table(
        {
            "content_sha256": pa.array([readable.content[row] for row in own], pa.string()),
            "perceptual_hash": pa.array([readable.hashes[row].tobytes() for row in own], pa.binary(HASH_BYTES)),
            "group": pa.array([placed.groups[row] for row in own], pa.string()),
            "part": pa.array(parts[own].tolist(), pa.string()),
            "person": pa.array([None if name is None else hash_person(name) for name in people], pa.string()),
        }
    )


def _count_parts(names: Sequence[str], parts: NDArray[np.str_], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(parts.tolist(), names, strict=True))
    return {part: {name: counts[part, name] for name in classes} for part in PARTS if (parts == part).any()}


def _audit(readable: _Readable, placed: _Placed, found: Survey, predecessor: Predecessor | None) -> LeakAudit:
    own = [row for row, torn in enumerate(placed.torn) if not torn]
    people = [readable.people[row] for row in own]
    sizes = Counter(placed.groups[row] for row in own)
    torn = [uri for uri, out in zip(readable.uris, placed.torn, strict=True) if out]
    origin = "given" if readable.given is not None else "inherited" if predecessor else "made"

    def named(kind: str) -> tuple[str, ...]:
        return tuple(f"{readable.uris[a]} and {readable.uris[b]}" for a, b in found.apart[kind].first)

    return LeakAudit(
        origin=origin,
        predecessor=predecessor.version if predecessor else None,
        images=len(own),
        patients=len({person for person in people if person is not None}),
        without_patient=sum(person is None for person in people),
        exact_copies=len(own) - len({readable.content[row] for row in own}),
        near_duplicate_pairs=found.pairs,
        uncompared=int((~found.compared[own]).sum()),
        groups=len(sizes),
        largest_group=max(sizes.values()),
        across_parts=found.apart["parts"].pairs,
        across_labels=found.apart["labels"].pairs,
        known=sum(placed.known),
        left_out=len(torn),
        named_across_parts=named("parts"),
        named_across_labels=named("labels"),
        named_left_out=tuple(torn[:NAMED]),
    )
