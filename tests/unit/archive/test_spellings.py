"""Manifests in another Unicode form than the files that they name."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archive.found import Listing
from pipelines.archive.manifest import read_manifest
from pipelines.errors import UsageError
from pipelines.storage import folder_names, paths
from pipelines.storage.throttle import Throttle

COMPOSED, DECOMPOSED = "M\u00fcller", "Mu\u0308ller"
STREET_C, STREET_D = "B\u00e9\u00e8", "Be\u0301e\u0300"


def read(folder: Path, rows: list[str], root: Path | None = None) -> tuple[Listing, list[tuple[str, bool]]]:
    """The rows of a manifest below `folder/archive`: (URI below it, whether its file is there)."""
    manifest = folder / "manifest.csv"
    manifest.write_text("uri,k\n" + "".join(f"{row},\n" for row in rows))
    archive = folder / "archive"
    listing = read_manifest(str(manifest), {}, str(root or archive), folder / "out.parquet")
    table = pq.read_table(listing.path)
    uris = [uri.removeprefix(f"{archive}/") for uri in table["image_uri"].to_pylist()]
    return listing, list(zip(uris, [bool(version) for version in table["image_version"].to_pylist()], strict=True))


def make(folder: Path, *names: str) -> None:
    """Files below `folder/archive`."""
    for name in names:
        path = folder / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def test_a_file_is_found_under_the_other_form_and_keeps_its_own(tmp_path: Path) -> None:
    make(tmp_path, f"{DECOMPOSED}/{COMPOSED}.jpg", f"{COMPOSED}.png", "plain.jpg", f"{STREET_D}/plain.jpg")
    rows = [f"{COMPOSED}/{DECOMPOSED}.jpg", f"{DECOMPOSED}.png", "plain.jpg", f"{STREET_C}/plain.jpg", "gone\u00e9.jpg"]
    assert read(tmp_path, rows)[1] == [
        (f"{DECOMPOSED}/{COMPOSED}.jpg", True),
        (f"{COMPOSED}.png", True),
        ("plain.jpg", True),
        (f"{STREET_D}/plain.jpg", True),
        ("gone\u00e9.jpg", False),
    ]
    version = pq.read_table(tmp_path / "out.parquet")["image_version"][3].as_py()
    status = os.stat(tmp_path / "archive" / STREET_D / "plain.jpg")
    assert version == f"{status.st_size}-{status.st_mtime_ns}"


def test_an_exact_name_wins_and_of_two_candidates_none_is_taken(tmp_path: Path) -> None:
    both = "e\u0301\u00e9.jpg"
    make(tmp_path, f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg", "\u00e9\u00e9.jpg", "e\u0301e\u0301.jpg")
    assert read(tmp_path, [f"{DECOMPOSED}.jpg", f"{COMPOSED}.jpg", both])[1] == [
        (f"{DECOMPOSED}.jpg", True),
        (f"{COMPOSED}.jpg", True),
        (both, False),
    ]


def test_two_forms_of_a_folder_are_both_looked_into(tmp_path: Path) -> None:
    make(tmp_path, f"{COMPOSED}/1.jpg", f"{DECOMPOSED}/2.jpg", f"{COMPOSED}/\u00e9.jpg", f"{DECOMPOSED}/\u00e9.jpg")
    rows = [f"{COMPOSED}/2.jpg", f"{DECOMPOSED}/1.jpg", f"{COMPOSED}/e\u0301.jpg"]
    assert read(tmp_path, rows)[1] == [(f"{DECOMPOSED}/2.jpg", True), (f"{COMPOSED}/1.jpg", True), (rows[2], False)]


def test_only_files_are_taken_and_only_below_the_root(tmp_path: Path) -> None:
    make(tmp_path, f"{DECOMPOSED}.jpg/x.txt", f"{DECOMPOSED}/in.jpg", f"{COMPOSED}/out.jpg")
    assert read(tmp_path, [f"{COMPOSED}.jpg"])[1] == [(f"{COMPOSED}.jpg", False)]
    _, rows = read(tmp_path, ["out.jpg", "in.jpg"], tmp_path / "archive" / DECOMPOSED)
    assert rows == [(f"{DECOMPOSED}/out.jpg", False), (f"{DECOMPOSED}/in.jpg", True)]


def test_absolute_names_need_no_root(tmp_path: Path) -> None:
    make(tmp_path, f"{DECOMPOSED}/\u00e91.jpg", f"{DECOMPOSED}/\u00e92.jpg")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("uri\n" + "".join(f"{tmp_path}/archive/{COMPOSED}/e\u0301{number}.jpg\n" for number in (1, 2)))
    listing = read_manifest(str(manifest), {}, None, tmp_path / "out.parquet")
    found = pq.read_table(listing.path)["image_uri"].to_pylist()
    assert found == [f"{tmp_path}/archive/{DECOMPOSED}/\u00e9{number}.jpg" for number in (1, 2)]


def test_two_forms_of_one_file_are_a_repeat_or_a_contradiction(tmp_path: Path) -> None:
    make(tmp_path, f"{DECOMPOSED}.jpg", "a.jpg")
    listing, rows = read(tmp_path, [f"{COMPOSED}.jpg", "a.jpg", f"{DECOMPOSED}.jpg"])
    assert rows == [(f"{DECOMPOSED}.jpg", True), ("a.jpg", True)]
    assert (listing.repeated, listing.repeated_rows) == (1, (4,))
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"uri,k\n{COMPOSED}.jpg,1\na.jpg,1\n{DECOMPOSED}.jpg,2\n")
    with pytest.raises(UsageError, match="same image in lines 2, 4 with different columns"):
        read_manifest(str(manifest), {}, str(tmp_path / "archive"), tmp_path / "out.parquet")


def test_names_that_are_no_utf8_have_forms_too(tmp_path: Path) -> None:
    make(tmp_path, os.fsdecode(b"\xff\\") + "e\u0301.jpg", os.fsdecode(b"\xea") + "\u0301.jpg")
    rows = ["\\xff\\\\\u00e9.jpg", "\\xea\u0301.jpg"]
    assert read(tmp_path, rows)[1] == [("\\xff\\\\e\u0301.jpg", True), ("\\xea\u0301.jpg", True)]


def test_each_folder_is_read_once_and_none_that_is_not_needed(tmp_path: Path) -> None:
    """Which folders are opened is asked of the interpreter itself, by its audit events."""
    import sys

    many = [f"{DECOMPOSED}/{number}/e\u0301{image}.jpg" for number in range(5) for image in range(20)]
    make(tmp_path, *many, "other/\u00e9.jpg", "third/x.jpg")
    opened: list[str] = []
    listening = True

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "os.scandir" and str(arguments[0]).startswith(str(tmp_path / "archive")):
            opened.append(str(arguments[0]).removeprefix(f"{tmp_path}/"))

    sys.addaudithook(hear)
    wanted = [*(unicodedata.normalize("NFC", name) for name in many), "other/\u00e9.jpg", "third/gone.jpg"]
    _, rows = read(tmp_path, wanted)
    listening = False
    assert sorted(opened) == sorted(["archive", *(f"archive/{DECOMPOSED}/{number}" for number in range(5))])
    assert [uri for uri, there in rows if there] == [*many, "other/\u00e9.jpg"]


def test_a_folder_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    assert list(folder_names.names_in(str(tmp_path / "gone"), Throttle())) == []
    make(tmp_path, "a.jpg", "b/c.jpg")
    assert sorted(folder_names.names_in(str(tmp_path / "archive"), Throttle())) == ["a.jpg", "b"]


PARTS = st.sampled_from(["\u00e9", "e\u0301", "\u00e9e\u0301", "e\u0301\u00e9", "a", "\u212b", "\u00c5", "\\"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=1, max_size=16), st.lists(NAMES, min_size=1, max_size=24, unique=True))
def test_it_is_what_a_walk_over_all_files_says(
    tmp_path_factory: pytest.TempPathFactory, files: list[str], rows: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    for name in files:
        try:
            make(folder, name + ".jpg")
        except OSError:
            continue
    there = [
        os.path.relpath(os.path.join(place, name), folder / "archive")
        for place, _, names in os.walk(folder / "archive")
        for name in names
    ]
    expected = []
    for row in (f"{row}.jpg" for row in rows):
        forms = [name for name in there if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", row)]
        taken = row if row in there else (forms[0] if len(forms) == 1 else None)
        expected.append((paths.escape_name(taken or row), taken is not None))
    found = read(folder, [paths.escape_name(f"{row}.jpg") for row in rows])[1]
    assert found == list(dict.fromkeys(expected))
    shutil.rmtree(folder)
