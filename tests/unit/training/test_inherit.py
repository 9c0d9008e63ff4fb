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
from pipelines.models.bundle import SPLIT_FILE, Bundle, write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.storage.reading import ImageReader
from pipelines.training.inherit import (
    Predecessor,
    follow_train,
    inherit,
    may_be_looked_at,
    read_predecessor,
    refuse_contradiction,
    refuse_seen,
    with_seen,
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


def store(models: Path, split: bytes | None, name: str = "cells", new_split: bool = False) -> Bundle:
    files = {"scorer.tflite": b"scorer"} | ({} if split is None else {SPLIT_FILE: split})
    return write_bundle(str(models), name, replace(SPEC, provenance={"new_split": new_split}), files)


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


def test_a_version_of_a_few_images_does_not_set_the_others_free(tmp_path: Path) -> None:
    store(tmp_path, split_file(["val", "val", "val", "val"]))
    store(tmp_path, split_file(["train", "val", "test", "test"]), new_split=True)
    store(tmp_path, split_file(["train", "val"]))
    read = read_predecessor(str(tmp_path), "cells")
    assert read is not None
    assert (read.version, read.part_of) == ("v3", {"c0": "train", "c1": "val", "c2": "test", "c3": "test"})
    assert (read.hashes == PRINTS[:4]).all() and len(read.groups) == len(read.people) == 4
    store(tmp_path, split_file(["test"]), new_split=True)
    read = read_predecessor(str(tmp_path), "cells")
    assert read is not None and read.part_of == {"c0": "test"}


def test_the_split_of_the_version_that_training_starts_from_is_kept(tmp_path: Path) -> None:
    start = store(tmp_path, split_file(["train", "val", "test"]), "tissue")
    read = read_predecessor(str(tmp_path), "cells", start)
    assert read is not None
    assert (read.version, read.part_of) == ("tissue@v1", {"c0": "train", "c1": "val", "c2": "test"})
    store(tmp_path, split_file(["train", "test"]))
    read = read_predecessor(str(tmp_path), "cells", start)
    assert read is not None
    assert (read.version, read.part_of) == ("v1", {"c0": "train", "c1": "test", "c2": "test"})


def split_table(parts: list[str], **columns: object) -> pa.Table:
    table = pq.read_table(io.BytesIO(split_file(parts, **columns)))
    return table if columns else table.append_column("person", pa.nulls(len(parts), pa.string()))


def test_nothing_is_judged_by_images_that_the_first_weights_have_seen(tmp_path: Path) -> None:
    start = store(tmp_path, split_file(["train", "val", "test"]), "tissue")
    for parts in (["train", "val", "test"], ["train", "train", "train"], ["train", "val", "val", "test"]):
        refuse_seen(split_table(parts), start)
    for parts in (["val", "val", "test"], ["test", "val", "test"], ["train", "test", "test"]):
        with pytest.raises(UsageError, match=r"^1 of the images that .* seen by tissue@v1") as refused:
            refuse_seen(split_table(parts), start)
        assert "--from" in (refused.value.cure or "")
    refuse_seen(split_table(["test"]), store(tmp_path, None, "tissue"))


def test_nor_by_patients_that_they_have_seen(tmp_path: Path) -> None:
    ann = pa.array([hash_person("Ann")], pa.string())
    start = store(tmp_path, split_file(["train"], person=ann), "tissue")
    refuse_seen(split_table(["train"], person=ann, content_sha256=["new"]), start)
    with pytest.raises(UsageError, match="or their patients"):
        refuse_seen(split_table(["test"], person=ann, content_sha256=["new"]), start)


def test_the_bundle_knows_what_the_first_weights_have_seen(tmp_path: Path) -> None:
    start = store(tmp_path, split_file(["train", "val", "test", "train"]), "tissue")
    own = split_table(["train"])
    known = with_seen(own, start)
    assert known.schema == own.schema
    assert known.select(["content_sha256", "part"]).to_pylist() == [
        {"content_sha256": "c0", "part": "train"},
        {"content_sha256": "c1", "part": "val"},
        {"content_sha256": "c3", "part": "train"},
    ]
    assert known["perceptual_hash"].to_pylist() == [PRINTS[row].tobytes() for row in (0, 1, 3)]
    assert with_seen(own, None) is own


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
    place = Path(store(tmp_path, split_file(["train", "test"])).uri)
    (place / SPLIT_FILE).write_bytes(split_file(["test", "train"]))
    with pytest.raises(ModelRefused, match="altered"):
        read_predecessor(str(tmp_path), "cells")


def predecessor(parts: list[str], people: list[str | None] | None = None) -> Predecessor:
    content = tuple(f"c{row}" for row in range(len(parts)))
    hashed = tuple(None if one is None else hash_person(one) for one in people or [None] * len(parts))
    groups = tuple(name or f"content-{digest}" for name, digest in zip(hashed, content, strict=True))
    return Predecessor("v3", content, PRINTS[: len(parts)], groups, hashed, tuple(parts))


def test_what_may_be_looked_at_early_is_what_trained(tmp_path: Path) -> None:
    names = ["trained", "validated", "tested", "new", "new of Ann"]
    for name in names:
        (tmp_path / name).write_text(name)
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names[:3]]
    old = replace(predecessor(["train", "val", "test"], [None, "Ann", None]), content=tuple(digests))
    uris = [str(tmp_path / name) for name in [*names, "missing"]]
    people = [None, "Ann", None, None, "Ann", None]
    reader = ImageReader(100)
    assert may_be_looked_at(old, uris, people, reader) == [True, False, False, False, False, False]
    # None of the data trained: what is not known may be looked at, and never what validates or tests.
    assert may_be_looked_at(old, uris[1:], people[1:], reader) == [False, False, True, False, True]


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
