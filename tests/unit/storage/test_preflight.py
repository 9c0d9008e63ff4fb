"""Whether a folder can hold results, and that nothing is left of the question."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import NightreadError, TryLater, UsageError
from pipelines.storage.preflight import Proof, has_hard_links, prove_place

CHECKOUT = Path(__file__).parents[3]


def refuse(number: int) -> Callable[..., Any]:
    """A call of the operating system that fails."""

    def call(*arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number), *arguments[:1])

    return call


@pytest.mark.parametrize("name", ["", "new", "new/and/deep", "ü b"])
def test_a_folder_is_proven_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / "kept").write_text("x")
    assert prove_place(str(tmp_path / name)) == Proof(hard_links=True)
    assert has_hard_links(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_many_hosts_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    place = str(tmp_path / "new" / "results")
    with ThreadPoolExecutor(8) as pool:
        proofs = list(pool.map(lambda _: prove_place(place), range(200)))
    assert set(proofs) == {Proof(hard_links=True)}
    # The folder itself may stay, where the one that made it found another host in it.
    assert {path.name for path in tmp_path.rglob("*")} <= {"new", "results"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links_it_will_do_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", refuse(number))
    proof = prove_place(str(tmp_path))
    assert not proof.hard_links and "lease" in proof.remark
    assert not has_hard_links(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def creating_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *more, **at: real(path, flags & ~os.O_EXCL, *more, **at))


def renaming_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda old, new: os.unlink(old))


def linking_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(old: str, new: str) -> None:
        Path(new).write_bytes(Path(old).read_bytes())

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("break_it", [creating_once_more, renaming_nothing, linking_over])
def test_a_file_system_that_does_not_keep_its_promise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    with pytest.raises(UsageError, match="no place for results") as refused:
        prove_place(str(tmp_path / "new"))
    assert "conditional writes" in refused.value.cure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "number", "kind", "why"),
    [
        ("mkdir", errno.EROFS, UsageError, "read-only"),
        ("mkdir", errno.EACCES, UsageError, "permission denied"),
        ("fsync", errno.ENOSPC, TryLater, "no space left"),
        ("fsync", errno.EINVAL, UsageError, "invalid argument"),
        ("replace", errno.EPERM, UsageError, "not permitted"),
        ("link", errno.ENOSPC, TryLater, "no space left"),
    ],
)
def test_a_place_that_cannot_be_written_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    kind: type[NightreadError],
    why: str,
) -> None:
    monkeypatch.setattr(os, function, refuse(number))
    with pytest.raises(kind, match=why) as refused:
        prove_place(str(tmp_path / "results" if function != "mkdir" else tmp_path))
    assert refused.value.cure
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/results"):
        with pytest.raises(UsageError, match="Nothing can be kept"):
            prove_place(str(tmp_path / place))
    assert (tmp_path / "file").read_text() == "x"


def test_a_disk_without_room_is_try_later(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from pipelines.errors import TryLater\n"
        "from pipelines.storage.preflight import prove_place\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    prove_place(sys.argv[1])\n"
        "except TryLater:\n"
        "    sys.exit(75)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "r")], cwd=CHECKOUT, check=False)
    assert done.returncode == 75
    assert list(tmp_path.iterdir()) == []
