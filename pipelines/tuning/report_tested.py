"""What test.html says: the best point of each backbone on the test part, opened once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.content import Evaluated
from pipelines.evaluation.curves import roc_curve
from pipelines.evaluation.plots import MOST_CLASSES, Curve, confusion_figure, roc_figure
from pipelines.evaluation.report import KeyFigure
from pipelines.evaluation.report_blocks import (
    AT_CLASS,
    FIGURE_LABELS,
    OF_PROBABILITIES,
    Block,
    Cell,
    Drawing,
    Drawings,
    Part,
    Section,
    Table,
    TableMaker,
    Words,
)
from pipelines.evaluation.report_numbers import ABSENT, clause, figure_text, interval, number, per_cent, whole
from pipelines.training.published import FIGURE_NAMES, Figures
from pipelines.tuning.page_content import TestContent
from pipelines.tuning.page_words import counted, listed, metric_text, setting_text
from pipelines.tuning.report_tables import STUDY_FIGURES

ONCE = "The search has opened the test part once, and takes no further points."
COMPARED = (
    "All backbones are tested on the same images, but no test between them is made here: where their intervals "
    "overlap, one being ahead of another may be chance. evaluate --against compares two of them image by image."
)
MOST_CONCERNS = 8
_FEW_CLASSES = 4
"""Up to so many, two matrices stand beside each other."""
_PAPER_NAMES = {own: paper for paper, own in FIGURE_NAMES.items()}


def head(content: TestContent) -> Evaluated:
    """Title, one paragraph, what to be careful about."""
    metrics = next(iter(content.tested.values())).metrics
    images = ", ".join(f"{name} {whole(own['n'])}" for name, own in metrics["per_class"].items())
    said = (
        f"The best point of {listed(list(content.tested))}, chosen among {counted(content.points, 'point')} by "
        f"{metric_text(content.metric)} on validation, on the test part of {content.data}: {whole(metrics['n'])} "
        f"images ({images}). {ONCE}"
    )
    title = f"{content.name}: search {content.search} on the test part"
    return Evaluated(title, content.name, said, _concerns(content), content.provenance)


def key_figures(content: TestContent) -> tuple[KeyFigure, ...]:
    """The metric of the search for each backbone."""
    found = []
    for backbone, one in content.tested.items():
        figure = one.metrics["overall"][content.metric]
        reason = "" if figure["value"] is not None else f"Undefined: {clause(str(figure.get('reason') or ''))}"
        ends = "" if reason else interval(figure.get("low"), figure.get("high"))
        basis = f"{metric_text(content.metric)}, {whole(one.metrics['n'])} test images"
        found.append(KeyFigure(backbone, number(figure["value"]), ends, basis, reason))
    return tuple(found)


def sections(content: TestContent) -> tuple[Section, ...]:
    """Everything below the head."""
    return _table_1(content), _curves(content), _matrices(content), _points(content), _provenance(content)


def _concerns(content: TestContent) -> tuple[str, ...]:
    """What the backbones' own reports say: what is said of most of them first, each sentence once."""
    said: dict[str, list[str]] = {}
    for backbone, one in content.tested.items():
        for sentence in one.metrics.get("concerns", ()):
            said.setdefault(sentence, []).append(backbone)
    found = [*content.concerns, *([COMPARED] if len(content.tested) > 1 else [])]
    in_order = sorted(said.items(), key=lambda one: -len(one[1]))
    for sentence, backbones in in_order[:MOST_CONCERNS]:
        whose = "" if len(backbones) == len(content.tested) else f" ({', '.join(backbones)})"
        found.append(f"{sentence}{whose}")
    if len(in_order) > MOST_CONCERNS:
        found.append(f"{whole(len(in_order) - MOST_CONCERNS)} more sentences stand in the backbones' own reports.")
    return tuple(found)


def _table_1(content: TestContent) -> Section:
    """The study's figures, a column for each backbone, the paper's own under ours."""
    maker = TableMaker("table-1", "The best point of each backbone, with 95 % intervals", ["", *content.tested])
    theirs = {backbone: _published(content, backbone) for backbone in content.tested}
    for name in dict.fromkeys((*STUDY_FIGURES, content.metric)):
        maker.add(FIGURE_LABELS[name], [one.metrics["overall"][name] for one in content.tested.values()])
        paper = [_paper_figure(theirs[backbone], name) for backbone in content.tested]
        if any(text != ABSENT for text in paper):
            maker.add(f"{FIGURE_LABELS[name]}, published", paper)
    blocks: list[Block] = [Words(_what_it_is(next(iter(content.tested.values())).metrics)), maker.made()]
    if content.published and any(theirs.values()):
        sizes = sorted({one.images for one in theirs.values() if one})
        blocks.append(
            Words(
                f"Published: {content.published.source}, {listed([whole(size) for size in sizes])} test images. "
                "The data differ: other images, another split and other patients, so the numbers are no contest."
            )
        )
    basis = f"{AT_CLASS}; areas {OF_PROBABILITIES}"
    return Section("table-1-section", "The best of each backbone", basis, tuple(blocks))


def _what_it_is(metrics: Mapping[str, Any]) -> str:
    classes, positive = metrics["classes"], metrics["positive_classes"]
    if len(classes) == 2:
        return f"Precision, recall, F1 and ROC AUC are those of {positive[0]} against the other class, called at 0.5."
    return "Precision, recall, F1 and ROC AUC are unweighted means of each class against the rest."


def _curves(content: TestContent) -> Section:
    """A ROC curve for each backbone in one chart."""
    curves, absent = [], []
    for backbone, one in content.tested.items():
        positive, figure = one.metrics["positive_classes"], one.metrics["positive_vs_rest"]["roc_auc"]
        truth = np.isin(np.array(one.predictions["label"].to_pylist(), object), positive)
        across, up, _ = roc_curve(one.predictions["p_positive"].to_numpy(), truth)
        if len(across):
            curves.append(Curve(backbone, across, up, figure_text(figure)))
        else:
            absent.append(backbone)
    blocks: list[Block] = []
    if curves:
        named = listed(next(iter(content.tested.values())).metrics["positive_classes"])
        caption = f"{named} against the rest; area with its 95 % interval."
        blocks.append(Drawings((Drawing(roc_figure(curves, None), caption),)))
    if absent:
        blocks.append(Words(f"No ROC curve of {listed(absent)}: only one kind of image is there."))
    return Section("roc-section", "ROC curves", OF_PROBABILITIES, tuple(blocks))


def _matrices(content: TestContent) -> Section:
    """A confusion matrix for each backbone: a chart, its counts, and the paper's."""
    parts = []
    for place, (backbone, one) in enumerate(content.tested.items(), start=1):
        matrix, classes = one.metrics["confusion_matrix"], one.metrics["classes"]
        blocks: list[Block] = [
            _counts(f"counts-{place}", f"{backbone}: counts and per cent of the row", matrix, classes)
        ]
        if len(classes) <= MOST_CLASSES:
            chart = confusion_figure(matrix, classes, f"confusion-{place}")
            blocks.insert(0, Drawings((Drawing(chart, "Darker: a greater share of the row."),)))
        paper = _published(content, backbone)
        if paper and paper.confusion_matrix and content.published:
            names = [known.name for known in content.published.classes]
            caption = f"{backbone} as {content.published.source} reports it"
            blocks.append(_counts(f"published-counts-{place}", caption, paper.confusion_matrix, names))
        parts.append(Part(backbone, "", tuple(blocks), narrow=len(classes) <= _FEW_CLASSES))
    return Section("matrices", "Confusion matrices", AT_CLASS, (), tuple(parts))


def _counts(key: str, caption: str, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    maker = TableMaker(key, f"{caption}; rows are true classes, columns predicted ones", ["true class", *classes])
    for name, row in zip(classes, matrix, strict=True):
        shares = [count / sum(row) if sum(row) else 0.0 for count in row]
        maker.add(
            name, [Cell(whole(count), per_cent(share), shade=share) for count, share in zip(row, shares, strict=True)]
        )
    return maker.made()


def _points(content: TestContent) -> Section:
    """The settings that were tested, and those that the paper found best."""
    keys = list(dict.fromkeys(key for one in content.tested.values() for key in one.settings if key != "backbone"))
    maker = TableMaker("points", "Settings of the best point, as chosen on validation", ["Key", *content.tested])
    for key in keys:
        texts = [setting_text(one.settings[key]) if key in one.settings else ABSENT for one in content.tested.values()]
        maker.add(key, texts)
    best = (
        {}
        if not (content.published and content.published.grid)
        else {
            one.backbone: {"learning_rate": one.best_learning_rate, "epochs": one.best_epochs}
            for one in content.published.grid.backbones
        }
    )
    for key in ("learning_rate", "epochs"):
        if key in keys and any(backbone in best for backbone in content.tested):
            maker.add(
                f"{key}, published",
                [setting_text(best[backbone][key]) if backbone in best else ABSENT for backbone in content.tested],
            )
    words = Words(f"Everything else is as in the recipe {content.recipe}.")
    return Section("points-section", "What was tested", "", (maker.made(), words) if keys else (words,))


def _provenance(content: TestContent) -> Section:
    maker = TableMaker("provenance-values", "What made this page", ["", "Value"])
    for name, value in content.provenance:
        maker.add(name, [Cell(value, plain=True)])
    return Section("provenance", "Provenance", "", (maker.made(),))


def _published(content: TestContent, backbone: str) -> Figures | None:
    """The paper's figures of a backbone on its test part."""
    figures = content.published.figures if content.published else ()
    return next((one for one in figures if one.backbone == backbone and one.part == "test"), None)


def _paper_figure(figures: Figures | None, name: str) -> str:
    return number(figures.values.get(_PAPER_NAMES.get(name, ""))) if figures else ABSENT
