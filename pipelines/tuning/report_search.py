"""What search.html says: head, figures, and its sections in order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipelines.evaluation.content import Evaluated
from pipelines.evaluation.report import KeyFigure
from pipelines.evaluation.report_blocks import Cell, Drawing, Drawings, Part, Section, Table, TableMaker, Words
from pipelines.evaluation.report_numbers import ABSENT, interval, number, whole
from pipelines.tuning.page_content import SearchContent
from pipelines.tuning.page_words import (
    counted,
    listed,
    metric_text,
    seconds_text,
    setting_text,
    settings_text,
    title_text,
)
from pipelines.tuning.panels import Panels, make_panels
from pipelines.tuning.plots_grid import MOST_COLUMNS, MOST_ROWS, map_figure, panel_figure, panel_said
from pipelines.tuning.plots_many import MOST_KEYS, MOST_LINES, parallel_figure
from pipelines.tuning.points import FAILED, STOPPED
from pipelines.tuning.report_tables import MOST_NEAR, TALL_FROM, backbone_section, leaderboard_section
from pipelines.tuning.shown_points import (
    ShownPoint,
    backbones_of,
    values_of,
    varied_keys,
)

CHOSEN = (
    "The points were compared on the validation images, and so the figures of the best one are those of images that "
    "chose it: they are too good, the more so the more points there are. What it is worth can be told only by images "
    "that chose nothing, such as the test part."
)


def head(content: SearchContent, points: Sequence[ShownPoint]) -> Evaluated:
    """Title, one paragraph, what to be careful about."""
    best = next((point for point in points if point.key == content.best), None)
    images = {part: sum(classes.values()) for part, classes in content.counts.items()}
    split = ", ".join(f"{part} {whole(count)}" for part, count in images.items())
    how = "every combination of" if content.random is None else "drawn at random over"
    said = [
        f"{counted(len(points), 'point')}, {how} {listed(list(content.searched))} with all else as in the recipe "
        f"{content.recipe}, on {whole(sum(images.values()))} labelled images of {content.data} ({split}): "
        f"{counted(content.trainings, 'training')} and {counted(content.passes, 'feature pass', 'es')} in "
        f"{seconds_text(content.seconds)}, compared by {metric_text(content.metric)} on validation, seed "
        f"{content.seed}."
    ]
    if best is None:
        said.append("No point has a value.")
    else:
        settings = settings_text(best.settings, list(best.settings))
        said.append(f"The best has {metric_text(content.metric)} {number(best.value)} at {settings}.")
    if content.registered:
        said.append(f"It is the version {content.registered}{_promoted(content.promoted)}.")
    title = f"{content.name}: search {content.search}"
    return Evaluated(title, content.name, " ".join(said), _concerns(content, points), content.provenance)


def key_figures(content: SearchContent, points: Sequence[ShownPoint]) -> tuple[KeyFigure, ...]:
    """The best value, its lead, how many share it, and what the search cost."""
    best = next((point for point in points if point.key == content.best), None)
    name, sure = f"Best {metric_text(content.metric)}", content.sureness
    if best is None:
        first = KeyFigure(name, ABSENT, "", "on validation", "Undefined: no point has a value.")
    else:
        first = KeyFigure(name, number(best.value), "", f"on validation, {_where(best, points)}", "")
    second = next((one for one in points if sure and sure.second and one.key == sure.second.point), None)
    if sure is None or sure.second is None or second is None:
        lead = KeyFigure("Lead over the second", ABSENT, "", "on validation", "Undefined: nothing could be compared.")
        shared = KeyFigure("Not told apart from it", ABSENT, "", "points", "Undefined: nothing could be compared.")
    else:
        ends = "" if math.isnan(sure.second.low) else interval(sure.second.low, sure.second.high)
        lead = KeyFigure("Lead over the second", number(sure.second.difference), ends, _where(second, points), "")
        shared = KeyFigure(
            "Not told apart from it", whole(len(sure.near)), "", f"of {whole(sure.compared)} compared", ""
        )
    cost = KeyFigure("Trainings", whole(content.trainings), "", f"answer {counted(len(points), 'point')}", "")
    return first, lead, shared, cost


def sections(content: SearchContent, points: Sequence[ShownPoint]) -> tuple[Section, ...]:
    """Everything below the head."""
    found = [_sureness(content, points), _over_epochs(content, points)]
    settings = _settings(content, points)
    found += [settings] if settings else []
    found += [
        backbone_section(content, points),
        leaderboard_section(content, points),
        _searched(content),
        _provenance(content),
    ]
    return tuple(found)


def _concerns(content: SearchContent, points: Sequence[ShownPoint]) -> tuple[str, ...]:
    """What holds of every search, what became of this one's points, and what the search itself says."""
    found = [CHOSEN] if content.best is not None and len(points) > 1 else []
    statuses = [point.status for point in points]
    failed, stopped = statuses.count(FAILED), statuses.count(STOPPED)
    waiting = sum(math.isnan(point.value) and point.status not in (FAILED, STOPPED) for point in points)
    everything = f"of {counted(len(points), 'point')}"
    if failed:
        found.append(f"{whole(failed)} {everything} failed; their reasons stand under the leaderboard.")
    if stopped:
        found.append(
            f"{whole(stopped)} {everything} were stopped early by the scheduler ({content.scheduler}) and are judged "
            "by fewer epochs than they asked for."
        )
    if waiting:
        found.append(f"{whole(waiting)} {everything} have no answer yet: this page is of a search under way.")
    return (*found, *content.concerns)


def _sureness(content: SearchContent, points: Sequence[ShownPoint]) -> Section:
    """The sentence, and the points that share the first place."""
    title, sure = "How sure the ranking is", content.sureness
    if sure is None:
        return Section("sureness", title, "", (Words("There are no two points with answers to compare."),))
    shown, keys = {point.key: point for point in points}, varied_keys(points)
    maker = TableMaker(
        "near", "Not told apart from the best, the nearest first", ["Rank", *keys, "Value", "The best is better by"]
    )
    for near in sure.near[:MOST_NEAR]:
        point = shown[near.point]
        cells = [Cell(setting_text(point.settings[key]), plain=True) for key in keys]
        ends = {"low": None, "high": None} if math.isnan(near.low) else {"low": near.low, "high": near.high}
        difference = {"value": near.difference, "reason": "No resample defines it.", **ends}
        maker.add(point.rank, [*cells, number(point.value), difference])
    method = (
        f"Differences are of pairs: both points answer the same validation images. Intervals are 95 % for all "
        f"{whole(sure.compared)} comparisons together, because the best was chosen among them, by resamples of "
        f"{whole(sure.groups)} groups (images of one patient, copies and near-duplicates are drawn together). A point "
        "whose interval reaches 0 is not told apart from the best."
    )
    more = len(sure.near) - MOST_NEAR
    rest = (Words(f"{whole(more)} more are not told apart and not shown."),) if more > 0 else ()
    table: tuple[Table, ...] = (maker.made(tall=len(sure.near) > TALL_FROM),) if sure.near else ()
    return Section("sureness", title, "on validation", (Words(sure.sentence), *table, *rest, Words(method)))


def _over_epochs(content: SearchContent, points: Sequence[ShownPoint]) -> Section:
    """The study's figure."""
    panels = make_panels(points, content.histories, content.metric)
    name = metric_text(content.metric)
    title = f"{title_text(name)} over epochs"
    if not panels.panels:
        return Section("epochs", title, "", (Words("No point has a value, so nothing is drawn."),))
    charts = [Drawing(panel_figure(panels, panel), panel_said(panels, panel)) for panel in panels.panels]
    return Section("epochs", title, "on validation", (Words(_how_drawn(panels)), Drawings(tuple(charts))))


def _how_drawn(panels: Panels) -> str:
    """What a line is, and what is left out of it."""
    each = "A panel for each backbone, all on one scale. " if len(panels.panels) > 1 else ""
    what = f"for each value of {panels.line_key}" if panels.line_key else "for the search"
    if panels.read_off:
        text = f"{each}One line {what}, through its points at their numbers of epochs"
    else:
        text = f"{each}One line {what}, epoch by epoch, of its best point"
    if panels.folded and panels.read_off:
        text += f"; of several {listed(panels.folded)}, the best is shown"
    if panels.others:
        text += f"; the {len(panels.names)} values of the best points have colours, the others are grey"
    return f"{text}. The ring is the best point of the panel."


def _settings(content: SearchContent, points: Sequence[ShownPoint]) -> Section | None:
    """A map of two keys, or all keys at once; None where the figure over epochs already says all."""
    scored = [point for point in points if not math.isnan(point.value)]
    varied = varied_keys(scored)
    free = [key for key in varied if key not in ("backbone", "epochs")]
    if not scored or len(varied) < 2 or (len(free) < 2 and content.random is None):
        return None
    sizes = sorted(len(values_of(scored, key)) for key in free)
    if content.random is None and len(free) == 2 and sizes[0] <= MOST_COLUMNS and sizes[1] <= MOST_ROWS:
        return _maps(content, scored, (free[0], free[1]))
    near = {one.point for one in content.sureness.near} if content.sureness else set()
    chart = parallel_figure(scored, varied, content.metric, near)
    caption = "Each line is a point; it crosses each axis at its value, and the last one at what it reached."
    if len(varied) > MOST_KEYS:
        caption += f" The first {MOST_KEYS} keys are drawn."
    if len(scored) > MOST_LINES:
        caption += f" The best {MOST_LINES} points are drawn."
    return Section("settings", "All settings at once", "on validation", (Drawings((Drawing(chart, caption),)),))


def _maps(content: SearchContent, points: Sequence[ShownPoint], keys: tuple[str, str]) -> Section:
    """A map for each backbone."""
    charts = []
    for place, backbone in enumerate(backbones_of(points), start=1):
        own = [point for point in points if point.backbone == backbone]
        caption = f"{backbone}. Darker is better; the frame is the best."
        charts.append(Drawing(map_figure(f"map-{place}", own, keys, content.metric), caption))
    words = f"The best {metric_text(content.metric)} at each pair of values of {keys[0]} and {keys[1]}."
    return Section("settings", f"{keys[0]} by {keys[1]}", "on validation", (Words(words), Drawings(tuple(charts))))


def _searched(content: SearchContent) -> Section:
    """Keys and values, images, work."""
    keys = TableMaker("searched-keys", "Keys of the grid", ["Key", "Values"])
    for key, text in content.searched.items():
        keys.add(key, [Cell(text, plain=True)])
    classes = list(dict.fromkeys(name for part in content.counts.values() for name in part))
    images = TableMaker("searched-images", "Images of each class by part of the split", ["Class", *content.counts])
    for name in classes:
        images.add(name, [whole(part.get(name, 0)) for part in content.counts.values()])
    images.add("in all", [whole(sum(part.values())) for part in content.counts.values()])
    work = TableMaker("searched-work", "The work", ["", "Value"])
    for name, text in (
        ("Data", content.data),
        ("Recipe", content.recipe),
        ("Points", whole(len(content.points)) + (" drawn at random" if content.random is not None else "")),
        ("Trainings that answer them", whole(content.trainings)),
        ("Distinct feature passes", whole(content.passes)),
        ("Scheduler", content.scheduler),
        ("Metric", metric_text(content.metric)),
        ("Seed", str(content.seed)),
        ("Time", seconds_text(content.seconds)),
    ):
        work.add(name, [Cell(text, plain=True)])
    same = Words(
        "All points have the same split and the same seed; the test part was not looked at. Everything that the grid "
        f"does not name is as in the recipe {content.recipe}."
    )
    parts = (
        Part("Grid", "", (keys.made(),), narrow=True),
        Part("Work", "", (work.made(),), narrow=True),
        Part("Images", "", (images.made(),)),
    )
    return Section("searched", "What was searched, and on what", "", (same,), parts)


def _provenance(content: SearchContent) -> Section:
    maker = TableMaker("provenance-values", "What made this page", ["", "Value"])
    for name, value in content.provenance:
        maker.add(name, [Cell(value, plain=True)])
    return Section("provenance", "Provenance", "", (maker.made(),))


def _where(point: ShownPoint, points: Sequence[ShownPoint]) -> str:
    return settings_text(point.settings, varied_keys(points)) or "the only point"


def _promoted(promoted: bool) -> str:
    return ", which is the champion now" if promoted else ", not promoted"
