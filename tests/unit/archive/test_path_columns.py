"""Columns out of paths: groups, what does not match, and what RE2 does not know."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archive.found import Listing
from pipelines.archive.path_columns import PathColumns
from pipelines.errors import UsageError

SITES = "^(?P<site>[^/]+)/(?:study-(?P<study>[0-9]+)/)?(?P<patient>[^/]*)/"


def filled(folder: Path, inner: list[str], expression: str, root: str = "/data", **carried: list[str]) -> Listing:
    """A listing of these paths below the root, with the columns of an expression."""
    table = pa.table({"image_uri": [f"{root}/{path}" for path in inner], "image_version": ["1"] * len(inner)} | carried)
    pq.write_table(table.cast(pa.schema([(name, pa.string()) for name in table.column_names])), folder / "in.parquet")
    schema = pa.schema([(name, pa.string()) for name in carried]) if carried else None
    listing = Listing(folder / "in.parquet", len(inner), carried=schema, left_out={"hidden": 3})
    return PathColumns.parse(expression).fill(listing, root, folder / "out.parquet")


def test_groups_become_columns_in_their_order(tmp_path: Path) -> None:
    listing = filled(tmp_path, ["a/study-7/p1/x.jpg", "b/p 2/x.jpg", "c//x.jpg", "x.jpg"], SITES)
    assert pq.read_table(listing.path).to_pylist() == [
        {"image_uri": "/data/a/study-7/p1/x.jpg", "image_version": "1", "site": "a", "study": "7", "patient": "p1"},
        {"image_uri": "/data/b/p 2/x.jpg", "image_version": "1", "site": "b", "study": None, "patient": "p 2"},
        {"image_uri": "/data/c//x.jpg", "image_version": "1", "site": "c", "study": None, "patient": None},
        {"image_uri": "/data/x.jpg", "image_version": "1", "site": None, "study": None, "patient": None},
    ]
    assert listing.carried == pa.schema([(name, pa.string()) for name in ("site", "study", "patient")])
    assert (listing.found, listing.unmatched, listing.left_out) == (4, 1, {"hidden": 3})


def test_the_columns_follow_those_of_a_manifest(tmp_path: Path) -> None:
    listing = filled(tmp_path, ["p/x.jpg"], "(?P<patient>.)/", label=["benign"])
    assert listing.carried is not None and listing.carried.names == ["label", "patient"]
    assert pq.read_schema(listing.path).names == ["image_uri", "image_version", "label", "patient"]
    with pytest.raises(UsageError, match="group 'Label', and the manifest a column 'label'"):
        filled(tmp_path, ["p/x.jpg"], "(?P<Label>.)/", label=["benign"])


def test_the_path_is_searched_as_image_uri_writes_it(tmp_path: Path) -> None:
    inner = ["caf\\xe9/a\\\\b.jpg", "zwei\nZeilen/x.jpg", "ro\u0308/ß.jpg"]
    rows = pq.read_table(filled(tmp_path, inner, "^(?P<folder>.+)/(?P<name>[^/]+)$").path)
    assert rows["folder"].to_pylist() == ["caf\\xe9", "zwei\nZeilen", "ro\u0308"]
    assert rows["name"].to_pylist() == ["a\\\\b.jpg", "x.jpg", "ß.jpg"]
    bucket = filled(tmp_path, ["a/b.jpg"], "^(?P<first>.)", root="s3://bucket")
    assert pq.read_table(bucket.path)["first"].to_pylist() == ["a"]


@given(st.lists(st.text("ab1/-\n é\\", min_size=1, max_size=12), min_size=1, max_size=8))
def test_it_finds_what_python_finds(tmp_path_factory: pytest.TempPathFactory, inner: list[str]) -> None:
    expression = "(?P<first>a+)(?:/(?P<second>[b1]*))?"
    folder = tmp_path_factory.mktemp("found")
    expected = [re.search(expression, path, re.DOTALL) for path in inner]
    try:
        listing = filled(folder, inner, expression)
    except UsageError:
        assert expected == [None] * len(inner)
        return
    rows = pq.read_table(listing.path)
    for name in ("first", "second"):
        assert rows[name].to_pylist() == [match[name] or None if match else None for match in expected]
    assert listing.unmatched == expected.count(None)


def test_not_one_match_is_refused_and_an_empty_archive_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches not one of 2 images") as refused:
        filled(tmp_path, ["a/x.jpg", "b/x.jpg"], "^/(?P<site>[^/]+)/")
    assert "slash" in refused.value.cure
    assert filled(tmp_path, [], SITES).unmatched == 0


def test_an_image_outside_the_root_is_refused(tmp_path: Path) -> None:
    listing = filled(tmp_path, ["a/x.jpg"], "(?P<site>.)")
    with pytest.raises(UsageError, match="outside its own folder") as refused:
        PathColumns.parse("(?P<other>.)").fill(listing, "/dat", tmp_path / "again.parquet")
    assert "--root" in refused.value.cure


@pytest.mark.parametrize(
    ("expression", "says", "cure"),
    [
        ("", "no named group", r"\(\?P<site>"),
        ("[^/]+", "no named group", r"\(\?P<site>"),
        ("(a)(?P<b>.)", "group without a name", r"\(\?:"),
        ("(?P<a>.)(?P<A>.)", "two groups 'a'", "one group"),
        ("(?P<a>.", "missing \\)", "RE2"),
        ("(?P<a>.)(?=b)", "invalid perl operator: \\(\\?=", "look-ahead"),
        ("(?<!b)(?P<a>.)", "invalid perl operator", "look-behind"),
        (r"(?P<a>.)(?P=a)", "invalid", "earlier group"),
        (r"(?P<a>.)\1", "invalid escape", "earlier group"),
        ("(?P<a>.)++", "repetition", "RE2"),
        ("(?P<a>\udcff)", "not UTF-8", "RE2"),
    ],
)
def test_what_re2_does_not_know_is_explained(expression: str, says: str, cure: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        PathColumns.parse(expression)
    assert re.search(cure, refused.value.cure)
