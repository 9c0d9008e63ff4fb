"""A new version of a name keeps its predecessor's split, so that versions can be compared and no test image trains.

An image whose bytes the predecessor knows stays in its part. What is linked to images known there (the same patient,
a near-duplicate, their group, over any number of steps) follows them. Where the links of new images lead into several
parts, there is no part in which they would not leak: those new images are left out, counted and named. Known images of
one patient in two parts, which only newly told patients can bring about, are refused (`audit.refuse_parted_patients`).

What an earlier version knew and the newest does not is remembered too: a version trained on a few of the images must
not set the others free. So are the images of the version that `--from` starts from: its weights have seen them.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import ImageFailure, ModelRefused, UsageError
from pipelines.models.bundle import BUNDLE_FILE, SPLIT_FILE, Bundle, peek
from pipelines.models.record import is_version
from pipelines.storage import files
from pipelines.storage.paths import canonical, join
from pipelines.storage.reading import ImageReader
from pipelines.training.duplicates import HASH_BYTES, Hashes, survey
from pipelines.training.split import PARTS, group_images, hash_person

_READERS = 16
_NEW_SPLIT = "Say --new-split to give its split up; versions then no longer share a test part."


@dataclass(frozen=True, eq=False)
class Predecessor:
    """The split of an earlier version; one entry an image.

    Attributes:
        version: v1, v2 …
        content: Hash of each image's bytes.
        hashes: Difference hashes, uint8 `[M, 32]`.
        groups: Group of each.
        people: Hashed patient of each, None where unknown; bundles without the column know them by the group alone.
        parts: `train`, `val` or `test`.
    """

    version: str
    content: tuple[str, ...]
    hashes: Hashes
    groups: tuple[str, ...]
    people: tuple[str | None, ...]
    parts: tuple[str, ...]

    @cached_property
    def part_of(self) -> dict[str, str]:
        """Part of an image by the hash of its bytes."""
        return dict(zip(self.content, self.parts, strict=True))

    @cached_property
    def parts_of_people(self) -> dict[str, set[str]]:
        """Parts in which a patient stands, by hashed name; of a group's name where that is a patient's."""
        found: dict[str, set[str]] = defaultdict(set)
        for person, group, part in zip(self.people, self.groups, self.parts, strict=True):
            found[person or group].add(part)
        return found


@dataclass(frozen=True)
class Inherited:
    """What a predecessor's split means for new data; one entry an image.

    Attributes:
        groups: Group of each image, joined over the predecessor's images too.
        kept: Its part, None where the predecessor says nothing.
        known: Whether the predecessor has the same bytes.
        torn: Whether the image is new and its group reaches into several parts.
    """

    groups: list[str]
    kept: list[str | None]
    known: list[bool]
    torn: list[bool]


def read_predecessor(
    models: str, name: str, start: Bundle | None = None, newest: int | None = None
) -> Predecessor | None:
    """The split of a name's versions, and of the version that training starts from; None where there is none.

    The newest version that has a split decides; what it does not know is taken from earlier ones, back to one that
    gave its predecessors' up (`--new-split`), and then from `start`.

    Args:
        models: The MODELS folder.
        name: The model's name.
        start: Where the first weights come from, if from another version.
        newest: Number of the newest version that is looked at; None for all.

    Raises:
        ModelRefused: If one of these versions does not verify: a split that cannot be read cannot be kept.
        UsageError: If a newer release wrote it.
    """
    place = join(canonical(models), name)
    versions = [entry for entry in files.list_names(place) if is_version(entry)]
    found: Predecessor | None = None
    for version in sorted(versions, key=lambda entry: int(entry[1:]), reverse=True):
        folder = join(place, version)
        if newest is not None and int(version[1:]) > newest:
            continue
        if files.exists(join(folder, BUNDLE_FILE)):
            bundle = peek(folder)
            if SPLIT_FILE in bundle.files:
                found = _remembering(found, read_split(bundle))
                if bundle.provenance.get("new_split"):
                    break
    if start is not None and SPLIT_FILE in start.files:
        own = read_split(start)
        found = _remembering(found, replace(own, version=f"{start.name}@{start.version}"))
    return found


def _remembering(newer: Predecessor | None, older: Predecessor) -> Predecessor:
    """A split with the images that it does not know, and an older one does."""
    if newer is None:
        return older
    rows = [row for row, digest in enumerate(older.content) if digest not in newer.part_of]
    return replace(
        newer,
        content=(*newer.content, *(older.content[row] for row in rows)),
        hashes=np.concatenate([newer.hashes, older.hashes[rows]]),
        groups=(*newer.groups, *(older.groups[row] for row in rows)),
        people=(*newer.people, *(older.people[row] for row in rows)),
        parts=(*newer.parts, *(older.parts[row] for row in rows)),
    )


def refuse_seen(split: pa.Table, start: Bundle) -> None:
    """Refuse to judge a model by images, or patients, that the weights it starts from have seen.

    Args:
        split: The new version's, as `dataset.Dataset.split`.
        start: Where the first weights come from.

    Raises:
        UsageError: If images validate or test that trained there, or test that validated there, or their patients do.
    """
    if SPLIT_FILE not in start.files:
        return
    theirs = read_split(start)
    seen = 0
    for row in split.select(["content_sha256", "person", "part"]).to_pylist():
        known = {theirs.part_of.get(row["content_sha256"]), *theirs.parts_of_people.get(row["person"], ())} - {None}
        seen += any(PARTS.index(part) < PARTS.index(row["part"]) for part in known if part)
    if seen:
        raise UsageError(
            f"{seen} of the images that would validate or test the model, or their patients, were seen by "
            f"{start.name}@{start.version}, whose weights are its start: every figure would flatter it.",
            f"Train under a new name without --new-split, which keeps the split of {start.name}@{start.version}, or "
            "give --weights instead of --from.",
        )


def with_seen(split: pa.Table, start: Bundle | None) -> pa.Table:
    """A split with the images of `train` and `val` that only the version it started from knows: the weights saw them.

    Args:
        split: The new version's, as `dataset.Dataset.split`.
        start: Where the first weights come from; None where from no other version.
    """
    if start is None or SPLIT_FILE not in start.files:
        return split
    theirs, own = read_split(start), set(split["content_sha256"].to_pylist())
    rows = [row for row, digest in enumerate(theirs.content) if digest not in own and theirs.parts[row] != "test"]
    seen = {
        "content_sha256": [theirs.content[row] for row in rows],
        "perceptual_hash": [theirs.hashes[row].tobytes() for row in rows],
        "group": [theirs.groups[row] for row in rows],
        "part": [theirs.parts[row] for row in rows],
        "person": [theirs.people[row] for row in rows],
    }
    return pa.concat_tables([split, pa.table(seen, schema=split.schema)])


def may_be_looked_at(
    predecessor: Predecessor, uris: Sequence[str], people: Sequence[str | None], reader: ImageReader
) -> list[bool]:
    """Which images may be looked at before the split is kept.

    Those that the predecessor trained, known by their bytes; where the data hold none of them, those of which it knows
    neither bytes nor patient.

    Args:
        predecessor: The earlier version's split.
        uris: Canonical image URIs; each is read once.
        people: Patient of each; None where unknown.
        reader: Reads them.

    Returns:
        One answer an image.
    """

    def part_of(uri: str) -> str | None:
        try:
            digest = hashlib.sha256(reader.read(uri).data).hexdigest()
        except ImageFailure:
            return None  # the features' pass meets it again and names it
        return predecessor.part_of.get(digest)

    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(part_of, uris))
    if "train" in parts:
        return [part == "train" for part in parts]
    strangers = [person is None or hash_person(person) not in predecessor.parts_of_people for person in people]
    return [part is None and stranger for part, stranger in zip(parts, strangers, strict=True)]


def inherit(
    predecessor: Predecessor, content: Sequence[str], hashes: Hashes, people: Sequence[str | None]
) -> Inherited:
    """Find what the predecessor says of each image.

    Args:
        predecessor: The earlier version's split.
        content: Hash of each image's bytes.
        hashes: Uint8 `[N, 32]`.
        people: Patient of each; None where unknown.
    """
    present = set(content)
    gone = [row for row, digest in enumerate(predecessor.content) if digest not in present]
    old = {digest: row for row, digest in enumerate(predecessor.content)}
    rows: list[int | None] = [*(old.get(digest) for digest in content), *gone]
    joint = [*content, *(predecessor.content[row] for row in gone)]
    alike = survey(joint, np.concatenate([hashes, predecessor.hashes[gone]]), {}).links()
    groups = group_images(
        joint,
        [*people, *(None for _ in gone)],
        alike,
        [None if row is None else predecessor.groups[row] for row in rows],
        [None if row is None else predecessor.people[row] for row in rows],
    )
    reached: dict[str, set[str]] = defaultdict(set)
    for group, row in zip(groups, rows, strict=True):
        if row is not None:
            reached[group].add(predecessor.parts[row])
    kept: list[str | None] = []
    known = [digest in old for digest in content]
    for group, digest in zip(groups, content, strict=False):
        parts = reached[group]
        kept.append(predecessor.part_of.get(digest) or (next(iter(parts)) if len(parts) == 1 else None))
    torn = [len(reached[group]) > 1 and not own for group, own in zip(groups, known, strict=False)]
    return Inherited(groups[: len(content)], kept, known, torn)


def refuse_contradiction(
    predecessor: Predecessor,
    content: Sequence[str],
    people: Sequence[str | None],
    given: Sequence[str],
    uris: Sequence[str],
) -> list[str | None]:
    """Hold a split that the data bring against the predecessor's, image by image and patient by patient.

    Args:
        predecessor: The earlier version's split.
        content: Hash of each image's bytes.
        people: Patient of each; None where unknown.
        given: Its part as the data say. Data without a `val` do not contradict one that was dealt out of `train`.
        uris: What to call each.

    Returns:
        The predecessor's part of each image that it knows, by bytes or patient; None for the others.

    Raises:
        UsageError: If images or patients known there are given to another part. Neither rule can win silently: the
            data's would let images train that an earlier version was tested on, the predecessor's would test on
            images that the data want trained.
    """
    settled: list[str | None] = []
    for digest, person in zip(content, people, strict=True):
        parts = predecessor.parts_of_people.get(hash_person(person), set()) if person is not None else set()
        settled.append(predecessor.part_of.get(digest) or (next(iter(parts)) if len(parts) == 1 else None))
    dealt = "val" not in given
    wrong = [
        f"{uri} ({own}, there {old})"
        for uri, own, old in zip(uris, given, settled, strict=True)
        if old is not None and own != old and not (dealt and own == "train" and old == "val")
    ]
    if wrong:
        raise UsageError(
            f"The split of the data puts {len(wrong)} images into another part than {predecessor.version} has them or "
            f"their patient in, among them {'; '.join(wrong[:3])}.",
            f"Leave the split out to keep that of {predecessor.version}. {_NEW_SPLIT}",
        )
    return settled


def follow_train(groups: Sequence[str], given: Sequence[str], settled: Sequence[str | None]) -> list[str | None]:
    """Which images of a given `train` the predecessor trained and which it validated, for data that give no `val`.

    Args:
        groups: Group of each image.
        given: Its part as the data say.
        settled: The predecessor's, as from `refuse_contradiction`.

    Returns:
        Part of each image of the given `train` whose group the predecessor knows, None for all others. New images of
        a group that it has in both parts train: no image is judged whose group is trained, but those known to be.
    """
    reached: dict[str, set[str]] = defaultdict(set)
    for group, own, old in zip(groups, given, settled, strict=True):
        if own == "train" and old is not None:
            reached[group].add(old)
    return [
        (old or min(reached[group], key=PARTS.index, default=None)) if own == "train" else None
        for group, own, old in zip(groups, given, settled, strict=True)
    ]


def read_split(bundle: Bundle) -> Predecessor:
    """The split of one bundle that has one.

    Raises:
        ModelRefused: If it cannot be read.
    """
    try:
        table = pq.read_table(io.BytesIO(bundle.read(SPLIT_FILE)))
        parts = table["part"].to_pylist()
        flat = b"".join(table["perceptual_hash"].cast(pa.binary(HASH_BYTES)).to_pylist())
        # One row an image: copies of the same bytes stand together anyway.
        if set(parts) - set(PARTS) or table.num_rows == 0 or pc.any(pc.is_null(table["content_sha256"])).as_py():
            raise ValueError
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"{SPLIT_FILE} of {bundle.uri} cannot be read, so its split cannot be kept.",
            "Copy the bundle again from where it was made, or say --new-split.",
        ) from error
    people = table["person"].to_pylist() if "person" in table.column_names else [None] * table.num_rows
    return Predecessor(
        version=bundle.version,
        content=tuple(table["content_sha256"].to_pylist()),
        hashes=np.frombuffer(flat, np.uint8).reshape(-1, HASH_BYTES),
        groups=tuple(table["group"].to_pylist()),
        people=tuple(people),
        parts=tuple(parts),
    )
