"""Labelled images answered by the actors that score archives."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UsageError
from pipelines.images.fingerprint import difference_hash
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import SPLIT_FILE, Bundle, load_bundle, write_bundle
from pipelines.models.runtime import Scorer
from pipelines.training.labelled import DataConfig
from pipelines.training.labelled_cases import LabelledCases, answer_again, answer_labelled
from pipelines.training.labelled_parts import Selection
from pipelines.training.records import split_file
from pipelines.training.split import hash_person

Connect = Callable[[], AbstractContextManager[Any]]
PARTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., list[Path]]) -> Path:
    """Thirty images of two classes, 24 of them known to the model; a copy, a near-duplicate, a broken file."""
    root = tmp_path_factory.mktemp("labelled")
    for label, start in (("benign", 0), ("malignant", 15)):
        draw(root / label, 15, start)
    shutil.copy(root / "benign" / "b00002.jpg", root / "benign" / "copy.jpg")
    picture = cv2.imread(str(root / "benign" / "b00000.jpg"))
    cv2.imwrite(str(root / "benign" / "near.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 60])
    (root / "malignant" / "broken.jpg").write_bytes((root / "benign" / "b00001.jpg").read_bytes()[:700])
    return root


@pytest.fixture(scope="module")
def model(tiny_models: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model that says it was made from images 0-23: every third one trained, validated and tested."""
    base = load_bundle(str(tiny_models / "cells" / "v1"))
    rows = []
    for number in [*range(12), *range(15, 27)]:
        data = (images / ("benign" if number < 15 else "malignant") / f"b{number:05d}.jpg").read_bytes()
        pixels = Preprocessing(base.input_size).prepare(data).pixels
        digest = hashlib.sha256(data).hexdigest()
        rows.append((digest, difference_hash(pixels), f"content-{digest}", PARTS[number % 3], None))
    columns = ("content_sha256", "perceptual_hash", "group", "part", "person")
    types = (pa.string(), pa.binary(32), pa.string(), pa.string(), pa.string())
    split = pa.table(
        {
            name: pa.array(values, kind)
            for name, values, kind in zip(columns, zip(*rows, strict=True), types, strict=True)
        }
    )
    files = {name: base.read(name) for name in base.files} | {SPLIT_FILE: split_file(split)}
    return write_bundle(str(tmp_path_factory.mktemp("split")), "cells", base.spec, files)


def answer(
    model: Bundle, data: DataConfig, connect: Connect, work: Path, part: str | None, **more: Any
) -> LabelledCases:
    return answer_labelled(
        model, "float32", data, more.pop("by", ()), str(work), connect, lambda _: None, Selection(part, **more)
    )


def test_the_answers_are_those_of_the_scorer_image_by_image(
    model: Bundle, images: Path, connect: Connect, tmp_path: Path
) -> None:
    found = answer(model, DataConfig(str(images)), connect, tmp_path, "all", include_training=True)
    scorer = Scorer(*model.scorer("float32"))
    assert len(found.cases) == 31 and found.copies == 1
    for row, uri in enumerate(found.cases.uris):
        data = Path(uri).read_bytes()
        np.testing.assert_array_equal(
            found.cases.probabilities[row], scorer(Preprocessing(model.input_size).prepare(data).pixels)
        )
        assert found.cases.contents[row] == hashlib.sha256(data).hexdigest()
        assert found.cases.classes[found.cases.labels[row]] == Path(uri).parent.name
    assert [(Path(one.image_uri).name, one.code) for one in found.unreadable] == [("broken.jpg", "truncated")]
    assert found.cases.patients is None
    # The near-duplicate stands in the group of its original.
    group = {Path(uri).name: own for uri, own in zip(found.cases.uris, found.cases.groups, strict=True)}
    assert group["near.jpg"] == group["b00000.jpg"] and len(set(group.values())) == 30


def test_parts_come_from_the_model_and_what_it_has_seen_is_counted(
    model: Bundle, images: Path, connect: Connect, tmp_path: Path
) -> None:
    data = DataConfig(str(images))
    with pytest.raises(UsageError, match="knows some of these images and others not"):
        answer(model, data, connect, tmp_path, None)
    test = answer(model, data, connect, tmp_path, "test")
    numbers = [int(Path(uri).stem[1:]) for uri in test.cases.uris]
    assert numbers == [number for number in [*range(12), *range(15, 27)] if number % 3 == 2]
    assert (test.seen.known, test.seen.exact, test.seen.near_duplicates, test.copies) == (True, 0, 0, 1)
    external = answer(model, data, connect, tmp_path, "external")
    assert {Path(uri).name for uri in external.cases.uris} == {"near.jpg"} | {
        f"b{n:05d}.jpg" for n in (12, 13, 14, 27, 28, 29)
    }
    assert set(external.parts) == {"external"}
    near = [Path(uri).name for uri, near in zip(external.cases.uris, external.near_seen, strict=True) if near]
    assert near == ["near.jpg"] and external.seen.near_duplicates == 1
    unseen = answer(model, data, connect, tmp_path, "all")
    assert unseen.seen.left_out == 16 and set(unseen.parts) == {"test", "external"}


def test_an_imported_model_that_was_calibrated_still_does_not_say_what_made_it(
    model: Bundle, images: Path, connect: Connect, tmp_path: Path
) -> None:
    spec = replace(model.spec, provenance={**model.spec.provenance, "kind": "import"})
    files = {name: model.read(name) for name in model.files}
    imported = write_bundle(str(tmp_path / "models"), "theirs", spec, files)
    found = answer(imported, DataConfig(str(images)), connect, tmp_path / "answers", "external")
    assert (found.seen.known, found.seen.exact, found.seen.near_duplicates) == (False, 0, 1)
    assert "as far as is known" in found.chosen.sentence


def test_new_images_of_a_patient_that_trained_the_model_are_counted(
    model: Bundle, images: Path, connect: Connect, tmp_path: Path
) -> None:
    split = pq.read_table(io.BytesIO(model.read(SPLIT_FILE)))
    people = [hash_person("1234") if part == "train" else hash_person("77") for part in split["part"].to_pylist()]
    people = [person if part != "val" else None for person, part in zip(people, split["part"].to_pylist(), strict=True)]
    split = split.set_column(split.column_names.index("person"), "person", pa.array(people, pa.string()))
    files = {name: model.read(name) for name in model.files} | {SPLIT_FILE: split_file(split)}
    known = write_bundle(str(tmp_path / "models"), "cells", model.spec, files)
    new = {f"benign/b{number:05d}.jpg": who for number, who in ((12, "1234"), (13, "77"), (14, "5"))}
    new |= {f"malignant/b{number:05d}.jpg": who for number, who in ((27, "1234"), (28, ""), (15, "1234"))}
    rows = [f"{images / name},{name.split('/')[0]},{who}" for name, who in new.items()]
    (tmp_path / "new.csv").write_text("\n".join(["uri,label,patient_id", *rows]) + "\n")
    data = DataConfig(str(tmp_path / "new.csv"), root=str(images))
    assert answer(known, data, connect, tmp_path / "answers", "external").seen.same_patient == 2
    assert answer(model, DataConfig(str(images)), connect, tmp_path / "answers", "external").seen.same_patient is None


def test_a_broken_file_does_not_make_the_data_a_mixture(
    model: Bundle, images: Path, connect: Connect, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    for number in range(6):
        place = known / ("benign" if number < 3 else "malignant")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(images.rglob(f"b{number if number < 3 else number + 12:05d}.jpg")), place)
    shutil.copy(images / "malignant" / "broken.jpg", known / "benign")
    found = answer(model, DataConfig(str(known)), connect, tmp_path / "work", None)
    assert found.chosen.part == "test" and len(found.cases) == 2
    assert [one.code for one in found.unreadable] == ["truncated"]


def test_a_manifest_says_parts_patients_and_columns(
    model: Bundle, images: Path, connect: Connect, tmp_path: Path
) -> None:
    rows = [
        f"{path.relative_to(images)},{path.parent.name},p{number // 2},{'test' if number % 2 else 'train'},{number % 3}"
        for number, path in enumerate(sorted(images.rglob("b0*.jpg")))
    ]
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(["uri,label,patient_id,split,site", *rows]) + "\n")
    data = DataConfig(str(manifest), root=str(images))
    found = answer(model, data, connect, tmp_path / "work", None, by=("site",))
    assert len(found.cases) == 15 and set(found.parts) == {"test"}
    assert "as the data give it" in found.chosen.sentence
    assert found.seen.exact == sum(number % 3 < 2 for number in [*range(12), *range(15, 27)] if number % 2)
    assert found.cases.patients == tuple(f"p{number}" for number in range(15))
    assert set(found.cases.columns["site"]) == {"0", "1", "2"}


def test_the_same_bytes_under_two_labels_are_refused(
    model: Bundle, images: Path, connect: Connect, tmp_path: Path
) -> None:
    for label in ("benign", "malignant"):
        (tmp_path / "torn" / label).mkdir(parents=True)
        shutil.copy(images / "benign" / "b00012.jpg", tmp_path / "torn" / label / f"{label}.jpg")
    with pytest.raises(UsageError, match="two classes under different names"):
        answer(model, DataConfig(str(tmp_path / "torn")), connect, tmp_path / "work", "all")


def test_another_model_answers_the_same_images(
    model: Bundle, tiny_models: Path, images: Path, connect: Connect, tmp_path: Path
) -> None:
    found = answer(model, DataConfig(str(images)), connect, tmp_path, "external")
    other = load_bundle(str(tiny_models / "other" / "v1"))
    rows, theirs = answer_again(other, "float32", found, str(tmp_path), connect, lambda _: None)
    scorer = Scorer(*other.scorer("float32"))
    assert rows.tolist() == list(range(len(found.cases)))
    pixels = Preprocessing(other.input_size).prepare(Path(theirs.uris[3]).read_bytes()).pixels
    np.testing.assert_array_equal(theirs.probabilities[3], scorer(pixels))
    strange = replace(other, spec=replace(other.spec, classes=("benign", "nevus"), positive_classes=("nevus",)))
    with pytest.raises(UsageError, match="knows the classes benign, nevus"):
        answer_again(strange, "float32", found, str(tmp_path), connect, lambda _: None)
