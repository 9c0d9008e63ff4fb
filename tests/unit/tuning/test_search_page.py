from __future__ import annotations

import hashlib
import html
import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.study import Settings, measure_cases
from pipelines.evaluation.writing import prediction_table
from pipelines.training.published import published
from pipelines.tuning import page_content, report
from pipelines.tuning.points import FAILED, STOPPED

EVIL = "<script>alert('$x$')</script> & \"q\" {{ 7 * 7 }}"
BACKBONES = ("mobilenet_v2", "vgg16")


class Page(HTMLParser):
    """What a page shows: its tables by the name of their caption, the text, attributes; fails on tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.said = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.tags.append((tag, own))
        if tag == "table":
            self._rows = []
        elif tag == "caption":
            self.tables[own.get("id", "key-figures").removesuffix("-caption")] = self._rows
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data
        if self._rows and self._rows[-1] and {"th", "td"} & set(self._open):
            self._rows[-1][-1] = " ".join(f"{self._rows[-1][-1]} {data}".split())

    def column(self, table: str, name: str) -> list[str]:
        header, *rows = self.tables[table]
        return [row[header.index(name)] for row in rows]

    def row(self, table: str, name: str) -> list[str]:
        return next(row[1:] for row in self.tables[table] if row[0] == name)


def draw_cases(seed: int, names: tuple[str, ...] = ("benign", "malignant")) -> Cases:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), 200)
    raised = np.exp(rng.normal(size=(200, len(names))) + 1.8 * np.eye(len(names))[labels])
    hashes = tuple(hashlib.sha256(str(number).encode()).hexdigest() for number in range(200))
    return Cases(
        classes=names,
        positive=(len(names) - 1,),
        uris=tuple(f"/archive/{number}.png" for number in range(200)),
        contents=hashes,
        labels=labels.astype(np.int64),
        probabilities=(raised / raised.sum(axis=1, keepdims=True)).astype(np.float32),
        groups=hashes,
        patients=None,
        mean_intensity=np.full(200, np.nan),
        columns={},
    )


def draw_tested(names: tuple[str, ...] = ("benign", "malignant"), **changed: Any) -> page_content.TestContent:
    tested = {}
    for seed, backbone in enumerate(BACKBONES):
        cases = draw_cases(seed, names)
        metrics = measure_cases(cases, {}, "float32", Settings(draws=60))
        metrics["concerns"] = ["Only 100 images are positive.", f"A word on {backbone}."]
        tested[backbone] = page_content.TestedBackbone(
            settings={"backbone": backbone, "learning_rate": 0.005, "epochs": 20},
            metrics=metrics,
            predictions=prediction_table(cases, ["test"] * 200, None),
            report=f"test/{backbone}/report.html",
        )
    given: dict[str, Any] = {
        "name": "moles",
        "search": "s1",
        "data": "hospital/labelled",
        "recipe": "skin-lesion",
        "metric": "accuracy",
        "points": 60,
        "tested": tested,
        "published": published("skin-lesion"),
        "provenance": (("nightread", "0.1.0"),),
    }
    return page_content.TestContent(**given | changed)


@pytest.fixture(scope="module")
def published_text(published_search: Any) -> str:
    return report.search_page(published_search.content)


@pytest.fixture(scope="module")
def tested() -> page_content.TestContent:
    return draw_tested()


@pytest.fixture(scope="module")
def tested_text(tested: page_content.TestContent) -> str:
    return report.test_page(tested)


def check_stands_alone(text: str) -> None:
    """Nothing is fetched or run; names are unique; headings, tables and charts are as readers of any kind need them."""
    page = Page(text)
    names = Counter(own["id"] for _, own in page.tags if "id" in own)
    assert max(names.values()) == 1
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\((?!#)|@import|[^\w]src=", text)
    for tag, own in page.tags:
        assert not any(name.startswith("on") for name in own)
        if tag == "a":
            assert re.fullmatch(r"#[\w-]+|[\w./-]+\.(csv|parquet|json|html)", own["href"])
            assert not own["href"].startswith("#") or own["href"][1:] in names
        if tag == "th":
            assert own["scope"] in ("col", "row")
        if tag == "svg":
            assert own["role"] == "img" and set(own["aria-labelledby"].split()) <= set(names)
    ranks = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert ranks[0] == 1 and ranks.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(ranks))
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)
    captions = [own["aria-labelledby"] for _, own in page.tags if own.get("role") == "region"]
    told = [re.search(f'id="{one}">([^<]*)<', text) for one in captions]
    assert len({one[1] for one in told if one}) == len(captions)


def test_the_published_grid_is_told_with_its_best_point_and_how_sure_that_is(
    published_search: Any, published_text: str
) -> None:
    content = published_search.content
    page = Page(published_text)
    best = max(content.points, key=published_search.value)
    value = published_search.value(best)
    rows = page.tables["key-figures"][1:]
    assert rows[0][1] == f"{value:.3f}" and f"backbone {best.recipe.backbone}" in rows[0][0]
    assert rows[1][1] == "0.002 (−0.008 to 0.030)" and rows[2][1] == "3"
    said = " ".join(page.said.split())
    assert "These four are not told apart." in said and "119 comparisons together" in said
    assert "120 points, every combination of backbone, learning_rate and epochs" in said
    assert "2,637 labelled images of hospital/labelled (train 2,110, val 527)" in said
    assert "20 trainings and 4 feature passes in 812 s, compared by accuracy on validation, seed 0" in said
    near = {point.key: point for point in content.points}
    assert page.column("near", "learning_rate") == [
        f"{near[one.point].recipe.learning_rate:g}" for one in content.sureness.near
    ]


def test_the_leaderboard_shows_the_first_fifty_in_their_order(published_search: Any, published_text: str) -> None:
    page = Page(published_text)
    ranked = sorted(published_search.content.points, key=lambda point: -published_search.value(point))[:50]
    assert page.column("leaderboard-table", "Rank") == [str(place) for place in range(1, 51)]
    assert page.column("leaderboard-table", "Accuracy") == [f"{published_search.value(one):.3f}" for one in ranked]
    assert page.column("leaderboard-table", "epochs") == [str(one.recipe.epochs) for one in ranked]
    assert "The first 50 of 120 points; leaderboard.csv has all" in page.said


def test_each_backbone_has_the_figures_of_its_best_point_beside_those_of_the_paper(
    published_search: Any, published_text: str
) -> None:
    content = published_search.content
    page = Page(published_text)
    backbones = page.tables["backbones-table"][0][1:]
    for place, backbone in enumerate(backbones):
        own = [point for point in content.points if point.recipe.backbone == backbone]
        best = max(own, key=published_search.value)
        last = published_search.answers[best.key].history[-1]
        for name, column in (("PPV (precision)", "val_precision"), ("ROC AUC", "val_roc_auc"), ("F1", "val_f1")):
            assert page.row("backbones-table", name)[place] == f"{last[column]:.3f}"
        values = [published_search.value(point) for point in own]
        ends = page.row("backbones-table", "Accuracy, lowest–highest of its points")[place]
        assert ends == f"{min(values):.3f}–{max(values):.3f}"
        assert page.row("backbones-table", "Best epochs")[place] == str(best.recipe.epochs)
    assert page.row("backbones-table", "Parameters") == ["2,386,085"] * 4
    assert page.row("published-grid", "Best learning_rate") == ["0.005", "0.0001", "0.001", "0.005"]
    assert page.row("published-grid", "Accuracy, lowest–highest")[1] == "0.546–0.816"


def test_what_failed_was_stopped_or_waits_is_told_with_its_reason(random_search: Any) -> None:
    page = Page(report.search_page(random_search.content))
    assert page.column("others", "Status") == ["failed", "stopped", "stopped", "stopped", "waiting"]
    reasons = page.column("others", "Reason")
    assert reasons[0] == "The loss was no number in epoch 2." and reasons[-1] == "Its turn has not come."
    assert page.column("others", "Epochs run")[1:] == ["6", "6", "6", "–"]  # a third of the recipe's 20
    said = " ".join(page.said.split())
    assert "1 of 40 points failed" in said and "3 of 40 points were stopped early" in said
    assert "1 of 40 points have no answer yet" in said
    assert "drawn at random over dropout, learning_rate, dense_units and activation" in said
    assert page.column("leaderboard-table", "Status")[-3:] == ["stopped"] * 3


@pytest.mark.parametrize("kind", ["random", "line", "map", "many", "failures", "single", "waiting"])
def test_pages_of_searches_of_every_kind_stand_alone(
    kind: str, random_search: Any, make_search: Callable[..., Any], combinations: Any
) -> None:
    rates, drop, units = [1e-4, 1e-3, 1e-2], [0.1, 0.2], [0, 50]
    made = {
        "random": lambda: random_search,
        "line": lambda: make_search(combinations(learning_rate=rates)),
        "map": lambda: make_search(combinations(dropout=drop, dense_units=units), metric="brier"),
        "many": lambda: make_search(combinations(learning_rate=rates, dropout=drop, dense_units=units, epochs=[3, 5])),
        "failures": lambda: make_search(combinations(dropout=drop), statuses=dict.fromkeys(range(2), FAILED)),
        "single": lambda: make_search([{"learning_rate": 0.001}]),
        "waiting": lambda: make_search(combinations(dropout=drop), statuses=dict.fromkeys(range(2), "waiting")),
    }[kind]()
    text = report.search_page(made.content)
    check_stands_alone(text)
    charts = set(re.findall(r'<title id="([a-z]+)', text))
    expected = {"map": {"panel", "map"}, "random": {"panel", "parallel"}, "many": {"panel", "parallel"}}
    assert charts == expected.get(kind, set() if kind in ("failures", "waiting") else {"panel"})


def test_a_search_of_failures_only_has_its_reasons_and_no_best(make_search: Callable[..., Any]) -> None:
    search = make_search([{"dropout": 0.1}, {"dropout": 0.2}], statuses={0: FAILED, 1: FAILED}, error="NaN in epoch 2.")
    page = Page(report.search_page(search.content))
    assert page.column("others", "Reason") == ["NaN in epoch 2."] * 2
    assert page.tables["key-figures"][1][1].startswith("–") and "leaderboard-table" not in page.tables
    assert report.figure_1(search.content) is None


def test_a_stopped_point_is_no_best_however_good_its_figure(make_search: Callable[..., Any]) -> None:
    search = make_search([{"dropout": one} for one in (0.1, 0.2, 0.3, 0.4)], statuses={0: STOPPED, 1: STOPPED})
    page = Page(report.search_page(search.content))
    assert page.column("leaderboard-table", "Status") == ["done", "done", "stopped", "stopped"]
    done = [one for one in search.content.points if search.answers[one.key].status == "done"]
    best = max(done, key=search.value)
    assert f"dropout {best.settings['dropout']}" in page.tables["key-figures"][1][0]


def test_an_interval_that_no_draw_defines_is_left_out(make_search: Callable[..., Any]) -> None:
    search = make_search([{"dropout": 0.1}, {"dropout": 0.2}])
    sure = search.content.sureness
    unknown = replace(sure.near[0], low=math.nan, high=math.nan)
    content = replace(search.content, sureness=replace(sure, second=unknown, near=(unknown,)))
    page = Page(report.search_page(content))
    assert page.tables["near"][1][-1] == "0.002" and page.tables["key-figures"][2][1] == "0.002"


def test_what_data_and_errors_say_is_only_text(make_search: Callable[..., Any]) -> None:
    search = make_search(
        [{"dropout": 0.1}, {"dropout": 0.2}, {"dropout": 0.3}],
        statuses={0: FAILED},
        error=EVIL,
        name=EVIL,
        data=EVIL,
        recipe=EVIL,
        searched={EVIL: EVIL},
        registered=EVIL,
        concerns=(EVIL,),
        provenance=((EVIL, EVIL),),
        counts={"train": {EVIL: 4}, EVIL: {EVIL: 2}},
    )
    text = report.search_page(search.content)
    check_stands_alone(text)
    assert "<script" not in text
    assert text.count(html.escape(EVIL, quote=False).replace('"', "&#34;").replace("'", "&#39;")) >= 10
    evil = draw_tested((EVIL, "<b>malignant</b>"), name=EVIL, data=EVIL, recipe=EVIL, provenance=((EVIL, EVIL),))
    text = report.test_page(evil)
    check_stands_alone(text)
    assert "<script" not in text and "<b>" not in text


def test_the_same_search_gives_the_same_page(published_search: Any, published_text: str) -> None:
    assert report.search_page(published_search.content) == published_text
    check_stands_alone(published_text)


def test_table_1_has_the_figures_of_the_metrics_and_those_of_the_paper(
    tested: page_content.TestContent, tested_text: str
) -> None:
    check_stands_alone(tested_text)
    page = Page(tested_text)
    assert page.tables["table-1"][0][1:] == list(BACKBONES)
    names = {"Accuracy": "accuracy", "PPV (precision)": "ppv", "Sensitivity (recall)": "sensitivity", "F1": "f1"}
    for title, name in (names | {"ROC AUC": "roc_auc"}).items():
        for cell, one in zip(page.row("table-1", title), tested.tested.values(), strict=True):
            own = one.metrics["overall"][name]
            assert cell == f"{own['value']:.3f} ({own['low']:.3f}–{own['high']:.3f})"
    assert page.row("table-1", "Accuracy, published") == ["0.839", "0.847"]
    assert page.row("table-1", "ROC AUC, published") == ["0.915", "0.950"]
    said = " ".join(page.said.split())
    assert "The search has opened the test part once, and takes no further points." in said
    assert "A word on vgg16. (vgg16)" in said and "Only 100 images are positive. (" not in said


def test_each_backbone_has_its_matrix_its_curve_and_its_report(
    tested: page_content.TestContent, tested_text: str
) -> None:
    page = Page(tested_text)
    for place, (backbone, one) in enumerate(tested.tested.items(), start=1):
        matrix = one.metrics["confusion_matrix"]
        cells = [row[1:] for row in page.tables[f"counts-{place}"][1:]]
        assert [[cell.split(" ")[0] for cell in row] for row in cells] == [[str(n) for n in row] for row in matrix]
        assert f'<a href="test/{backbone}/report.html">{backbone}</a>' in tested_text
        area = one.metrics["positive_vs_rest"]["roc_auc"]["value"]
        assert re.search(f">{backbone} {area:.3f} ", tested_text)  # in the legend of the chart
    assert [row[1:] for row in page.tables["published-counts-2"][1:]] == [
        ["278 (77.2 %)", "82 (22.8 %)"],
        ["19 (6.3 %)", "281 (93.7 %)"],
    ]
    assert page.row("points", "learning_rate, published") == ["0.005", "0.005"]


def test_of_many_things_to_be_careful_about_those_of_most_backbones_come_first() -> None:
    content = draw_tested()
    for place, one in enumerate(content.tested.values()):
        own = [f"Sentence {place}.{number}." for number in range(9)]
        one.metrics["concerns"][:] = [*own, "Said of all."]
    page = Page(report.test_page(content))
    said = " ".join(page.said.split())
    assert 0 < said.index("Said of all.") < said.index("Sentence 0.0. (mobilenet_v2)") < said.index("11 more sentences")


def test_without_a_paper_and_with_three_classes_nothing_published_is_shown() -> None:
    text = report.test_page(draw_tested(("a", "b", "c"), published=None))
    check_stands_alone(text)
    assert "ublished" not in text and "unweighted means" in text


def test_the_pages_load_neither_ray_nor_tensorflow_nor_matplotlib_before_they_are_made() -> None:
    code = "import json, sys, pipelines.tuning.report; print(json.dumps([one for one in sys.modules]))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"ray", "tensorflow", "keras", "matplotlib", "jinja2", "sklearn", "pandas"} & set(loaded)
