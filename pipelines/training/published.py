"""What the paper behind a recipe reports: the table `[published]` of the recipe's file.

It is never part of a recipe: it decides nothing. The documentation, `--list-recipes` and the evaluation report show it
beside figures of our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.models.backbones import BACKBONES
from pipelines.training.recipes import PUBLISHED, parse_toml, read_recipe, recipe_names
from pipelines.training.toml_table import TomlTable

FIGURE_NAMES = {
    "accuracy": "accuracy",
    "loss": "log_loss",
    "precision": "ppv",
    "recall": "sensitivity",
    "f1": "f1",
    "roc_auc": "roc_auc",
    "pr_auc": "average_precision",
    "mcc": "mcc",
}
"""What papers call their figures, and the name in `metrics.METRIC_NAMES` of the one that is ours."""

AUTHORS = ("paper", "us")


@dataclass(frozen=True)
class Architecture:
    """The network as the paper counts it.

    Attributes:
        layers: Of backbone and head together.
        parameters: All, trained or not.
        note: What to know about the two.
    """

    layers: int
    parameters: int
    note: str = ""


@dataclass(frozen=True)
class Data:
    """The paper's images.

    Attributes:
        name: What they are.
        images: How many in all; None where nobody knows, as for the three parts.
        train: How many trained.
        validation: How many chose.
        test: How many tested.
        note: Where the paper contradicts itself, or says nothing.
    """

    name: str
    images: int | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    note: str = ""


@dataclass(frozen=True)
class ClassText:
    """A class in words.

    Attributes:
        name: As the paper calls it.
        description: One sentence on what its images show.
        written_by: `paper`, or `us` where the sentence is general knowledge and not the paper's.
        images: How many the paper has of it; None where that is not known.
    """

    name: str
    description: str
    written_by: str
    images: int | None = None


@dataclass(frozen=True)
class Figures:
    """The figures of one evaluation.

    Attributes:
        part: What was evaluated: `validation`, `test` or other words.
        backbone: A key of the backbones' table.
        images: How many.
        values: Figure by a name of `FIGURE_NAMES`; shares lie in 0-1, `mcc` in -1 to 1, `loss` is not negative.
        by_class: The same of single classes against the rest: name of the figure, then class.
        confusion_matrix: Counts, a row for each true class and a column for each predicted one, classes in the order
            of `Published.classes`; None where it is not known.
        note: What to know about them.
    """

    part: str
    backbone: str
    images: int
    values: Mapping[str, float]
    by_class: Mapping[str, Mapping[str, float]]
    confusion_matrix: tuple[tuple[int, ...], ...] | None
    note: str


@dataclass(frozen=True)
class GridBackbone:
    """One backbone's result in a grid.

    Attributes:
        backbone: A key of the backbones' table.
        megabytes: Size of its weights, as the paper gives it.
        lowest: The figure at the worst point.
        highest: The figure at the best point.
        best_learning_rate: Of the best point.
        best_epochs: Of the best point.
    """

    backbone: str
    megabytes: int
    lowest: float
    highest: float
    best_learning_rate: float
    best_epochs: int


@dataclass(frozen=True)
class Grid:
    """Every combination of learning rates and epochs, for some backbones.

    Attributes:
        part: Of the data, on which the points are compared.
        figure: By a name of `FIGURE_NAMES`.
        learning_rates: Tried, rising.
        epochs: Tried, rising.
        backbones: Tried, with their results.
        note: What to know about it.
    """

    part: str
    figure: str
    learning_rates: tuple[float, ...]
    epochs: tuple[int, ...]
    backbones: tuple[GridBackbone, ...]
    note: str


@dataclass(frozen=True)
class Comparison:
    """The paper's table of other works.

    Attributes:
        works: How many other works the paper's table has.
        columns: Headings.
        rows: The rows that are known, the paper's own among them, each as wide as the headings.
        note: What is missing, and why.
    """

    works: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Intensity:
    """Distribution over a class's images of their mean intensity, 0-1.

    Attributes:
        name: Of the class.
        lowest: The darkest image's.
        lower_quartile: A quarter lies below.
        median: Half lies below.
        upper_quartile: A quarter lies above.
        highest: The brightest image's.
    """

    name: str
    lowest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    highest: float


@dataclass(frozen=True)
class Published:
    """What a recipe's paper reports.

    Attributes:
        source: The paper in a few words.
        citation: The paper in full, as far as it is known.
        url: Where it can be read; None where nobody knows.
        origin: Where the figures come from.
        architecture: Layers and parameters; None where the paper counts none.
        data: Its images.
        classes: In the paper's order.
        figures: One entry for each evaluation, at least one.
        comparison: With other works; None where the paper has no such table.
        grid: None where the paper searched none.
        intensities: Of the classes; empty where the paper measured none.
    """

    source: str
    citation: str
    url: str | None
    origin: str
    architecture: Architecture | None
    data: Data
    classes: tuple[ClassText, ...]
    figures: tuple[Figures, ...]
    comparison: Comparison | None
    grid: Grid | None
    intensities: tuple[Intensity, ...]


def published(name_or_file: str) -> Published | None:
    """What the paper behind a recipe reports.

    Args:
        name_or_file: As for `recipes.load_recipe`.

    Returns:
        The figures, or None for a recipe of nobody's paper.

    Raises:
        UsageError: If there is no such recipe, or its table `[published]` lacks, adds or confuses something.
    """
    _, text = read_recipe(name_or_file)
    table = parse_toml(text, name_or_file).get(PUBLISHED)
    return None if table is None else _read(TomlTable(table, f"{name_or_file}: {PUBLISHED}"))


def paper_behind(recipe: str) -> Published | None:
    """What the paper behind a recipe reports, by the name that a bundle or a search has kept of it.

    Returns:
        None for a recipe of nobody's paper, and for one of somebody's own file, which need not be there any more.
    """
    return published(recipe) if recipe in recipe_names() else None


def _read(table: TomlTable) -> Published:
    classes = tuple(one.fill(ClassText) for one in table.inners("classes"))
    names = [known.name for known in classes]
    if unknown := {known.written_by for known in classes} - set(AUTHORS):
        raise table.wrong("classes", f"written_by one of {', '.join(AUTHORS)}, not {min(unknown)!r}")
    data = table.inner_as("data", lambda one: one.fill(Data))
    if data is None:
        raise table.wrong("data", "there")
    found = Published(
        source=table.take("source", str),
        citation=table.take("citation", str),
        url=table.optional("url", str),
        origin=table.take("origin", str),
        architecture=table.inner_as("architecture", lambda one: one.fill(Architecture)),
        data=data,
        classes=classes,
        figures=tuple(_figures(one, names) for one in table.inners("figures")),
        comparison=table.inner_as("comparison", _comparison),
        grid=table.inner_as("grid", _grid),
        intensities=tuple(one.fill(Intensity) for one in table.inners("intensities")),
    )
    table.done()
    if not found.figures:
        raise table.wrong("figures", "at least one evaluation")
    return found


def _figures(table: TomlTable, classes: Sequence[str]) -> Figures:
    part, backbone = table.take("part", str), table.name("backbone", BACKBONES)
    images, note = table.take("images", int), table.optional("note", str) or ""
    matrix = table.optional("confusion_matrix", list)
    by_class = table.inner_as("by_class", lambda one: _by_class(one, classes)) or {}
    values = table.rest()
    for name, value in values.items():
        _check_figure(table, name, value)
    if matrix is not None:
        _check_matrix(table, matrix, len(classes), images)
    rows = None if matrix is None else tuple(tuple(row) for row in matrix)
    return Figures(part, backbone, images, values, by_class, rows, note)


def _by_class(table: TomlTable, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {}
    for name in FIGURE_NAMES:
        one = table.inner_as(name, TomlTable.rest)
        for label, value in (one or {}).items():
            if label not in classes:
                raise table.wrong(name, f"of {', '.join(classes)}, not {label!r}")
            _check_figure(table, name, value)
        if one is not None:
            found[name] = one
    return found


def _check_figure(table: TomlTable, key: str, value: float) -> None:
    if key not in FIGURE_NAMES:
        raise table.wrong(key, f"a figure: one of {', '.join(FIGURE_NAMES)}")
    low = -1.0 if key == "mcc" else 0.0
    high = math.inf if key == "loss" else 1.0
    if not low <= value <= high:
        raise table.wrong(key, f"from {low:g} to {high:g}")


def _check_matrix(table: TomlTable, matrix: list[Any], classes: int, images: int) -> None:
    square = len(matrix) == classes and all(isinstance(row, list) and len(row) == classes for row in matrix)
    counts = [count for row in matrix for count in row] if square else []
    if not square or any(type(count) is not int or count < 0 for count in counts) or sum(counts) != images:
        raise table.wrong("confusion_matrix", f"{classes} rows of {classes} counts that add up to {images} images")


def _comparison(table: TomlTable) -> Comparison:
    works, note = table.take("works", int), table.optional("note", str) or ""
    columns = table.many("columns", str)
    rows = tuple(tuple(str(cell) for cell in row) for row in table.many("rows", list))
    if any(len(row) != len(columns) for row in rows):
        raise table.wrong("rows", f"rows of {len(columns)} cells")
    return Comparison(works, columns, rows, note)


def _grid(table: TomlTable) -> Grid:
    grid = Grid(
        part=table.take("part", str),
        figure=table.name("figure", FIGURE_NAMES),
        learning_rates=table.many("learning_rates", float),
        epochs=table.many("epochs", int),
        backbones=tuple(one.fill(GridBackbone) for one in table.inners("backbones")),
        note=table.optional("note", str) or "",
    )
    for one in grid.backbones:
        if one.backbone not in BACKBONES:
            raise table.wrong("backbones", f"of {', '.join(BACKBONES)}, not {one.backbone!r}")
        if one.best_learning_rate not in grid.learning_rates or one.best_epochs not in grid.epochs:
            raise table.wrong("backbones", f"at a point of the grid; the best of {one.backbone} is none")
    return grid
