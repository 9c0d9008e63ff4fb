"""`nightread train --list-recipes` and `--show-recipe`: what recipes there are, and what is in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.console import Console

if TYPE_CHECKING:
    from pipelines.training.published import Published
    from pipelines.training.recipes import Recipe

OWN = "this project"
"""Source of a recipe that no paper published."""


def list_recipes(console: Console) -> None:
    """Print the recipes that come with the program, each with its source, backbone, size and published figures.

    With `--json` it is a list of one object a recipe, as `describe` makes them.
    """
    from pipelines.training.published import FIGURE_NAMES, published
    from pipelines.training.recipes import load_recipe, recipe_names

    recipes = [(load_recipe(name), published(name)) for name in recipe_names()]
    if console.json:
        console.result([describe(recipe, paper) for recipe, paper in recipes])
        return
    shown = [name for name in FIGURE_NAMES if any(name in row for _, paper in recipes for row in _values(paper))]
    rows: list[list[object]] = []
    for recipe, paper in recipes:
        if paper is None:
            rows.append([recipe.name, OWN, recipe.backbone, recipe.input_size, None, *(None for _ in shown)])
            continue
        for one in paper.figures:
            head = [recipe.name, paper.source, one.backbone, recipe.input_size, f"{one.part}, {one.images} images"]
            rows.append([*head, *(one.values.get(name) for name in shown)])
    console.table(["recipe", "source", "backbone", "pixels", "published on", *shown], rows)
    console.say()
    console.say("The figures are the papers', on their own images. --show-recipe NAME prints a recipe.")


def show_recipe(console: Console, name: str) -> None:
    """Print a recipe's TOML, which is itself a file for `--recipe`.

    With `--json` it is an object `name, recipe, published, toml`: the keys with `default`'s where the file leaves one
    out, what its paper reports (null where there is none), and the text.

    Args:
        console: Where to.
        name: A recipe's name, or the path of a `.toml` file.

    Raises:
        UsageError: If there is no such recipe, or it is no legal one.
    """
    from pipelines.training.published import published
    from pipelines.training.recipes import load_recipe, read_recipe

    recipe, paper, text = load_recipe(name), published(name), read_recipe(name)[1]
    value = {"name": recipe.name, "recipe": recipe.values(), "published": paper, "toml": text}
    console.result(value, text.rstrip("\n"))


def describe(recipe: Recipe, paper: Published | None) -> dict[str, Any]:
    """A recipe as one entry of the list.

    Returns:
        `name, source, citation` (null for a recipe of no paper), `backbone, input_size, published` (all that the paper
        reports; null where there is none).
    """
    return {
        "name": recipe.name,
        "source": paper.source if paper else OWN,
        "citation": paper.citation if paper else None,
        "backbone": recipe.backbone,
        "input_size": recipe.input_size,
        "published": paper,
    }


def _values(paper: Published | None) -> list[dict[str, float]]:
    return [dict(one.values) for one in paper.figures] if paper else []
