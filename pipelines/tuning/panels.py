"""What the study's figure shows: for each backbone, lines of the metric over epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.evaluation.metrics import LOWER_IS_BETTER
from pipelines.training.history import VALIDATION_COLUMNS, Row
from pipelines.training.recipe_rules import Value
from pipelines.tuning.page_words import setting_text
from pipelines.tuning.shown_points import (
    ShownPoint,
    as_number,
    backbones_of,
    best_of,
    values_of,
    varied_keys,
)

MOST_LINES = 8
"""Lines that a chart can tell apart; of more values, the best have lines of their own and the others are grey."""


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        style: Place among the lines that have a colour, the same in every panel; None for a grey one.
        epochs: Across, rising.
        values: Of the metric; NaN for none.
    """

    style: int | None
    epochs: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """The lines of one backbone.

    Attributes:
        backbone: Its name.
        lines: In the order of their values.
        best: Epoch and value of its best point; None where it has none.
        best_settings: That point's, without the backbone; empty where it has none.
        leads: Whether that point is the best of the whole search.
    """

    backbone: str
    lines: tuple[Line, ...]
    best: tuple[float, float] | None
    best_settings: Mapping[str, Value]
    leads: bool


@dataclass(frozen=True)
class Panels:
    """The whole figure.

    Attributes:
        metric: Up.
        line_key: The key that tells lines apart; None where there is one line a panel.
        names: What the lines with a colour are called, in the order of their styles.
        others: How many values are grey.
        read_off: Whether across stand numbers of epochs of the grid, and not the epochs of one training.
        folded: Further varied keys: of their values each place shows the best.
        panels: A panel for each backbone that has anything to show.
    """

    metric: str
    line_key: str | None
    names: tuple[str, ...]
    others: int
    read_off: bool
    folded: tuple[str, ...]
    panels: tuple[Panel, ...]

    @property
    def limits(self) -> tuple[float, float]:
        """Lowest and highest value of all panels, a little wider; wider still at the best end, for the figure there."""
        values = [value for panel in self.panels for line in panel.lines for value in line.values]
        values += [panel.best[1] for panel in self.panels if panel.best]
        known = [value for value in values if not math.isnan(value)]
        room = max(0.06 * (max(known) - min(known)), 0.005)
        below, above = (3 * room, room) if self.lower_is_better else (room, 3 * room)
        return min(known) - below, max(known) + above

    @property
    def lower_is_better(self) -> bool:
        """Whether the best values stand lowest."""
        return self.metric in LOWER_IS_BETTER

    @property
    def ticks(self) -> tuple[float, ...]:
        """The numbers of epochs across, where they are of the grid."""
        return tuple(sorted({epoch for panel in self.panels for line in panel.lines for epoch in line.epochs}))


def make_panels(points: Sequence[ShownPoint], histories: Mapping[str, Sequence[Row]], metric: str) -> Panels:
    """Choose what is drawn.

    Where the grid varies `epochs`, a line joins the points of one value at their numbers of epochs; where it does not,
    a line is the history of the best point of that value.

    Args:
        points: Of the whole search.
        histories: By key of the point.
        metric: The search's.
    """
    varied = varied_keys(points)
    read_off, free = "epochs" in varied, [key for key in varied if key not in ("backbone", "epochs")]
    line_key = "learning_rate" if "learning_rate" in free else next(iter(free), None)
    values = (None,) if line_key is None else values_of(points, line_key)
    coloured = _coloured(points, line_key, values)
    leading, panels, grey = best_of(points), [], set()
    for backbone in backbones_of(points):
        own = [point for point in points if point.backbone == backbone]
        lines = []
        for value in values:
            on_line = [point for point in own if line_key is None or point.settings[line_key] == value]
            epochs, heights = _read_off(on_line) if read_off else _history(on_line, histories, metric)
            if epochs:
                lines.append(Line(coloured.get(value), epochs, heights))
                grey |= {value} - coloured.keys()
        if lines:
            panels.append(_panel(backbone, lines, best_of(own), leading, read_off))
    names = tuple(setting_text(value) for value in coloured if value is not None)
    folded = tuple(key for key in free if key != line_key)
    return Panels(metric, line_key, names, len(grey), read_off, folded, tuple(panels))


def _coloured(
    points: Sequence[ShownPoint], line_key: str | None, values: Sequence[Value | None]
) -> dict[Value | None, int]:
    """Which values have a line of their own, and its style: all, or the best `MOST_LINES` less one."""
    if line_key is None or len(values) <= MOST_LINES:
        return {value: place for place, value in enumerate(values)}
    chosen: list[Value | None] = []
    left = list(points)
    while len(chosen) < MOST_LINES - 1 and (best := best_of(left)) is not None:
        chosen.append(best.settings[line_key])
        left = [point for point in left if point.settings[line_key] != chosen[-1]]
    return {value: place for place, value in enumerate(value for value in values if value in chosen)}


def _read_off(points: Sequence[ShownPoint]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numbers of epochs and the best value at each; a point that was stopped has no value of its number."""
    done = [point for point in points if point.is_done]
    found = []
    for count in values_of(done, "epochs"):
        best = best_of(point for point in done if point.settings["epochs"] == count)
        if best is not None:
            found.append((as_number(count), best.value))
    return tuple(epoch for epoch, _ in found), tuple(value for _, value in found)


def _history(
    points: Sequence[ShownPoint], histories: Mapping[str, Sequence[Row]], metric: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Epochs and values of the best of some points."""
    best = best_of(points)
    rows = histories.get(best.key, ()) if best else ()
    column = VALIDATION_COLUMNS[metric]
    return tuple(row["epoch"] for row in rows), tuple(float(row.get(column, math.nan)) for row in rows)


def _panel(
    backbone: str, lines: Sequence[Line], best: ShownPoint | None, leading: ShownPoint | None, read_off: bool
) -> Panel:
    if best is None:
        return Panel(backbone, tuple(lines), None, {}, False)
    at = as_number(best.settings["epochs"]) if read_off and best.is_done else float(best.row["kept_epoch"])
    settings = {key: value for key, value in best.settings.items() if key != "backbone"}
    return Panel(backbone, tuple(lines), (at, best.value), settings, best is leading)
