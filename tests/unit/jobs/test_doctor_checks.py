"""What the doctor finds on a machine, without starting Ray."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from jobs import doctor
from jobs.console import Console
from pipelines.scoring import gpus


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


def test_the_engine_is_said_with_the_rule_behind_it() -> None:
    assert doctor._engine(1, 0, True).startswith("direct: 1 core, about 100 images/s (")
    assert "no GPU, with one: 1 GPU for" in doctor._engine(4, 0, True)
    assert doctor._engine(16, 1, True).startswith("split: 1 GPU for 11 decoding actors, batches of 64,")
    assert "Ray's TLS is off" in doctor._engine(16, 1, False)
    many = doctor._engine(64, 1, True)
    assert many.startswith("direct: 64 cores") and "GPUs would not make it shorter: 1 GPU for" in many


def test_a_machine_without_a_driver_has_no_gpu_and_tensorflow_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus_here() == []
    monkeypatch.setattr(sys, "executable", "/nowhere")
    check = doctor._gpus()
    assert check.good and check.found == "none on this machine"


def test_gpus_are_known_by_what_their_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "gpus")
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "gpus" / "0000:00:04.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t Tesla T4\nIRQ:   \t\t 11\n")
    assert gpus.gpus_here() == [gpus.Gpu("Tesla T4", None)]
    told = tmp_path / "nvidia-smi"
    told.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 81920'\necho 'NVIDIA Strange, Thing, [N/A]'\n")
    told.chmod(0o755)
    assert gpus.gpus_here() == [gpus.Gpu("NVIDIA A100-SXM4-80GB", 80 << 30), gpus.Gpu("NVIDIA Strange, Thing", None)]
    # TensorFlow cannot be asked: the GPU is named, and no night hangs on it.
    monkeypatch.setattr(sys, "executable", "/nowhere")
    check = doctor._gpus()
    assert not check.good and not check.needed and "A100" in check.found and "80 GiB" in check.found
