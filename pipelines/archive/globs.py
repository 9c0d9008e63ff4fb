"""File name patterns as regular expressions that Arrow runs over a whole column at once."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError


def glob_expression(glob: str) -> str:
    """Translate one pattern.

    `*` stands for any characters, `/` too, `?` for one that is not `/`, `[a-c]` and `[!a-c]` for one of a set; `**/`
    stands for any folders or none, and a `/` at the end for all that lies in the folder. Case counts.

    Args:
        glob: Matched against the whole path below the root, and, if there is no `/` in it, against the name alone.

    Returns:
        An expression in RE2's syntax for the path below the root.

    Raises:
        UsageError: For an empty pattern or an impossible set of characters.
    """
    if not glob:
        raise UsageError("An empty pattern matches nothing.", "Give --include and --exclude patterns such as '*.png'.")
    whole = _translated(glob + "*" if glob.endswith("/") else glob, any_run=".*")
    if "/" not in glob:
        whole = f"{whole}|(?:.*/)?{_translated(glob, any_run='[^/]*')}"
    expression = f"(?s)^(?:{whole})$"
    try:
        pc.match_substring_regex(pa.array([""]), expression)
    except pa.ArrowInvalid:
        raise UsageError(
            f"The pattern {glob!r} has an impossible set of characters.", "Write [a-z], not [z-a]."
        ) from None
    return expression


def _translated(glob: str, any_run: str) -> str:
    pieces: list[str] = []
    at = 0
    while at < len(glob):
        character = glob[at]
        closing = glob.find("]", at + 2) if character == "[" else -1
        if glob.startswith("**/", at):
            pieces.append("(?:.*/)?")
            at += 2
        elif character == "*":
            pieces.append(any_run)
        elif character == "?":
            pieces.append("[^/]")
        elif closing > 0:
            inside = glob[at + 1 : closing].replace("\\", "\\\\").replace("[", "\\[")
            pieces.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
            at = closing
        else:
            pieces.append(re.escape(character))
        at += 1
    return "".join(pieces)
