"""Charts of a grid as SVG: the metric over epochs, a panel for each backbone, and a map of two keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.metrics import LOWER_IS_BETTER
from pipelines.evaluation.plots_canvas import INK, PAPER, QUIET, WIDTH, draw, label, line_style
from pipelines.evaluation.report_numbers import ABSENT, number
from pipelines.training.recipe_rules import Value
from pipelines.tuning.page_words import metric_text, setting_text, settings_text
from pipelines.tuning.panels import Panel, Panels
from pipelines.tuning.shown_points import (
    ShownPoint,
    best_of,
    values_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS, MOST_ROWS = 8, 16
"""Of a map: more do not leave room for the figure in each of its squares."""
_MOST_TICKS = 8
_SHOWN_MARKERS = 15
_LINE_COLUMNS = 3
_NEAREST = 0.05
"""Of two ticks, as a share of the scale: nearer ones would be written over each other."""
_GREY = "#8a949e"
_LIGHT, _DARK = np.array([0.96, 0.97, 0.98]), np.array([0.40, 0.66, 0.84])
"""Of the squares of a map: ink can be read on both."""


def panel_figure(panels: Panels, panel: Panel) -> str:
    """One backbone's lines over epochs, with a ring at its best point.

    Args:
        panels: The figure that it is of, which decides scale and styles.
        panel: One of its panels.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _paint_panel(axes, panels, panel)
        axes.set(xlabel=_across(panels), ylabel=_up(panels))
        _legend(figure, axes, panels)

    place = panels.panels.index(panel) + 1
    title = f"{metric_text(panels.metric)} of {panel.backbone} over epochs"
    return draw(f"panel-{place}", title, panel_said(panels, panel), 262 + _legend_height(panels), paint)


def whole_figure(panels: Panels) -> bytes:
    """All panels as one SVG file that stands alone, two beside each other."""
    columns = min(2, len(panels.panels))
    rows = math.ceil(len(panels.panels) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes in grid[len(panels.panels) :]:
            axes.set_visible(False)
        for place, (axes, panel) in enumerate(zip(grid, panels.panels, strict=False)):
            _paint_panel(axes, panels, panel)
            axes.xaxis.set_tick_params(labelbottom=True)
            if place % columns == 0:
                axes.set_ylabel(_up(panels))
            if place + columns >= len(panels.panels):
                axes.set_xlabel(_across(panels))
        _legend(figure, grid[0], panels)

    said = " ".join(panel_said(panels, panel) for panel in panels.panels)
    title = f"{metric_text(panels.metric)} on validation over epochs, a panel for each backbone"
    height = 225 * rows + 30 + _legend_height(panels)
    return draw("figure-1", title, said, height, paint, columns * WIDTH).encode("utf-8", "replace")


def panel_said(panels: Panels, panel: Panel) -> str:
    """One panel in words."""
    if panel.best is None:
        return f"{panel.backbone}: no point has a value."
    where = settings_text(panel.best_settings, list(panel.best_settings))
    among = ", the best of all" if panel.leads and len(panels.panels) > 1 else ""
    at = f" at {where}" if where else f" at epoch {panel.best[0]:g}"
    return f"{panel.backbone}: best {number(panel.best[1])}{at}{among}."


def map_figure(key: str, points: Sequence[ShownPoint], keys: tuple[str, str], metric: str) -> str:
    """The best value at each pair of values of two keys, a square for each.

    Args:
        key: Of the chart.
        points: Whose settings hold both keys.
        keys: The two.
        metric: The search's.
    """
    across, up = sorted(keys, key=lambda one: len(values_of(points, one)))
    columns, rows = values_of(points, across), values_of(points, up)
    values, best = _best_values(points, (up, rows), (across, columns)), best_of(points)
    place = (rows.index(best.settings[up]), columns.index(best.settings[across])) if best else None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(False)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        shades = _shades(values, metric)
        for row, column in np.ndindex(*values.shape):
            _square(axes, (row, column), float(values[row, column]), float(shades[row, column]), place == (row, column))
        many = len(columns) > _MOST_TICKS // 2
        texts = [label(setting_text(value), 12 if many else 16) for value in columns]
        axes.set_xticks(range(len(columns)), texts, rotation=40 if many else 0, ha="right" if many else "center")
        axes.set_yticks(range(len(rows)), [label(setting_text(value), 16) for value in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=across, ylabel=up)

    said = f"Best {metric_text(metric)} on validation at each pair of {across} and {up}"
    if best is not None:
        said += f"; {number(best.value)}, the best of all, at {settings_text(best.settings, keys)}"
    return draw(key, f"{metric_text(metric)} by {across} and {up}", said + ".", 110 + 34 * len(rows), paint)


def _paint_panel(axes: Axes, panels: Panels, panel: Panel) -> None:
    """Lines, the grey ones below, and the ring."""
    axes.set_title(label(panel.backbone), fontsize=11.5, loc="left", pad=5, fontweight="bold" if panel.leads else None)
    for line in panel.lines:
        few = len(line.epochs) <= _SHOWN_MARKERS
        if line.style is None:
            axes.plot(line.epochs, line.values, color=_GREY, linewidth=0.8, zorder=1.5)
            continue
        style = line_style(line.style)
        axes.plot(
            line.epochs, line.values, color=style.colour, linestyle=style.dashes, marker=style.marker if few else None,
        )  # fmt: skip
    if panel.best is not None:
        _ring(axes, panel.best, panels.lower_is_better)
    axes.set(ylim=panels.limits)
    _set_ticks(axes, panels)


def _ring(axes: Axes, best: tuple[float, float], below: bool) -> None:
    """A ring at the best point and its value, on the side of it where no better one can stand."""
    axes.plot(
        *best, "o", markersize=11, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.6, zorder=5,
    )  # fmt: skip
    left, right = axes.get_xlim()
    across = (best[0] - left) / (right - left)
    axes.annotate(
        number(best[1]), best, (0, -9 if below else 9), textcoords="offset points",
        ha="left" if across < 0.1 else "right" if across > 0.9 else "center",
        va="top" if below else "bottom", fontsize=10.5, zorder=6,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
    )  # fmt: skip


def _legend(figure: Figure, axes: Axes, panels: Panels) -> None:
    """What the lines and the ring are, the same under every panel."""
    if panels.line_key is not None:
        for place, name in enumerate(panels.names):
            style = line_style(place)
            marker = style.marker if panels.read_off else None
            axes.plot(
                [], [], color=style.colour, linestyle=style.dashes, marker=marker, label=label(name),
            )  # fmt: skip
        if panels.others:
            axes.plot([], [], color=_GREY, linewidth=0.8, label=f"{panels.others} others")
    axes.plot(
        [], [], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.6, label="best",
    )  # fmt: skip
    figure.legend(
        loc="outside lower center", ncols=_LINE_COLUMNS, borderaxespad=0.2, labelspacing=0.35,
        title=panels.line_key, title_fontsize=10.5,
    )  # fmt: skip


def _legend_height(panels: Panels) -> float:
    entries = 1 + (len(panels.names) + bool(panels.others) if panels.line_key else 0)
    return 16.0 * (math.ceil(entries / _LINE_COLUMNS) + bool(panels.line_key))


def _across(panels: Panels) -> str:
    return "epochs" if panels.read_off else "epoch"


def _up(panels: Panels) -> str:
    return f"{metric_text(panels.metric)}, validation{' (lower is better)' if panels.lower_is_better else ''}"


def _set_ticks(axes: Axes, panels: Panels) -> None:
    """A tick at each number of epochs where they are a few of the grid and not too near to each other."""
    ticks = np.asarray(panels.ticks)
    if panels.read_off and 1 < len(ticks) <= _MOST_TICKS and np.diff(ticks).min() >= _NEAREST * np.ptp(ticks):
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        axes.locator_params(axis="x", integer=True, nbins=_MOST_TICKS)


def _best_values(
    points: Sequence[ShownPoint], rows: tuple[str, Sequence[Value]], columns: tuple[str, Sequence[Value]]
) -> NDArray[np.float64]:
    """The best value at each pair, float64 `[R, C]`; NaN where no point has one."""
    values = np.full((len(rows[1]), len(columns[1])), np.nan)
    for row, column in np.ndindex(*values.shape):
        pair = {rows[0]: rows[1][row], columns[0]: columns[1][column]}
        best = best_of(point for point in points if all(point.settings[key] == pair[key] for key in pair))
        if best is not None:
            values[row, column] = best.value
    return values


def _shades(values: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """How dark each square is: 1 the best, 0 the worst, a half where all are the same."""
    known = values[~np.isnan(values)]
    if not len(known) or np.ptp(known) == 0:
        return np.full(values.shape, 0.5)
    shares: NDArray[np.float64] = (values - known.min()) / np.ptp(known)
    return 1 - shares if metric in LOWER_IS_BETTER else shares


def _square(axes: Axes, place: tuple[int, int], value: float, shade: float, best: bool) -> None:
    """One square of the map with its value; the best has a frame."""
    from matplotlib.patches import Rectangle

    row, column = place
    known = not math.isnan(value)
    colour = tuple((_LIGHT + (_DARK - _LIGHT) * shade).tolist()) if known else PAPER
    axes.add_patch(
        Rectangle(
            (column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour, edgecolor=INK if best else QUIET,
            linewidth=2.2 if best else 0 if known else 0.6,
        )
    )  # fmt: skip
    axes.text(
        column, row, number(value) if known else ABSENT, ha="center", va="center", fontsize=10,
        fontweight="bold" if best else None,
    )  # fmt: skip
