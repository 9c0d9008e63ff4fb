"""Tables, coloured lines and small bars as text; `jobs.console` prints them."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

PLAIN_WIDTH: Final = 160

Line = Sequence[tuple[str, str]]
"""Pieces of a line: a text and rich's name of its style, "" for none."""

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.-:=+*#"


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Align a table with spaces; the last line has no line break."""
    widths = [max(len(name), *(len(row[i]) for row in rows)) if rows else len(name) for i, name in enumerate(columns)]
    lines = [columns, ["-" * width for width in widths], *rows]
    aligned = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)


def terminal_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """A table as a terminal of this width shows it."""
    page = io.StringIO()
    console = _rich_console(page)
    console.print(rich_table(columns, rows, right))
    return page.getvalue()


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Table:
    """The same table for rich to draw; cells are texts and never markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, to_right in zip(columns, right, strict=True):
        table.add_column(Text(name), justify="right" if to_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _rich_console(page: io.StringIO) -> RichConsole:
    from rich.console import Console as RichConsole

    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    return RichConsole(file=page, width=width, force_terminal=True, no_color="NO_COLOR" in os.environ)


def terminal_page(lines: Sequence[Line]) -> str:
    """Lines as a terminal colours them."""
    from rich.text import Text

    page = io.StringIO()
    console = _rich_console(page)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)
    return page.getvalue()


def sparkline(values: Sequence[float | None], blocks: bool = True) -> str:
    """One sign a value, as high as its share of the greatest.

    Args:
        values: From 0 on; None is a gap.
        blocks: Eighths of a block; else signs of ASCII.
    """
    levels, gap = (_BLOCKS, "·") if blocks else (_ASCII, " ")
    top = max((value for value in values if value is not None), default=0.0)
    steps = len(levels) - 1
    return "".join(
        gap if value is None else levels[round(max(0.0, value) / top * steps) if top > 0 else 0] for value in values
    )


def bar(share: float, width: int, blocks: bool = True) -> str:
    """A bar of a share of a width; what is above 0 is never drawn as nothing."""
    filled = min(width, max(round(share * width), 1 if share > 0 else 0))
    return ("█" if blocks else "#") * filled
