"""A chart of many keys at once: parallel coordinates, an axis for each key and one for the metric, as an SVG element.

The axes lie under each other, so that a phone has room for their names and a page of paper for all of them; a line runs
from the first key down to the metric.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.metrics import LOWER_IS_BETTER
from pipelines.evaluation.plots_canvas import BLUE, INK, PAPER, VERMILLION, draw, label, legend_below
from pipelines.evaluation.report_numbers import number
from pipelines.tuning.page_words import metric_text, setting_text, settings_text
from pipelines.tuning.shown_points import (
    ShownPoint,
    as_number,
    best_of,
    is_number,
    values_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_KEYS = 8
MOST_LINES = 300
"""Lines that are drawn, the best ones; more would be a grey field and a large file."""
_LOG_FROM = 20
"""The largest value over the smallest from which a scale of numbers above 0 is logarithmic."""
_FEW_VALUES = 6
_STEP = 58.0
_GREY = "#8a949e"
_LETTERS = 60
"""Of the texts along an axis together."""
_TICK_ROOM = 0.1
"""Of a number along an axis, as a share of it."""


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes:
        name: Beside it.
        places: Of each line on it, float64 `[N]`, 0 at the left end and 1 at the right.
        ticks: Place and text.
    """

    name: str
    places: NDArray[np.float64]
    ticks: tuple[tuple[float, str], ...]


def parallel_figure(points: Sequence[ShownPoint], keys: Sequence[str], metric: str, near: Collection[str]) -> str:
    """Every point as a line across its settings and its value.

    Args:
        points: In the order of their rank, of whose values at least one is a number; points without one are left out.
        keys: Those that vary; the first `MOST_KEYS` have an axis.
        metric: The search's.
        near: Keys of points that are not told apart from the best.
    """
    drawn = [point for point in points if not math.isnan(point.value)][:MOST_LINES]
    scales = [_scale(drawn, key) for key in keys[:MOST_KEYS]]
    scales.append(_metric_scale(drawn, metric))
    best = best_of(drawn)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        heights = -np.arange(len(scales), dtype=float)
        places = np.stack([scale.places for scale in scales])
        for column, point in reversed(list(enumerate(drawn))):
            _paint_line(axes, places[:, column], heights, point is best, point.key in near)
        for scale, height in zip(scales, heights, strict=True):
            _paint_axis(axes, scale, float(height))
        axes.set(xlim=(-0.06, 1.06), ylim=(heights[-1] - 0.5, 0.45))
        axes.set_axis_off()
        _paint_legend(figure, axes, len(drawn), bool(near))

    said = f"{len(drawn)} points by {', '.join(keys[:MOST_KEYS])} and {metric_text(metric)} on validation"
    if best is not None:
        said += f"; the best, {number(best.value)}, at {settings_text(best.settings, keys)}"
    return draw("parallel", f"Settings and {metric_text(metric)}", said + ".", 40 + _STEP * len(scales), paint)


def _scale(points: Sequence[ShownPoint], key: str) -> Scale:
    """Numbers by their size, others side by side."""
    values = values_of(points, key)
    own = [point.settings[key] for point in points]
    if all(is_number(value) for value in values):
        return _number_scale(key, np.array([as_number(value) for value in own]))
    spots = np.linspace(0, 1, len(values)) if len(values) > 1 else np.array([0.5])
    longest = max(4, _LETTERS // len(values))
    ticks = tuple((float(spot), label(setting_text(value), longest)) for spot, value in zip(spots, values, strict=True))
    return Scale(key, np.array([spots[values.index(value)] for value in own]), ticks)


def _number_scale(name: str, values: NDArray[np.float64]) -> Scale:
    low, high = float(values.min()), float(values.max())
    if low == high:
        return Scale(name, np.full(len(values), 0.5), ((0.5, f"{low:.4g}"),))
    wide = low > 0 and high / low >= _LOG_FROM

    def place(value: NDArray[np.float64]) -> NDArray[np.float64]:
        ends = np.array([low, high])
        value, ends = (np.log(value), np.log(ends)) if wide else (value, ends)
        shares: NDArray[np.float64] = (value - ends[0]) / (ends[1] - ends[0])
        return shares

    distinct = np.unique(values)
    marks = distinct if len(distinct) <= _FEW_VALUES else _round_numbers(low, high, wide)
    ticks = [(float(spot), f"{mark:.4g}") for spot, mark in zip(place(marks), marks, strict=True)]
    return Scale(name, place(values), _apart(ticks))


def _metric_scale(points: Sequence[ShownPoint], metric: str) -> Scale:
    """The metric's axis, better to the right."""
    values = np.array([point.value for point in points])
    turned = metric in LOWER_IS_BETTER
    scale = _number_scale(
        f"{metric_text(metric)}, validation" + (" (turned: lower is better)" if turned else ""), values
    )
    if not turned:
        return scale
    return Scale(scale.name, 1 - scale.places, tuple((1 - place, text) for place, text in scale.ticks))


def _round_numbers(low: float, high: float, wide: bool) -> NDArray[np.float64]:
    """Numbers of few digits between two others; on a wide scale 1 and 3 of each power of ten."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    locator = LogLocator(subs=(1.0, 3.0)) if wide else MaxNLocator(5)
    marks = np.asarray(locator.tick_values(low, high))
    inside = marks[(marks >= low) & (marks <= high)]
    return inside if len(inside) > 1 else np.array([low, high])


def _apart(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """The ticks from left to right, without those whose text would touch the one before."""
    kept: list[tuple[float, str]] = []
    for place, text in ticks:
        if not kept or place - kept[-1][0] >= _TICK_ROOM:
            kept.append((place, text))
    return tuple(kept)


def _paint_line(axes: Axes, places: NDArray[np.float64], heights: NDArray[np.float64], best: bool, near: bool) -> None:
    """One point; the best is the heaviest line, and those near it are dashed."""
    if best:
        axes.plot(places, heights, color=VERMILLION, linewidth=2.6, marker="o", zorder=4)
    elif near:
        axes.plot(places, heights, color=BLUE, linewidth=1.3, linestyle=(0, (5, 2)), zorder=3)
    else:
        axes.plot(places, heights, color=_GREY, linewidth=0.7, alpha=0.75, zorder=2)


def _paint_axis(axes: Axes, scale: Scale, height: float) -> None:
    """An axis with its name above it and its ticks below."""
    axes.plot([0, 1], [height, height], color=INK, linewidth=0.9, zorder=5)
    ground = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
    axes.annotate(
        label(scale.name, 48), (0, height), (0, 7), textcoords="offset points", fontsize=10.5, fontweight="bold",
        bbox=ground, zorder=6,
    )  # fmt: skip
    for place, text in scale.ticks:
        axes.plot([place, place], [height - 0.05, height + 0.05], color=INK, linewidth=0.9, zorder=5)
        side = "left" if place < _TICK_ROOM / 2 else "right" if place > 1 - _TICK_ROOM / 2 else "center"
        axes.annotate(
            text, (place, height), (0, -5), textcoords="offset points", ha=side, va="top", fontsize=9.5, bbox=ground,
            zorder=6,
        )  # fmt: skip


def _paint_legend(figure: Figure, axes: Axes, lines: int, near: bool) -> None:
    axes.plot([], [], color=VERMILLION, linewidth=2.6, marker="o", label="best")
    if near:
        axes.plot([], [], color=BLUE, linewidth=1.3, linestyle=(0, (5, 2)), label="not told apart from it")
    if lines > 1:
        axes.plot([], [], color=_GREY, linewidth=0.9, label="other points")
    legend_below(figure, 3, columns=3)
