"""The report's third section: how the model was made, and what others report of theirs."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.content import PublishedWork, Sample, TrainingSection
from pipelines.evaluation.diagrams import Box, architecture_diagram, flow_diagram
from pipelines.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES
from pipelines.evaluation.plots_data import ForestRow, distribution_figure, history_figure, metric_bar_figure
from pipelines.evaluation.report_blocks import (
    AT_CLASS,
    FIGURE_LABELS,
    OF_PROBABILITIES,
    Block,
    Card,
    Cards,
    Cell,
    Drawing,
    Drawings,
    Listing,
    Part,
    Picture,
    Section,
    Table,
    TableMaker,
    Words,
)
from pipelines.evaluation.report_numbers import number, per_cent, whole

_DRAWN_HISTORY = ("loss", "accuracy", "precision", "recall")
_BARS = tuple(name for name in METRIC_NAMES if name not in LOWER_IS_BETTER)
_BAR_BASIS = f"{AT_CLASS}; areas of the probabilities"
_MOST_LAYERS = 12
"""Layers above which the table scrolls in a box of its own."""


def training_section(figures: Mapping[str, Any], training: TrainingSection | None, absent: str) -> Section:
    """History, layers, diagrams, data, samples, the figures as bars, and published work.

    Args:
        figures: metrics.json.
        training: What is known; None for nothing.
        absent: Why nothing is known.
    """
    title = "Training and model"
    if training is None:
        words = Words(f"How the model was trained is not shown. {absent}")
        return Section("training", title, "", (words,), (_bars(figures),))
    parts = [_history(training), _model(figures, training), _data(training), _samples(training), _bars(figures)]
    parts.append(_published(figures, training.published))
    words = Words(f"Trained with the recipe {training.recipe}.")
    return Section("training", title, "", (words, *_settings(training)), tuple(parts))


def embedded(jpeg: bytes, alt: str) -> Picture:
    """A JPEG as the page holds it."""
    return Picture(base64.b64encode(jpeg).decode("ascii"), alt)


def _settings(training: TrainingSection) -> tuple[Block, ...]:
    if not training.settings:
        return ()
    maker = TableMaker("recipe", f"Settings of the recipe {training.recipe}", ["Setting", "Value"])
    for key, value in training.settings.items():
        maker.add(key, [Cell(_setting(value), plain=True)])
    return (maker.made(tall=True),)


def _setting(value: Any) -> str:
    """A value of a recipe in one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(one) for one in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _history(training: TrainingSection) -> Part:
    """Four figures by epoch, and the row of the best one."""
    title, basis = "History", f"{AT_CLASS}; loss of the probabilities"
    rows = training.history
    if not rows:
        return Part(title, basis, (Words("The history of the training is not known."),))
    epochs = [float(row.get("epoch", place + 1)) for place, row in enumerate(rows)]
    charts = []
    for key in _DRAWN_HISTORY:
        lines = {
            part: np.array([float(row.get(prefix + key, math.nan)) for row in rows])
            for part, prefix in (("training", ""), ("validation", "val_"))
            if any(prefix + key in row for row in rows)
        }
        if lines:
            charts.append(
                Drawing(history_figure(key, key, epochs, lines, training.best_epoch), f"{key.capitalize()} by epoch.")
            )
    blocks: list[Block] = [Drawings(tuple(charts))] if charts else []
    best = next((row for row in rows if row.get("epoch") == training.best_epoch), None)
    if best is not None:
        maker = TableMaker("best-epoch", f"Epoch {training.best_epoch}, whose weights were kept", ["", *_DRAWN_HISTORY])
        for part, prefix in (("training", ""), ("validation", "val_")):
            maker.add(part, [number(best.get(prefix + key)) for key in _DRAWN_HISTORY])
        blocks.append(maker.made())
    blocks.append(
        Words(
            "The training figures are those of the steps as they were taken, with augmentation and dropout; those of "
            "validation are of the finished epoch, so the two lines are no like for like."
        )
    )
    return Part(title, basis, tuple(blocks))


def _model(figures: Mapping[str, Any], training: TrainingSection) -> Part:
    """Architecture, flow and layers."""
    charts = [
        Drawing(flow_diagram(_flow(figures, training)), "From the data to the decision."),
    ]
    if training.stages:
        caption = "Architecture; what training could change has a heavy frame."
        charts.insert(0, Drawing(architecture_diagram(training.stages), caption))
    blocks: list[Block] = [Drawings(tuple(charts))]
    if training.layers:
        blocks.append(_layer_table(training))
    return Part("Architecture, flow and layers", "", tuple(blocks))


def _flow(figures: Mapping[str, Any], training: TrainingSection) -> list[Box]:
    """The boxes from data to decision, as far as they are known."""
    parts = {name: sum(counts.values()) for name, counts in _in_order(training.counts).items()}
    point = figures["operating_point"]
    settings, stages = training.settings, training.stages
    layers = settings.get("trainable_layers", 0)
    boxes = [
        Box("Data", f"{whole(sum(parts.values()))} labelled images in {len(figures['classes'])} classes"),
        Box("Split", ", ".join(f"{name} {whole(count)}" for name, count in parts.items())),
        Box("Preprocessing", stages[0].detail if stages else ""),
    ]
    if "backbone" in settings:
        changed = f"last {layers} layers trained" if layers else "not trained"
        boxes.append(Box("Backbone", f"{settings['backbone']}, {changed}", strong=bool(layers)))
    boxes.append(Box("Head", _head(settings, len(figures["classes"])), strong=True))
    boxes.append(Box("Calibration", "one temperature, fitted on validation"))
    decided = f"threshold {number(point['threshold'])}" if "threshold" in point else "no threshold is frozen"
    if point.get("refer_low") is not None:
        decided += f", refer from {number(point['refer_low'])} to {number(point['refer_high'])}"
    boxes.append(Box("Decision", decided))
    return boxes


def _head(settings: Mapping[str, Any], classes: int) -> str:
    """What stands on the backbone, by the keys of a recipe."""
    pooling = {"avg": "average pooling", "max": "maximum pooling", "flatten": "flatten"}
    parts = [pooling[settings["pooling"]]] if settings.get("pooling") in pooling else []
    if settings.get("dense_units"):
        parts.append(f"dense {settings['dense_units']} {settings.get('activation', '')}".rstrip())
    if settings.get("batch_norm"):
        parts.append("batch normalisation")
    if settings.get("dropout"):
        parts.append(f"dropout {settings['dropout']:g}")
    return ", ".join([*parts, f"{classes} classes"])


def _layer_table(training: TrainingSection) -> Table:
    in_all = sum(layer.parameters for layer in training.layers)
    changed = sum(layer.parameters for layer in training.layers if layer.trainable)
    caption = f"Layers, with {whole(in_all)} parameters, {whole(changed)} of them trainable"
    maker = TableMaker("layers", caption, ["Name", "Type", "Output shape", "Trainable", "Parameters"])
    for layer in training.layers:
        words = [Cell(text, plain=True) for text in (layer.kind, layer.shape, "yes" if layer.trainable else "no")]
        maker.add(layer.name, [*words, whole(layer.parameters)])
    return maker.made(tall=len(training.layers) > _MOST_LAYERS)


def _data(training: TrainingSection) -> Part:
    """Classes with counts and per cent, and what the paper says of them."""
    counts = _in_order(training.counts)
    names = list(dict.fromkeys(name for part in counts.values() for name in part))
    totals = {name: sum(part.get(name, 0) for part in counts.values()) for name in names}
    images = max(1, sum(totals.values()))
    if not names:
        return Part("Class distribution", "", (Words("What the model was trained on is not known."),))
    described = any(training.class_descriptions.get(name) for name in names)
    header = ["Class", *counts, "in all", "per cent", *(["What it is"] if described else [])]
    maker = TableMaker("distribution-counts", "Images by class and part", header)
    for name in names:
        own = [whole(part.get(name, 0)) for part in counts.values()]
        words = [Cell(training.class_descriptions.get(name, ""), plain=True)] if described else []
        maker.add(name, [*own, whole(totals[name]), per_cent(totals[name] / images), *words])
    drawing = Drawing(distribution_figure(counts), "Images by class, the parts one after the other.")
    return Part("Class distribution", "", (Drawings((drawing, maker.made())),))


def _in_order(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
    """The parts as they are used."""
    known = ("train", "val", "test")
    return {name: counts[name] for name in (*known, *(name for name in counts if name not in known)) if name in counts}


def _samples(training: TrainingSection) -> Part:
    """Pictures of each class, and how training moves them."""
    title = "Samples and their augmentations"
    if not training.samples:
        return Part(title, "", (Words(f"No samples are shown. {training.samples_absent}".strip()),))
    cards = tuple(_sample_card(place, sample) for place, sample in enumerate(training.samples, start=1))
    moved = any(sample.moved for sample in training.samples)
    words = "The first picture of each is as the model sees it; the others are as training moved it."
    if not moved:
        words = "The pictures are as the model sees them; the recipe moves nothing."
    return Part(title, "", (Words(words), Cards("Samples of the training part", cards)))


def _sample_card(place: int, sample: Sample) -> Card:
    pictures = [
        embedded(sample.picture, f"Sample {place}: training image of class {sample.label}, as the model sees it")
    ]
    pictures += [
        embedded(jpeg, f"Sample {place}: the same image, augmentation {turn}")
        for turn, jpeg in enumerate(sample.moved, start=1)
    ]
    return Card(tuple(pictures), sample.label)


def _bars(figures: Mapping[str, Any]) -> Part:
    rows = [
        ForestRow(FIGURE_LABELS[name], own["value"], own.get("low"), own.get("high"))
        for name in _BARS
        if (own := figures["overall"].get(name)) is not None
    ]
    caption = "The figures of this evaluation with their 95 % intervals; the table above has the numbers."
    return Part("Figures as bars", _BAR_BASIS, (Drawings((Drawing(metric_bar_figure(rows), caption),)),))


def _published(figures: Mapping[str, Any], published: PublishedWork | None) -> Part:
    """The paper's figures beside ours, and its own comparison."""
    title, basis = "Published figures", f"ours {AT_CLASS}, areas and losses {OF_PROBABILITIES}"
    if published is None:
        return Part(title, basis, (Words("The recipe is no published work's, so there is nothing to set beside it."),))
    maker = TableMaker("published", f"{published.source} beside this evaluation", ["", "published", "here"])
    for name, value in published.figures.items():
        own = figures["overall"].get(name, {"value": None, "reason": "This report does not make it."})
        maker.add(FIGURE_LABELS.get(name, name), [number(value), own])
    reminder = "The data differ: other images, another split and other patients, so the numbers are no contest."
    blocks: list[Block] = [maker.made(), Words(reminder)]
    if published.remarks:
        blocks.append(Listing(tuple(published.remarks)))
    if published.compared:
        blocks.append(_compared(published.source, published.compared))
    return Part(title, basis, tuple(blocks))


def _compared(source: str, compared: Sequence[Sequence[str]]) -> Table:
    header, *rows = compared
    maker = TableMaker("compared", f"Earlier works as {source} lists them", tuple(header))
    for row in rows:
        maker.add(row[0], [Cell(text, plain=True) for text in row[1:]])
    return maker.made()
