from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.metrics import LOWER_IS_BETTER
from pipelines.tuning.panels import MOST_LINES, make_panels
from pipelines.tuning.plots_grid import map_figure, panel_figure, whole_figure
from pipelines.tuning.plots_many import MOST_LINES as MOST_PARALLEL
from pipelines.tuning.plots_many import parallel_figure
from pipelines.tuning.points import FAILED, STOPPED
from pipelines.tuning.shown_points import ShownPoint, best_of, show_points, values_of, varied_keys

HOSTILE = "<script>alert('$x^2$')</script> & \x01 \"q\""


def texts(svg: str | bytes) -> list[str]:
    """What a chart writes, in order."""
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")]


def panels_of(search: Any) -> Any:
    return make_panels(show_points(search.content), search.content.histories, search.content.metric)


def lines_of(svg: str, axes: int) -> list[list[tuple[float, float]]]:
    """The lines that run through so many axes, each as its points, in the order of painting."""
    root = ElementTree.fromstring(svg)
    paths = [element.attrib["d"] for element in root.iter() if element.tag.endswith("}path")]
    numbers = [[float(number) for number in re.findall(r"-?[\d.]+", path)] for path in paths if "C" not in path]
    lines = [list(zip(one[::2], one[1::2], strict=True)) for one in numbers if len(one) == 2 * axes]
    return [line for line in lines if len({height for _, height in line}) == axes]


def made_points(values: list[float | None], metric: str, **keys: list[Any]) -> list[ShownPoint]:
    """Points of given values, ranked as a leaderboard ranks them, in that order."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    order = sorted(range(len(values)), key=lambda place: (values[place] is None, sign * (values[place] or 0)))
    points = []
    for rank, place in enumerate(order, start=1):
        value = values[place]
        row = {"status": "done", "value": value, "rank": None if value is None else rank, "kept_epoch": 1}
        own = {key: column[place] for key, column in keys.items()}
        points.append(ShownPoint(place, f"p{place}", "vgg16", own, row | {"best_epoch": 1}))
    return points


def test_the_published_grid_has_a_panel_for_each_backbone_and_a_line_for_each_rate(published_search: Any) -> None:
    panels, content = panels_of(published_search), published_search.content
    assert [panel.backbone for panel in panels.panels] == list(
        dict.fromkeys(point.recipe.backbone for point in content.points)
    )
    assert panels.names == ("1e-05", "0.0001", "0.0005", "0.001", "0.005")
    assert panels.ticks == (10, 20, 30, 40, 50, 100) and panels.read_off and not panels.others
    for panel in panels.panels:
        for rate, line in zip((1e-5, 1e-4, 5e-4, 1e-3, 5e-3), panel.lines, strict=True):
            own = [
                point
                for point in content.points
                if point.recipe.backbone == panel.backbone and point.recipe.learning_rate == rate
            ]
            assert line.epochs == tuple(point.recipe.epochs for point in own)
            assert line.values == pytest.approx([published_search.value(point) for point in own])


def test_the_ring_stands_at_the_best_point_of_each_backbone_and_one_leads(published_search: Any) -> None:
    panels = panels_of(published_search)
    for panel in panels.panels:
        own = [one for one in published_search.content.points if one.recipe.backbone == panel.backbone]
        best = max(own, key=published_search.value)
        assert panel.best == (best.recipe.epochs, pytest.approx(published_search.value(best)))
    tops = [panel.best[1] for panel in panels.panels]
    assert [panel.leads for panel in panels.panels] == [top == max(tops) for top in tops]


def test_other_keys_are_folded_into_their_best(make_search: Callable[..., Any], combinations: Any) -> None:
    search = make_search(combinations(dropout=[0.1, 0.4], dense_units=[0, 50, 100], epochs=[3, 6]), metric="log_loss")
    panels = panels_of(search)
    assert (panels.line_key, panels.folded) == ("dropout", ("dense_units",))
    for dropout, line in zip((0.1, 0.4), panels.panels[0].lines, strict=True):
        for epochs, value in zip(line.epochs, line.values, strict=True):
            same = [one for one in search.content.points if one.settings["dropout"] == dropout]
            assert value == min(search.value(one) for one in same if one.recipe.epochs == epochs)


def test_without_epochs_in_the_grid_lines_are_histories(make_search: Callable[..., Any], combinations: Any) -> None:
    search = make_search(combinations(learning_rate=[1e-4, 1e-3]), metric="roc_auc")
    panels = panels_of(search)
    assert not panels.read_off
    for point, line in zip(search.content.points, panels.panels[0].lines, strict=True):
        assert line.values == tuple(row["val_roc_auc"] for row in search.answers[point.key].history)


def test_of_many_values_the_best_have_colours_and_the_others_are_grey(random_search: Any) -> None:
    panels = panels_of(random_search)
    lines = panels.panels[0].lines
    styles = [line.style for line in lines if line.style is not None]
    answered = [point for point in random_search.content.points if not math.isnan(random_search.value(point))]
    assert len(styles) == len(panels.names) == MOST_LINES - 1 and styles == sorted(set(styles))
    assert len(lines) == len(answered) and panels.others == len(answered) - len(styles)
    board = random_search.content.leaderboard.to_pylist()
    best = sorted(row["learning_rate"] for row in board[: MOST_LINES - 1])
    assert panels.names == tuple(f"{rate:.4g}" for rate in best)


def test_a_stopped_point_has_no_place_at_epochs_that_it_never_ran(make_search: Callable[..., Any]) -> None:
    search = make_search([{"epochs": 6}, {"epochs": 9}], statuses={1: STOPPED})
    panel = panels_of(search).panels[0]
    assert panel.lines[0].epochs == (6,)
    assert panel.best[0] == 6  # a stopped point leads nothing, whatever its value


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from(["relu", "elu"]), st.floats(0, 1)), min_size=1
    ),
    st.sampled_from(["accuracy", "log_loss"]),
)
def test_the_best_of_any_points_is_that_of_the_highest_rank(rows: list[Any], metric: str) -> None:
    dropouts, activations, values = (list(column) for column in zip(*rows, strict=True))
    points = made_points(values, metric, dropout=dropouts, activation=activations)
    for dropout in values_of(points, "dropout"):
        own = [point for point in points if point.settings["dropout"] == dropout]
        best = best_of(own)
        assert best is not None
        assert best.value == (min if metric in LOWER_IS_BETTER else max)(point.value for point in own)
    assert ("dropout" in varied_keys(points)) == (len(set(dropouts)) > 1)


def test_a_map_writes_the_best_of_each_pair_and_says_what_is_missing() -> None:
    points = made_points(
        [0.7, 0.8, 0.75, None],
        "accuracy",
        dropout=[0.1, 0.1, 0.2, 0.2],
        activation=["relu", "relu", "relu", "elu"],
    )
    svg = map_figure("map-1", points, ("dropout", "activation"), "accuracy")
    found = texts(svg)
    assert found.count("0.800") == found.count("0.750") == 1 and "0.700" not in found
    assert found.count("–") == 2  # elu at 0.1 was not searched, at 0.2 it failed
    assert "0.800, the best of all, at dropout 0.1, activation relu" in svg


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_on_the_last_axis_of_parallel_coordinates_better_is_to_the_right(metric: str) -> None:
    rng = np.random.default_rng(2)
    values = rng.uniform(0.2, 0.8, 12).tolist()
    points = made_points(values, metric, dropout=list(np.linspace(0.1, 0.9, 12)), epochs=list(range(1, 13)))
    ends = [line[-1][0] for line in lines_of(parallel_figure(points, ("dropout", "epochs"), metric, set()), 3)]
    assert len(ends) == 12
    assert ends == sorted(ends)  # the worst is painted first, so that the best lies above all


def test_parallel_coordinates_draw_at_most_so_many_points_and_leave_out_those_without_a_value() -> None:
    count = MOST_PARALLEL + 40
    values = [None, *np.linspace(0.5, 0.9, count - 1).tolist()]
    points = made_points(values, "accuracy", learning_rate=list(np.geomspace(1e-5, 1e-1, count)), dropout=[0.1] * count)
    svg = parallel_figure(points, ("learning_rate", "dropout"), "accuracy", set())
    assert len(lines_of(svg, 3)) == MOST_PARALLEL
    assert {"0.001", "0.01"} <= set(texts(svg))  # a range of four powers of ten is shown by its powers


def test_charts_are_the_same_bytes_for_the_same_search_and_escape_what_they_are_told() -> None:
    points = made_points([0.7, 0.8], "accuracy", activation=[HOSTILE, "relu"], dropout=[0.1, 0.2])
    charts: list[Callable[[], str]] = [
        lambda: map_figure("map-1", points, ("activation", "dropout"), "accuracy"),
        lambda: parallel_figure(points, ("activation", "dropout"), "accuracy", {"p0"}),
    ]
    for chart in charts:
        svg = chart()
        assert svg == chart()
        assert "<script" not in svg and any("<script>" in text or "scrip" in text for text in texts(svg))


def test_the_whole_figure_stands_alone_and_is_told_in_words(published_search: Any) -> None:
    panels = panels_of(published_search)
    root = ElementTree.fromstring(whole_figure(panels))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    title, said = list(root)[:2]
    assert "accuracy" in (title.text or "")
    for panel in panels.panels:
        assert f"{panel.backbone}: best {panel.best[1]:.3f}" in (said.text or "")
    found = texts(whole_figure(panels))
    assert {panel.backbone for panel in panels.panels} <= set(found)
    assert {"10", "100", "learning_rate", "0.005", "best"} <= set(found)


def test_panels_of_one_figure_share_their_scale(published_search: Any) -> None:
    panels = panels_of(published_search)
    low, high = panels.limits
    values = [value for panel in panels.panels for line in panel.lines for value in line.values]
    assert low < min(values) and max(values) < high

    def up(svg: str) -> list[str]:
        return [text for text in texts(svg) if text.startswith("0.") and len(text) <= 4]

    assert len({tuple(up(panel_figure(panels, panel))[:3]) for panel in panels.panels}) == 1


def test_a_search_of_failures_has_no_panel(make_search: Callable[..., Any]) -> None:
    search = make_search([{"learning_rate": 5.0}, {"learning_rate": 10.0}], statuses={0: FAILED, 1: FAILED})
    assert panels_of(search).panels == ()
