from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UsageError
from pipelines.training.labelled import DataConfig, read_for_model, read_labelled


def fill(folder: Path, count: int, suffix: str = ".jpg") -> list[Path]:
    """Files whose names end like images; nothing here decodes them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{number:02d}{suffix}" for number in range(count)]
    for path in made:
        path.write_bytes(os.fsencode(path))
    return made


def manifest(folder: Path, header: str, rows: Sequence[str]) -> str:
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    fill(tmp_path / "data" / "benign", 12)
    fill(tmp_path / "data" / "malignant" / "left", 6)
    fill(tmp_path / "data" / "malignant" / "rechts ü", 5, ".PNG")
    (tmp_path / "data" / "notes.txt").write_text("no image")
    return tmp_path / "data"


def test_a_folder_per_class(two_classes: Path) -> None:
    found = read_labelled(DataConfig(str(two_classes)))
    assert found.classes == ("benign", "malignant")
    assert Counter(found.table["label"].to_pylist()) == {"benign": 12, "malignant": 11}
    assert found.table["image_uri"].to_pylist() == sorted(found.table["image_uri"].to_pylist())
    assert all(found.table["image_version"].to_pylist())
    assert not found.has_split
    assert found.table["person"].null_count == 23
    assert found.left_out["suffix"] == 1
    assert found.label_numbers() == [0] * 12 + [1] * 11


def test_folders_of_parts(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("Valid", 3), ("test", 4)):
        for label in ("no", "yes"):
            fill(tmp_path / part / label, count)
    found = read_labelled(DataConfig(str(tmp_path)))
    assert found.has_split
    assert found.classes == ("no", "yes")
    assert Counter(found.table["part"].to_pylist()) == {"train": 20, "val": 6, "test": 8}


def test_exclude_leaves_masks_out(two_classes: Path) -> None:
    fill(two_classes / "benign", 4, "_mask.png")
    found = read_labelled(DataConfig(str(two_classes), exclude=("*_mask*",)))
    assert found.table.num_rows == 23


def test_a_manifest_with_other_names(tmp_path: Path) -> None:
    fill(tmp_path / "img", 24)
    rows = [f"img/{n:02d}.jpg;{n % 2};00{n // 2};{'train' if n < 20 else 'test'}" for n in range(24)]
    config = DataConfig(
        manifest(tmp_path, "image_path;target;mrn;split", rows),
        columns={"uri": "image_path", "label": "target", "patient_id": "mrn"},
        class_names={"0": "normal", "1": "pneumonia"},
    )
    found = read_labelled(config)
    assert found.classes == ("normal", "pneumonia")
    assert found.table["person"].to_pylist()[:3] == ["000", "000", "001"]
    assert Counter(found.table["part"].to_pylist()) == {"train": 20, "test": 4}


def test_a_manifest_is_narrowed_and_grouped_by_its_paths(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "p1", 12)
    fill(tmp_path / "b" / "p2", 12)
    fill(tmp_path / "b" / "p2", 1, "_mask.png")
    rows = [f"{path.relative_to(tmp_path)},{path.parts[-3]}" for path in sorted(tmp_path.rglob("*.*g"))]
    data = manifest(tmp_path, "uri,label", rows)
    found = read_labelled(DataConfig(data, exclude=("*_mask*",), group_by="p([0-9]+)"))
    assert found.table.num_rows == 24
    assert set(found.table["person"].to_pylist()) == {"1", "2"}
    with pytest.raises(UsageError, match="finds nothing in the paths of 24 of 24"):
        read_labelled(DataConfig(data, exclude=("*_mask*",), group_by="patient"))


def test_a_path_without_a_group_is_refused_not_dealt_by_itself(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "p1", 12)
    fill(tmp_path / "b" / "p2", 12)
    fill(tmp_path / "b" / "stray", 3)
    rows = [f"{path.relative_to(tmp_path)},{path.parts[-3]},{path.stem}" for path in sorted(tmp_path.rglob("*.jpg"))]
    data = manifest(tmp_path, "uri,label,patient_id", rows)
    with pytest.raises(UsageError, match=r"3 of 27 images, 'b/stray/00\.jpg'"):
        read_labelled(DataConfig(data, group_by="p([0-9]+)"))
    # What finds an empty text finds nobody.
    with pytest.raises(UsageError, match="27 of 27"):
        read_labelled(DataConfig(data, group_by="q?"))


def test_folders_may_have_names_that_are_no_text(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"ba\\ck \xfc")
    fill(root / os.fsdecode(b"gr\xfcn"), 10)
    fill(root / "r\\ot", 11)
    found = read_labelled(DataConfig(str(root), exclude=("10.jpg",), group_by="/([0-9]+)"))
    assert found.classes == ("gr\\xfcn", "r\\ot")
    assert Counter(found.table["label"].to_pylist()) == {"gr\\xfcn": 10, "r\\ot": 10}
    assert set(found.table["person"].to_pylist()) == {f"{number:02d}" for number in range(10)}


def test_a_manifest_in_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    root = tmp_path / "ba\\ck"
    fill(root, 20)
    data = manifest(root, "uri,label", [f"{number:02d}.jpg,{'ab'[number % 2]}" for number in range(20)])
    found = read_labelled(DataConfig(data, group_by="^([0-9])[0-9]"))
    assert set(found.table["person"].to_pylist()) == {"0", "1"}


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, 24)
    rows = [*twelve("a"), *twelve("b", 12), "00.jpg,a", "01.jpg,a"]
    found = read_labelled(DataConfig(manifest(tmp_path, "uri,label", rows)))
    assert found.table.num_rows == 24
    assert (found.repeated, len(found.repeated_rows)) == (2, 2)


def test_classes_that_have_no_column_are_refused(tmp_path: Path) -> None:
    for label in ("negative", "positive"):
        fill(tmp_path / label, 10)
    with pytest.raises(UsageError, match=r"p_positive.*--class-names"):
        read_labelled(DataConfig(str(tmp_path)))


def twelve(label: str, first: int = 0) -> list[str]:
    return [f"{number:02d}.jpg,{label}" for number in range(first, first + 12)]


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("uri,label", [*twelve("a"), "12.jpg,"], ["1 of 13", "empty label", "12.jpg", "Label them"]),
        ("uri,label", [*twelve("a"), *(f"{n}.jpg, " for n in range(12, 24))], ["12 of 24", "empty label"]),
        ("uri,label", twelve("a"), ["only one class", "a: 12"]),
        (
            "uri,label",
            [*twelve("a"), *[f"{n}.jpg,b" for n in range(12, 21)]],
            ["'b'", "fewer than 10", "b: 9", "a: 12"],
        ),
        ("uri,kind", [*twelve("a"), *twelve("b", 12)], ["label"]),
        (
            "uri,label",
            [*twelve("Grade 1"), *twelve("grade-1", 12)],
            ["'Grade 1' and 'grade-1'", "column p_grade_1", "--class-names"],
        ),
        ("uri,label", [*twelve("+"), *twelve("-", 12)], ["'+' has no letter", "--class-names"]),
        ("uri,label", [*twelve("a"), *twelve("b", 12), "00.jpg,b"], ["same image", "2, 26", "one row for each image"]),
        (
            "uri,label,split",
            [*(f"{row},train" for row in twelve("a")), *(f"{row},later" for row in twelve("b", 12))],
            ["later"],
        ),
        (
            "uri,label,split",
            [*(f"{row},train" for row in twelve("a")), *(f"{row}," for row in twelve("b", 12))],
            ["12 of 24"],
        ),
    ],
)
def test_what_no_classifier_can_learn_from_is_refused(
    tmp_path: Path, header: str, rows: list[str], words: list[str]
) -> None:
    fill(tmp_path, 25)
    with pytest.raises(UsageError) as caught:
        read_labelled(DataConfig(manifest(tmp_path, header, rows)))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_pattern_must_not_part_the_patients_that_a_manifest_names(tmp_path: Path) -> None:
    rows = []
    for label in "ab":
        fill(tmp_path / label, 12)
        rows += [f"{label}/{number:02}.jpg,{label},{label}{number // 4}" for number in range(12)]
    data = manifest(tmp_path, "uri,label,patient_id", rows)
    with pytest.raises(UsageError, match="several groups for 6 of 6 patients"):
        read_labelled(DataConfig(data, group_by="[0-9]+"))
    coarser = read_labelled(DataConfig(data, group_by="^."))
    assert set(coarser.table["person"].to_pylist()) == {"a", "b"}


def test_a_split_is_not_taken_for_classes_because_of_another_folder(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "test/a", "test/b", "unlabelled/c"):
        fill(tmp_path / folder, 12)
    with pytest.raises(UsageError, match="there is 'unlabelled', which is none of train, val and test") as refused:
        read_labelled(DataConfig(str(tmp_path)))
    assert "--exclude 'unlabelled/'" in (refused.value.cure or "")
    found = read_labelled(DataConfig(str(tmp_path), exclude=("unlabelled/",)))
    assert found.classes == ("a", "b") and found.has_split


def test_images_outside_of_a_class_are_named(two_classes: Path) -> None:
    fill(two_classes, 1)
    with pytest.raises(UsageError, match=r"1 images lie outside.*00\.jpg"):
        read_labelled(DataConfig(str(two_classes)))


def test_a_password_in_the_data_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        read_labelled(DataConfig("sftp://u:hidden@host/x"))
    assert "hidden" not in str(caught.value)


def test_a_parquet_manifest_with_numbers_for_labels(tmp_path: Path) -> None:
    fill(tmp_path, 24)
    labels = [0.0] * 12 + [1.0] * 12
    people = [None if number % 3 else number for number in range(24)]

    def written(labels: list[float]) -> DataConfig:
        table = pa.table({"file": [f"{n:02d}.jpg" for n in range(24)], "y": labels, "patient_id": pa.array(people)})
        pq.write_table(table, tmp_path / "labels.parquet")
        columns = {"uri": "file", "label": "y"}
        return DataConfig(str(tmp_path / "labels.parquet"), columns, class_names={"0": "normal", "1": "sick"})

    found = read_labelled(written(labels))
    assert Counter(found.table["label"].to_pylist()) == {"normal": 12, "sick": 12}
    assert found.table["person"].to_pylist()[:4] == ["0", None, None, "3"]
    # What pandas writes for a missing number is no label either.
    with pytest.raises(UsageError, match=r"1 of 24 images have an empty label, .*23\.jpg"):
        read_labelled(written([*labels[:-1], float("nan")]))


def test_what_is_excluded_needs_no_label(tmp_path: Path) -> None:
    fill(tmp_path, 24)
    fill(tmp_path, 1, "_mask.png")
    data = manifest(tmp_path, "uri,label", [*twelve("a"), *twelve("b", 12), "00_mask.png,"])
    assert read_labelled(DataConfig(data, exclude=("*_mask*",))).table.num_rows == 24


def test_when_all_is_excluded_the_patterns_are_named(two_classes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"All images of .* are left out by '\*\.jpg', '\*\.PNG'.*--set exclude="):
        read_labelled(DataConfig(str(two_classes), exclude=("*.jpg", "*.PNG")))
    data = manifest(two_classes, "uri,label", [f"benign/{row}" for row in twelve("a")])
    with pytest.raises(UsageError, match=r"All images of .*labels\.csv are left out by 'benign/\*'"):
        read_labelled(DataConfig(data, exclude=("benign/*",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images"):
        read_labelled(DataConfig(str(tmp_path / "empty"), exclude=("*_mask*",)))


def test_two_labels_may_be_one_class(two_classes: Path) -> None:
    fill(two_classes / "normal", 10)
    names = {"benign": "harmless", "normal": "harmless", "malignant": "malignant"}
    found = read_labelled(DataConfig(str(two_classes), class_names=names))
    assert Counter(found.table["label"].to_pylist()) == {"harmless": 22, "malignant": 11}


def test_relative_paths_start_at_the_root(tmp_path: Path) -> None:
    fill(tmp_path / "images" / "p", 24)
    (tmp_path / "lists").mkdir()
    data = manifest(tmp_path / "lists", "uri,label", [f"p/{row}" for row in [*twelve("a"), *twelve("b", 12)]])
    found = read_labelled(DataConfig(data, root=str(tmp_path / "images"), exclude=("p/0[01].jpg",), group_by="^p/(.)"))
    assert found.table.num_rows == 22
    assert set(found.table["person"].to_pylist()) == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("name", "data", "options", "classes"),
    [
        ("brain_tumor_mri", "data.csv", {"columns": {"uri": "images", "label": "labels"}}, {"no": 98, "yes": 155}),
        (
            "chest_xray",
            "data_1.csv",
            {"columns": {"uri": "image_path", "label": "target"}, "class_names": {"0": "normal", "1": "pneumonia"}},
            {"normal": 234, "pneumonia": 390},
        ),
    ],
)
def test_both_real_manifests_as_they_are(
    shared_data: Path, name: str, data: str, options: dict[str, dict[str, str]], classes: dict[str, int]
) -> None:
    found = read_labelled(DataConfig(str(shared_data / name / data), **options))  # type: ignore[arg-type]
    assert Counter(found.table["label"].to_pylist()) == classes
    assert found.table["person"].null_count == found.table.num_rows and not found.has_split


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no images"):
        read_labelled(DataConfig(str(tmp_path)))


def test_class_names_must_fit(two_classes: Path) -> None:
    for names in ({"benign": "good"}, {"benign": "a", "malignant": "b", "other": "c"}):
        with pytest.raises(UsageError, match="benign, malignant"):
            read_labelled(DataConfig(str(two_classes), class_names=names))


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": "folder", "columns": {"label": "target"}},
        {"data": "folder", "root": "/"},
        {"data": "a.csv", "columns": {"colour": "target"}},
        {"data": "folder", "group_by": "("},
    ],
)
def test_options_that_do_not_belong_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        DataConfig(**arguments)  # type: ignore[arg-type]


def test_a_model_may_be_evaluated_on_few_images_of_some_of_its_classes(tmp_path: Path) -> None:
    fill(tmp_path / "benign", 2)
    fill(tmp_path / "malignant", 1)
    found = read_for_model(DataConfig(str(tmp_path)), ("malignant", "normal", "benign"))
    assert found.classes == ("malignant", "normal", "benign")
    assert found.label_numbers() == [2, 2, 0]


def test_labels_that_a_model_does_not_know_are_refused(two_classes: Path) -> None:
    with pytest.raises(UsageError, match=r"no class 'benign', which 12 images.*classes are malignant, normal"):
        read_for_model(DataConfig(str(two_classes)), ("malignant", "normal"))
    # A label without a name keeps its own.
    named = DataConfig(str(two_classes), class_names={"benign": "normal", "unheard": "malignant"})
    assert Counter(read_for_model(named, ("malignant", "normal")).label_numbers()) == {1: 12, 0: 11}


def test_one_class_alone_tells_nothing_of_a_model(two_classes: Path) -> None:
    with pytest.raises(UsageError, match=r"only one class \(benign: 12\)"):
        read_for_model(DataConfig(str(two_classes), exclude=("malignant/*",)), ("benign", "malignant"))


def test_columns_of_subgroups_follow_their_images(tmp_path: Path) -> None:
    fill(tmp_path / "img", 6)
    rows = [
        f"img/{n:02d}.jpg,{'yes' if n % 2 else 'no'},{'' if n == 3 else f'site {n}'},{60 + n}"
        for n in (5, 3, 1, 0, 2, 4)
    ]
    data = DataConfig(manifest(tmp_path, "uri,label,site,age", rows), exclude=("00.jpg",))
    found = read_for_model(data, ("no", "yes"), ("site", "age"))
    assert found.columns == {
        "site": ("site 1", "site 2", None, "site 4", "site 5"),
        "age": ("61", "62", "63", "64", "65"),
    }
    assert "site" not in found.table.column_names
    with pytest.raises(UsageError, match="no column 'ward' for ward"):
        read_for_model(data, ("no", "yes"), ("ward",))
    with pytest.raises(UsageError, match="a folder, which has no column 'site'"):
        read_for_model(DataConfig(str(tmp_path)), ("no", "yes"), ("site",))
