"""Which SQL may be asked of the table: one statement that only reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pipelines.errors import UsageError

if TYPE_CHECKING:
    import duckdb

_READS: Final = re.compile(r"\(|(SELECT|FROM|WITH|VALUES|TABLE|DESCRIBE|DESC|SHOW|SUMMARIZE|PIVOT\w*|UNPIVOT)\b", re.I)
_COMMENT: Final = re.compile(r"\s+|--[^\n]*(\n|$)|/\*.*?\*/", re.S)
_EXPLAIN: Final = re.compile(r"EXPLAIN\b\s*(ANALYZE\b\s*)?(\([^()]*\)\s*)?", re.I)
_CURE: Final = "Ask with one SELECT (also FROM, WITH, DESCRIBE, SHOW, SUMMARIZE, PIVOT, VALUES or EXPLAIN of these)."


def check_read_only(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Refuse everything but a single statement that reads.

    Args:
        connection: Parses the statement; nothing is run.
        sql: As the user wrote it.

    Raises:
        UsageError: If it is empty, no SQL, several statements, or one that does anything but read.
    """
    import duckdb

    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UsageError(first_line(error), _CURE) from None
    if not statements:
        raise UsageError("The question is empty.", _CURE)
    if len(statements) > 1:
        raise UsageError(f"There are {len(statements)} statements where one may stand.", _CURE)
    kind = str(statements[0].type).rpartition(".")[2]
    text = _without_comments(sql)
    if kind == "EXPLAIN" or _EXPLAIN.match(text):
        # EXPLAIN ANALYZE runs what it explains, so that must be allowed to run by itself.
        check_read_only(connection, _EXPLAIN.sub("", text, count=1))
        return
    # A pivot is parsed as MULTI, and so is COPY of one: there the first word tells.
    if kind not in ("SELECT", "MULTI") or not _READS.match(text):
        word = re.match(r"\w*", text)
        raise UsageError(f"{word[0].upper() if word else kind} is not a question: the results are only read.", _CURE)


def first_line(error: BaseException) -> str:
    """The first line of a DuckDB error, as one sentence."""
    line = str(error).strip().partition("\n")[0].strip()
    return line if line.endswith((".", "!", "?")) else line + "."


def _without_comments(sql: str) -> str:
    text = sql
    while (comment := _COMMENT.match(text)) and comment.end():
        text = text[comment.end() :]
    return text
