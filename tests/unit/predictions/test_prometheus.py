"""The metrics file, read back by Prometheus' own parser."""

from __future__ import annotations

import datetime
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pipelines.errors import IMAGE_ERRORS, UsageError
from pipelines.predictions.nights import NightRecord, write_night
from pipelines.predictions.prometheus import HELP, SUCCESS, check_metrics_file, render, write_metrics

ENDED = datetime.datetime(2026, 3, 2, 0, 5, 0, 250_000, tzinfo=datetime.UTC)
NIGHT = NightRecord(
    started_at=ENDED - datetime.timedelta(seconds=300.5),
    ended_at=ENDED,
    exit_code=3,
    archive="/mnt/pacs",
    model="/models/chest",
    counts={
        "found": 5000, "new": 90, "changed": 10, "scored": 95, "failed": 5, "failed_by_code": {"truncated": 5},
        "remaining": 0,
    },
    images_per_second=12.5,
    table_version=41,
    drift={
        "verdict": "watch",
        "sentence": "Darker.",
        "figures": [
            {"figure": "intensity", "value": 0.41, "expected": 0.52, "effect": -0.5, "psi": 0.2, "p": 1e-9},
            {"figure": "size", "value": 1.0, "expected": None, "effect": None, "psi": None, "p": None},
        ],
    },
    who={"versions": {"nightread": "0.1.0"}},
)  # fmt: skip
FAILED = replace(NIGHT, exit_code=2, counts={}, images_per_second=None, table_version=None, drift=None, who={})

Samples = dict[tuple[str, ...], float]


def samples(text: str, results: str) -> Samples:
    """Every sample by its name and its labels other than `results`, as Prometheus' parser reads them."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge" and family.documentation == HELP[family.name]
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("results") == results
            key = (sample.name, *labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def test_every_figure_of_a_night() -> None:
    found = samples(render(NIGHT, "/r", 1.5), "/r")
    expected = {
        (SUCCESS,): 1.5,
        ("nightread_last_end_timestamp_seconds",): ENDED.timestamp(),
        ("nightread_last_exit_code",): 3,
        ("nightread_last_duration_seconds",): 300.5,
        ("nightread_last_found_images",): 5000,
        ("nightread_last_new_images",): 90,
        ("nightread_last_changed_images",): 10,
        ("nightread_last_scored_images",): 95,
        ("nightread_last_failed_images",): 5,
        ("nightread_last_remaining_images",): 0,
        ("nightread_last_failed_ratio",): 0.05,
        ("nightread_last_images_per_second",): 12.5,
        ("nightread_table_version",): 41,
        ("nightread_drift_verdict",): 1,
        ("nightread_drift_psi", "intensity"): 0.2,
        ("nightread_drift_p_value", "intensity"): 1e-9,
        ("nightread_drift_effect", "intensity"): -0.5,
        ("nightread_drift_value", "intensity"): 0.41,
        ("nightread_drift_value", "size"): 1.0,
        ("nightread_drift_expected_value", "intensity"): 0.52,
        ("nightread_build_info", "0.1.0"): 1,
    }
    codes = {("nightread_last_failures", code): 5.0 if code == "truncated" else 0.0 for code in IMAGE_ERRORS}
    assert found == {**expected, **codes}
    assert {name for name, *_ in found} == HELP.keys()


def test_what_a_failing_night_did_not_come_to_is_left_out() -> None:
    assert samples(render(FAILED, "/r", None), "/r") == {
        ("nightread_last_end_timestamp_seconds",): ENDED.timestamp(),
        ("nightread_last_exit_code",): 2,
        ("nightread_last_duration_seconds",): 300.5,
    }
    listed_nothing = replace(NIGHT, counts={**NIGHT.counts, "found": None, "scored": 0, "failed": 0})
    found = samples(render(listed_nothing, "/r", None), "/r")
    assert ("nightread_last_found_images",) not in found and found[("nightread_last_failed_ratio",)] == 0


@given(st.text())
def test_any_place_is_a_label(place: str) -> None:
    assert samples(render(NIGHT, place, 7), place)[(SUCCESS,)] == 7


@pytest.mark.parametrize("verdict", ["none", "watch", "drift", "unknown", "something newer"])
def test_drift_is_a_number(verdict: str) -> None:
    found = samples(render(replace(NIGHT, drift={"verdict": verdict}), "/r", None), "/r")
    numbers = {"none": 0, "watch": 1, "drift": 2}
    assert found[("nightread_drift_verdict",)] == numbers.get(verdict, -1)


def test_the_last_success_outlives_nights_that_fail(tmp_path: Path) -> None:
    file, results = tmp_path / "collector" / "nightread.prom", tmp_path / "results"
    (results / "predictions").mkdir(parents=True)
    file.parent.mkdir()
    place = str(results)

    def told(night: NightRecord, ask: bool = True) -> float | None:
        write_metrics(str(file), place, night, ask_results=ask)
        return samples(file.read_text(), place).get((SUCCESS,))

    assert told(FAILED) is None
    earlier = ENDED - datetime.timedelta(days=2)
    write_night(place, replace(NIGHT, ended_at=earlier, started_at=earlier))
    assert told(FAILED) == earlier.timestamp()  # by the results: the file did not know
    assert told(replace(NIGHT, exit_code=0)) == ENDED.timestamp()
    assert told(FAILED) == ENDED.timestamp()  # by the file: the results know only of the earlier one
    assert told(replace(FAILED, exit_code=75), ask=False) == ENDED.timestamp()
    (results / "nights" / "29990101T000000-00000000.json").write_text('{"format": 99}')
    assert told(FAILED) == ENDED.timestamp()
    file.write_text("something else\n")
    assert told(FAILED, ask=False) is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["nightread.prom"]


def test_a_place_that_cannot_hold_it_is_refused_before_the_night(tmp_path: Path) -> None:
    check_metrics_file(str(tmp_path / "nightread.prom"))
    for place in (str(tmp_path / "nothing" / "nightread.prom"), str(tmp_path), "s3://bucket/nightread.prom"):
        with pytest.raises(UsageError, match="--metrics-file"):
            check_metrics_file(place)
    assert list(tmp_path.iterdir()) == []


def test_names_keep_the_rules_of_prometheus() -> None:
    for name, text in HELP.items():
        assert name.startswith("nightread_") and name.islower() and text.endswith(".") and "\n" not in text
        assert not name.endswith(("_total", "_count", "_sum", "_bucket")), "gauges"


def test_the_alert_rules_and_the_documents_name_the_metrics(checkout: Path) -> None:
    rules = (checkout / "cluster" / "deploy" / "prometheus" / "nightread.rules.yml").read_text()
    expressions = re.findall(r"^\s*expr: (.+)$", rules, re.M)
    named = set(re.findall(r"nightread_(?!serve_)\w+", " ".join(expressions)))
    assert named and named <= HELP.keys()
    documented = (checkout / "docs" / "operations.md").read_text()
    endings = tuple(re.findall(r"`…(_\w+)`", documented))
    missing = [name for name in HELP if f"`{name}`" not in documented and not name.endswith(endings)]
    assert not missing
