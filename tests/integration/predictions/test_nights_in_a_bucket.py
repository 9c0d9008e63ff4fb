"""Nights in a bucket: few requests however many there are, and a store that is away is UNKNOWN in time."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest

from jobs.cli import main
from pipelines.predictions.nights import NightRecord, newest_nights, write_night
from pipelines.storage import faults


def test_only_the_newest_are_asked_for(
    s3: Any, fault_proxy: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.datetime.now(datetime.UTC)  # not the module's: a suite collects long before it runs this
    proxy, place = fault_proxy(s3.endpoint), f"{s3.uri}/results"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    night = NightRecord(now, now, 0, "s3://archive", "/m", counts={"scored": 7})
    assert write_night(place, night) is None  # no table yet
    s3.filesystem.pipe_file(f"{s3.bucket}/results/predictions/_delta_log/00000000000000000000.json", b"{}")
    for hours in range(1, 9):
        ended = now - datetime.timedelta(hours=hours)
        write_night(place, NightRecord(ended, ended, 75 if hours == 1 else 0, "s3://archive", "/m"))
    before = proxy.requests
    assert [round((now - night.ended_at).total_seconds() / 3600) for night in newest_nights(place, 3)] == [1, 2, 3]
    assert proxy.requests - before == 4, "one listing and three nights"

    assert main(["runs", "check", place, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert 7100 < answer["perfdata"]["age"] < 7400 and "exit code 75" in answer["reasons"][0]
    proxy.rule = lambda _method, _path: 503
    monkeypatch.setattr(faults, "TRIES", 2)
    assert main(["runs", "check", f"{s3.uri}/nothing", "--timeout", "60s"]) == 3
    assert capsys.readouterr().out.startswith("NIGHTREAD UNKNOWN - Storage does not answer")
