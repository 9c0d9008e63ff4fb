"""What a scoring command is told is refused before anything starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.scoring.config import Allowance, PoolSize, ScoreConfig
from pipelines.scoring.hours import Hours

CONFIG = ScoreConfig("/archive", "/models/cells", "/results")


@pytest.mark.parametrize(
    ("text", "failed", "total", "exceeded"),
    [
        ("1%", 1, 100, False),
        ("1%", 2, 100, True),
        ("1%", 1, 12, True),
        ("0%", 0, 5, False),
        ("0%", 1, 1_000_000, True),
        ("0.5 %", 5, 1000, False),
        ("29%", 29, 100, False),
        ("29%", 30, 100, True),
        ("3", 3, 4, False),
        ("3", 4, 1_000_000, True),
        ("0", 0, 0, False),
        ("1%", 0, 0, False),
    ],
)
def test_threshold(text: str, failed: int, total: int, exceeded: bool) -> None:
    assert Allowance.parse("--fail-threshold", text).exceeded(failed, total) is exceeded


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "one", "%", "1%%", "1e3"])
def test_threshold_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Allowance.parse("--fail-threshold", text)
    assert repr(text) in refused.value.message and refused.value.cure


@pytest.mark.parametrize(("text", "pool"), [(None, (6, 6)), ("2", (2, 2)), ("1:4", (1, 4)), ("3:3", (3, 3))])
def test_pool(text: str | None, pool: tuple[int, int]) -> None:
    assert PoolSize.parse(text).within(6) == pool


@pytest.mark.parametrize("text", ["0", "4:2", "0:3", "a", "1:", ":2", "1:2:3", "-1"])
def test_pool_refused(text: str) -> None:
    with pytest.raises(UsageError):
        PoolSize.parse(text)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bfloat16"},
        {"shard_size": 0},
        {"shard_size": 5000},
        {"limit": 0},
        {"columns": {"uri": "path"}},
        {"root": "/elsewhere"},
        {"commit_every": 0},
        {"backfill": -1},
        {"requests_per_second": 0.0},
        {"requests_per_second": float("inf")},
        {"accept_changes": True, "same_bytes": True},
        {"map_prefix": (r"Z:\x=/mnt",)},
        {"path_columns": "no group"},
        {"archive": "/list.csv", "min_age_seconds": 60.0},
        {"archive": "/list.csv", "map_prefix": ("no equals sign",)},
    ],
)
def test_config_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(CONFIG, **change)


def test_fingerprint_is_of_what_decides_rows() -> None:
    print_of = CONFIG.fingerprint("model", "preprocessing")
    same = [
        {"shard_size": 7},
        {"fail_threshold": Allowance.parse("--fail-threshold", "9%")},
        {"archive": "/other/../archive"},
        {"hours": Hours(max_seconds=60)},
        {"commit_every": 5},
        {"wait_seconds": 60.0},
        {"min_age_seconds": 60.0},
        {"accept_changes": True},
        {"publish": "/published"},
        {"requests_per_second": 5.0},
        {"backfill": None},
        {"same_bytes": False},
    ]
    other = [
        {"archive": "/archive2"},
        {"limit": 3},
        {"rescore": True},
        {"retry_failed": True},
        {"include": ("a*",)},
        {"exclude": ("a*",)},
        {"precision": "int8"},
        {"backfill": 0},
        {"backfill": 1},
        {"same_bytes": True},
        {"path_columns": "(?P<site>x)"},
    ]
    assert {dataclasses.replace(CONFIG, **change).fingerprint("model", "preprocessing") for change in same} == {
        print_of
    }
    different = [dataclasses.replace(CONFIG, **change).fingerprint("model", "preprocessing") for change in other]
    different += [CONFIG.fingerprint("model2", "preprocessing"), CONFIG.fingerprint("model", "preprocessing2")]
    assert len({print_of, *different}) == len(different) + 1


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ("models/chest", "/models/chest"),
        ("./models/../models/chest@v2", "/models/chest@v2"),
        ("s3://data/models/chest@v2", "s3://data/models/chest@v2"),
    ],
)
def test_a_record_names_the_model_so_that_it_is_found_from_everywhere(
    named: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = kept if kept.startswith("s3:") else f"{tmp_path}{kept}"
    assert dataclasses.replace(CONFIG, model=named).as_record()["model"] == kept


def test_the_runs_of_an_earlier_release_are_still_continued() -> None:
    # As a release that kept the model as it was typed has it for these options.
    assert dataclasses.replace(CONFIG, model="models/cells").fingerprint("m", "p") == "1e1cbb2a809add26"


def test_only_a_plain_command_goes_on_planning() -> None:
    assert CONFIG.continues_planning
    for change in ({"limit": 1}, {"rescore": True}, {"retry_failed": True}):
        assert not dataclasses.replace(CONFIG, **change).continues_planning
