"""Results that do not answer for a while."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import NoAnswer, TryLater
from pipelines.predictions.runs import RunFolder
from pipelines.scoring import parts
from pipelines.scoring.parts import ClosingFile
from pipelines.scoring.patience import patiently
from pipelines.storage import faults
from pipelines.storage.faults import Fault


@given(cut=st.floats(0, 600), patience=st.floats(1, 400))
def test_a_cut_that_is_shorter_than_the_patience_is_survived_and_no_other(cut: float, patience: float) -> None:
    now = [0.0]

    def ask() -> str:
        if now[0] < cut:
            raise NoAnswer("Storage does not answer.")
        return "here"

    def sleep(seconds: float) -> None:
        assert seconds > 0
        now[0] += seconds

    if cut <= patience:
        assert patiently(ask, patience, sleep, lambda: now[0]) == "here"
        assert now[0] <= cut + 15
    else:
        with pytest.raises(NoAnswer):
            patiently(ask, patience, sleep, lambda: now[0])
        assert now[0] == pytest.approx(patience)


def test_what_waiting_does_not_mend_is_told_at_once() -> None:
    def full() -> None:
        raise TryLater("The disk is full.")

    with pytest.raises(TryLater, match="full"):
        patiently(full, 300.0, lambda _seconds: pytest.fail("waited"))
    assert type(faults.explained(Fault.FULL, "/results")) is TryLater
    for place in ("/results", "s3://bucket/results"):
        silent = faults.explained(Fault.PASSING, place)
        assert isinstance(silent, NoAnswer) and (silent.exit_code, silent.code) == (75, "try_later")


def test_storage_that_is_silent_closes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(str(tmp_path), "run")
    closing = ClosingFile(folder)

    def silent(_place: str) -> int:
        raise NoAnswer("Storage does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(parts.files, "size", silent)
        assert not closing()
    parts.files.write_atomic(folder.closing, b"")
    assert closing()


def test_a_part_is_written_once_storage_answers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, left = RunFolder(str(tmp_path), "run"), [3]
    real = parts.files.write_atomic

    def write(place: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] > 0:
            raise NoAnswer("Storage does not answer.")
        real(place, data)

    monkeypatch.setattr(parts.files, "write_atomic", write)
    rows = pa.table({"image_uri": ["a", "b"]})
    waited: list[float] = []
    patiently(lambda: parts.write_part(folder, 7, rows), 300.0, waited.append)
    assert len(waited) == 2
    found = parts.read_part(folder, 7)
    assert found is not None and found.equals(rows)
