"""Nights beside the runs: written whole, newest first, and only the newest are read."""

from __future__ import annotations

import datetime
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.predictions.nights import NightRecord, newest_nights, write_night

BEGAN = datetime.datetime(2026, 3, 1, 22, 0, tzinfo=datetime.UTC)
NIGHT = NightRecord(
    started_at=BEGAN,
    ended_at=BEGAN + datetime.timedelta(hours=2),
    exit_code=3,
    archive="/mnt/märz",
    model="/models/chest",
    runs=("20260301T220001-aabbccdd",),
    counts={"found": None, "scored": 9, "failed": 1, "failed_by_code": {"truncated": 1}},
    images_per_second=12.5,
    table_version=4,
    who={"user": "night", "host": "pacs-1"},
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder that holds a table, as far as a night looks."""
    (tmp_path / "results" / "predictions").mkdir(parents=True)
    return tmp_path / "results"


def test_a_night_comes_back_as_it_was_and_is_read_by_its_group_only(results: Path) -> None:
    written = write_night(str(results), NIGHT)
    assert written is not None
    assert newest_nights(str(results), 5) == [NIGHT]
    assert stat.S_IMODE(Path(written).stat().st_mode) == 0o640
    assert json.loads(Path(written).read_text())["seconds"] == 7200


@given(
    st.builds(
        replace,
        st.just(NIGHT),
        exit_code=st.sampled_from([0, 1, 2, 3, 4, 5, 75, 130, 143]),
        error=st.none() | st.fixed_dictionaries({"code": st.text(), "message": st.text(), "cure": st.text()}),
        archive=st.text(),
        table_version=st.none() | st.integers(0, 2**40),
        drift=st.none() | st.dictionaries(st.text(), st.integers() | st.none()),
    )
)
def test_any_night_survives_its_file(night: NightRecord) -> None:
    assert NightRecord.from_json(json.dumps(night.as_json()).encode(), "night") == night


def test_only_the_newest_are_read(results: Path) -> None:
    for hours in (5, 30, 1, 12):
        write_night(str(results), replace(NIGHT, ended_at=BEGAN + datetime.timedelta(hours=hours)))
    unreadable = results / "nights" / "20200101T000000-00000000.json"
    unreadable.write_text('{"format": 99}')
    assert [night.seconds / 3600 for night in newest_nights(str(results), 3)] == [30, 12, 5]
    with pytest.raises(UsageError, match="format 99"):
        newest_nights(str(results), 5)


def test_nights_of_one_second_keep_their_order(results: Path) -> None:
    ends = [BEGAN + datetime.timedelta(microseconds=part) for part in (7, 80, 900_000, 65_536, 999_999, 4_096, 0)]
    for end in ends:
        write_night(str(results), replace(NIGHT, ended_at=end))
    assert [night.ended_at for night in newest_nights(str(results), 9)] == sorted(ends, reverse=True)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 1}', b'{"format": null}', b"\xff"])
def test_a_damaged_night_is_left_out(results: Path, content: bytes) -> None:
    write_night(str(results), NIGHT)
    (results / "nights" / "20290101T000000-00000000.json").write_bytes(content)
    (results / "nights" / ".20290101T000000-00000000.json-1.tmp").write_bytes(b"half")
    assert newest_nights(str(results), 2) == [NIGHT]


def test_a_mistyped_place_does_not_become_a_folder(tmp_path: Path) -> None:
    assert write_night(str(tmp_path / "resluts"), NIGHT) is None
    assert list(tmp_path.iterdir()) == []
    assert newest_nights(str(tmp_path / "resluts"), 3) == []


def test_a_place_that_may_not_be_written_is_told(results: Path) -> None:
    (results / "nights").write_text("a file is in the way")
    with pytest.raises(UsageError):
        write_night(str(results), NIGHT)


def _without(night: NightRecord, name: str) -> Any:
    return {key: value for key, value in night.as_json().items() if key != name}


@pytest.mark.parametrize("name", ["exit_code", "ended_at", "counts", "who"])
def test_a_night_that_lacks_a_part_is_damaged(name: str) -> None:
    with pytest.raises(ValueError, match="no night"):
        NightRecord.from_json(json.dumps(_without(NIGHT, name)).encode(), "night")
