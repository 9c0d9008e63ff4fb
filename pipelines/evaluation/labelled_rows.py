"""The rows of the results that labels are about: one question to the table, asked in SQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.errors import UsageError
from pipelines.evaluation.gathered import Unread
from pipelines.evaluation.labels import URI, Labels, LabelsConfig
from pipelines.models.bundle import check_precision
from pipelines.predictions.schema import OUR_COLUMNS
from pipelines.predictions.statements import literal, quoted

if TYPE_CHECKING:
    import duckdb

NAMED = 3
KEY = "nightread key"
_NEEDED = (
    "image_uri",
    "content_sha256",
    "run_id",
    "model_name",
    "model_id",
    "precision",
    "in_training_set",
    "mean_intensity",
    "predicted_class",
    "p_positive",
)
_ID = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class JoinConfig:
    """Which predictions, and which labels.

    Attributes:
        results: The results folder.
        labels: The labels.
        run: Only rows of this run; None: the newest of each image.
        model: Only rows of the model of this name, or whose id begins so; None: there must be one model only.
        precision: Only rows of this precision; None: there must be one only.
        by: Further columns to keep, of the labels or, where these lack them, of the results.
        include_training: Whether images that the model was made from are kept.
    """

    results: str
    labels: LabelsConfig
    run: str | None = None
    model: str | None = None
    precision: str | None = None
    by: tuple[str, ...] = ()
    include_training: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: Naming the options.
        """
        if self.precision is not None:
            check_precision(self.precision)
        if self.run is not None and self.model is not None:
            raise UsageError("--run and --model both say which rows.", "Say one of them: a run has one model.")

    @property
    def key(self) -> str:
        """The column of the results by which images are named."""
        return "image_uri" if self.labels.on == URI else self.labels.on


class Question:
    """What is asked of the results, once the labels are known.

    Args:
        config: Which rows.
        labels: Their labels.
    """

    def __init__(self, config: JoinConfig, labels: Labels) -> None:
        self._config = config
        self._labels = labels
        self._columns: list[str] = []
        self._by: list[str] = []
        self._has_forms = False

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Look at the columns and make the rows that are meant a view of their own."""
        config, known = self._config, set(self._labels.columns)
        there = connection.sql("SELECT * FROM rows LIMIT 0").columns
        if config.key not in there:
            raise UsageError(
                f"The results have no column {config.key!r} to name the images by.",
                f"Say --on uri, --on content_sha256 or one of: {_listed([n for n in there if n not in OUR_COLUMNS])}.",
            )
        lacking = [name for name in config.by if name not in known and name not in there]
        if lacking:
            raise UsageError(
                f"Neither labels nor results have a column {lacking[0]!r}.", "Correct --by, or leave it out."
            )
        self._by = [name for name in config.by if name not in known]
        classes = [name for name in there if name.startswith("p_") and name != "p_positive"]
        patients = ["patient_id"] if "patient_id" in there else []
        self._columns = list(dict.fromkeys([*_NEEDED, *classes, *patients, *self._by]))
        connection.register("nightread_keys", pa.table({"key": pa.array(self._labels.keys, pa.string())}))
        self._prepare_forms(connection)
        # A view takes no parameters; values are quoted as text.
        connection.execute(
            f"""CREATE TEMP VIEW meant AS SELECT *, {self._key_text()} AS {quoted(KEY)} FROM (
            SELECT * FROM predictions WHERE {self._filter()}
            QUALIFY row_number() OVER (PARTITION BY image_uri, frame, model_name
            ORDER BY scored_at DESC, run_id DESC) = 1)"""
        )
        run = config.run
        view = "unresolved" if run is None else f"(SELECT * FROM failures WHERE run_id = {literal(run)})"
        connection.execute(
            f"""CREATE TEMP VIEW torn AS SELECT image_uri, error_code, error_message, {quoted(KEY)}
            FROM (SELECT *, {self._key_text()} AS {quoted(KEY)} FROM {view}) ANTI JOIN meant USING (image_uri)
            WHERE {quoted(KEY)} IN (SELECT key FROM nightread_keys)"""
        )

    def matched(self, connection: duckdb.DuckDBPyConnection) -> pa.Table:
        """Rows that have a label."""
        columns = ", ".join(map(quoted, [*self._columns, KEY]))
        sql = f"SELECT {columns} FROM meant WHERE {quoted(KEY)} IN (SELECT key FROM nightread_keys) ORDER BY image_uri"
        return connection.sql(sql).to_arrow_reader(1 << 16).read_all()

    def without_label(self, connection: duckdb.DuckDBPyConnection) -> tuple[int, tuple[str, ...]]:
        """How many rows have no label, and the first of them."""
        return _counted(
            connection, f"SELECT image_uri AS name FROM meant ANTI JOIN nightread_keys ON {quoted(KEY)} = key"
        )

    def without_row(self, connection: duckdb.DuckDBPyConnection) -> tuple[int, tuple[str, ...]]:
        """How many labels have neither a row nor an image that could not be read, and the first of them."""
        known = f"SELECT {quoted(KEY)} FROM meant UNION ALL SELECT {quoted(KEY)} FROM torn"
        return _counted(
            connection, f"SELECT key AS name FROM nightread_keys ANTI JOIN ({known}) ON {quoted(KEY)} = key"
        )

    def unreadable(self, connection: duckdb.DuckDBPyConnection) -> tuple[Unread, ...]:
        """Labelled images that have no row because they could not be read."""
        found = connection.sql("SELECT image_uri, error_code, error_message FROM torn ORDER BY image_uri").fetchall()
        return tuple(Unread(str(uri), str(code), str(message)) for uri, code, message in found)

    def no_overlap(self, connection: duckdb.DuckDBPyConnection) -> UsageError:
        """Why nothing matched."""
        config = self._config
        theirs, on = connection.sql(f"SELECT min({quoted(KEY)}) FROM meant").fetchall()[0][0], config.labels.on
        if theirs is None:
            models = [row[0] for row in connection.sql("SELECT DISTINCT model_name FROM predictions").fetchall()]
            asked = {"run": config.run, "model": config.model, "precision": config.precision}
            what = " and ".join(f"of the {kind} {value!r}" for kind, value in asked.items() if value) or "at all"
            return UsageError(
                f"The results {config.results} have no scored row {what}.",
                f"Their models are: {_listed(sorted(models))}.",
            )
        ours = min(self._labels.keys, default=None)
        if ours is None:
            return UsageError(f"The labels {config.labels.labels} hold no label.", "Look at its columns and --columns.")
        return UsageError(
            f"No row of the results has a label: by {on}, the labels name images as {ours!r}, and the results as "
            f"{theirs!r}.",
            "Say where the labels' relative paths start with --root, or join by something else: --on content_sha256 or "
            "--on COLUMN.",
        )

    def _filter(self) -> str:
        config, meant = self._config, []
        if config.run is not None:
            meant.append(f"run_id = {literal(config.run)}")
        if config.precision is not None:
            meant.append(f"precision = {literal(config.precision)}")
        if config.model is not None:
            named = f"model_name = {literal(config.model)}"
            by_id = f" OR starts_with(model_id, {literal(config.model)})" if _ID.fullmatch(config.model) else ""
            meant.append(f"({named}{by_id})")
        return " AND ".join(meant) or "true"

    def _prepare_forms(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Find images that a label names in Unicode's other form, as Macs write names: one label, one image."""
        self._has_forms = self._config.labels.on == URI and not all(key.isascii() for key in self._labels.keys)
        if not self._has_forms:
            return
        connection.execute(
            """CREATE TEMP TABLE nightread_forms AS WITH images AS (SELECT DISTINCT image_uri FROM rows),
            unknown AS (SELECT key FROM nightread_keys ANTI JOIN images ON key = image_uri),
            unnamed AS (SELECT image_uri FROM images ANTI JOIN nightread_keys ON key = image_uri)
            SELECT image_uri AS image, key FROM unnamed JOIN unknown ON nfc_normalize(image_uri) = nfc_normalize(key)
            QUALIFY count(*) OVER (PARTITION BY nfc_normalize(key)) = 1"""
        )

    def _key_text(self) -> str:
        if self._has_forms:
            return "coalesce((SELECT key FROM nightread_forms WHERE image = image_uri), image_uri)"
        text = f"CAST({quoted(self._config.key)} AS VARCHAR)"
        return f"lower({text})" if self._config.key == "content_sha256" else text


def _counted(connection: duckdb.DuckDBPyConnection, names: str) -> tuple[int, tuple[str, ...]]:
    count = connection.sql(f"SELECT count(*) FROM ({names})").fetchall()[0][0]
    first = connection.sql(f"SELECT name FROM ({names}) ORDER BY name LIMIT {NAMED}").fetchall()
    return int(count), tuple(str(row[0]) for row in first)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
