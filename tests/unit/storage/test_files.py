from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import TryLater, UsageError
from pipelines.storage import files, local_files

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(params=["local", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on the local disk, and one of another fsspec scheme."""
    place = str(tmp_path / "base") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    yield place
    files.delete_tree(place)


def test_a_file_is_written_read_replaced_and_deleted(base: str) -> None:
    uri = f"{base}/a/é b.json"
    with pytest.raises(FileNotFoundError):
        files.read_bytes(uri)
    files.write_atomic(uri, b"one")
    files.write_atomic(uri, b"second")
    assert files.read_bytes(uri) == b"second"
    assert files.size(uri) == 6
    assert files.exists(uri)
    files.delete(uri)
    files.delete(uri)
    assert not files.exists(uri)
    with pytest.raises(FileNotFoundError):
        files.size(uri)


def test_a_file_is_created_once(base: str) -> None:
    assert files.create_exclusive(f"{base}/x", b"first") is True
    assert files.create_exclusive(f"{base}/x", b"second") is False
    assert files.read_bytes(f"{base}/x") == b"first"
    assert files.list_names(base) == ["x"]


def test_names_are_those_directly_inside(base: str) -> None:
    assert files.list_names(base) == []
    for name in ("b", "a", "sub/c", "sub/d"):
        files.write_atomic(f"{base}/{name}", b"1")
    assert files.list_names(base) == ["a", "b", "sub"]
    assert files.list_names(f"{base}/sub/") == ["c", "d"]


def test_a_tree_is_deleted_without_its_neighbours(base: str) -> None:
    for name in ("runs/1/a", "runs/1/b/c", "runs/10/a", "runs/1.json"):
        files.write_atomic(f"{base}/{name}", b"1")
    files.delete_tree(f"{base}/runs/1")
    files.delete_tree(f"{base}/runs/1")
    assert files.list_names(f"{base}/runs") == ["1.json", "10"]


def test_files_are_put_and_fetched_whole(base: str, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "up").write_bytes(content)
    files.put(str(tmp_path / "up"), f"{base}/in/it")
    files.fetch(f"{base}/in/it", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == content
    with files.open_input(f"{base}/in/it") as handle:
        handle.seek(1_000_000)
        assert handle.read(10) == content[1_000_000:1_000_010]
    with pytest.raises(FileNotFoundError):
        files.fetch(f"{base}/missing", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "base") == ["down", "up"]


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write_atomic(str(tmp_path / "new" / "deep" / "file"), b"")
        files.create_exclusive(str(tmp_path / "new" / "made"), b"")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) for name in ("file", "deep", "deep/file", "made")
             if (tmp_path / "new" / name).exists()]  # fmt: skip
    assert modes == [0o750, 0o640, 0o640]


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), local_files.replacing(str(target)) as temporary:
        Path(temporary).write_bytes(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_many_creators_exactly_one_wins_and_the_file_is_whole(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(12)]
    barrier = threading.Barrier(len(contents))
    won: list[bytes] = []

    def create(content: bytes) -> None:
        barrier.wait()
        if files.create_exclusive(str(tmp_path / "x"), content):
            won.append(content)

    threads = [threading.Thread(target=create, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [(tmp_path / "x").read_bytes()]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_exclusive_creation_holds_where_hard_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert files.create_exclusive(str(tmp_path / "x"), b"1") is True
    assert files.create_exclusive(str(tmp_path / "x"), b"2") is False
    assert (tmp_path / "x").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_to_a_folder_is_deleted_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("kept")
    files.delete_tree(str(tmp_path / "link"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.parametrize("write", [files.write_atomic, files.create_exclusive])
def test_a_file_in_the_folders_place_is_a_usage_error(write: object, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="file/x"):
        write(str(tmp_path / "file" / "x"), b"")  # type: ignore[operator]


def test_a_full_disk_is_try_later() -> None:
    with (
        pytest.raises(TryLater, match="full"),
        files.explaining("/dev/full"),
        open("/dev/full", "wb", buffering=0) as device,
    ):
        device.write(b"x")


def test_a_folder_that_may_not_be_written_or_read_is_a_usage_error(tmp_path: Path) -> None:
    """Root may do anything, so where the suite runs as root a child that is nobody tries it."""
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "file").write_bytes(b"1")
    locked.chmod(0)
    program = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pipelines.errors import ImageFailure, UsageError
from pipelines.storage import files, listing, reading
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
locked = sys.argv[1]
for action in (lambda: files.write_atomic(locked + "/new", b""), lambda: files.create_exclusive(locked + "/new", b""),
               lambda: files.read_bytes(locked + "/file"), lambda: files.delete(locked + "/file"),
               lambda: files.list_names(locked), lambda: listing.check_root(locked)):
    try:
        action()
    except UsageError as error:
        print("usage", "refused" in str(error))
try:
    reading.ImageReader(9).read(locked + "/file")
except ImageFailure as failure:
    print(failure.code)
found = []
list(listing.list_files(os.path.dirname(locked), lambda uri, reason: found.append((uri == locked, reason))))
print(found)
"""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    try:
        command = [sys.executable, "-c", program, str(locked), str(CHECKOUT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        locked.chmod(0o700)
    assert done.stdout.splitlines() == ["usage True"] * 6 + ["permission", "[(True, 'permission')]"], done.stderr
