"""Files that can be read and nothing else."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.errors import TryLater
from pipelines.storage.read_only import ReadOnlyFiles

NAME = "nightread://0/a.bin"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in which each eight bytes say where they stand."""
    path = tmp_path / "a [*].bin"
    path.write_bytes(b"".join(place.to_bytes(8) for place in range(0, 80_000, 8)))
    return path


def test_nothing_can_be_written(file: Path) -> None:
    files = ReadOnlyFiles({NAME: str(file)})
    before = file.read_bytes()
    for mode in ("wb", "ab", "r+b", "xb", "w", "r"):
        with pytest.raises(PermissionError):
            files.open(NAME, mode)
    for act in (
        lambda: files.rm(NAME),
        lambda: files.mv(NAME, "nightread://1"),
        lambda: files.pipe_file(NAME, b""),
        lambda: files.touch(NAME),
        lambda: files.cp_file(NAME, "nightread://1"),
    ):
        with pytest.raises((PermissionError, NotImplementedError)):
            act()
    assert file.read_bytes() == before


def test_only_the_files_are_there(file: Path) -> None:
    files = ReadOnlyFiles({NAME: str(file)})
    assert files.exists(NAME) and files.size(NAME) == 80_000 and files.glob(NAME) == [NAME]
    for other in (str(file), "nightread://1/a.bin", "nightread://*/a.bin"):
        assert not files.exists(other) and files.glob(other) == []
        with pytest.raises(FileNotFoundError):
            files.open(other)


def test_threads_read_one_file_each_at_its_own_place(file: Path) -> None:
    handle = ReadOnlyFiles({NAME: str(file)}).open(NAME)

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            place = chance.randrange(10_000 - 1) * 8
            handle.seek(place)
            assert handle.read(8) == place.to_bytes(8)
            assert handle.read(8) == (place + 8).to_bytes(8)
            assert handle.tell() == place + 16

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert handle.seek(-8, 2) == 79_992 and handle.seek(-8, 1) == 79_984
    handle.close()


def test_a_file_that_is_gone_is_remembered(file: Path) -> None:
    files = ReadOnlyFiles({NAME: str(file)})
    file.unlink()
    with pytest.raises(TryLater, match="is gone"):
        files.open(NAME)
    assert isinstance(files.failure, TryLater)
