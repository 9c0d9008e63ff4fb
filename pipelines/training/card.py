"""`MODEL_CARD.md`: what a model was made from, what it can do, what it is not for, and how to make it again.

It travels with the bundle, so it names no image and no patient, but for what the command line names.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.evaluation.intervals import Interval
from pipelines.evaluation.resampling import DRAWS
from pipelines.evaluation.thresholds import OperatingPoint, ReferBand
from pipelines.training.int8_gate import Int8Verdict
from pipelines.training.recipe_document import markdown_table
from pipelines.training.versus import Versus

WEIGHTS_LICENCES = {
    "mobilenet_v2": "Apache-2.0 (TensorFlow's authors)",
    "efficientnet_v2_b0": "Apache-2.0 (TensorFlow's authors)",
    "resnet50_v2": "MIT (Kaiming He)",
    "vgg16": "CC BY 4.0 (Visual Geometry Group, Oxford)",
}
"""Under what the ImageNet weights that Keras publishes were released, as its documentation says."""

AUDIT_WORDS = {
    "exact_copies": "images with the same bytes as another",
    "near_duplicate_pairs": "pairs of different files that show the same picture",
    "uncompared": "images too plain to find near-duplicates of",
    "across_parts": "near-duplicate pairs across parts",
    "across_labels": "near-duplicate pairs under two labels",
    "largest_group": "images of the largest group",
    "known": "images known to the predecessor",
    "left_out": "new images that no part could take, left out",
}
"""What the card calls the audit's counts; a count of another name is told by that."""


@dataclass(frozen=True)
class DataFacts:
    """The labelled images.

    Attributes:
        counts: Part of the split to class to number of images.
        groups: Part to number of groups.
        split: Where the split comes from, one sentence.
        without_patient: Images of which nothing says whose they are.
        unreadable: Images that were left out because they could not be read.
        audit: What the leak audit counted, by name.
    """

    counts: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, int]
    split: str
    without_patient: int = 0
    unreadable: int = 0
    audit: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingFacts:
    """How the weights came about.

    Attributes:
        recipe: Its name.
        source: The paper behind it in a few words; None for a recipe of nobody's.
        values: Its keys and values.
        backbone: A key of the backbones' table.
        weights: `imagenet`, `none`, or a file's name.
        start: The version that training started from, as `NAME@VERSION`; None where it started from `weights`.
        seed: Decided split, first weights, order and dropout.
        epochs: Epochs that were run.
        best_epoch: The one whose weights were kept.
    """

    recipe: str
    source: str | None
    values: Mapping[str, Any]
    backbone: str
    weights: str
    start: str | None
    seed: int
    epochs: int
    best_epoch: int


@dataclass(frozen=True)
class ValidationFacts:
    """What validation says.

    Attributes:
        figures: By name.
        intervals: 95 % interval of each; NaN where there is none.
        report: The classification report, text.
        matrix: Confusion matrix, a row for each true class.
        temperature: What the logits are divided by.
        point: The float32 scorer's threshold and refer band.
        patients: The same by unit of the bundle for patients; {} where validation knows none.
        int8: The 8-bit scorer.
        versus: The comparison with the champion.
        warnings: What a person should know before using the model.
    """

    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    report: str
    matrix: Sequence[Sequence[int]]
    temperature: float
    point: OperatingPoint
    int8: Int8Verdict
    versus: Versus
    warnings: Sequence[str]
    patients: Mapping[str, OperatingPoint] = field(default_factory=dict)


def model_card(
    name: str,
    classes: Sequence[str],
    positive: Sequence[str],
    data: DataFacts,
    training: TrainingFacts,
    validation: ValidationFacts,
    command: Sequence[str],
) -> bytes:
    """Write the card.

    Args:
        name: The model's name.
        classes: In the bundle's order.
        positive: Positive classes.
        data: The images.
        training: The weights.
        validation: The figures.
        command: The command line that made the model, secrets masked; empty where it was no command.
    """
    sections = [
        f"# {name}\n\nA classifier of single images for the batch scoring of an archive. Classes: "
        f"{', '.join(classes)}; positive: {', '.join(positive)}.\n",
        _use(),
        _data(data, classes),
        _validation(validation, classes, len(positive)),
        _operating(validation),
        _recipe(training),
        _weights(training),
        _again(command, training),
    ]
    return "\n".join(sections).encode("utf-8", "backslashreplace")


def _use() -> str:
    return """## Intended use and limits

It orders a reading list and prompts a second look. It is not a medical device: its answers are no diagnosis, and no
decision about a patient may rest on them alone.

- The figures below hold for images like those of the validation part. Another scanner, stain, age group or share of
  diseased changes them: measure on your own labelled images first.
- Epoch, temperature and threshold were chosen on validation, so expect somewhat less on images that nobody has seen.
- It gives every image one of its classes, one that shows something else as well.
"""


def _data(data: DataFacts, classes: Sequence[str]) -> str:
    rows = [
        [part, *(str(own[name]) for name in classes), str(sum(own.values())), str(data.groups[part])]
        for part, own in data.counts.items()
    ]
    audit = {AUDIT_WORDS.get(key, key.replace("_", " ")): count for key, count in data.audit.items()}
    found = {"unreadable images, left out": data.unreadable, **audit}
    patients = (
        f"For {data.without_patient:,} images nothing says whose they are: only copies were kept together, and a "
        "patient's images may stand in two parts.\n\n"
        if data.without_patient
        else ""
    )
    return (
        f"## Data\n\n{markdown_table(['part', *classes, 'images', 'groups'], rows)}\n{data.split} A group is a "
        "patient's images, copies and near-duplicates, and stays in one part. Training never looked at the "
        "test part.\n\n"
        f"{patients}{markdown_table(['found before training', 'count'], [[k, str(v)] for k, v in found.items()])}"
    )


def _validation(said: ValidationFacts, classes: Sequence[str], positive: int) -> str:
    images = sum(map(sum, said.matrix))
    of = "positive class" if len(classes) == 2 and positive == 1 else "unweighted mean of each class against the rest"
    figures = [[key, _figure(value), _interval(said.intervals.get(key))] for key, value in said.figures.items()]
    matrix = [[own, *map(str, row)] for own, row in zip(classes, said.matrix, strict=True)]
    warnings = "".join(f"**Warning:** {text}\n\n" for text in said.warnings)
    return (
        f"## Validation\n\n{warnings}On {images:,} images, by the most probable class. Sensitivity, specificity, ppv, "
        f"npv, f1, ROC AUC and average precision: {of}.\n\n"
        f"{markdown_table(['figure', 'value', '95 % interval'], figures)}\n"
        f"Intervals: {DRAWS:,} resamples of the groups, for a proportion at least Wilson's, for a ROC AUC of two "
        "classes at least Hanley and McNeil's; – where all resamples agree.\n\n"
        f"{markdown_table(['true, predicted →', *classes], matrix)}\n```\n{said.report.rstrip()}\n```\n\n"
        f"Against the champion: {said.versus.sentence()}.\n"
    )


def _operating(said: ValidationFacts) -> str:
    points = {"image": said.point}
    if said.int8.offered and said.int8.point is not None:
        points["image, int8"] = said.int8.point
    points |= {unit.replace("_int8", ", int8").replace("_", ", "): point for unit, point in said.patients.items()}
    changed = f" {said.int8.decisions_changed:,} of {said.int8.images:,} decisions differ." if said.int8.images else ""
    return (
        f"## Threshold and calibration\n\nLogits are divided by the temperature {said.temperature:.4g}, fitted on "
        f"validation.\n\n{operating_tables(points)}\n{said.int8.sentence()}{changed}\n"
    )


def operating_tables(points: Mapping[str, OperatingPoint]) -> str:
    """Thresholds and refer bands, what is referred to a person, and what that buys.

    Args:
        points: By what is decided on; at least one, all of the same targets.
    """
    first = next(iter(points.values()))
    rows = [
        [name, f"{point.threshold:.6g}", _figure(point.sensitivity), _figure(point.specificity)]
        for name, point in points.items()
    ]
    text = (
        "The threshold of p_positive, the sum over the positive classes, is the largest that reaches a sensitivity of "
        f"{first.target:g} on validation; of a patient it is that of the highest (max) or the mean p_positive of the "
        f"images.\n\n{markdown_table(['decides on', 'threshold', 'sensitivity', 'specificity'], rows)}"
    )
    bands = {name: point.band for name, point in points.items() if point.band is not None}
    if not bands:
        return text
    heads = ["decides on", "refer from", "to below", "referred", "sensitivity outside", "specificity outside"]
    limits = [
        [name, f"{band.low:.6g}", f"{band.high:.6g}", f"{band.referred:,} of {band.cases:,}", *_outside(band)]
        for name, band in bands.items()
    ]
    return (
        f"{text}\nA decision is negative below the refer band, positive from its upper end on, and refer within: then "
        "a person decides. It is the band with the fewest validation cases such that outside of it sensitivity reaches "
        f"{first.target:g} and specificity {next(iter(bands.values())).target_specificity:g}; an upper end above 1 "
        f"calls nothing positive, a lower end of 0 nothing negative.\n\n{markdown_table(heads, limits)}"
    )


def _outside(band: ReferBand) -> list[str]:
    return [_figure(band.sensitivity), _figure(band.specificity)]


def _recipe(training: TrainingFacts) -> str:
    source = f", after {training.source}" if training.source else ""
    values = "\n".join(f"{key} = {_toml(value)}" for key, value in training.values.items())
    epochs = "1 epoch" if training.epochs == 1 else f"{training.epochs:,} epochs"
    return (
        f"## Recipe\n\n`{training.recipe}`{source}; seed {training.seed}; {epochs}, the weights of epoch "
        f"{training.best_epoch:,} were kept (history.csv).\n\n```toml\n{values}\n```\n"
    )


def _weights(training: TrainingFacts) -> str:
    if training.start:
        said = f"Training started from {training.start}: the licence of its weights holds here too, see its card."
    elif training.weights == "none":
        said = "Drawn from the seed and trained on these images alone: nobody else's licence holds."
    elif training.weights == "imagenet":
        licence = WEIGHTS_LICENCES.get(training.backbone, "not known: look it up where they were published")
        said = (
            f"The backbone's first weights are those that Keras publishes for ImageNet; licence: {licence}. The "
            "ImageNet images have terms of their own, for research and education."
        )
    else:
        said = (
            f"The backbone's first weights came from the file {training.weights}; licence not known: check its source."
        )
    return f"## Licence of the weights\n\n{said}\n"


def _again(command: Sequence[str], training: TrainingFacts) -> str:
    if not command:
        return (
            f"## Make it again\n\nIt was not made by a command. The recipe above and seed {training.seed} decide it.\n"
        )
    line = shlex.join(["nightread", *command[1:]])
    return (
        f"## Make it again\n\n```sh\n{line}\n```\n\nThe same images, the recipe above and seed {training.seed} decide "
        "the arrays; versions of the libraries stand in bundle.json. An earlier version in MODELS decides the split, "
        "unless --new-split is said.\n"
    )


def _interval(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return "–"
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
