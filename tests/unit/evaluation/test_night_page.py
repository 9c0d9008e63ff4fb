"""The page of a night: its figures, and what a reader needs who prints it, sees no colours or reads in the dark."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.night_facts import (
    MOST_STEPS,
    NightView,
    actor_pieces,
    concerns,
    driver_pieces,
    rate_points,
)
from pipelines.evaluation.night_page import GENERATOR, render_night
from pipelines.evaluation.night_plots import time_figure
from pipelines.predictions.examples import Example
from pipelines.predictions.runs import RunRecord
from pipelines.scoring.config import SHARDS_PER_GROUP

WHEN = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
EVIL = "<script>alert(1)</script>\n\u202e.png"


def record_of(timings: dict[str, Any], shards: int = 400, **counts: Any) -> RunRecord:
    known = {"planned": 100, "shards": shards, "scored": 96, "failed": 4, "failed_by_code": {"truncated": 4}} | counts
    who = {"user": EVIL, "host": "pacs", "command_line": ["nightread", EVIL], "versions": {"ray": "2"}}
    configuration = {"archive": EVIL, "model_name": EVIL, "fail_threshold": "1%"}
    return RunRecord("r", "f", configuration, known, timings, who, 7, "committed", WHEN, {"classes": ["a", EVIL]})


TIMINGS: dict[str, Any] = {
    "listing_seconds": 60.0,
    "planning_seconds": 20.0,
    "starting_seconds": 5.0,
    "scoring_seconds": 900.0,
    "committing_seconds": 10.0,
    "seconds": 930.0,
    "images_before": 12,
    "stages": {"read": 5000.0, "decode": 600.0, "score": 800.0, "write": 50.0, "wait": 500.0},
    "rate_over_time": [[8.0 * step, 10.0 + step % 7] for step in range(1, 113)],
    "nodes": 2,
    "cores": 8,
    "node_hours": 0.5,
    "core_hours": 1.9,
    "images_per_second": 12.5,
}
FIGURE = {"figure": "suffix", "verdict": "watch", "value": 0.3, "expected": 0.2, "low": 0.1, "high": 0.25, "of": EVIL}
VIEW = NightView(
    record_of(TIMINGS),
    "committed",
    "Committed: its rows are in version 7 of the table.",
    True,
    None,
    {"truncated": [Example(EVIL, "It ends early.")]},
    [(7.25, EVIL), (1.0, None)],
    {"verdict": "drift", "sentence": f"Darker {EVIL}.", "figures": [{**FIGURE, "p": 1e-9, "effect": 0.3, "psi": 0.2}]},
    [f"A note {EVIL}."],
)


@pytest.fixture(scope="module")
def html() -> str:
    return render_night(VIEW, EVIL).decode()


@pytest.fixture(scope="module")
def page(html: str, read_page: Callable[[str], Any]) -> Any:
    return read_page(html)


def test_the_page_holds_everything_and_obeys_nothing_of_it(html: str, page: Any) -> None:
    assert html == render_night(VIEW, EVIL).decode()
    assert "<script" not in html and "\u202e" not in html and not re.search(r'(?:src|href)="(?!#)', html)
    assert GENERATOR.decode() in html and "default-src 'none'" in html
    words = page.words
    for said in (
        "Night of 2026-03-01",
        "Cores waited for images",
        f"An actor reports up to {SHARDS_PER_GROUP} shards at once",
        "12 images were finished by an earlier command",
        "0.500 node-hours",
        "It ends early.",
        "7.25",
        "the run's plan is gone",
        "names may say who a patient is",
        "< 0.001",
        "0.100 to 0.250",
    ):
        assert said in words, said
    # Cores: 7,200 core-seconds, 6,950 of them told; the command: 1,010 seconds, 995 of them named.
    for row in ("read 69.4 % 1:23:20", "idle 3.5 % 0:04:10", "score 89.1 % 0:15:00", "other 1.5 % 15.0 s"):
        assert row in words, row


def test_it_is_as_accessible_as_the_reports_are(page: Any) -> None:
    ranks = [int(element.tag[1]) for element in page.everything() if re.fullmatch("h[1-6]", element.tag)]
    assert ranks[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(ranks))
    names = [element.attributes["id"] for element in page.everything() if "id" in element.attributes]
    assert len(names) == len(set(names))
    assert sum(1 for _ in page.all("svg")) == sum(1 for _ in page.all("figure")) == 3
    for figure in page.all("figure"):
        (drawing,) = figure.all("svg")
        assert drawing.attributes["role"] == "img" and next(drawing.all("title")).words
        assert len(next(drawing.all("desc")).words) > 30 and next(figure.all("figcaption")).words
    captions = [next(table.all("caption")).words for table in page.all("table")]
    assert all(captions) and len(set(captions)) == len(captions)
    for table in page.all("table"):
        for row in next(table.all("tbody")).all("tr"):
            cells = [child for child in row.children if not isinstance(child, str)]
            assert cells[0].tag == "th" and cells[0].attributes["scope"] == "row" and cells[0].words
    assert "95 %" not in page.words  # nothing of a night is an estimate with an interval


def test_a_running_night_and_one_of_an_earlier_release_have_pages_too() -> None:
    told: dict[str, Any] = {"phase": "scoring", "done": 40, "total": 100, "failed": 1}
    told |= {"rate": 171.4502, "seconds_left": 75.0, "at": "2026-11-22T06:52:28+00:00"}
    bare = record_of({}, failed=0, failed_by_code={})
    running = render_night(NightView(bare, "scoring", "Being worked on.", progress=told), "/r").decode()
    assert "told at 2026-11-22 06:52:28 UTC" in running and ">171.5<" in running
    assert "Time left" in running and "0:01:15" in running and "Where the time went" not in running
    interrupted = render_night(NightView(bare, "interrupted", "Nobody works on it."), "/r").decode()
    assert interrupted.count("Nobody works on it.") == 2  # as what to look at, and in the table of all facts
    old = render_night(NightView(bare, "committed", "Committed."), "/r").decode()
    assert "Nothing stands out." in old and "which did not keep it." in old


@given(
    st.dictionaries(st.sampled_from(["read", "decode", "score", "write", "wait"]), st.floats(0, 1e6), min_size=1),
    st.integers(0, 64),
    st.floats(0, 1e5),
)
def test_shares_are_of_the_whole(stages: dict[str, float], cores: int, seconds: float) -> None:
    pieces = actor_pieces({"stages": stages, "cores": cores, "scoring_seconds": seconds})
    busy = sum(stages.values())
    if busy <= 0:
        assert pieces == []
        return
    assert sum(piece.share for piece in pieces) == pytest.approx(1)
    assert sum(piece.seconds for piece in pieces) == pytest.approx(max(busy, cores * seconds))
    assert all(piece.meaning for piece in pieces)


@given(st.lists(st.tuples(st.floats(0.5, 100), st.floats(0, 1000)), max_size=120), st.integers(0, 1000))
def test_joined_steps_hold_the_same_images(steps: list[tuple[float, float]], shards: int) -> None:
    points, at = [], 0.0
    for width, rate in steps:
        at += width
        points.append([at, rate])
    joined = rate_points(record_of({"rate_over_time": points}, shards))
    assert len(joined) <= MOST_STEPS and [end for end, _ in joined] == sorted(end for end, _ in joined)
    images = sum((end - start) * rate for (start, _), (end, rate) in zip([(0.0, 0.0), *joined], joined, strict=False))
    assert images == pytest.approx(sum(width * rate for width, rate in steps), abs=1e-6)


def test_nothing_is_said_of_a_night_that_is_not_at_its_end() -> None:
    assert driver_pieces({"listing_seconds": 3.0}) == [] and driver_pieces({}) == []


def test_a_good_night_needs_no_care_and_an_interrupted_one_says_so_first() -> None:
    good = NightView(record_of({**TIMINGS, "images_before": 0, "stages": {"score": 7000.0}}), "committed", "Committed.")
    assert concerns(good) == []
    assert concerns(NightView(good.record, "interrupted", "Interrupted."))[0] == "Interrupted."


def test_pieces_are_told_apart_without_colour() -> None:
    svg = time_figure("bar", "The cores", actor_pieces(TIMINGS))
    assert svg.count("<pattern") >= 3  # decode, write and wait are hatched
    for name in ("read 69.4 %", "decode 8.3 %", "idle 3.5 %"):
        assert name in svg


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_the_dark() -> None:
    style = (resources.files("pipelines.evaluation") / "templates" / "night.css").read_text()
    dark = style[style.index("prefers-color-scheme: dark") :]
    known = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))
    light = (resources.files("pipelines.evaluation") / "templates" / "report.css").read_text()
    assert set(known) == set(re.findall(r"--([\w-]+): #", light))  # no colour of the light page is left over
    (ground,) = re.findall(r"background: (#[0-9a-f]{6});", dark)
    for ink, behind in [(known[one], ground) for one in ("ink", "quiet", "accent")] + [
        (known["warn-ink"], known["warn"])
    ]:
        one, other = sorted((luminance(ink), luminance(behind)))
        assert (other + 0.05) / (one + 0.05) >= 4.5, (ink, behind)
    assert "screen" in style[: style.index("prefers-color-scheme: dark")]  # paper stays white
