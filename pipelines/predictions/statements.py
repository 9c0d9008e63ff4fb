"""Which SQL may be asked of the table: one statement that only reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pipelines.errors import UsageError

if TYPE_CHECKING:
    import duckdb

_READS: Final = re.compile(r"\(|(SELECT|FROM|WITH|VALUES|TABLE|DESCRIBE|DESC|SHOW|SUMMARIZE|PIVOT\w*|UNPIVOT)\b", re.I)
_COMMENT: Final = re.compile(r"\s+|--[^\n]*(\n|$)|/\*.*?\*/", re.S)
_EXPLAIN: Final = re.compile(r"EXPLAIN\b\s*(ANALYZE\b\s*)?(\([^()]*\)\s*)?", re.I)
_READING_NODES: Final = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
# Some of the others read files, run SQL that stands in a text, or change how the connection works.
_TABLE_FUNCTIONS: Final = frozenset(
    {"duckdb_columns", "duckdb_functions", "generate_series", "json_each", "json_tree", "range", "repeat", "unnest"}
)
_WRITING_WORDS: Final = frozenset({
    "alter", "attach", "call", "copy", "create", "delete", "detach", "drop", "export", "import", "insert", "install",
    "load", "merge", "pragma", "set", "truncate", "update", "vacuum",
})  # fmt: skip
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
        raise _refused(word[0] if word else kind)
    if kind == "SELECT":
        _check_tree(connection, sql)
    else:
        _check_words(sql)


def _check_tree(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """A statement that is called SELECT may write in a WITH: every part of its tree must be of a kind that reads."""
    try:
        pending: list[Any] = [json.loads(connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])]
    except RecursionError:
        raise UsageError("The question is nested too deeply.", "Ask it in a simpler way.") from None
    if pending[0].get("error"):
        raise UsageError("The question cannot be checked for being one that only reads.", _CURE)
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _READING_NODES:
                raise _refused(kind.partition("_")[0])
            if kind == "TABLE_FUNCTION":
                _check_function(part["function"])
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)


def _check_function(function: Mapping[str, Any]) -> None:
    name = str(function.get("function_name", "")).lower()
    if name not in _TABLE_FUNCTIONS:
        raise UsageError(
            f"The function {name}() cannot be asked here: a question reads the views and nothing else.",
            f"After FROM these may stand beside the views: {', '.join(sorted(_TABLE_FUNCTIONS))}.",
        )


def _check_words(sql: str) -> None:
    """What DuckDB cannot give as a tree, a pivot, is searched for words where a statement may begin."""
    import duckdb

    tokens = duckdb.tokenize(sql)
    # Positions count bytes, as the library does.
    text = sql.encode()
    ends = [start for start, _ in tokens[1:]] + [len(text)]
    before = "("
    for (start, kind), end in zip(tokens, ends, strict=True):
        if kind == duckdb.token_type.comment:
            continue
        word = text[start:end].split(b"--")[0].split(b"/*")[0].strip().decode().lower()
        # A body of WITH begins after its bracket, or after that of a WITH within.
        if before.endswith(("(", ")")) and word in _WRITING_WORDS:
            raise _refused(word)
        before = word


def _refused(word: str) -> UsageError:
    return UsageError(f"{word.upper()} is not a question: the results are only read.", _CURE)


def literal(text: str) -> str:
    """Text as a statement holds it."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column's name as a statement holds it, whatever its letters."""
    return '"' + name.replace('"', '""') + '"'


def first_line(error: BaseException) -> str:
    """The first line of a DuckDB error, as one sentence."""
    line = str(error).strip().partition("\n")[0].strip()
    return line if line.endswith((".", "!", "?")) else line + "."


def _without_comments(sql: str) -> str:
    text = sql
    while (comment := _COMMENT.match(text)) and comment.end():
        text = text[comment.end() :]
    return text
