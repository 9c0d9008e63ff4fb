from __future__ import annotations

import fnmatch
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archive.found import Listing
from pipelines.archive.globs import glob_expression
from pipelines.archive.listing import LISTING_SCHEMA, ListingFilter, is_image_name, list_archive, listing_writer
from pipelines.errors import UsageError
from pipelines.storage import listing as storage
from pipelines.storage.reading import local_version


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def run(root: Path, *include: str, exclude: tuple[str, ...] = ()) -> tuple[Listing, list[str]]:
    out = root.parent / "listing.parquet"
    listing = list_archive(str(root), ListingFilter(include, exclude), out)
    uris = pq.read_table(out)["image_uri"].to_pylist()
    assert listing.found == len(uris)
    return listing, [uri[len(str(root)) + 1 :] for uri in uris]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return tmp_path / "archive"


def test_images_of_all_kinds_in_any_case_with_their_versions(root: Path) -> None:
    names = [
        f"s/{number}.{suffix}"
        for number, suffix in enumerate(["jpg", "JPEG", "Png", "bmp", "GIF", "tif", "tIFF", "webp"])
    ]
    draw(root, *names)
    listing, found = run(root)
    assert found == names
    table = pq.read_table(listing.path)
    assert table.schema.names == LISTING_SCHEMA.names == ["image_uri", "image_version"]
    assert table["image_version"].to_pylist() == [local_version((root / name).stat()) for name in names]
    assert (listing.left_out, listing.suffixes_left_out, listing.unlistable) == ({}, {}, ())


def test_what_is_left_out_is_counted_by_reason_and_suffix(root: Path) -> None:
    draw(root, "a.jpg", "b.dcm", "c.DCM", "README", "d.nii.gz", ".hidden.jpg", ".git/x.jpg", ".jpg", "jpg", "e.jpg.txt")
    os.mkfifo(root / "pipe.jpg")
    (root / "away.jpg").symlink_to("/etc/hostname")
    listing, found = run(root)
    assert found == ["a.jpg"]
    assert listing.left_out == {"suffix": 6, "hidden": 3, "special": 1, "link_outside": 1}
    assert listing.suffixes_left_out == {"dcm": 2, "gz": 1, "txt": 1, "": 2}


LITTER = [
    "@eaDir/a.jpg",
    "x/@eaDir/SYNO/a.jpg",
    "#recycle/a.jpg",
    "$RECYCLE.BIN/S-1/a.jpg",
    "~snapshot/daily/a.jpg",
    ".snapshot/a.jpg",
    "System Volume Information/a.jpg",
    "._a.jpg",
    "a.jpg.part",
    "a.tmp",
]


def test_litter_of_shares_is_left_out(root: Path) -> None:
    draw(root, "good.jpg", "eaDir/a.jpg", "my#recycle/a.jpg", "a.partial.jpg", "tmp/a.jpg", *LITTER)
    listing, found = run(root)
    assert found == ["a.partial.jpg", "eaDir/a.jpg", "good.jpg", "my#recycle/a.jpg", "tmp/a.jpg"]
    assert listing.left_out == {"share_litter": len(LITTER)}
    assert listing.suffixes_left_out == {}


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("*.jpg", ["good.jpg"]),
        ("*", ["good.jpg"]),
        ("@eaDir/*", ["@eaDir/a.jpg"]),
        ("**/@eaDir/**", ["@eaDir/a.jpg", "x/@eaDir/SYNO/a.jpg"]),
        ("._*", ["._a.jpg"]),
        (".snapshot/*.jpg", [".snapshot/a.jpg"]),
        ("#recycle/", ["#recycle/a.jpg"]),
        ("*.tmp", []),
    ],
)
def test_litter_comes_back_only_when_a_pattern_names_it(root: Path, include: str, expected: list[str]) -> None:
    draw(root, "good.jpg", *LITTER)
    assert run(root, include)[1] == expected


def test_patterns_match_the_path_below_the_root_and_the_name(root: Path) -> None:
    draw(root, "2024/a/one.jpg", "2024/two.jpg", "2025/one.jpg", "one.jpg", "é ü/[x].png")
    assert run(root, "2024/*")[1] == ["2024/a/one.jpg", "2024/two.jpg"]
    assert run(root, "one.jpg")[1] == ["2024/a/one.jpg", "2025/one.jpg", "one.jpg"]
    assert run(root, "*/one.jpg", "two.*")[1] == ["2024/a/one.jpg", "2024/two.jpg", "2025/one.jpg"]
    assert run(root, "**/one.jpg")[1] == ["2024/a/one.jpg", "2025/one.jpg", "one.jpg"]
    assert run(root, "?ne.jpg", exclude=("2024/",))[1] == ["2025/one.jpg", "one.jpg"]
    assert run(root, "[[]x].png")[1] == ["é ü/[x].png"]
    listing, found = run(root, "20*", exclude=("*two*",))
    assert found == ["2024/a/one.jpg", "2025/one.jpg"]
    assert listing.left_out == {"not_included": 2, "excluded": 1}


@pytest.mark.parametrize("pattern", ["", "[z-a].jpg"])
def test_an_impossible_pattern_is_refused_with_its_text(pattern: str) -> None:
    with pytest.raises(UsageError):
        ListingFilter(include=(pattern,))


@given(st.text("ab*?[]!./\\$^(|-", min_size=1, max_size=8), st.text("ab./\\$^(|-", max_size=8))
def test_patterns_without_folders_agree_with_fnmatch(pattern: str, name: str) -> None:
    if "/" in pattern or "/" in name or "**" in pattern or "-" in pattern or "[[" in pattern:
        return
    try:
        expression = glob_expression(pattern)
    except UsageError:
        return
    assert pc.match_substring_regex(pa.array([name]), expression)[0].as_py() == fnmatch.fnmatchcase(name, pattern)


def test_a_sub_folder_that_cannot_be_listed_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(root, "a.jpg", "locked/b.jpg")
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("/locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing, found = run(root)
    assert found == ["a.jpg"]
    assert listing.unlistable == (f"{root}/locked",)
    assert listing.left_out == {}


def test_an_empty_folder_is_fine_and_a_missing_one_is_not(root: Path) -> None:
    assert run(root)[1] == []
    with pytest.raises(UsageError, match="does not exist"):
        list_archive(f"{root}/no", ListingFilter(), root.parent / "o.parquet")


def test_progress_counts_up_to_what_was_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BATCH_FILES", 10)
    draw(root, *(f"{number}.jpg" for number in range(35)))
    counts: list[int] = []
    list_archive(str(root), ListingFilter(), root.parent / "o.parquet", counts.append)
    assert counts == [10, 20, 30, 35]


def test_endless_suffixes_are_counted_without_end_of_memory(root: Path) -> None:
    draw(root, *(f"1.2.840.{number}" for number in range(300)))
    listing, _ = run(root)
    assert sum(listing.suffixes_left_out.values()) == listing.left_out["suffix"] == 300
    assert len(listing.suffixes_left_out) <= 257


def test_the_root_may_have_an_odd_name(tmp_path: Path) -> None:
    for raw in (b"back\\slash", b"\xff\xfe", "é ü".encode(), b"(a|b)"):
        odd = os.path.join(os.fsencode(tmp_path), raw)
        os.mkdir(odd)
        Path(os.fsdecode(odd + b"/x.jpg")).write_bytes(b"")
        listing = list_archive(os.fsdecode(odd), ListingFilter(), tmp_path / "o.parquet")
        assert (listing.found, listing.left_out) == (1, {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jpg", True), ("A.TIFF", True), ("/d.x/a.webp", True), ("a", False), (".jpg", False), ("a.jpg/", False)],
)
def test_is_image_name(name: str, expected: bool) -> None:
    assert is_image_name(name) is expected


def test_the_writer_gathers_small_batches_into_row_groups(tmp_path: Path) -> None:
    with listing_writer(tmp_path / "o.parquet", LISTING_SCHEMA) as write:
        for number in range(30):
            write(pa.table({"image_uri": [f"{number}-{row}" for row in range(5000)], "image_version": ["v"] * 5000}))
    file = pq.ParquetFile(tmp_path / "o.parquet")
    assert file.metadata.num_rows == 150_000
    assert file.metadata.num_row_groups == 3
