"""The parts of docs/recipes.md that are made from the recipes themselves: keys, published figures, papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple

from pipelines.errors import UsageError
from pipelines.training.published import FIGURE_NAMES, Comparison, Data, Figures, Grid, Published, published
from pipelines.training.recipe_rules import RULES, Value
from pipelines.training.recipes import Recipe, load_recipe, recipe_names

TITLES = {
    "accuracy": "accuracy",
    "loss": "loss",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
    "mcc": "MCC",
}
"""What a table calls the figures of `FIGURE_NAMES`."""


def fill_document(text: str) -> str:
    """Replace what stands between `<!-- made: NAME -->` and `<!-- end -->` by what the recipes say now.

    Args:
        text: The document.

    Raises:
        UsageError: If the document lacks a section, or has one of another name.
    """
    sections: dict[str, Callable[[], str]] = {
        "keys": keys_markdown,
        "recipes": recipes_markdown,
        "figures": figures_markdown,
        "papers": papers_markdown,
    }
    marks = re.findall(r"^<!-- made: (\w+) -->$", text, re.MULTILINE)
    if sorted(marks) != sorted(sections):
        raise UsageError(f"The document has the sections {marks}.", f"Give it one each of {', '.join(sections)}.")
    for name, make in sections.items():
        start = text.index(f"<!-- made: {name} -->\n") + len(f"<!-- made: {name} -->\n")
        end = text.index("<!-- end -->", start)
        text = text[:start] + make() + text[end:]
    return text


def keys_markdown() -> str:
    """Every key with `default`'s value, what it may be and what it decides."""
    default = load_recipe("default").values()
    rows = []
    for key, rule in RULES.items():
        legal = ", ".join(f"`{name}`" for name in rule.names) or rule.text
        rows.append((f"`{key}`", f"`{value_text(default[key])}`", legal, rule.meaning))
    return markdown_table(("key", "`default`", "what it may be", "what it decides"), rows)


def recipes_markdown() -> str:
    """The recipes that come with the program, a row each."""
    rows = []
    for name in recipe_names():
        recipe, paper = load_recipe(name), published(name)
        rows.append(
            (
                f"`{name}`",
                paper.source if paper else "this project",
                recipe.backbone,
                str(recipe.input_size),
                f"last {recipe.trainable_layers}" if recipe.trainable_layers else "none",
                head_text(recipe),
                f"{recipe.optimizer} {recipe.learning_rate:g}, {recipe.epochs} epochs, batches of {recipe.batch_size}",
            )
        )
    columns = ("recipe", "from", "backbone", "pixels", "layers trained", "head", "training")
    return markdown_table(columns, rows)


def figures_markdown() -> str:
    """What the papers report, a row for each evaluation."""
    rows = []
    for name, paper in papers():
        for one in paper.figures:
            values = (number_text(one.values.get(figure)) for figure in FIGURE_NAMES)
            rows.append((f"`{name}`", one.backbone, f"{one.part}, {one.images} images", *values))
    return markdown_table(("recipe", "backbone", "evaluated on", *(TITLES[name] for name in FIGURE_NAMES)), rows)


def papers_markdown() -> str:
    """What else the papers say: images, classes, matrices, comparison, grid, intensities."""
    return "\n".join(_paper(name, paper) for name, paper in papers())


def papers() -> Iterator[tuple[str, Published]]:
    """The recipes that have a paper, by name, with what it reports."""
    for name in recipe_names():
        paper = published(name)
        if paper is not None:
            yield name, paper


def head_text(recipe: Recipe) -> str:
    """The layers of a recipe's head, in order."""
    parts = [{"avg": "average pooling", "max": "maximum pooling", "flatten": "flatten"}[recipe.pooling]]
    if recipe.dense_units:
        parts.append(f"dense {recipe.dense_units} {recipe.activation}")
    if recipe.batch_norm:
        parts.append("batch normalisation")
    if recipe.dropout:
        parts.append(f"dropout {recipe.dropout:g}")
    return ", ".join([*parts, "sigmoid" if recipe.loss == "binary_crossentropy" else "softmax"])


def value_text(value: Value) -> str:
    """A value as a recipe's file writes it, without quotation marks around text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def number_text(value: float | None) -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else f"{value:g}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, with a line break at its end."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _paper(name: str, paper: Published) -> str:
    address = f" <{paper.url}>" if paper.url else ""
    parts = [f"### {name}\n", f"{paper.citation}{address}\n", f"*Where this comes from:* {paper.origin}\n"]
    parts.append(f"*Images:* {data_text(paper.data)}\n")
    if paper.architecture:
        counted = f"{paper.architecture.layers} layers, {paper.architecture.parameters:,} parameters."
        parts.append(f"*Network:* {counted} {paper.architecture.note}".rstrip() + "\n")
    for one in paper.classes:
        marks = [] if one.images is None else [f"{one.images:,} images"]
        marks += ["our words"] if one.written_by == "us" else []
        behind = f" ({'; '.join(marks)})" if marks else ""
        parts.append(f"*{one.name}*{behind}: {one.description}\n")
    classes = [one.name for one in paper.classes]
    for figures in paper.figures:
        parts += _figures(figures, classes, len(paper.figures))
    if paper.intensities:
        rows = [(one.name, *(number_text(value) for value in astuple(one)[1:])) for one in paper.intensities]
        columns = ("mean intensity, 0-1", "lowest", "lower quartile", "median", "upper quartile", "highest")
        parts.append(markdown_table(columns, rows))
    if paper.grid:
        parts += _grid(paper.grid)
    if paper.comparison:
        parts += _comparison(paper.comparison)
    return "\n".join(parts)


def data_text(data: Data) -> str:
    """A paper's images in one sentence or two."""
    counted = [f"{data.images:,} in all"] if data.images is not None else []
    for part, count in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        counted += [f"{count:,} {part}"] if count is not None else []
    counts = f"; {', '.join(counted)}" if counted else ""
    return f"{data.name}{counts}. {data.note}".rstrip()


def _figures(figures: Figures, classes: Sequence[str], entries: int) -> Iterator[str]:
    """What a row of the table of figures has no room for."""
    which = f"{figures.part}, {figures.backbone}" if entries > 1 else figures.part
    if figures.note:
        yield f"*On {which}:* {figures.note}\n"
    if figures.by_class:
        rows = [
            (TITLES[name], *(number_text(values.get(label)) for label in classes))
            for name, values in figures.by_class.items()
        ]
        yield markdown_table((f"{which}, against the rest", *classes), rows)
    if figures.confusion_matrix:
        rows = [
            (label, *(str(count) for count in counts))
            for label, counts in zip(classes, figures.confusion_matrix, strict=True)
        ]
        yield markdown_table((f"{which}: true \\ predicted", *classes), rows)


def _grid(grid: Grid) -> Iterator[str]:
    rates = ", ".join(f"{rate:g}" for rate in grid.learning_rates)
    epochs = ", ".join(str(count) for count in grid.epochs)
    yield (
        f"*Grid:* learning rates {rates}; epochs {epochs}; every combination of them for each backbone, by "
        f"{TITLES[grid.figure]} on {grid.part}. {grid.note}".rstrip()
        + "\n"
    )
    rows = [(one.backbone, *(number_text(value) for value in astuple(one)[1:])) for one in grid.backbones]
    yield markdown_table(("backbone", "MB", "lowest", "highest", "best learning rate", "best epochs"), rows)


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield f"*Compared with {comparison.works} other works:* {comparison.note}".rstrip() + "\n"
    yield markdown_table(comparison.columns, comparison.rows)
