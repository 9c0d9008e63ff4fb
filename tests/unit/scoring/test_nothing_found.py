"""What an archive without one image may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.archive.found import Listing
from pipelines.errors import NightreadError
from pipelines.scoring.config import ScoreConfig
from pipelines.scoring.night import refuse_nothing


@pytest.mark.parametrize(
    ("left_out", "suffixes", "code", "said"),
    [
        ({}, {}, 75, "mounted"),
        ({"hidden": 3}, {}, 2, "left out"),
        ({"suffix": 2}, {"dcm": 2}, 2, "dcm"),
        ({"not_included": 4}, {}, 2, "--include"),
        ({"too_young": 4}, {}, None, ""),
        ({"too_young": 4, "suffix": 1}, {"txt": 1}, None, ""),
    ],
)
def test_nothing_found(left_out: dict[str, int], suffixes: dict[str, int], code: int | None, said: str) -> None:
    listing = Listing(Path("listing.parquet"), 0, left_out, suffixes)
    config = ScoreConfig("/archive", "/models/m", "/results")
    if code is None:
        refuse_nothing(listing, config)
        return
    with pytest.raises(NightreadError) as caught:
        refuse_nothing(listing, config)
    assert caught.value.exit_code == code and said in str(caught.value)
