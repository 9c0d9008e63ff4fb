"""`nightread runs show` and the line of nights above `runs list`, as a person and as a program meet them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.drawing import bar, sparkline
from jobs.runs_nights import night_lines, nights_of
from jobs.runs_page import page_lines
from jobs.runs_show import WATCH_SECONDS, as_json, look
from pipelines.errors import UsageError
from pipelines.evaluation.night_facts import NightView
from pipelines.predictions import commit
from pipelines.predictions.nights import NightRecord, write_night
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.storage.leases import Lease
from pipelines.storage.processes import Identity

SCHEMA = prediction_schema(["benign", "malignant"], None)
WHEN = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
EVIL = "/pacs/\x1b[31mred\n<script>.jpg"
ELSEWHERE = Identity("pacs-2", "another boot", "another namespace", 4711, 5)
TIMINGS = {
    "listing_seconds": 4.0,
    "planning_seconds": 1.0,
    "starting_seconds": 5.0,
    "scoring_seconds": 100.0,
    "committing_seconds": 2.0,
    "seconds": 110.0,
    "images_before": 0,
    "stages": {"read": 20.0, "decode": 60.0, "score": 80.0, "write": 5.0, "wait": 0.0},
    "rate_over_time": [[10.0 * step, float(step)] for step in range(1, 11)],
    "slowest": [{"shard": 1, "row": 1, "seconds": 7.5}, {"shard": 9, "row": 0, "seconds": 1.0}],
    "nodes": 1,
    "cores": 2,
    "node_hours": 0.03,
    "core_hours": 0.05,
    "images_per_second": 5.5,
}


def record_of(run_id: str, status: str = "committed", **changed: Any) -> RunRecord:
    counts: dict[str, Any] = {"found": 6, "planned": 6, "shards": 2, "scored": 2, "failed": 4}
    counts |= {"failed_by_code": {"truncated": 3, "not_found": 1}}
    configuration = {"archive": "/pacs", "model_name": "cells", "fail_threshold": "1%"}
    who = {"user": "it", "host": "pacs", "command_line": ["nightread", "score"], "versions": {"ray": "2"}}
    record = RunRecord(run_id, "f", configuration, counts, TIMINGS, who, 1, status, WHEN)
    return replace(record, **changed)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs of one day in one table; names of images of the second try to be more than names."""
    place = str(tmp_path_factory.mktemp("results"))
    commit.ensure_table(place)
    for run_id, prefix in (("r1", "/other"), ("r2", "/pacs")):
        codes = [None, None, "truncated", "truncated", "truncated", "not_found"]
        names = [f"{prefix}/{number}.jpg" for number in range(6)]
        names[2] = EVIL if prefix == "/pacs" else names[2]
        rows = [
            {
                **dict.fromkeys(SCHEMA.names), "run_id": run_id, "image_uri": name, "scored_date": WHEN.date(),
                "status": "failed" if code else "scored", "error_code": code,
                "error_message": code and f"It is {code}.",
            }
            for name, code in zip(names, codes, strict=True)
        ]  # fmt: skip
        commit.commit_run(place, run_id, SCHEMA, pa.Table.from_pylist(rows, SCHEMA).to_batches(), lambda: None)
        folder = RunFolder(place, run_id)
        folder.write_record(record_of(run_id))
        shards = pa.array([0, 0, 0, 1, 1, 1], pa.int32())
        plan = pa.table({"shard": shards, "image_uri": names, "image_version": ["1-1"] * 6})
        pq.write_table(plan, folder.plan, row_group_size=3)
    return place


def text_of(view: NightView, blocks: bool = True) -> str:
    return "\n".join("".join(text for text, _ in line) for line in page_lines(view, blocks))


def test_failures_have_examples_of_their_own_run_and_slow_images_their_names(results: str) -> None:
    answer = as_json(look(results, None))
    assert answer["run_id"] == "r2" and answer["state"] == "committed"
    examples = answer["failure_examples"]
    assert list(examples) == ["truncated", "not_found"]
    assert [one["image_uri"] for one in examples["truncated"]] == [EVIL, "/pacs/3.jpg", "/pacs/4.jpg"]
    assert examples["not_found"] == [{"image_uri": "/pacs/5.jpg", "message": "It is not_found."}]
    # The second slowest is in a shard that the plan does not have.
    assert answer["slowest_images"] == [
        {"image_uri": "/pacs/4.jpg", "seconds": 7.5},
        {"image_uri": None, "seconds": 1.0},
    ]
    assert answer.items() >= record_of("r2").as_json().items()
    first = as_json(look(results, "r1"))["failure_examples"]["truncated"]
    assert [one["image_uri"] for one in first] == [f"/other/{number}.jpg" for number in (2, 3, 4)]


def test_the_page_says_where_the_time_went_and_what_it_cost(results: str) -> None:
    page = text_of(look(results, None))
    # Two cores for 100 seconds; the command took 4 + 1 before the run's own 110 seconds, of which 107 are named.
    cores = {"read": 20 / 200, "decode": 60 / 200, "score": 80 / 200, "write": 5 / 200, "wait": 0, "idle": 35 / 200}
    command = {
        "list": 4 / 115,
        "plan": 1 / 115,
        "start": 5 / 115,
        "score": 100 / 115,
        "commit": 2 / 115,
        "other": 3 / 115,
    }
    for name, share in (*cores.items(), *command.items()):
        assert f"\n{name:8}{share:6.1%} " in page
    assert "0.030 node-hours on 1 node, 0.050 core-hours of work on 2 cores" in page
    assert "more than 1%" in page and "steady rate     5.5 images/s" in page


def test_names_steer_neither_a_terminal_nor_a_page(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "show", results]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "/pacs/\\x1b[31mred\\n<script>.jpg" in out
    page = tmp_path / "night.html"
    assert main(["runs", "show", results, "--html", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["html"] == str(page)
    html = page.read_text()
    assert "<script>" not in html and "/pacs/\\x1b[31mred\\n&lt;script&gt;.jpg" in html
    before = page.read_bytes()
    assert main(["runs", "show", results, "--html", str(page)]) == 0 and page.read_bytes() == before


def test_a_page_replaces_nothing_but_a_page(results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "thesis.html"
    other.write_text("mine")
    assert main(["runs", "show", results, "--html", str(other)]) == 2 and other.read_text() == "mine"
    assert main(["runs", "show", results, "--html", f"{results}/runs/night.html"]) == 2
    assert not Path(results, "runs", "night.html").exists()
    assert "--html" in capsys.readouterr().err


def running(place: Path, run_id: str = "r", **changed: Any) -> str:
    """Results with a run that is not at its end."""
    commit.ensure_table(str(place))
    planned = {"found": 100, "planned": 100, "shards": 10}
    record = record_of(run_id, "running", counts=planned, timings={}, table_version=None)
    RunFolder(str(place), run_id).write_record(replace(record, **changed))
    return str(place)


def tell_progress(place: str, age: float = 0.0) -> None:
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    told: dict[str, Any] = {
        "format": 1,
        "phase": "scoring",
        "done": 40,
        "total": 100,
        "failed": 2,
        "rate": 8.0,
        "seconds_left": 7.5,
    }
    told["note"] = "nothing finished for 31 s"
    Path(RunFolder(place, "r").progress).write_text(json.dumps({**told, "at": at.isoformat()}))


class Passing:
    """Time that passes only by sleeping; something may happen then."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self._then = then

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._then()


def test_a_run_that_nobody_works_on_is_interrupted(tmp_path: Path) -> None:
    place = running(tmp_path)
    tell_progress(place, age=500)
    view = look(place, None)
    assert view.state == "interrupted" and "same `score` command goes on" in view.sentence
    page = text_of(view)
    assert "40 of 100 images (40.0%)" in page and "told 8:20 ago" in page and "time left" not in page
    assert page.count("nobody is working on it") == 1


def test_the_list_knows_as_well_as_the_page_whether_anybody_works_on_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = running(tmp_path, "r")
    RunFolder(place, "r0").write_record(record_of("r0"))

    def listed() -> list[tuple[str, str]]:
        assert main(["runs", "list", place, "--json"]) == 0
        return [(run["status"], run["state"]) for run in json.loads(capsys.readouterr().out)]

    def in_the_table(word: str) -> bool:
        assert main(["runs", "list", place]) == 0
        return f" {word} " in capsys.readouterr().out.replace("│", " ")

    assert listed() == [("running", "interrupted"), ("committed", "committed")] and in_the_table("interrupted")
    with Lease.acquire(place):
        assert listed()[0] == ("running", "scoring") and in_the_table("running")
    dead = replace(Identity.of_this_process(), pid=2**22 + 1)
    lease = Lease.acquire(place, identity=dead)
    assert listed()[0] == ("running", "interrupted")
    lease.release()
    with Lease.acquire(place, identity=ELSEWHERE):
        assert listed()[0] == ("running", "unsure") and in_the_table("unsure")
        tell_progress(place)
        assert listed()[0] == ("running", "scoring")


def test_a_running_night_says_who_works_on_it_and_how_long_it_takes(tmp_path: Path) -> None:
    place = running(tmp_path)
    tell_progress(place)
    with Lease.acquire(place) as lease:
        view = look(place, None, sleep=lambda _seconds: pytest.fail("a process of this machine is seen at once"))
        lease.check()  # looking takes nothing away
    assert view.state == "scoring" and f"process {Identity.of_this_process().pid} on" in view.sentence
    page = text_of(view)
    assert "look here       nothing finished for 31 s" in page
    assert "rate            8.0 images/s" in page and "time left       0:08" in page and "failed          2" in page


@pytest.mark.parametrize("stirs", [True, False])
def test_an_owner_on_another_machine_is_watched_where_its_progress_is_old(tmp_path: Path, stirs: bool) -> None:
    place = running(tmp_path)
    tell_progress(place, age=3600)  # or its clock is an hour off
    lease = Lease.acquire(place, identity=ELSEWHERE)
    time = Passing(lease.renew if stirs else lambda: None)
    view = look(place, None, time, time.sleep)
    assert "process 4711 on pacs-2" in view.sentence
    assert view.state == ("scoring" if stirs else "unsure")
    assert time.now < WATCH_SECONDS if stirs else time.now >= WATCH_SECONDS
    tell_progress(place)
    assert look(place, None, time, lambda _seconds: pytest.fail("its word is fresh")).state == "scoring"


def test_of_the_runs_of_one_command_the_one_at_work_is_shown(tmp_path: Path) -> None:
    configuration = {"runs": ["r1", "r2", "r3"], "model_name": "cells"}
    place = running(tmp_path, "r2", configuration=configuration)
    running(tmp_path, "r3", configuration=configuration)
    RunFolder(place, "r1").write_record(record_of("r1", configuration=configuration))
    view = look(place, None)
    assert view.record.run_id == "r2" and "run 2 of 3" in text_of(view)
    assert look(place, "r3").record.run_id == "r3"


def test_a_run_that_ends_between_two_looks_is_no_interrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = running(tmp_path)
    from pipelines.storage import leases

    looked = leases.owner_of

    def ends_meanwhile(results: str) -> leases.Owner | None:
        owner = looked(results)
        RunFolder(place, "r").write_record(record_of("r"))
        return owner

    monkeypatch.setattr(leases, "owner_of", ends_meanwhile)
    assert look(place, None).state == "committed"


def test_a_later_night_that_failed_before_it_came_to_a_run_is_told(tmp_path: Path) -> None:
    place = running(tmp_path, "r", status="rolled_back")
    ended = WHEN + datetime.timedelta(days=1)
    said = {"code": "try_later", "message": "Not one file was found in the archive.", "cure": "Mount it."}
    write_night(place, NightRecord(ended, ended, 75, "/pacs", "m", error=said))
    assert any("exit code 75: Not one file" in note for note in look(place, None).notes)
    assert not look(place, "r").notes


def test_what_was_compared_after_the_command_stands_with_each_of_its_runs(results: str) -> None:
    drift = {"format": 1, "verdict": "drift", "sentence": "Images have become darker.", "figures": []}
    place = Path(RunFolder(results, "r1").root, "drift.json")
    place.write_text(json.dumps(drift))
    view = look(results, "r1")
    assert view.drift == drift and "drift           Images have become darker." in text_of(view)
    place.write_text("{")
    assert look(results, "r1").drift is None
    place.unlink()


def test_records_of_earlier_releases_are_shown_without_what_they_do_not_hold(tmp_path: Path) -> None:
    commit.ensure_table(str(tmp_path))
    old = record_of("r", counts={"scored": 2, "failed": 0}, timings={"seconds": 3.0, "images_per_second": None})
    RunFolder(str(tmp_path), "r").write_record(old)
    page = text_of(look(str(tmp_path), None), blocks=False)
    assert "took 0:03" in page and "Where the" not in page and page.isascii()


def test_a_table_that_cannot_be_read_does_not_hide_the_record(tmp_path: Path) -> None:
    RunFolder(str(tmp_path), "r").write_record(record_of("r"))
    view = look(str(tmp_path), None)
    assert view.examples == {} and "could not be read" in view.notes[0] and "truncated" in text_of(view)


def test_results_or_runs_that_are_not_there_are_named(results: str, tmp_path: Path) -> None:
    for place, run, said in ((str(tmp_path), None, "no results"), (results, "r9", "no run 'r9'")):
        with pytest.raises(UsageError, match=said):
            look(place, run)


def test_signs_are_as_high_as_their_share() -> None:
    assert sparkline([0, 1, 2, 4, 8, None]) == "▁▂▃▅█·"
    assert sparkline([0, 8, None], blocks=False) == "_# " and sparkline([0.0, 0.0]) == "▁▁"
    assert (bar(0.5, 10), bar(0.001, 10), bar(0.0, 10), bar(2.0, 4, False)) == ("█████", "█", "", "####")


def test_each_command_is_one_night_with_a_mark_where_too_many_failed() -> None:
    few = {"scored": 1000, "failed": 2, "planned": 1002}
    records = [
        record_of("a", counts=few),
        record_of("b", counts=few, configuration={"runs": ["b", "c"], "fail_threshold": "1%"}),
        record_of("c", counts=few, configuration={"runs": ["b", "c"], "fail_threshold": "1%"}),
        record_of("d", "abandoned"),
        record_of("e", counts={"scored": 500, "failed": 500}),
    ]
    assert [(night.scored, night.failed) for night in nights_of(records)] == [(1000, 2), (2000, 4), (500, 500)]
    scored, failed, _ = ("".join(text for text, _ in line) for line in night_lines(records, True))
    assert scored.startswith("scored  ▅█▃") and "500 to 2,000" in scored
    assert failed.startswith("failed    !")
    assert night_lines(records[:1], True) == []
