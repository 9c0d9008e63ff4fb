"""Damaged, swollen and disguised images at the real command; `bench_hostile.py` sends ten thousand of them."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from bench_hostile import attack, figures
from hostile_bodies import bombs, disguises, honest_images, hostile_requests
from served_pages import serving


def test_no_body_breaks_the_endpoint_or_gets_another_answer_than_the_night_s(
    tmp_path: Path, tiny_models: Path, environment: dict[str, str]
) -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    known = len(bombs()) + len(disguises(honest_images()))
    audit = tmp_path / "audit.jsonl"
    with (
        serving(tmp_path / "served", tiny_models / "cells", environment, "--audit-log", str(audit)) as served,
        httpx.Client(base_url=served.url, timeout=60) as client,
    ):
        outcomes = attack(client, hostile_requests(1, known + 150), 96)
        assert figures(client, "worker_restarts_total") == 0
        assert figures(client, "held_bytes") == 0
    assert {"answered", "not_an_image", "truncated", "too_large", "bad_request"} <= set(outcomes)
    entries = [json.loads(line) for line in audit.read_text().splitlines()]
    assert all(len(entry["content_sha256"]) == 64 for entry in entries)
    assert "Traceback" not in served.log.read_text() and "defect" not in served.log.read_text()
