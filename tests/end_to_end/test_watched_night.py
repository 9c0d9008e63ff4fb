"""Nights as a monitoring system sees them: each end of `score` in its night, its metrics, its log and `runs check`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.cli import main
from pipelines.predictions.nights import NightRecord, newest_nights
from pipelines.storage.leases import Lease


class Watched:
    """A results folder and what watches it."""

    def __init__(self, home: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.archive, self.results, self.file = home / "anna", home / "results", home / "nightread.prom"
        self.models, self._capsys = models, capsys

    def command(self, model: str, *more: object) -> list[str]:
        """One night."""
        words = ["score", self.archive, "--model", self.models / model, "--results", self.results]
        return [*map(str, [*words, "--metrics-file", self.file, "--log-format", "json", "--json", *more])]

    def check(self) -> tuple[int, str]:
        """What the plugin says."""
        code = main(["runs", "check", str(self.results)])
        return code, self._capsys.readouterr().out

    def night(self) -> NightRecord:
        """The night that ended last."""
        return newest_nights(str(self.results), 1)[0]

    def metric(self, name: str) -> float | None:
        """A figure of the metrics file."""
        families = text_string_to_metric_families(self.file.read_text())
        found = [sample.value for family in families for sample in family.samples if sample.name == f"nightread_{name}"]
        return found[0] if found else None


def events(text: str) -> list[dict[str, Any]]:
    """Every line of standard error: JSON, and at level info without a place or a name of an image."""
    found = [json.loads(line) for line in text.splitlines()]
    for event in found:
        said = json.dumps(event)
        assert event["level"] != "info" or not any(text in said for text in ("anna", ".jpg", 'results"', "/")), said
    return found


def test_each_end_is_seen(
    tmp_path: Path,
    tiny_models: Path,
    nightread: Callable,
    draw: Callable,
    environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = Watched(tmp_path, tiny_models, capsys)
    draw(place.archive, 5)
    (place.archive / "broken.jpg").write_bytes(b"no picture")

    # An image in six fails, which is more than one in a hundred: exit code 3, all of it committed.
    done = nightread(*place.command("cells"))
    assert done.code == 3, done.err
    told = events(done.err)
    assert [event["event"] for event in (told[0], told[-1])] == ["started", "ended"]
    assert {event["run_id"] for event in told if event.get("phase") == "scoring"} == {done.answer["run_id"]}
    (answer,) = [event for event in told if event["event"] == "answer"]
    assert (answer["scored"], answer["failed"], answer["run_id"]) == (5, 1, done.answer["run_id"])
    night = place.night()
    assert (night.exit_code, night.runs, night.counts["scored"]) == (3, (done.answer["run_id"],), 5)
    assert (place.metric("last_exit_code"), place.metric("last_failed_images")) == (3, 1)
    code, said = place.check()
    assert code == 1 and "1 images failed" in said and "failed=1;" in said

    # Nothing is new: no run, no Ray, and all the same a night.
    done = nightread(*place.command("cells"))
    assert (done.code, done.answer["run_id"]) == (0, None)
    night, well = place.night(), place.metric("last_success_timestamp_seconds")
    assert (night.exit_code, night.runs, night.counts["unchanged"]) == (0, (), 6)
    assert well == pytest.approx(night.ended_at.timestamp())
    assert place.check()[0] == 0

    with Lease.acquire(str(place.results)):
        done = nightread(*place.command("cells"))
        assert done.code == 75
        (error,) = [event for event in events(done.err) if event["level"] == "error"]
        assert error["code"] == "try_later" and error["cure"]
        assert place.night().exit_code == 75 and place.night().error is not None
        assert place.metric("last_success_timestamp_seconds") == well
        assert place.check()[0] == 1

        # One that queues and is stopped by its timer.
        command = [sys.executable, "-m", "jobs", *place.command("cells", "--wait", "1h")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        while json.loads(process.stderr.readline()).get("phase") != "waiting":
            pass
        process.send_signal(signal.SIGTERM)
        ended = process.communicate(timeout=60)[1]
        assert process.returncode == 143 and events(ended)[-1]["exit_code"] == 143
    assert place.night().exit_code == 143
    assert place.metric("last_exit_code") == 143

    done = nightread(*place.command("cells@v9"))
    assert done.code == 4
    assert (place.night().exit_code, place.metric("last_exit_code")) == (4, 4)
    assert place.metric("last_success_timestamp_seconds") == well
    assert place.metric("last_scored_images") is None
    code, said = place.check()
    assert code == 2 and "exit code 4" in said
    assert len(newest_nights(str(place.results), 99)) == 5
