"""Charts of what a model answers: curves, confusion, calibration, net benefit and scores. Each is an SVG element.

Texts that come from data are cut to what a chart can show and escaped; the numbers themselves stand in the report's
tables, so no chart is the only place of a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.plots_canvas import (
    BLUE,
    GREEN,
    INK,
    NEGATIVE,
    POSITIVE,
    QUIET,
    draw,
    label,
    legend_below,
    line_style,
    unit_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipelines.evaluation.curves import Bin

Floats = NDArray[np.float64]

MOST_POINTS = 400
"""Points of a curve that are drawn: one is then at most half a per cent of the chart from the next."""
MOST_CLASSES = 12
"""Classes that one chart can tell apart."""
_UPRIGHT_NAMES = 4
_ROOM_FOR_SHARES = 8


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: Shown in the legend.
        across: Horizontal places.
        up: Vertical places, as many.
        figure: What the legend says after the name; "" for nothing.
    """

    name: str
    across: Floats
    up: Floats
    figure: str = ""

    def thinned(self) -> Curve:
        """The same line to the eye, by at most `MOST_POINTS` points: equal steps along it, with both ends."""
        if len(self.across) <= MOST_POINTS:
            return self
        length = np.abs(np.diff(self.across)) + np.abs(np.diff(self.up))
        along = np.concatenate([[0.0], np.cumsum(length)])
        kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], MOST_POINTS - 1)))
        kept = np.unique(np.append(kept.clip(0, len(along) - 1), len(along) - 1))
        return Curve(self.name, self.across[kept], self.up[kept], self.figure)


def roc_figure(curves: Sequence[Curve], point: tuple[float, float] | None) -> str:
    """ROC curves with the frozen threshold's place.

    Args:
        curves: False positive rate across, sensitivity up; the first `MOST_CLASSES` are drawn.
        point: False positive rate and sensitivity at the frozen threshold; None where there is none.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
        _lines(axes, curves)
        _mark(axes, point)
        unit_axes(axes, "false positive rate (1 − specificity)", "sensitivity")
        axes.set_aspect("equal", adjustable="box")
        legend_below(figure, len(curves))

    description = _said(curves, "Area under the curve", point, "false positive rate")
    return draw("roc", "ROC curve", description, _height(curves), paint)


def precision_recall_figure(curves: Sequence[Curve], point: tuple[float, float] | None) -> str:
    """Precision-recall curves with the frozen threshold's place.

    Args:
        curves: Recall across, precision up; the first `MOST_CLASSES` are drawn.
        point: Recall and precision at the frozen threshold; None where there is none.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _lines(axes, curves)
        _mark(axes, point)
        unit_axes(axes, "recall (sensitivity)", "precision (PPV)")
        axes.set_aspect("equal", adjustable="box")
        legend_below(figure, len(curves))

    description = _said(curves, "Average precision", point, "recall")
    return draw("precision-recall", "Precision-recall curve", description, _height(curves), paint)


def confusion_figure(matrix: Sequence[Sequence[int]], classes: Sequence[str], key: str = "confusion") -> str:
    """The confusion matrix: a row for each true class, counts and the per cent of the row.

    Args:
        matrix: Counts, `[K, K]`.
        classes: Names, K.
        key: Another one for each matrix of a page.
    """
    counts = np.asarray(matrix, np.int64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    many = len(classes) > _UPRIGHT_NAMES

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(False)
        axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5))
        for row, column in np.ndindex(*counts.shape):
            _cell(axes, row, column, f"{counts[row, column]:,}", float(shares[row, column]), len(classes))
        names = [label(name, 12 if many else 16) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=40 if many else 0, ha="right" if many else "center")
        axes.set_yticks(range(len(classes)), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted class", ylabel="true class")

    wrong = int(counts.sum() - counts.trace())
    description = (
        f"{int(counts.sum()):,} images in {len(classes)} classes; {int(counts.trace()):,} on the diagonal are right, "
        f"{wrong:,} are wrong. The table beside it holds every count."
    )
    return draw(key, "Confusion matrix", description, 340, paint)


def reliability_diagram(curves: Mapping[str, Sequence[Bin]], scores: ArrayLike | None = None) -> str:
    """Observed share of positives against predicted probability, with 95 % Wilson bars.

    Args:
        curves: Bins by the name of the curve, such as `before` and `after`.
        scores: Probabilities `[N]` whose histogram is drawn underneath; None for none.
    """

    def paint(figure: Figure) -> None:
        if scores is None:
            axes = figure.add_subplot()
        else:
            axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
            _histogram(below, np.asarray(scores, np.float64), QUIET)
            below.set(xlabel="predicted probability", ylabel="images")
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)), label="perfect")
        for number, (name, bins) in enumerate(curves.items()):
            _bars(axes, [one for one in bins if one.n], number, name)
        unit_axes(axes, "predicted probability" if scores is None else "", "observed share of positives")
        legend_below(figure, len(curves) + 1, columns=2)

    said = [
        f"{name}: " + ", ".join(f"{one.mean_predicted:.2f} predicted and {one.observed:.2f} observed" for one in bins)
        for name, bins in curves.items()
    ]
    return draw("reliability", "Reliability diagram", "; ".join(said) + ".", 390, paint)


def decision_figure(
    thresholds: Sequence[float], model: Sequence[float], treat_all: Sequence[float], threshold: float | None
) -> str:
    """Net benefit of deciding by the model, of calling all positive and of calling none.

    Args:
        thresholds: Probabilities from which a person would act, rising.
        model: Net benefit at each.
        treat_all: The same of calling everybody positive.
        threshold: The frozen one; None where there is none.
    """
    top = max([0.02, *model, *treat_all[:1]])

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(thresholds, treat_all, color=GREEN, linestyle=(0, (5, 2)), label="treat all")
        axes.axhline(0, color=QUIET, linestyle=(0, (1.2, 1.4)), label="treat none")
        axes.plot(thresholds, model, color=BLUE, label="model")
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=0.9, label=f"frozen threshold {threshold:.3f}")
        axes.set(xlim=(0, 1), ylim=(-0.2 * top, 1.1 * top))
        axes.set(xlabel="threshold probability", ylabel="net benefit")
        legend_below(figure, 4, columns=2)

    better = sum(own > max(every, 0) for own, every in zip(model, treat_all, strict=True))
    description = (
        f"Net benefit at {len(thresholds)} threshold probabilities; the model's is above treat all and treat none at "
        f"{better} of them."
    )
    return draw("decision-curve", "Decision curve", description, 330, paint)


def score_figure(
    scores: Mapping[str, ArrayLike], positive: Sequence[str], threshold: float | None, band: tuple[float, float] | None
) -> str:
    """Histograms of the positive classes' probability, one for each true class, above each other.

    Args:
        scores: Probabilities by the name of the true class.
        positive: Names of the positive classes.
        threshold: The frozen one; None where there is none.
        band: Where referring begins and ends; None where nobody is referred.
    """
    names = sorted(list(scores)[:MOST_CLASSES], key=lambda name: name in positive)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            is_positive = name in positive
            own = np.asarray(scores[name], np.float64)
            _histogram(axes, own, POSITIVE if is_positive else NEGATIVE, hatch="////" if is_positive else None)
            side = "positive" if is_positive else "negative"
            axes.set_title(f"{label(name)} ({side}, n = {len(own):,})", fontsize=10.5, loc="left", pad=3)
            _limits(axes, threshold, band, labelled=axes is panels[-1])
        panels[-1].set(xlabel="probability of the positive classes", xlim=(0, 1))
        figure.supylabel("images", fontsize=11)
        legend_below(figure, (threshold is not None) + (band is not None), columns=2)

    middles = [
        f"{name} {np.median(np.asarray(scores[name], np.float64)):.3f}" for name in names if np.size(scores[name])
    ]
    description = "Median probability of the positive classes by true class: " + ", ".join(middles) + "."
    return draw("scores", "Scores by class", description, 90 + 92 * len(names), paint)


def _lines(axes: Axes, curves: Sequence[Curve]) -> None:
    """Each curve in its own style, markers where the line runs long."""
    for number, curve in enumerate(curves[:MOST_CLASSES]):
        style, line = line_style(number), curve.thinned()
        axes.plot(
            line.across,
            line.up,
            color=style.colour,
            linestyle=style.dashes,
            label=f"{label(curve.name)} {curve.figure}".strip(),
        )


def _height(curves: Sequence[Curve]) -> float:
    """Of a chart of curves: the same room for the lines, however many the legend names."""
    return 340 + 16 * min(len(curves), MOST_CLASSES)


def _mark(axes: Axes, point: tuple[float, float] | None) -> None:
    if point is not None:
        axes.plot(
            *point, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.8,
            linestyle="none", label="frozen threshold", zorder=5,
        )  # fmt: skip


def _cell(axes: Axes, row: int, column: int, count: str, share: float, classes: int) -> None:
    """One square of the matrix, darker with a greater share of its row; the per cent goes where there is no room."""
    from matplotlib.patches import Rectangle

    light, dark = np.array([0.96, 0.97, 0.98]), np.array([0.40, 0.66, 0.84])  # ink can be read on both
    colour = tuple((light + (dark - light) * share).tolist())
    axes.add_patch(Rectangle((column - 0.485, row - 0.485), 0.97, 0.97, facecolor=colour, linewidth=0))
    text = (
        f"{count}\n{share * 100:.{0 if classes > _UPRIGHT_NAMES else 1}f} %" if classes <= _ROOM_FOR_SHARES else count
    )
    size = 11.0 if classes <= _UPRIGHT_NAMES else 8.5
    axes.text(column, row, text, ha="center", va="center", fontsize=size, linespacing=1.35)


def _bars(axes: Axes, bins: Sequence[Bin], number: int, name: str) -> None:
    """The points of one reliability curve with their intervals."""
    style = line_style(number)
    observed = np.array([one.observed for one in bins])
    axes.errorbar(
        [one.mean_predicted for one in bins],
        observed,
        yerr=np.abs([observed - [one.low for one in bins], [one.high for one in bins] - observed]),
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        linewidth=1.2,
        elinewidth=1,
        capsize=2.5,
        label=label(name),
    )


def _histogram(axes: Axes, values: Floats, colour: str, hatch: str | None = None) -> None:
    """Counts in forty equal steps from 0 to 1."""
    counts, edges = np.histogram(values, bins=40, range=(0, 1))
    axes.stairs(
        counts, edges, fill=True, facecolor=colour, edgecolor="#ffffff" if hatch else colour, hatch=hatch, linewidth=0
    )
    axes.stairs(counts, edges, color=colour, linewidth=0.9)
    axes.set_ylim(0, max(1.0, counts.max() * 1.08))
    axes.locator_params(axis="y", nbins=3, integer=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _limits(axes: Axes, threshold: float | None, band: tuple[float, float] | None, labelled: bool) -> None:
    """The frozen threshold as a line and the refer band as a grey field."""
    if band is not None:
        axes.axvspan(
            *band, facecolor="#8a949e", alpha=0.28, linewidth=0,
            label=f"referred {band[0]:.3f}–{band[1]:.3f}" if labelled else None,
        )  # fmt: skip
    if threshold is not None:
        axes.axvline(
            threshold, color=INK, linewidth=1.3, linestyle=(0, (4, 2)),
            label=f"frozen threshold {threshold:.3f}" if labelled else None,
        )  # fmt: skip


def _said(curves: Sequence[Curve], what: str, point: tuple[float, float] | None, across: str) -> str:
    """A curve's chart in words."""
    areas = ", ".join(f"{curve.name} {curve.figure}".strip() for curve in curves)
    placed = "" if point is None else f" The frozen threshold lies at {across} {point[0]:.3f} and {point[1]:.3f} up."
    return f"{what}: {areas}.{placed}"
