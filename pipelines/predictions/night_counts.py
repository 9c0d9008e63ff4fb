"""What the rows of each night are like, counted by the database: a few thousand numbers, however many rows there are.

Scores lie close to 0 in most archives, so they are counted in steps that are even in log odds; sides of images in
eighths of an octave; mean intensities in 1,024 steps.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import pyarrow as pa

from pipelines.errors import IMAGE_ERRORS
from pipelines.predictions.query import create_rows, named_files, open_files
from pipelines.predictions.schema import PARTITION_COLUMN
from pipelines.predictions.statements import literal
from pipelines.predictions.table import live_files, open_table, table_schema
from pipelines.storage import paths

LOG_ODDS_END: Final = 12.0
LOG_ODDS_STEPS: Final = 480
INTENSITY_STEPS: Final = 1024
OCTAVE_STEPS: Final = 8
OCTAVES: Final = 18
STEPS: Final[dict[str, int]] = {
    "score": LOG_ODDS_STEPS,
    "intensity": INTENSITY_STEPS,
    "size": OCTAVE_STEPS * OCTAVES,
}
# Probabilities of 0 and 1 have no log odds.
LEAST_SCORE: Final = 1e-9

SCORED: Final = "scored"
# Whether a failure is the image's or the storage's.
IN_IMAGE: Final = "image"
IN_STORAGE: Final = "storage"

NIGHT_DAYS: Final = 30
MOST_ROWS: Final = 10_000_000
MEMORY_LIMIT: Final = "400MB"

COUNTS_SCHEMA: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("day", pa.date32()),
        ("figure", pa.string()),
        ("step", pa.int64()),
        ("category", pa.string()),
        ("images", pa.int64()),
        ("total", pa.float64()),
    ]
)

_CODES_IN_IMAGE: Final = ", ".join(literal(code) for code, kind in IMAGE_ERRORS.items() if kind.lies_in_image)
_INSIDE: Final = f"least(greatest(value, {LEAST_SCORE}), 1 - {LEAST_SCORE})"
_VALUES: Final = {
    "score": "p_positive::DOUBLE",
    "intensity": "mean_intensity::DOUBLE",
    "size": "sqrt(width::DOUBLE * height)",
}
_PLACES: Final = {
    "score": f"(ln({_INSIDE} / (1 - {_INSIDE})) + {LOG_ODDS_END}) * {LOG_ODDS_STEPS / (2 * LOG_ODDS_END)}",
    "intensity": f"value * {INTENSITY_STEPS}",
    "size": f"log2(greatest(value, 1)) * {OCTAVE_STEPS}",
}
# A suffix as files have it; what else stands behind a dot is part of a name.
_CATEGORIES: Final = {
    "decision": "decision",
    "suffix": r"lower(regexp_extract(right(image_uri, 8), '\.[A-Za-z][A-Za-z0-9]{0,4}$'))",
    "failures": f"""CASE WHEN error_code IS NULL THEN '{SCORED}'
        WHEN error_code IN ({_CODES_IN_IMAGE}) THEN '{IN_IMAGE}' ELSE '{IN_STORAGE}' END""",
}


def count_nights(results: str, runs: Collection[str], model_id: str, precision: str) -> pa.Table:
    """Count the rows of some runs, and those of the trailing ones of the same model.

    Only the files of the newest `NIGHT_DAYS` days that hold rows are opened, and of these at most so many that they
    hold `MOST_ROWS`, the newest first; the files of the given runs' days always.

    Args:
        results: The results folder.
        runs: Runs of one command; they are in the answer whatever their model is.
        model_id: The model of the others.
        precision: Theirs.

    Returns:
        `COUNTS_SCHEMA`: for each run and figure, images by step (ordered figures; `total` is the sum of the values)
        or by category. `failures` has every row; the others those that know the figure.

    Raises:
        UsageError: If there are no results, or a newer release wrote them.
        TryLater: If storage does not answer.
    """
    table = open_table(results)
    names = named_files(_newest_files(live_files(table, results), _rows_by_file(table.get_add_actions(), results)))
    own = ", ".join(literal(run) for run in runs) or "NULL"
    wanted = f"run_id IN ({own}) OR (model_id = {literal(model_id)} AND precision = {literal(precision)})"
    with open_files(results, names, MEMORY_LIMIT) as connection:
        create_rows(connection, table_schema(table), list(names))
        connection.execute("SET preserve_insertion_order = false")
        parts = [_steps(figure, wanted) for figure in _VALUES]
        parts += [_categories(figure, wanted) for figure in _CATEGORIES]
        counted = connection.sql(" UNION ALL ".join(parts)).to_arrow_table()
    return counted.cast(COUNTS_SCHEMA)


def _steps(figure: str, wanted: str) -> str:
    place = f"least(greatest(floor({_PLACES[figure]}), 0), {STEPS[figure] - 1})::BIGINT"
    return f"""SELECT run_id, max({PARTITION_COLUMN}) AS day, '{figure}' AS figure, {place} AS step,
            NULL::VARCHAR AS category, count(*) AS images, sum(value) AS total
        FROM (SELECT run_id, {PARTITION_COLUMN}, {_VALUES[figure]} AS value FROM rows
            WHERE status = 'scored' AND ({wanted})) WHERE isfinite(value) GROUP BY run_id, step"""


def _categories(figure: str, wanted: str) -> str:
    return f"""SELECT run_id, max({PARTITION_COLUMN}) AS day, '{figure}' AS figure, NULL::BIGINT AS step,
            {_CATEGORIES[figure]} AS category, count(*) AS images, NULL::DOUBLE AS total
        FROM rows WHERE ({wanted}) AND {"decision IS NOT NULL" if figure == "decision" else "true"}
        GROUP BY run_id, category"""


def _rows_by_file(added: pa.RecordBatch | pa.Table, results: str) -> dict[str, int]:
    """How many rows each file of the table's log holds, by the file's last name."""
    plain = pa.table(added)
    names = [path.rpartition("/")[2] for path in plain.column("path").to_pylist()]
    return dict(zip(names, (int(rows or 0) for rows in plain.column("num_records").to_pylist()), strict=True))


def _newest_files(uris: list[str], rows: dict[str, int]) -> list[str]:
    """The files of the newest days, as many as there may be rows; those of the very newest day always."""
    by_day: dict[str, list[str]] = {}
    for uri in uris:
        by_day.setdefault(paths.name(paths.parent(uri)), []).append(uri)
    chosen: list[str] = []
    known = 0
    for place, day in enumerate(sorted(by_day, reverse=True)[:NIGHT_DAYS]):
        known += sum(rows.get(paths.name(uri), 0) for uri in by_day[day])
        if place and known > MOST_ROWS:
            break
        chosen += by_day[day]
    return chosen
