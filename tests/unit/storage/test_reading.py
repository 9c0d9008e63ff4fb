from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import ImageFailure
from pipelines.storage import files, listing, paths, reading
from pipelines.storage.reading import ImageReader
from pipelines.storage.throttle import Throttle


def no_pause(_seconds: float) -> None:
    """Tries follow each other at once."""


def listed(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for batch in listing.list_files(str(root), lambda *_: None):
        found |= dict(zip(batch.uris.to_pylist(), batch.versions.to_pylist(), strict=True))
    return found


def failure(uri: str, reader: ImageReader | None = None) -> ImageFailure:
    with pytest.raises(ImageFailure) as caught:
        (reader or ImageReader(1000, sleep=no_pause)).read(uri)
    assert "/" not in caught.value.message
    return caught.value


name_bytes = st.binary(min_size=1, max_size=40).filter(
    lambda raw: b"\0" not in raw and b"/" not in raw and raw not in (b".", b"..")
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(name_bytes, st.binary(max_size=50))
def test_every_name_is_listed_and_read_with_the_same_version(tmp_path: Path, raw: bytes, content: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), raw)
    Path(os.fsdecode(path)).write_bytes(content)
    try:
        found = listed(tmp_path)
        assert len(found) == 1
        ((uri, version),) = found.items()
        assert os.fsencode(paths.unescape_name(uri)) == path
        assert ImageReader(50).read(uri) == reading.Blob(content, version)
    finally:
        os.unlink(path)


def test_what_is_not_a_file_is_not_found_and_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "file").write_bytes(b"")
    for name in ("pipe.jpg", "folder.jpg", "loop.jpg", "missing.jpg", "file/below.jpg", "n" * 300, "a\0b"):
        assert failure(str(tmp_path / name)).code == "not_found", name


def test_size_is_checked_before_the_content(tmp_path: Path) -> None:
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert failure(str(tmp_path / "large.jpg")).code == "too_large"
    (tmp_path / "fits.jpg").write_bytes(b"x" * 1000)
    assert len(ImageReader(1000).read(str(tmp_path / "fits.jpg")).data) == 1000


class Growing:
    """Appends to a file after each of the first few readings of it."""

    def __init__(self, path: Path, times: int) -> None:
        self.path, self.times, self.real = path, times, os.read

    def __call__(self, descriptor: int, count: int) -> bytes:
        piece = self.real(descriptor, count)
        if not piece and self.times:
            self.times -= 1
            with open(self.path, "ab") as file:
                file.write(b"more")
        return piece


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Growing]:
    path = tmp_path / "copied.jpg"
    path.write_bytes(b"start")
    writer = Growing(path, 0)
    monkeypatch.setattr(os, "read", writer)
    yield writer


def test_a_file_that_grows_while_it_is_read_is_read_again(growing: Growing) -> None:
    growing.times = 2
    blob = ImageReader(1000, sleep=no_pause).read(str(growing.path))
    assert blob.data == b"startmoremore"
    assert blob.version == reading.local_version(os.stat(growing.path))


def test_a_file_that_never_rests_is_a_failure_of_storage(growing: Growing) -> None:
    growing.times = 10_000
    assert failure(str(growing.path)).code == "storage"


@pytest.mark.parametrize(("number", "code", "calls"), [(5, "storage", 10), (116, "storage", 10), (13, "permission", 1)])
def test_errors_of_the_system_become_codes_after_retries(
    number: int, code: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def broken(*arguments: object, **_options: object) -> int:
        made.append(arguments)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", broken)
    found = failure(str(tmp_path / "x.jpg"))
    monkeypatch.undo()
    assert (found.code, len(made)) == (code, calls)


def test_a_replaced_file_gets_another_version(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    first = ImageReader(10).read(str(path)).version
    os.utime(path, ns=(0, 12345))
    assert ImageReader(10).read(str(path)).version == "3-12345" != first


def test_each_try_waits_for_its_turn(growing: Growing) -> None:
    growing.times = 2
    throttle = Throttle(1000.0, sleep=no_pause)
    ImageReader(1000, throttle, no_pause).read(str(growing.path))
    assert throttle.requests == 3
    sent = pickle.loads(pickle.dumps(ImageReader(7, Throttle(2.5))))
    assert (sent.max_bytes, sent._throttle.per_second) == (7, 2.5)


@pytest.mark.parametrize(
    ("made", "lists"), [("nothing", False), ("empty", False), ("file", True), ("folder", True), ("link", True)]
)
def test_a_place_that_is_gone_or_empty_lists_nothing(made: str, lists: bool, tmp_path: Path) -> None:
    root = tmp_path / "back\\slash é"
    if made != "nothing":
        root.mkdir()
    if made == "file":
        (root / ".hidden").touch()
    if made == "folder":
        (root / "sub").mkdir()
    if made == "link":
        (root / "sub").symlink_to("nowhere")
    assert reading.lists_something(str(root)) is lists
    # A file in the folder's place is no folder.
    (tmp_path / "file").touch()
    assert reading.lists_something(str(tmp_path / "file")) is False


def test_a_place_that_may_not_be_listed_is_not_called_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def closed(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", closed)
    found = reading.lists_something(str(tmp_path))
    monkeypatch.undo()
    assert found is None


def test_one_reader_serves_threads_and_other_processes(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    reader = pickle.loads(pickle.dumps(ImageReader(10)))
    with ThreadPoolExecutor(8) as pool:
        blobs = list(pool.map(lambda number: reader.read(str(tmp_path / f"{number}.jpg")), range(200)))
    assert [blob.data for blob in blobs] == [b"%d" % number for number in range(200)]


def test_other_places_are_read_with_the_version_that_is_listed() -> None:
    files.write_atomic("memory://reading/a b.jpg", b"content")
    try:
        found = {
            uri: version
            for batch in listing.list_files("memory://reading", lambda *_: None)
            for uri, version in zip(batch.uris.to_pylist(), batch.versions.to_pylist(), strict=True)
        }
        assert {uri: ImageReader(10).read(uri).version for uri in found} == found
        assert list(found) == ["memory://reading/a b.jpg"]
        assert failure("memory://reading/none").code == "not_found"
        assert failure("memory://reading/a b.jpg", ImageReader(3)).code == "too_large"
    finally:
        files.delete_tree("memory://reading")
