"""Manifests: dialects, columns, roots, repeats, versions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.archive.found import Listing
from pipelines.archive.manifest import read_manifest
from pipelines.archive.manifest_uris import UriResolver
from pipelines.errors import UsageError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder with three images, one of them with a backslash in its name."""
    folder = tmp_path / "archive"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg", "we\\ird.jpg"):
        (folder / name).write_bytes(name.encode())
    return folder


def read(
    archive: Path, content: str | bytes | pa.Table, columns: Mapping[str, str] | None = None, root: str | None = None
) -> tuple[Listing, list[dict[str, object]]]:
    """Write a manifest into the archive, read it, and give what was found with its rows."""
    path = archive / ("manifest.parquet" if isinstance(content, pa.Table) else "manifest.csv")
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    listing = read_manifest(str(path), columns or {}, root, archive.parent / "out.parquet")
    rows = pq.read_table(listing.path).to_pylist()
    assert listing.found == len(rows)
    return listing, rows


def version_of(path: Path) -> str:
    """Size and time, as the listing has them."""
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_dialects_say_the_same(archive: Path, separator: str, ending: str, mark: str) -> None:
    lines = ["path|mrn|note", f'a.jpg|007|"x{separator}""y"""', "sub/b.jpg||", ""]
    text = mark + ending.join(lines).replace("|", separator)
    listing, rows = read(archive, text, {"uri": "path", "patient_id": "mrn"})
    assert rows == [
        {
            "image_uri": str(archive / "a.jpg"),
            "image_version": version_of(archive / "a.jpg"),
            "patient_id": "007",
            "note": f'x{separator}"y"',
        },
        {
            "image_uri": str(archive / "sub/b.jpg"),
            "image_version": version_of(archive / "sub/b.jpg"),
            "patient_id": "",
            "note": "",
        },
    ]
    assert listing.carried == pa.schema([("patient_id", pa.string()), ("note", pa.string())])
    assert not listing.versions_from_manifest


def test_blank_lines_and_unnamed_columns_are_passed_over(archive: Path) -> None:
    _, rows = read(archive, ",uri,site\n0,a.jpg,x\n\n,,\n1,sub/b.jpg,y\n")
    assert [(row["site"], len(row)) for row in rows] == [("x", 3), ("y", 3)]


def test_a_parquet_manifest_keeps_types(archive: Path) -> None:
    table = pa.table(
        {
            "uri": pa.array(["a.jpg", "gone.jpg"]).dictionary_encode(),
            "age": pa.array([1, None], pa.uint8()),
            "site": pa.array(["x", None], pa.large_string()),
            "day": pa.array([0, 1], pa.date64()),
        }
    )
    listing, rows = read(archive, table)
    assert listing.carried == pa.schema([("age", pa.int16()), ("site", pa.string()), ("day", pa.date32())])
    assert [row["image_version"] for row in rows] == [version_of(archive / "a.jpg"), ""]
    assert [row["age"] for row in rows] == [1, None]


def test_repeats_are_dropped_and_named_and_order_is_kept(archive: Path) -> None:
    listing, rows = read(archive, "uri,k\nsub/b.jpg,1\na.jpg,2\n./sub//b.jpg,1\nsub/../a.jpg,2\nx.jpg,\n")
    assert [Path(str(row["image_uri"])).name for row in rows] == ["b.jpg", "a.jpg", "x.jpg"]
    assert (listing.repeated, listing.repeated_rows) == (2, (4, 5))


def test_names_are_escaped_as_image_uris_are(archive: Path) -> None:
    (archive / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"latin")
    _, rows = read(archive, "uri\nwe\\\\ird.jpg\ncaf\\xe9.jpg\n")
    assert [row["image_uri"] for row in rows] == [f"{archive}/we\\\\ird.jpg", f"{archive}/caf\\xe9.jpg"]
    assert all(row["image_version"] for row in rows)


def test_a_local_version_is_asked_of_the_disk(archive: Path) -> None:
    listing, rows = read(archive, "uri,image_version\na.jpg,made-up\n")
    assert rows[0]["image_version"] == version_of(archive / "a.jpg")
    assert listing.carried is None and not listing.versions_from_manifest


def test_absolute_names_may_share_a_folder_or_lie_in_the_root(archive: Path) -> None:
    text = f"uri\n{archive}/a.jpg\nfile://{archive}/sub/b.jpg\n"
    assert read(archive, text)[0].found == 2
    assert read(archive, text, root=str(archive.parent))[0].found == 2
    assert read(archive, text + "a.jpg\n")[0].repeated == 1
    assert read(archive, "uri\narchive/a.jpg\n", root=str(archive.parent))[1][0]["image_version"]


def test_a_manifest_without_rows_is_an_empty_archive(archive: Path) -> None:
    assert read(archive, "uri,k\n")[0].found == 0


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        ("path,k\na,1\n", {}, "no column 'uri'; its columns are: path, k"),
        ("path,k\na,1\n", {"uri": "image"}, "no column 'image'"),
        ("path,uri\na,1\n", {"uri": "path"}, "two columns"),
        ("uri,K,k\na,1,2\n", {}, "two columns"),
        ("uri,image_uri\na,1\n", {}, "image_uri"),
        ("uri,Image_URI\na,1\n", {}, "Image_URI"),
        ("uri,Image_Version\na,1\n", {}, "Image_Version"),
        ("uri,nightread row\na,1\n", {}, "nightread row"),
        ("uri,file_row_number\na,1\n", {}, "file_row_number"),
        ("", {}, "no header"),
        ("uri,k\na,1\nb,2,3\n", {}, "Line 3 .* has 3 columns; its header has 2"),
        ('uri,k\na,"1\n2"\nb\n', {}, "Line 4"),
        ('uri,k\na,"1\n', {}, "line 2"),
        (b"uri,k\na,1\nb,\xe9\n", {}, "byte 0xe9 in line 3"),
        ("uri,k\na,1\n".encode("utf-16"), {}, "byte 0xff in line 1"),
        ("uri,k\na,1\n,2\n", {}, "line 3 .* is empty"),
        ("uri,k\na,1\nb,1\n./a,2\na,1\n", {}, "lines 2, 4, 5 with different"),
        ("uri\n../x\n", {}, "line 2 .* leads out of"),
        ("uri\na/../../x\n", {}, "leads out of"),
        ("uri\na/..\n", {}, "leads out of"),
        ("uri\n..\\x\n", {}, "backslash"),
        ("uri\n\\x2e\\x2e/x\n", {}, "backslash"),
        ("uri\na\n/etc/passwd\n", {}, "line 3 .* leads out of"),
        ("uri\n/etc/passwd\n/usr/x\n", {}, "share no folder"),
        ("uri\na\ns3://bucket/x\n", {}, "line 3 .* leads out of"),
        ("uri\na\nhttp://host/x\n", {}, "leads out of"),
        ("uri\na\0b\n", {}, "zero byte"),
        (pa.table({"k": ["a"]}), {}, "its columns are: k"),
        (pa.table({"uri": [1]}), {}, "int64"),
        (pa.table({"uri": ["a", None]}), {}, "row 2"),
        (pa.table({"uri": ["a"], "k": [[1]]}), {}, "'k' is of the type list"),
    ],
)
def test_what_is_wrong_is_named(
    archive: Path, content: str | bytes | pa.Table, columns: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        read(archive, content, columns)
    assert refused.value.cure


def test_a_given_root_is_not_left(archive: Path) -> None:
    for text in (f"uri\n{archive}/a.jpg\n", f"uri\n../{archive.name}/a.jpg\n", "uri\ns3://b/k\n"):
        with pytest.raises(UsageError, match="leads out of"):
            read(archive, text, root=str(archive / "sub"))


def test_a_manifest_that_is_not_there_is_named(archive: Path) -> None:
    for name in ("nothing.csv", "nothing.parquet"):
        with pytest.raises(UsageError, match="no manifest"):
            read_manifest(str(archive / name), {}, None, archive / "out")
    (archive / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="no Parquet"):
        read_manifest(str(archive / "bad.parquet"), {}, None, archive / "out")
    with pytest.raises(UsageError, match="folder"):
        read_manifest(str(archive), {}, None, archive / "out")


def test_bucket_names_keep_their_bucket() -> None:
    resolver = UriResolver(None, "s3://b/manifests", "line")
    assert resolver.resolve("x/y.jpg", 2) == "s3://b/manifests/x/y.jpg"
    assert resolver.resolve("s3://b/manifests/z%20 .jpg", 3) == "s3://b/manifests/z%20 .jpg"
    for uri in ("../x", "s3://b/manifests/../x", "a/./b"):
        with pytest.raises(UsageError):
            resolver.resolve(uri, 4)
    resolver.resolve("s3://other/manifests/x", 5)
    with pytest.raises(UsageError, match="line 5"):
        resolver.check()


def test_absolute_bucket_names_share_a_prefix() -> None:
    resolver = UriResolver(None, "/manifests", "line")
    for key in ("scans/2026/a/1.jpg", "scans/2026/b/2.jpg", "scans/2025/c.jpg"):
        resolver.resolve(f"s3://bucket/{key}", 2)
    resolver.check()
    assert resolver.prefix == "s3://bucket/scans"
    resolver.resolve("s3://elsewhere/x.jpg", 3)
    with pytest.raises(UsageError, match="share no folder"):
        resolver.check()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["..", ".", "", "a", "b c", "\\x2e\\x2e", "\\\\", "\\", "file:", "s3:", "~", "\\xff"]),
        min_size=1,
        max_size=6,
    )
)
def test_no_name_leaves_a_given_root(parts: list[str]) -> None:
    resolver = UriResolver("/data/archive", "/data", "line")
    try:
        resolved = resolver.resolve("/".join(parts), 2)
        resolver.check()
    except UsageError:
        return
    assert resolved.startswith("/data/archive/")
    from pipelines.storage import paths

    assert os.path.normpath(paths.unescape_name(resolved)).startswith("/data/archive/")
