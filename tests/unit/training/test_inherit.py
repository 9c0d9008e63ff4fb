from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.bundle import SPLIT_FILE, write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.storage.reading import ImageReader
from pipelines.training.inherit import (
    Predecessor,
    find_trained,
    follow_train,
    inherit,
    read_predecessor,
    refuse_contradiction,
)
from pipelines.training.split import hash_person

SPEC = BundleSpec(
    classes=("a", "b"),
    positive_classes=("b",),
    input_size=8,
    preprocessing_id="p",
    scorers={"float32": ScorerEntry("scorer.tflite", ScorerIO(8, 2))},
)
PRINTS = np.random.default_rng(0).integers(0, 256, (12, 32), dtype=np.uint8)


def near(row: int, bits: int) -> list[int]:
    flat = np.unpackbits(PRINTS[row])
    flat[100 : 100 + bits] ^= 1
    return [int(value) for value in np.packbits(flat)]


def split_file(parts: list[str], **columns: object) -> bytes:
    count = len(parts)
    table = {
        "content_sha256": [f"c{row}" for row in range(count)],
        "perceptual_hash": pa.array([print_.tobytes() for print_ in PRINTS[:count]], pa.binary(32)),
        "group": [f"content-c{row}" for row in range(count)],
        "part": parts,
        **columns,
    }
    out = io.BytesIO()
    pq.write_table(pa.table(table), out)
    return out.getvalue()


def store(models: Path, split: bytes | None) -> str:
    files = {"scorer.tflite": b"scorer"} | ({} if split is None else {SPLIT_FILE: split})
    return write_bundle(str(models), "cells", SPEC, files).uri


def test_the_newest_version_that_has_a_split(tmp_path: Path) -> None:
    assert read_predecessor(str(tmp_path), "cells") is None
    for number in range(10):
        store(tmp_path, split_file(["train", "test"] if number < 9 else ["train", "val"]))
    store(tmp_path, None)  # an imported version knows of no split
    (tmp_path / "cells" / "v12").mkdir()  # a training that died
    read = read_predecessor(str(tmp_path), "cells")
    assert read is not None
    assert (read.version, read.part_of, read.people) == ("v10", {"c0": "train", "c1": "val"}, (None, None))
    assert (read.hashes == PRINTS[:2]).all()
    assert read_predecessor(str(tmp_path), "other") is None


def test_patients_are_read_where_the_bundle_has_them(tmp_path: Path) -> None:
    store(tmp_path, split_file(["train", "test"], person=pa.array([hash_person("Ann"), None], pa.string())))
    read = read_predecessor(str(tmp_path), "cells")
    assert read is not None and read.parts_of_people == {hash_person("Ann"): {"train"}, "content-c1": {"test"}}


@pytest.mark.parametrize(
    "split",
    [
        b"no parquet",
        split_file(["train", "later"]),
        split_file([]),
        split_file(["train", "test"], perceptual_hash=[b"x", b"y"]),
        split_file(["train", "test"], perceptual_hash=pa.array([None, bytes(32)], pa.binary(32))),
    ],
)
def test_a_split_that_cannot_be_read_is_not_given_up_silently(tmp_path: Path, split: bytes) -> None:
    store(tmp_path, split)
    with pytest.raises(ModelRefused, match="cannot be read, so its split cannot be kept"):
        read_predecessor(str(tmp_path), "cells")


def test_an_altered_split_is_refused(tmp_path: Path) -> None:
    place = Path(store(tmp_path, split_file(["train", "test"])))
    (place / SPLIT_FILE).write_bytes(split_file(["test", "train"]))
    with pytest.raises(ModelRefused, match="altered"):
        read_predecessor(str(tmp_path), "cells")


def predecessor(parts: list[str], people: list[str | None] | None = None) -> Predecessor:
    content = tuple(f"c{row}" for row in range(len(parts)))
    hashed = tuple(None if one is None else hash_person(one) for one in people or [None] * len(parts))
    groups = tuple(name or f"content-{digest}" for name, digest in zip(hashed, content, strict=True))
    return Predecessor("v3", content, PRINTS[: len(parts)], groups, hashed, tuple(parts))


def test_what_may_be_looked_at_early_is_what_trained(tmp_path: Path) -> None:
    names = ["trained", "validated", "tested", "new"]
    for name in names:
        (tmp_path / name).write_text(name)
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names[:3]]
    old = replace(predecessor(["train", "val", "test"]), content=tuple(digests))
    uris = [str(tmp_path / name) for name in [*names, "missing"]]
    assert find_trained(old, uris, ImageReader(100)) == [True, False, False, False, False]


def test_links_are_followed_over_any_number_of_steps_and_over_images_that_are_gone() -> None:
    old = predecessor(["train", "test", "val"], [None, "Ann", None])
    # n0 is a near-duplicate of c0, which the data no longer hold; n1 shares its patient with n0; n2 is Ann's.
    content = ["n0", "n1", "n2", "n3", "c2"]
    hashes = np.array([near(0, 10), *PRINTS[5:8].tolist(), PRINTS[2].tolist()], np.uint8)
    found = inherit(old, content, hashes, ["Bob", "Bob", "Ann", None, None])
    assert found.kept == ["train", "train", "test", None, "val"]
    assert found.known == [False, False, False, False, True]
    assert not any(found.torn)
    assert found.groups[0] == found.groups[1] == hash_person("Bob")
    # Eleven bits are another picture.
    assert inherit(old, ["n0"], np.array([near(0, 11)], np.uint8), [None]).kept == [None]


def test_new_images_between_parts_are_torn_and_known_ones_stay() -> None:
    old = predecessor(["train", "test"])
    hashes = np.array([near(0, 3), near(1, 3), *PRINTS[:2].tolist()], np.uint8)
    found = inherit(old, ["n0", "n1", "c0", "c1"], hashes, ["Ann", "Ann", None, None])
    assert found.torn == [True, True, False, False]
    assert found.kept == [None, None, "train", "test"]


def test_a_group_of_the_predecessor_is_never_parted() -> None:
    # Its images hang together by something that the new data do not say.
    old = predecessor(["val", "val"], ["Ann", "Ann"])
    found = inherit(old, ["c0", "c1", "n"], np.array([*PRINTS[:2].tolist(), near(1, 2)], np.uint8), [None] * 3)
    assert len(set(found.groups)) == 1 and found.kept == ["val"] * 3


def test_a_contradiction_counts_images_and_names_the_way_out() -> None:
    old = predecessor(["train", "val", "test"], [None, None, "Ann"])
    uris, given = ["a.png", "b.png", "c.png", "n.png"], ["train", "train", "test", "test"]
    content, people = ["c0", "c1", "c2", "n"], [None, None, None, "Ann"]
    # The data have no val, so the predecessor dealt it out of their train.
    assert refuse_contradiction(old, content, people, given, uris) == ["train", "val", "test", "test"]
    with pytest.raises(UsageError, match=r"1 images .*than v3 .*b\.png \(train, there val\).*--new-split"):
        refuse_contradiction(old, [*content, "m"], [*people, None], [*given, "val"], [*uris, "m.png"])
    with pytest.raises(UsageError, match=r"2 images .*c\.png \(val, there test\); n\.png \(train, there test\)"):
        refuse_contradiction(old, content, people, ["train", "val", "val", "train"], uris)


def test_new_images_of_a_given_train_follow_their_group() -> None:
    groups = ["g", "g", "h", "h", "i", "j", "j", "j"]
    given = ["train", "train", "train", "test", "train", "train", "train", "train"]
    settled = ["val", None, None, "test", None, "train", "val", None]
    assert follow_train(groups, given, settled) == ["val", "val", None, None, None, "train", "val", "train"]
