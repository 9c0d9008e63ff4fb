from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.storage import paths

os_names = st.binary(max_size=60).filter(lambda raw: b"\0" not in raw).map(os.fsdecode)
places = st.one_of(
    os_names.filter(bool),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(lambda t: f"s3://b{t}"),
    st.from_regex(r"(/|\./|\.\./|a/|é |\\|%20)+", fullmatch=True),
)


@given(os_names)
def test_escape_is_undone_exactly_and_gives_plain_text(name: str) -> None:
    escaped = paths.escape_name(name)
    escaped.encode("utf-8")
    assert paths.unescape_name(escaped) == name


@given(os_names, os_names)
def test_two_names_never_escape_to_the_same_text(first: str, second: str) -> None:
    assume(first != second)
    assert paths.escape_name(first) != paths.escape_name(second)


@pytest.mark.parametrize(
    ("os_name", "text"),
    [
        ("plain é.jpg", "plain é.jpg"),
        ("a\\b", "a\\\\b"),
        (os.fsdecode(b"\xff.jpg"), "\\xff.jpg"),
        ("\\xff", "\\\\xff"),
        (os.fsdecode(b"\\\x80"), "\\\\\\x80"),
    ],
)
def test_escapes_are_written_as_promised(os_name: str, text: str) -> None:
    assert paths.escape_name(os_name) == text


@pytest.mark.parametrize("text", ["C:\\images", "a\\x41", "end\\"])
def test_a_backslash_that_begins_no_escape_stands_for_itself(text: str) -> None:
    assert paths.unescape_name(text) == text


@given(places)
def test_canonical_twice_is_canonical_once(place: str) -> None:
    assume(not place.startswith("s3:///"))
    try:
        once = paths.canonical(place)
    except UsageError:
        assume(False)
    assert paths.canonical(once) == once


@given(st.lists(st.sampled_from(["a", "..", ".", "b c", ""]), max_size=8))
def test_canonical_agrees_with_the_operating_system_on_plain_folders(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    assert paths.canonical(path) == os.path.abspath("/" + path.strip("/"))


@pytest.mark.parametrize(
    ("place", "canonical"),
    [
        ("/data/../x//y/./z/", "/x/y/z"),
        ("//x/y", "/x/y"),
        ("file:///data/a%20b", "/data/a b"),
        ("file://localhost/data", "/data"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/a/../b//c%20d/", "s3://bucket/a/../b//c%20d"),
        ("s3a://bucket/k", "s3://bucket/k"),
        ("memory://x/y/", "memory://x/y"),
    ],
)
def test_canonical_spelling(place: str, canonical: str) -> None:
    assert paths.canonical(place) == canonical


def test_relative_places_start_at_the_working_folder_and_links_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert paths.canonical("link/a") == f"{tmp_path}/link/a"


@pytest.mark.parametrize("place", ["", "a\0b", "s3://", "s3:///key", "file://elsewhere/x", "file:nothing\0"])
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(UsageError):
        paths.canonical(place)


def test_parts_of_places() -> None:
    assert paths.join("s3://b", "runs", "1") == "s3://b/runs/1"
    assert paths.join("/", "a") == "/a"
    assert paths.join("/r/", "", "a") == "/r/a"
    assert paths.relative("s3://b/p/x/y.jpg", "s3://b/p") == "x/y.jpg"
    assert paths.relative("/x", "/") == "x"
    assert paths.name("s3://b/p/x/") == "x"
    assert [paths.parent(place) for place in ("s3://b/p/x", "s3://b/p", "s3://b", "/a/b", "/a", "/")] == [
        "s3://b/p", "s3://b", "s3://b", "/a", "/", "/",
    ]  # fmt: skip
    assert [paths.is_bucket(place) for place in ("s3://b", "/s3", "memory://x")] == [True, False, False]
    assert paths.split_bucket("s3://b/a/b") == ("b", "a/b")


@pytest.mark.parametrize(("uri", "root"), [("/data2/x", "/data"), ("/data", "/data"), ("s3://b/px", "s3://b/p")])
def test_neighbours_of_a_root_are_not_in_it(uri: str, root: str) -> None:
    assert not paths.is_inside(uri, root)
    with pytest.raises(UsageError):
        paths.relative(uri, root)
