from __future__ import annotations

import re
from pathlib import Path

from pipelines.training.recipes import RULES, load_recipe


def test_the_document_lists_every_key_with_its_default(checkout: Path) -> None:
    text = (checkout / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", text, re.MULTILINE))
    assert list(rows) == list(RULES)
    for key, value in load_recipe().values().items():
        if isinstance(value, str):
            assert rows[key] == value
        elif isinstance(value, bool):
            assert rows[key] == str(value).lower()
        elif isinstance(value, tuple):
            assert rows[key] == str(list(value))
        else:
            assert float(rows[key]) == value
