"""docs/recipes.md against the recipes it describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.training.published import published
from pipelines.training.recipe_document import fill_document, keys_markdown, markdown_table
from pipelines.training.recipe_rules import RULES
from pipelines.training.recipes import load_recipe, recipe_names

REPRODUCED = "## Reproduced on other data"


def document(checkout: Path) -> str:
    return (checkout / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_document_says_what_the_recipes_say(checkout: Path) -> None:
    text = document(checkout)
    assert text == fill_document(text), "replace the made sections as docs/recipes.md says at its end"


def test_every_key_is_listed_once_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", keys_markdown(), re.MULTILINE))
    assert list(rows) == list(RULES)
    for key, value in load_recipe().values().items():
        if isinstance(value, bool):
            assert rows[key] == str(value).lower()
        elif isinstance(value, int | float):
            assert float(rows[key]) == value
        else:
            assert rows[key] == (value if isinstance(value, str) else str(list(value)))


def test_every_published_figure_stands_in_the_document(checkout: Path) -> None:
    text = document(checkout)
    for name in recipe_names():
        paper = published(name)
        assert f"`{name}`" in text
        if paper is None:
            continue
        assert paper.citation in text
        assert all(one.description in text for one in paper.classes)
        for one in paper.figures:
            row = next(
                line
                for line in text.splitlines()
                if line.startswith(f"| `{name}` | {one.backbone} | {one.part}, {one.images} images |")
            )
            assert [float(cell) for cell in re.findall(r"(?<=\| )[\d.]+(?= \|)", row)] == list(one.values.values())


def test_there_is_a_place_for_our_own_figures(checkout: Path) -> None:
    """Outside the made sections, so that making them again keeps what was measured."""
    text = document(checkout)
    assert text.count(REPRODUCED) == 1
    for made in re.findall(r"<!-- made: \w+ -->(.*?)<!-- end -->", text, re.DOTALL):
        assert REPRODUCED not in made


def test_a_document_without_its_sections_is_refused(checkout: Path) -> None:
    with pytest.raises(UsageError, match="figures"):
        fill_document("no sections")
    twice = document(checkout) + "\n<!-- made: keys -->\n<!-- end -->\n"
    with pytest.raises(UsageError, match="keys"):
        fill_document(twice)


def test_a_bar_in_a_cell_ends_no_column() -> None:
    assert markdown_table(("a",), [("b|c",)]) == "| a |\n| --- |\n| b\\|c |\n"
