"""Names of other machines: which prefix stands for which place, and that none leads out of the archive."""

from __future__ import annotations

import ntpath
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archive.manifest import read_manifest
from pipelines.archive.manifest_uris import UriResolver
from pipelines.archive.prefix_map import looks_like_windows, parse_prefix_map
from pipelines.errors import UsageError


def resolved(folder: Path, rows: list[str], maps: list[str], root: str | None = None) -> list[str]:
    """The URIs that a manifest of these rows names."""
    manifest = folder / "manifest.csv"
    manifest.write_text("uri\n" + "".join(f'"{row}"\n' for row in rows))
    listing = read_manifest(str(manifest), {}, root, folder / "out.parquet", prefix_map=parse_prefix_map(maps))
    uris: list[str] = pq.read_table(listing.path)["image_uri"].to_pylist()
    return uris


@pytest.mark.parametrize(
    ("rule", "row", "place"),
    [
        (r"\\srv\images=/mnt/x", r"\\srv\images\a\b.jpg", "/mnt/x/a/b.jpg"),
        (r"\\srv\images=/mnt/x", r"\\SRV\Images\A\b.JPG", "/mnt/x/A/b.JPG"),
        (r"\\srv\images\=/mnt/x/", r"//srv/images\a/b.jpg", "/mnt/x/a/b.jpg"),
        (r"//srv/images=/mnt/x", r"\\srv\images\\a\.\b.jpg", "/mnt/x/a/b.jpg"),
        (r"\\srv\images=/mnt/x", r"\\?\UNC\srv\images\b.jpg", "/mnt/x/b.jpg"),
        (r"\\srv\Röntgen=/mnt/x", "\\\\srv\\ro\u0308ntgen\\é.jpg", "/mnt/x/é.jpg"),
        (r"Z:\images=/mnt/x", r"z:\Images\a b\c.jpg", "/mnt/x/a b/c.jpg"),
        (r"Z:\=/mnt/x", r"Z:/images/c.jpg", "/mnt/x/images/c.jpg"),
        (r"Z:=/mnt/x", r"\\?\Z:\c.jpg", "/mnt/x/c.jpg"),
        (r"Z:=s3://bucket/scans", r"Z:\a\..b.jpg", "s3://bucket/scans/a/..b.jpg"),
        ("/Volumes/x=/mnt/x", "/Volumes/x/a/b.jpg", "/mnt/x/a/b.jpg"),
        ("/Volumes/x=/mnt/x", r"/Volumes//x/a\\b\xe9.jpg", r"/mnt/x/a\\b\xe9.jpg"),
        ("/old=s3://bucket", "/old/b%20 #?.jpg", "s3://bucket/b%20 #?.jpg"),
        (".=/mnt/x", r"a\xe9\b.jpg", "/mnt/x/a/xe9/b.jpg"),
        (r".\=/mnt/x", r".\a.jpg", "/mnt/x/a.jpg"),
    ],
)
def test_a_prefix_becomes_a_place(tmp_path: Path, rule: str, row: str, place: str) -> None:
    if place.startswith("s3:"):
        text, target, rest = parse_prefix_map([rule]).find(row) or ("", "", "")
        assert (text, f"{target}/{rest}") == (rule, place)
    else:
        assert resolved(tmp_path, [row], [rule]) == [place]


def test_the_longest_prefix_holds_and_parts_are_whole(tmp_path: Path) -> None:
    maps = [r"\\srv\images=/mnt/x", r"\\srv\images\2024\ct=/mnt/x/ct", r"\\srv\images2=/mnt/x/2"]
    rows = [r"\\srv\images\2024\CT\a.jpg", r"\\srv\images\2024\ctx\a.jpg", r"\\srv\images2\a.jpg"]
    assert resolved(tmp_path, rows, maps) == ["/mnt/x/ct/a.jpg", "/mnt/x/2024/ctx/a.jpg", "/mnt/x/2/a.jpg"]
    assert parse_prefix_map(maps).find(r"\\srv\image\a.jpg") is None
    assert parse_prefix_map(["/old/x=/mnt"]).find("/old/X/a.jpg") is None


def test_mapped_names_stay_below_the_root(tmp_path: Path) -> None:
    assert resolved(tmp_path, [r"Z:\a.jpg"], [f"Z:={tmp_path}/in"], root=str(tmp_path)) == [f"{tmp_path}/in/a.jpg"]
    with pytest.raises(UsageError, match=r"line 2 .* leads out of"):
        resolved(tmp_path, [r"Z:\a.jpg"], ["Z:=/elsewhere"], root=str(tmp_path))
    with pytest.raises(UsageError, match=r"line 3 .* leads out of"):
        resolved(tmp_path, ["a.jpg", r"Z:\a.jpg"], ["Z:=/elsewhere"])
    for row in (r"Z:\..\a.jpg", r"Z:\a\..\b.jpg", r"Z:/a/../../b.jpg", "Z:\\a\0.jpg"):
        with pytest.raises(UsageError, match=r"line 2 .* (part \.\.|zero byte)"):
            resolved(tmp_path, [row], [f"Z:={tmp_path}"])


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b c", "Z:", "\\", "/", "é", "\\xe9"]), max_size=7), st.booleans())
def test_no_mapped_name_leaves_its_place(parts: list[str], back: bool) -> None:
    """Whatever follows the prefix: where Windows would stay below it, so do we; the rest is refused or stays."""
    prefixes = parse_prefix_map([r"\\srv\share=/mnt/x"])
    row = "\\\\srv\\share\\" + ("\\" if back else "/").join(parts)
    found = prefixes.find(row)
    assert found is not None
    _, target, rest = found
    assert target == "/mnt/x"
    if ".." not in rest.split("/"):
        theirs = ntpath.normpath(row)[len(r"\\srv\share") :].strip("\\").replace("\\", "/")
        assert rest == theirs


def test_a_prefix_that_no_row_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Not one row .*'Y:=/mnt/y' and '/old=/mnt/z' maps"):
        resolved(tmp_path, [r"Z:\a.jpg"], ["Y:=/mnt/y", "Z:=/mnt/x", "/old=/mnt/z"])
    assert resolved(tmp_path, [], ["Y:=/mnt/y"]) == []


@pytest.mark.parametrize("row", [r"\\srv\images\a.jpg", r"Z:\a.jpg", "Z:/a.jpg", r"c:\x\xe9.jpg"])
def test_a_windows_path_without_a_map_says_what_to_do(tmp_path: Path, row: str) -> None:
    assert looks_like_windows(row)
    for maps in ([], [r"\\srv\other=/mnt/x"]):
        with pytest.raises(UsageError, match="Windows path") as refused:
            resolved(tmp_path, [row], maps)
        assert "--map-prefix" in refused.value.cure
    with pytest.raises(UsageError, match="Windows path") as refused:
        UriResolver(None, "/data", "line").resolve(row, 2)
    assert "--map-prefix" not in refused.value.cure and "/" in refused.value.cure


def test_names_with_backslashes_of_their_own_are_no_windows_paths(tmp_path: Path) -> None:
    rows = [r"\\ird.jpg", r"a\\b\\c.jpg", r"\xe9.jpg", "ab:/c.jpg"]
    assert resolved(tmp_path, rows, []) == [f"{tmp_path}/{row}" for row in rows]
    assert not any(looks_like_windows(row) for row in rows)


@pytest.mark.parametrize(
    "text",
    ["", "=", "Z:", "Z:=", "=/mnt", r"\srvimages=/mnt", "images=/mnt", r"\\srv=/mnt", "/=/mnt", "s3://b=/mnt",
     r"Z:\a\..=/mnt", r"\\=/mnt"],
)  # fmt: skip
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--map-prefix") as refused:
        parse_prefix_map([text])
    assert "quotes" in refused.value.cure


def test_one_prefix_has_one_place() -> None:
    with pytest.raises(UsageError, match="another one maps"):
        parse_prefix_map([r"\\srv\a=/mnt", "//SRV/A/=/mnt2"])
