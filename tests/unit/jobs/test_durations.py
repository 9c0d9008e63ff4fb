"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.options import parse_duration
from pipelines.errors import UsageError


@given(days=st.integers(0, 9), hours=st.integers(0, 99), minutes=st.integers(0, 999), seconds=st.integers(0, 9999))
def test_each_unit_counts(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}d{hours}h{minutes}m{seconds}s"
    assert parse_duration("--wait", text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("7h", 25200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("2H", 7200)]
)
def test_what_the_documents_show(text: str, seconds: float) -> None:
    assert parse_duration("--wait", text) == seconds


@pytest.mark.parametrize(
    "text", ["", "7", "h", "7 h 5", "-7h", "1.5h", "30m1h", "7h7h", "99999999999999999999d", "9999d", "٣h"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--wait") as caught:
        parse_duration("--wait", text)
    assert "1h30m" in caught.value.cure
