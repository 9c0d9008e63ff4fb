"""What the endpoint keeps of what it answers: figures for Prometheus, and the audit log."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stand_in_service import MODEL, STATE, StandIn
from visits import problem, visit, visited

from pipelines.errors import UsageError
from pipelines.serving import audit_log
from pipelines.serving.app import make_app
from pipelines.serving.audit_log import AuditLog
from pipelines.serving.problems import Refused
from pipelines.serving.settings import ServeSettings

TOKEN = "a-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def figures_of(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name and by the values of their labels, read by Prometheus' own parser."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_prometheus_reads_the_figures() -> None:
    async def act(client: httpx.AsyncClient) -> Any:
        for body in (b"image", b"image", b"truncated", b"defect", b"queue_full"):
            await client.post("/predict", content=body)
        await client.post("/predict/batch", files=[("f", ("a", b"x")), ("f", ("b", b"timed_out"))])
        await client.get("/secret-name.jpg")
        return await client.get("/metrics")

    service = StandIn(known=replace(STATE, promotion_failed="It failed its self-test."))
    answer = visit(act, service)
    figures = figures_of(answer.text)
    assert "secret" not in answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    name = "nightread_serve_"
    assert figures[f"{name}requests_total"] == {
        ("/predict", "200"): 2,
        ("/predict", "422"): 1,
        ("/predict", "429"): 1,
        ("/predict", "500"): 1,
        ("/predict/batch", "200"): 1,
        ("other", "404"): 1,
    }
    assert figures[f"{name}images_total"] == {
        ("answered",): 3,
        ("truncated",): 1,
        ("internal",): 1,
        ("queue_full",): 1,
        ("timed_out",): 1,
    }
    assert figures[f"{name}decisions_total"] == {("negative",): 3}
    assert figures[f"{name}request_seconds_count"][("/predict",)] == 5
    counts = [value for (route, _), value in figures[f"{name}request_seconds_bucket"].items() if route == "/predict"]
    assert counts == sorted(counts) and counts[-1] == 5 and len(counts) == 14
    assert figures[f"{name}model_info"] == {
        (MODEL.name, "v3", MODEL.model_id, MODEL.preprocessing_id, "float32"): 1,
    }
    for gauge, value in [("ready", 1), ("queued_images", 3), ("queue_limit", 64), ("workers", 2), ("workers_alive", 2)]:
        assert figures[f"{name}{gauge}"][()] == value
    assert figures[f"{name}worker_restarts_total"][()] == figures[f"{name}promotion_failed"][()] == 1
    assert figures[f"{name}model_loaded_timestamp_seconds"][()] == 1772323200
    assert figures[f"{name}memory_bytes"][("http",)] > 10_000_000


def test_a_replicas_series_are_its_own() -> None:
    """Who asks a cluster for figures meets another replica each time: each must count in series of its own."""

    def told(replica: str) -> str:
        app = make_app(StandIn(), ServeSettings(), replica=replica)

        async def act(client: httpx.AsyncClient) -> str:
            await client.post("/predict", content=b"image")
            return (await client.get("/metrics")).text

        return str(visited(app, act))

    samples = [
        {(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples}
        for families in map(text_string_to_metric_families, map(told, ("one", "two")))
    ]
    assert len(samples[0]) == len(samples[1]) > 30 and not samples[0] & samples[1]
    assert all(("replica", "one") in sample for sample in samples[0])


@pytest.mark.parametrize(
    ("given", "kept"),
    [("0b9c2b5e-6d3f-4a51-9b6e-0d3f4a519b6e", True), ("a b", False), ('"\\', False), ("x" * 65, False), (None, False)],
)
def test_an_id_that_rays_proxy_gave_is_the_only_one(given: str | None, kept: bool, tmp_path: Path) -> None:
    """The proxy puts it onto the answer itself; one that has no place in a log is not taken."""
    path, headers = tmp_path / "audit.jsonl", {} if given is None else {"x-request-id": given}

    async def act(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/predict", content=body, headers=headers) for body in (b"image", b"truncated")]

    answers = visited(make_app(StandIn(), ServeSettings(audit_log=path), replica="one"), act)
    for answer, entry in zip(answers, entries_of(path), strict=True):
        own = answer.headers.get("x-request-id")
        assert entry["request_id"] == answer.json()["request_id"] == (given if kept else own)
        assert (own is None) is kept and own != given
    alone = visit(act, audit_log=path)
    assert given not in [answer.headers["x-request-id"] for answer in alone]


def entries_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_image_that_was_looked_at_is_in_the_audit_log(tmp_path: Path) -> None:
    async def act(client: httpx.AsyncClient) -> list[str]:
        answers = [await client.post("/predict", content=b"image", headers=BEARER)]
        answers.append(await client.post("/predict", content=b"truncated secret", headers=BEARER))
        await client.post("/predict", content=b"queue_full", headers=BEARER)
        await client.post("/predict", headers=BEARER)
        await client.post("/predict", content=b"image")
        files = [("f", ("secret.jpg", image)) for image in (b"one", b"", b"two")]
        answers.append(await client.post("/predict/batch", files=files, headers=BEARER))
        return [answer.headers["x-request-id"] for answer in answers]

    path = tmp_path / "audit.jsonl"
    single, failed, batch = visit(act, audit_log=path, token=TOKEN)
    entries = entries_of(path)
    assert [entry["request_id"] for entry in entries] == [single, failed, f"{batch}-0", f"{batch}-2"]
    assert entries[0] | {"time": ""} == {
        "time": "",
        "request_id": single,
        "caller": "192.0.2.7",
        "token": hashlib.sha256(TOKEN.encode()).hexdigest()[:8],
        "content_sha256": hashlib.sha256(b"image").hexdigest(),
        "model_id": MODEL.model_id,
        "decision": "negative",
        "status": "answered",
    }
    assert entries[1]["status"] == "truncated" and entries[1]["decision"] is None
    assert entries[1]["content_sha256"] == hashlib.sha256(b"truncated secret").hexdigest()
    assert path.stat().st_mode & 0o777 == 0o640
    assert "secret" not in path.read_text() and TOKEN not in path.read_text()


def test_no_answer_leaves_unrecorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "folder" / "audit.jsonl"
    path.parent.mkdir()

    async def act(client: httpx.AsyncClient) -> None:
        assert (await client.post("/predict", content=b"one")).status_code == 200
        path.rename(tmp_path / "rotated")
        assert (await client.post("/predict", content=b"two")).status_code == 200
        path.unlink()
        path.mkdir()
        for target in ("/predict", "/predict/batch"):
            answer = await client.post(target, files={"f": ("a", b"three")})
            problem(answer, "audit_failed")
            assert answer.headers["retry-after"] == "60"
        problem(await client.get("/readyz"), "audit_failed")
        path.rmdir()
        assert (await client.post("/predict", content=b"four")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200

    visit(act, audit_log=path)
    assert [entry["content_sha256"] for entry in entries_of(tmp_path / "rotated")] == [
        hashlib.sha256(b"one").hexdigest()
    ]
    assert [entry["content_sha256"] for entry in entries_of(path)] == [hashlib.sha256(b"four").hexdigest()]
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == [
        "The audit log cannot be written (Is a directory): nothing is answered until it can.",
        "The audit log is written again.",
    ]


def test_a_server_taken_out_for_its_audit_log_lets_callers_try_again_a_minute_later(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    path.unlink()
    path.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        now = [100.0]
        patch.setattr(audit_log.time, "monotonic", lambda: now[0])
        with pytest.raises(Refused):
            log.append([])
        assert log.is_failing
        now[0] += audit_log.AGAIN_SECONDS
        assert not log.is_failing
    log.close()


def test_an_audit_log_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        make_app(StandIn(), ServeSettings(audit_log=tmp_path / "missing" / "audit.jsonl"))
