"""The tables of search.html: the backbones, the leaderboard, and what failed or ended early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pipelines.evaluation.report_blocks import FIGURE_LABELS, Block, Cell, Part, Section, Table, TableMaker, Words
from pipelines.evaluation.report_numbers import ABSENT, number, whole
from pipelines.training.published import FIGURE_NAMES, Grid
from pipelines.tuning.page_content import BackboneRow, SearchContent
from pipelines.tuning.page_words import seconds_text, setting_text
from pipelines.tuning.points import DONE, FAILED
from pipelines.tuning.shown_points import ShownPoint, varied_keys

MOST_ROWS = 50
"""Of the leaderboard that the page shows; leaderboard.csv has all."""
MOST_NEAR = 20
TALL_FROM = 12
"""Rows above which a table scrolls in a box of its own."""
STUDY_FIGURES = ("accuracy", "ppv", "sensitivity", "f1", "roc_auc")
"""Those of the study's first table, in its order."""
_BESIDE = ("accuracy", "roc_auc", "log_loss")


def backbone_section(content: SearchContent, points: Sequence[ShownPoint]) -> Section:
    """What each backbone is, cost and reached, a column each."""
    shown = {point.key: point for point in points}
    rows = content.backbones
    if not rows:
        return Section("backbones", "Backbones", "", (Words("Nothing is known of the backbones."),))
    best = [shown[row.best] if row.best else None for row in rows]
    maker = TableMaker("backbones-table", "The best point of each backbone", ["", *(row.backbone for row in rows)])
    words: tuple[tuple[str, Callable[[BackboneRow], str]], ...] = (
        ("Weights to start from", lambda row: row.weights),
        ("Parameters", lambda row: ABSENT if row.parameters is None else whole(row.parameters)),
        ("Size, MB", lambda row: ABSENT if row.megabytes is None else f"{row.megabytes:,.1f}"),
        ("Points", lambda row: whole(row.points)),
        ("Trainings", lambda row: whole(row.trainings)),
        ("Feature pass time", lambda row: ABSENT if row.feature_seconds is None else seconds_text(row.feature_seconds)),
        ("Training time", lambda row: seconds_text(row.training_seconds)),
    )
    for name, text in words:
        maker.add(name, [text(row) for row in rows])
    keys = [key for key in varied_keys(points) if key != "backbone"]
    for key in keys:
        maker.add(f"Best {key}", [setting_text(one.settings[key]) if one else ABSENT for one in best])
    for metric in dict.fromkeys((content.metric, *STUDY_FIGURES)):
        maker.add(FIGURE_LABELS[metric], [number(one.kept(metric)) if one else ABSENT for one in best])
    ranges = [_range(points, row.backbone) for row in rows]
    maker.add(f"{FIGURE_LABELS[content.metric]}, lowest–highest of its points", ranges)
    if any(row.bundle for row in rows):
        maker.add("Kept as", [row.bundle or ABSENT for row in rows])
    blocks: list[Block] = [maker.made()]
    if content.published and content.published.grid:
        blocks += _published_grid(content.published.source, content.published.grid, rows)
    return Section("backbones", "Backbones", "figures on validation, without intervals", tuple(blocks))


def leaderboard_section(content: SearchContent, points: Sequence[ShownPoint]) -> Section:
    """The first rows, and what has no place among them."""
    ranked = [point for point in points if not math.isnan(point.value)]
    blocks: tuple[Block, ...]
    if not ranked:
        blocks = (Words("No point has a value, so none has a rank."),)
    else:
        blocks = (_leaderboard(content, ranked, varied_keys(points)),)
    others = [point for point in points if point.status != DONE]
    parts = (_others(others, varied_keys(points)),) if others else ()
    return Section("leaderboard", "Leaderboard", "on validation, at the epoch whose weights are kept", blocks, parts)


def _leaderboard(content: SearchContent, ranked: Sequence[ShownPoint], keys: Sequence[str]) -> Table:
    more = len(ranked) - MOST_ROWS
    caption = f"The first {MOST_ROWS} of {whole(len(ranked))} points; leaderboard.csv has all" if more > 0 else ""
    beside = [name for name in _BESIDE if name != content.metric]
    header = ["Rank", *keys, FIGURE_LABELS[content.metric], *(FIGURE_LABELS[name] for name in beside)]
    maker = TableMaker(
        "leaderboard-table", caption or "All points that have a value", [*header, "Epoch kept", "Seconds", "Status"]
    )
    for point in ranked[:MOST_ROWS]:
        shade = 0.5 if point.key == content.best else None
        settings = [Cell(setting_text(point.settings[key]), plain=True) for key in keys]
        figures = [Cell(number(point.value), shade=shade), *(Cell(number(point.kept(name))) for name in beside)]
        ends = [Cell(whole(point.row["kept_epoch"])), Cell(_seconds(point)), Cell(point.status, plain=True)]
        maker.add(point.rank, [*settings, *figures, *ends])
    return maker.made(tall=len(ranked) > TALL_FROM)


def _others(others: Sequence[ShownPoint], keys: Sequence[str]) -> Part:
    """Points that failed, were stopped or wait, with what is known of why."""
    maker = TableMaker("others", "Points without all their epochs", ["Status", *keys, "Epochs run", "Reason"])
    in_order = sorted(others, key=lambda point: point.status != FAILED)
    for point in in_order[:MOST_ROWS]:
        settings = [Cell(setting_text(point.settings[key]), plain=True) for key in keys]
        ends = [Cell(whole(point.row["epochs_run"])), Cell(_reason(point), plain=True)]
        maker.add(point.status, [*settings, *ends])
    blocks: list[Block] = [maker.made(tall=len(in_order) > TALL_FROM)]
    if len(in_order) > MOST_ROWS:
        blocks.append(Words(f"{whole(len(in_order) - MOST_ROWS)} more stand in leaderboard.csv."))
    return Part("Failed, stopped and waiting points", "", tuple(blocks))


def _reason(point: ShownPoint) -> str:
    if point.row["error"]:
        return str(point.row["error"])
    if point.status == FAILED:
        return "No reason is known."
    return "Its turn has not come." if math.isnan(point.value) else "The scheduler ended it early."


def _range(points: Sequence[ShownPoint], backbone: str) -> str:
    values = [point.value for point in points if point.backbone == backbone and not math.isnan(point.value)]
    return f"{number(min(values))}–{number(max(values))}" if values else ABSENT


def _published_grid(source: str, grid: Grid, rows: Sequence[BackboneRow]) -> tuple[Block, ...]:
    """What the paper reports of the same backbones."""
    known = {one.backbone: one for one in grid.backbones}
    theirs = [known.get(row.backbone) for row in rows]
    if not any(theirs):
        return ()
    name = FIGURE_LABELS[FIGURE_NAMES[grid.figure]]
    maker = TableMaker("published-grid", f"As {source} reports its grid", ["", *(row.backbone for row in rows)])
    maker.add(
        f"{name}, lowest–highest",
        [f"{number(one.lowest)}–{number(one.highest)}" if one else ABSENT for one in theirs],
    )
    maker.add("Best learning_rate", [setting_text(one.best_learning_rate) if one else ABSENT for one in theirs])
    maker.add("Best epochs", [whole(one.best_epochs) if one else ABSENT for one in theirs])
    maker.add("Size, MB", [whole(one.megabytes) if one else ABSENT for one in theirs])
    words = f"The paper's figures are of its own {grid.part} images; the numbers are no contest. {grid.note}".rstrip()
    return maker.made(), Words(words)


def _seconds(point: ShownPoint) -> str:
    seconds = point.row["seconds"]
    return ABSENT if seconds is None else f"{seconds:,.1f}"
