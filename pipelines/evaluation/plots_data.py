"""Charts of what stands around the answers: training, data, intensities, subgroups and comparison, as SVG elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.plots_canvas import BLUE, GRID, INK, QUIET, VERMILLION, draw, label, legend_below, line_style
from pipelines.evaluation.report_numbers import ABSENT, number, per_cent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

MOST_OUTLIERS = 200
"""Outliers of a class that are drawn as points; more would be a black line and a large file."""


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest chart.

    Attributes:
        name: At its left.
        value: Where the square stands; None where the data define none.
        low: Lower end of its interval; None where there is none.
        high: Upper end.
        group: What heads the lines that share it; "" for nothing.
        marked: Whether the line is drawn hollow, for what is small or uncertain.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    group: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Steps:
    """A histogram: `counts[i]` lie from `edges[i]` to `edges[i + 1]`."""

    edges: Sequence[float]
    counts: Sequence[int]


def history_figure(key: str, name: str, epochs: Sequence[float], lines: Mapping[str, Floats], best: int | None) -> str:
    """One figure of a training, epoch by epoch.

    Args:
        key: Of the figure in the history, such as `loss`.
        name: What it is called.
        epochs: Across.
        lines: Values by part, such as `training` and `validation`; NaN where there is none.
        best: The epoch whose weights were kept; None where that is not known.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        few = len(epochs) <= 15
        for place, (part, values) in enumerate(lines.items()):
            style = line_style(place)
            axes.plot(
                epochs, values, color=style.colour, linestyle=style.dashes, marker=style.marker if few else None,
                label=label(part),
            )  # fmt: skip
        if best is not None:
            axes.axvline(best, color=INK, linewidth=1, linestyle=(0, (2, 2)), label=f"best epoch ({best})")
        axes.set(xlabel="epoch", ylabel=name)
        axes.locator_params(axis="x", integer=True)
        legend_below(figure, 3, columns=3)

    ends = [
        f"{part} {number(float(values[-1]))}"
        for part, values in lines.items()
        if len(values) and math.isfinite(values[-1])
    ]
    kept = "" if best is None else f" The weights of epoch {best} were kept."
    description = f"{name} over {len(epochs)} epochs; in the last one: {', '.join(ends) or 'unknown'}.{kept}"
    return draw(f"history-{key}", f"{name} by epoch", description, 270, paint)


def distribution_figure(counts: Mapping[str, Mapping[str, int]]) -> str:
    """How many images each class has, one bar for each class, the parts one after the other.

    Args:
        counts: Part to class to number of images.
    """
    names = list(dict.fromkeys(name for part in counts.values() for name in part))
    totals = {name: sum(part.get(name, 0) for part in counts.values()) for name in names}
    images = max(1, sum(totals.values()))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows, left = np.arange(len(names)), np.zeros(len(names))
        for place, (part, own) in enumerate(counts.items()):
            widths = np.array([own.get(name, 0) for name in names], float)
            axes.barh(
                rows, widths, left=left, height=0.62, color=line_style(place).colour, edgecolor="#ffffff",
                hatch=("", "////", "xxxx", "----")[place % 4], label=label(part), linewidth=0.8,
            )  # fmt: skip
            left += widths
        for place, name in enumerate(names):
            text = f"{totals[name]:,} ({per_cent(totals[name] / images)})"
            axes.annotate(text, (totals[name], place), (5, 0), textcoords="offset points", va="center")
        _named_rows(axes, names)
        axes.set(xlim=(0, max(1, max(totals.values(), default=1)) * 1.42), xlabel="images")
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        legend_below(figure, len(counts), columns=3)

    said = ", ".join(f"{name} {own:,} ({per_cent(own / images)})" for name, own in totals.items())
    return draw("distribution", "Class distribution", f"{images:,} images: {said}.", 96 + 34 * len(names), paint)


def metric_bar_figure(figures: Sequence[ForestRow]) -> str:
    """All figures from 0 to 1 as bars with their intervals."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, row in enumerate(figures):
            if row.value is None:
                axes.text(0.01, place, ABSENT, va="center")
                continue
            axes.barh(place, row.value, height=0.62, color=BLUE)
            _whisker(axes, row, place, INK)
            axes.text(1.02, place, number(row.value), va="center")
        _named_rows(axes, [row.name for row in figures])
        axes.set(xlim=(min(0.0, *(row.value or 0 for row in figures)), 1.16), xticks=np.linspace(0, 1, 6))

    said = ", ".join(f"{row.name} {number(row.value)}" for row in figures)
    return draw("metrics", "Figures as bars", said + ".", 50 + 26 * len(figures), paint)


def intensity_figure(classes: Mapping[str, Steps]) -> str:
    """Histograms of the mean intensity, one for each true class, above each other."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(classes), 1, sharex=True, squeeze=False)[:, 0]
        for place, (axes, (name, steps)) in enumerate(zip(panels, classes.items(), strict=True)):
            colour = line_style(place).colour
            axes.stairs(steps.counts, steps.edges, fill=True, facecolor=colour, linewidth=0)
            axes.set_title(f"{label(name)} (n = {sum(steps.counts):,})", fontsize=10.5, loc="left", pad=3)
            axes.set_ylim(0, max(1.0, max(steps.counts, default=0) * 1.08))
            axes.locator_params(axis="y", nbins=3, integer=True)
            axes.yaxis.set_major_formatter("{x:,.0f}")
        panels[-1].set(xlabel="mean intensity (0–1)")
        figure.supylabel("images", fontsize=11)

    said = ", ".join(f"{name} {_fullest(steps)}" for name, steps in classes.items() if sum(steps.counts))
    description = f"Mean intensity by true class; the fullest step of each: {said}."
    return draw("intensity", "Mean intensity by class", description, 60 + 92 * len(classes), paint)


def intensity_box_figure(classes: Mapping[str, ArrayLike]) -> str:
    """Box plots of the mean intensity by true class: quartiles, whiskers to 1.5 of the box, and what lies outside."""
    values = {name: np.asarray(own, np.float64) for name, own in classes.items() if len(np.asarray(own))}

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        boxes = [_box(own) for own in values.values()]
        drawn = axes.bxp(
            boxes, orientation="horizontal", widths=0.55, patch_artist=True, positions=list(range(len(boxes))),
            manage_ticks=False, medianprops={"color": INK, "linewidth": 2}, flierprops={"markersize": 3},
        )  # fmt: skip
        for place, box in enumerate(drawn["boxes"]):
            box.set(facecolor=line_style(place).colour, alpha=0.45, edgecolor=INK, linewidth=0.9)
        _named_rows(axes, list(values))
        axes.set(xlabel="mean intensity (0–1)")

    said = ", ".join(f"{name} {number(float(np.median(own)))}" for name, own in values.items())
    description = f"Medians of the mean intensity: {said}. The table below holds the quartiles."
    return draw("intensity-boxes", "Box plots of mean intensity", description, 70 + 44 * len(values), paint)


def forest_figure(key: str, title: str, rows: Sequence[ForestRow], across: str, reference: float | None) -> str:
    """Values with intervals, one line each, under the names of their groups.

    Args:
        key: Of the chart.
        title: What it is.
        rows: From top to bottom.
        across: What is shown.
        reference: Where the vertical line stands, such as the figure of all; None for none.
    """
    lines: list[tuple[str, ForestRow | None]] = []
    for row in rows:
        if row.group and row.group not in [own.group for _, own in lines if own]:
            lines.append((row.group, None))
        lines.append((row.name, row))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(False, axis="y")
        if reference is not None:
            axes.axvline(reference, color=QUIET, linewidth=1, linestyle=(0, (4, 2)))
        for place, (_, own) in enumerate(lines):
            if own is not None and own.value is not None:
                colour = VERMILLION if own.marked else BLUE
                _whisker(axes, own, place, colour)
                axes.plot(own.value, place, "s", color=colour, markerfacecolor="#ffffff" if own.marked else colour)
            elif own is not None:
                axes.text(0.5, place, ABSENT, transform=axes.get_yaxis_transform(), ha="center", va="center")
        _named_rows(axes, [name for name, _ in lines])
        for tick, (_, own) in zip(axes.get_yticklabels(), lines, strict=True):
            tick.set_fontweight("normal" if own else "bold")
        axes.set(xlabel=across)
        axes.tick_params(axis="y", length=0)

    said = ", ".join(f"{row.name} {number(row.value)}" for row in rows if row.value is not None)
    return draw(key, title, f"{across}: {said or 'nothing is defined'}.", 64 + 23 * len(lines), paint)


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=GRID)


def _whisker(axes: Axes, row: ForestRow, place: int, colour: str) -> None:
    """The interval of one line."""
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4, marker="|", markersize=6)


def _box(values: Floats) -> dict[str, object]:
    """What a box plot is drawn from (Tukey, Exploratory Data Analysis, 1977)."""
    first, middle, third = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (third - first)
    within = values[(values >= first - reach) & (values <= third + reach)]
    outside = np.sort(values[(values < first - reach) | (values > third + reach)])
    shown = outside[np.unique(np.linspace(0, len(outside) - 1, min(len(outside), MOST_OUTLIERS)).astype(int))]
    return {
        "q1": first,
        "med": middle,
        "q3": third,
        "whislo": within.min(),
        "whishi": within.max(),
        "fliers": shown,
    }


def _fullest(steps: Steps) -> str:
    fullest = int(np.argmax(steps.counts))
    return f"{steps.edges[fullest]:.2f} to {steps.edges[fullest + 1]:.2f}"
