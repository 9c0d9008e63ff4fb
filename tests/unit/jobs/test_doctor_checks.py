"""What the doctor finds on a machine, without starting Ray."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from jobs import doctor
from jobs.console import Console


def test_the_kernel_answers_as_it_should() -> None:
    assert doctor._kernel().good


def test_a_folder_for_results_is_left_as_it_was(tmp_path: Path) -> None:
    assert doctor._results(str(tmp_path / "new")).good
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").write_text("x")
    assert doctor._results(str(tmp_path)).good
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_without_hard_links_will_do_and_says_what_that_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(old: str, new: str) -> None:
        raise PermissionError(errno.EPERM, "not permitted", old)

    monkeypatch.setattr(os, "link", refused)
    check = doctor._results(str(tmp_path))
    assert check.good and "only the lease" in check.found


@pytest.mark.parametrize("name", ["a#b", "a[1]", "50%20"])
def test_a_name_in_which_no_table_can_be_kept_is_found_out(tmp_path: Path, name: str) -> None:
    check = doctor._results(str(tmp_path / name))
    assert not check.good and "Choose a folder" in check.cure


def test_a_place_that_cannot_hold_results_comes_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check = doctor._results(str(tmp_path / "file"))
    assert not check.good and check.cure


def test_weights_are_seen_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NIGHTREAD_WEIGHTS", str(tmp_path))
    missing = doctor._weights()
    assert not missing.good and not missing.needed and "NIGHTREAD_WEIGHTS" in missing.cure
    (tmp_path / "vgg16_notop.h5").write_bytes(b"")
    assert "vgg16_notop.h5" in doctor._weights().found


def test_this_machine_is_described() -> None:
    checks = [doctor._python(), *doctor._libraries(), doctor._cores(), doctor._memory(), doctor._temporary_folder()]
    assert all(check.found for check in checks)


def test_each_line_is_good_or_comes_with_its_cure(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    doctor.show(console, doctor.Check("cores", True, "2"))
    doctor.show(console, doctor.Check("memory", False, "0.1 GiB free", "Stop other programs."))
    doctor.show(console, doctor.Check("weights", False, "none", "Fetch them.", needed=False))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["ok  ", "FAIL", "    ", "note", "    "]
    assert lines[2].strip() == "Stop other programs."
