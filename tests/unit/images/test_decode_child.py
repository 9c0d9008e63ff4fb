from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ImageFailure, TryLater
from pipelines.images.child import DecodeChild
from pipelines.images.preprocess import Preprocessing

# Loaded by the child's interpreter before anything else: faults on a marker, as a broken native decoder has them.
INJECTOR = """
import os, signal, sys, threading
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "pipelines.images.decode":
            return None
        spec = PathFinder.find_spec(name, path, target)
        original = spec.loader.exec_module
        def exec_module(module):
            original(module)
            decode = module.decode
            def faulty(data, target=None):
                if b"ABORT" in data:
                    os.abort()
                if b"HANG" in data:
                    threading.Event().wait()
                if b"HOARD" in data:
                    bytearray(8 * 1024**3)
                if b"NOISE" in data:
                    os.write(1, b"noise on the standard output")
                    print("more of it", flush=True)
                return decode(data, target)
            module.decode = faulty
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("injector")
    (folder / "sitecustomize.py").write_text(INJECTOR)
    return folder


@pytest.fixture(scope="module")
def child(injected: Path) -> Iterator[DecodeChild]:
    """One child for all tests: it has to survive what each of them does to it."""
    with pytest.MonkeyPatch.context() as patch, DecodeChild(32, seconds=20) as made:
        patch.setenv("PYTHONPATH", str(injected))
        yield made


@pytest.fixture
def good(photo: Callable, encode: Callable) -> bytes:
    return encode(photo(200, 150), "JPEG", quality=95)


def assert_same(child: DecodeChild, data: bytes) -> None:
    here, there = Preprocessing(32).prepare(data), child.prepare(data)
    assert np.array_equal(here.pixels, there.pixels) and there.pixels.flags.writeable == here.pixels.flags.writeable
    for field in ("content_sha256", "width", "height", "mean_intensity", "decoder", "frames"):
        assert getattr(here, field) == getattr(there, field)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_answers_as_the_function_does(child: DecodeChild, good: bytes) -> None:
    assert_same(child, good)
    first = child.pid
    with pytest.raises(ImageFailure) as failed:
        child.prepare(good[:-9])
    assert failed.value.code == "truncated"
    with pytest.raises(ImageFailure) as failed:
        child.prepare(b"")
    assert failed.value.code == "not_an_image"
    # More than a pipe holds, in both directions, and prints between the answers.
    assert_same(child, good + bytes(3_000_000))
    assert_same(child, good + b"NOISE")
    assert child.pid == first


def test_a_file_that_kills_its_decoder_is_named_and_the_next_one_lives(child: DecodeChild, good: bytes) -> None:
    with pytest.raises(ImageFailure) as failed:
        child.prepare(good + b"ABORT")
    assert failed.value.code == "decoder_crashed"
    assert "SIGABRT" in failed.value.message
    assert_same(child, good)


def test_memory_is_limited(child: DecodeChild, good: bytes) -> None:
    with pytest.raises(ImageFailure) as failed:
        child.prepare(good + b"HOARD")
    # The stand-in lies outside of the total decoder, so its MemoryError ends the child.
    assert failed.value.code == "decoder_crashed"
    assert_same(child, good)


def test_a_file_that_hangs_its_decoder_is_named(injected: Path, monkeypatch: pytest.MonkeyPatch, good: bytes) -> None:
    monkeypatch.setenv("PYTHONPATH", str(injected))
    with DecodeChild(32, seconds=1) as child:
        child.prepare(good)
        hanging = child.pid
        assert hanging is not None
        with pytest.raises(ImageFailure) as failed:
            child.prepare(good + b"HANG")
        assert failed.value.code == "timed_out"
        assert "1 s" in failed.value.message
        assert not alive(hanging)


def test_a_child_killed_between_pictures_is_replaced(child: DecodeChild, good: bytes) -> None:
    child.prepare(good)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert_same(child, good)
    assert child.pid != first


def test_closing_leaves_no_process(child: DecodeChild, good: bytes) -> None:
    child.prepare(good)
    pid = child.pid
    assert pid is not None
    child.close()
    child.close()
    assert child.pid is None and not alive(pid)


def test_a_child_does_not_outlive_its_parent(injected: Path, checkout: Path, good: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(good)
    parent = textwrap.dedent("""
        import os, signal, sys
        from pipelines.images.child import DecodeChild
        child = DecodeChild(32, 20)
        child.prepare(open(sys.argv[1], "rb").read())
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", parent, str(tmp_path / "good.jpg")],
        env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    # The pidfd becomes readable when the process ends.
    try:
        descriptor = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return
    import select

    ended, _, _ = select.select([descriptor], [], [], 10)
    os.close(descriptor)
    assert ended


def test_a_child_that_cannot_start_is_no_pictures_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "simplejpeg.py").write_text("raise ImportError('broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with DecodeChild(32, seconds=5) as child, pytest.raises(TryLater, match="broken installation"):
        child.prepare(b"\xff\xd8\xff")
