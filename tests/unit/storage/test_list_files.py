from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.storage import listing


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def walk(root: Path | str, **options: object) -> tuple[list[str], list[tuple[str, str]]]:
    """Listed URIs and errors, both relative to the root."""
    errors: list[tuple[str, str]] = []
    cut = len(str(root)) + 1
    uris: list[str] = []
    for batch in listing.list_files(str(root), lambda uri, reason: errors.append((uri[cut:], reason)), **options):  # type: ignore[arg-type]
        assert len(batch.uris) == len(batch.versions) == len(batch.sizes) <= listing.BATCH_FILES
        uris += [uri[cut:] for uri in batch.uris.to_pylist()]
    return uris, errors


def test_files_come_in_the_order_of_names_folder_by_folder(tmp_path: Path) -> None:
    draw(tmp_path, "b/2.jpg", "b/10.jpg", "a.jpg", "c.jpg", "b/deep/x.jpg", "b/e.jpg")
    assert walk(tmp_path) == (["a.jpg", "b/10.jpg", "b/2.jpg", "b/deep/x.jpg", "b/e.jpg", "c.jpg"], [])


def test_a_folder_of_very_many_entries_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SORTED_ENTRIES", 50)
    monkeypatch.setattr(listing, "BATCH_FILES", 7)
    names = [f"{number:04d}.jpg" for number in range(120)]
    draw(tmp_path, *names, *(f"sub/{name}" for name in names[:49]), *(f"edge/{name}" for name in names[:50]))
    uris, errors = walk(tmp_path)
    assert errors == []
    assert sorted(uris) == sorted(
        [*names, *(f"sub/{name}" for name in names[:49]), *(f"edge/{name}" for name in names[:50])]
    )
    assert [uri for uri in uris if uri.startswith("sub/")] == [f"sub/{name}" for name in names[:49]]


def test_what_is_no_file_is_told_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "root"
    draw(tmp_path, "root/a/b.jpg", "outside/c.jpg", "root2/d.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "file.jpg").symlink_to("a/b.jpg")
    (root / "absolute.jpg").symlink_to(root / "a" / "b.jpg")
    (root / "nothing.jpg").symlink_to("gone")
    (root / "away.jpg").symlink_to("../outside/c.jpg")
    (root / "away").symlink_to("../outside")
    (root / "beside.jpg").symlink_to("../root2/d.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "pipe2.jpg").symlink_to("pipe.jpg")
    uris, errors = walk(root)
    assert uris == ["a/b.jpg", "absolute.jpg", "file.jpg"]
    assert sorted(errors) == [
        ("away", "link_outside"),
        ("away.jpg", "link_outside"),
        ("beside.jpg", "link_outside"),
        ("nothing.jpg", "link_broken"),
        ("pipe.jpg", "special"),
        ("pipe2.jpg", "special"),
        ("self.jpg", "link_broken"),
    ]


def test_files_behind_a_linked_folder_are_listed_once(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    (tmp_path / "here").symlink_to(".")
    uris, errors = walk(tmp_path)
    assert uris == ["a/1.jpg", "b/2.jpg"]
    assert {reason for _, reason in errors} == {"link_inside"} and len(errors) == 4


def test_a_root_that_is_a_link_keeps_its_name(tmp_path: Path) -> None:
    draw(tmp_path, "real/a.jpg")
    (tmp_path / "real" / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "link").symlink_to("real")
    assert walk(tmp_path / "link") == (["a.jpg", "b.jpg"], [])


def test_folders_that_are_not_wanted_are_not_entered(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.jpg", "no\\/2.jpg", "b/no\\/3.jpg")
    asked: list[tuple[str, str]] = []

    def enter(uri: str, name: str) -> bool:
        asked.append((uri[len(str(tmp_path)) + 1 :], name))
        return name != "no\\\\"

    uris, _ = walk(tmp_path, enter=enter)
    assert uris == ["a/1.jpg"]
    assert sorted(asked) == [("a", "a"), ("b", "b"), ("b/no\\\\", "no\\\\"), ("no\\\\", "no\\\\")]


def test_names_with_backslashes_and_odd_bytes_are_escaped(tmp_path: Path) -> None:
    draw(tmp_path, "a\\b.jpg", "é ü.jpg", "line\nbreak.jpg")
    assert walk(tmp_path)[0] == ["a\\\\b.jpg", "line\nbreak.jpg", "é ü.jpg"]
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"")
    assert sorted(walk(tmp_path)[0]) == ["\\xff.jpg", "a\\\\b.jpg", "line\nbreak.jpg", "é ü.jpg"]


def test_a_folder_that_breaks_while_it_is_listed_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, "a/1.jpg", "broken/2.jpg", "gone/3.jpg", "z/4.jpg")
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("/broken"):
            raise OSError(5, "Input/output error")
        if path.endswith("/gone"):
            raise FileNotFoundError(2, "gone")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert walk(tmp_path) == (["a/1.jpg", "z/4.jpg"], [("broken", "storage")])


def test_roots_that_cannot_be_listed(tmp_path: Path) -> None:
    draw(tmp_path, "file.jpg")
    for root, word in (("missing", "does not exist"), ("file.jpg", "is a file"), ("file.jpg/x", "does not exist")):
        with pytest.raises(UsageError, match=word):
            walk(tmp_path / root)
    (tmp_path / "empty").mkdir()
    assert walk(tmp_path / "empty") == ([], [])


def test_sockets_are_special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
        assert walk(tmp_path) == ([], [("s.jpg", "special")])
