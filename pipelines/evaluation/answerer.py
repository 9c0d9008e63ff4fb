"""Which model wrote the predictions: its classes, which of them are positive, and its thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.errors import UsageError
from pipelines.models.bundle import Bundle
from pipelines.predictions.runs import RunFolder
from pipelines.predictions.schema import class_column

MOST_CLASSES_TRIED = 12
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Answerer:
    """What is known of the model behind rows of predictions.

    Attributes:
        classes: Names, in the model's order.
        positive_classes: Those that `p_positive` sums.
        thresholds: By unit; {} where none is known.
        source: Where this is known from: `bundle`, `run` or `columns`.
    """

    classes: tuple[str, ...]
    positive_classes: tuple[str, ...]
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = "bundle"


def find_answerer(results: str, rows: pa.Table, labels: Sequence[str], bundle: Bundle | None) -> Answerer:
    """Find out what wrote some rows: by its bundle, else the record of a run, else the columns themselves.

    Args:
        results: Canonical results folder.
        rows: Of one model; `run_id`, `model_id`, `predicted_class`, `p_positive` and columns of classes.
        labels: Class names as the labels spell them.
        bundle: The model, where it was named.

    Raises:
        UsageError: If the bundle is another model, or columns do not say which classes are positive.
    """
    if bundle is not None:
        wrote = rows["model_id"][0].as_py()
        if bundle.model_id != wrote:
            raise UsageError(
                f"The predictions were made by {rows['model_name'][0].as_py()} with the model id {wrote[:12]}…, and "
                f"{bundle.name}@{bundle.version} has {bundle.model_id[:12]}….",
                "Name the version that scored: --bundle MODELS/NAME@VERSION.",
            )
        return Answerer(bundle.classes, bundle.positive_classes, bundle.thresholds)
    return _recorded(results, rows) or _from_columns(rows, labels)


def _recorded(results: str, rows: pa.Table) -> Answerer | None:
    """What the newest of the rows' runs says of its model; earlier releases said nothing."""
    for run_id in sorted(set(rows["run_id"].to_pylist()), reverse=True):
        try:
            told = RunFolder(results, run_id).read_record().model
        except UsageError:
            continue  # a lost record is no loss: the columns tell nearly as much
        if told.get("classes"):
            return Answerer(
                tuple(told["classes"]), tuple(told["positive_classes"]), dict(told.get("thresholds") or {}), "run"
            )
    return None


def _from_columns(rows: pa.Table, labels: Sequence[str]) -> Answerer:
    ours = {"p_positive"}
    columns = [
        name
        for name in rows.column_names
        if name.startswith("p_") and name not in ours and rows[name].null_count < rows.num_rows
    ]
    spelled = {class_column(name): name for name in [*rows["predicted_class"].to_pylist(), *labels]}
    classes = tuple(spelled.get(name, name.removeprefix("p_")) for name in columns)
    positive = positive_columns(
        np.stack([rows[name].to_numpy() for name in columns], axis=1), rows["p_positive"].to_numpy()
    )
    if positive is None:
        raise UsageError(
            "The predictions do not say which of the classes are positive.",
            "Name the model that scored: --bundle MODELS/NAME@VERSION.",
        )
    return Answerer(classes, tuple(classes[number] for number in positive), {}, "columns")


def positive_columns(probabilities: np.ndarray, p_positive: np.ndarray) -> tuple[int, ...] | None:
    """The columns whose sum `p_positive` is; None where none or several sums fit.

    Args:
        probabilities: `[N, K]`.
        p_positive: `[N]`.
    """
    count = probabilities.shape[1]
    given, wanted = probabilities.astype(np.float64), p_positive.astype(np.float64)
    sizes = range(1, count if count <= MOST_CLASSES_TRIED else 2)
    fitting = [
        chosen
        for size in sizes
        for chosen in itertools.combinations(range(count), size)
        if np.abs(given[:, chosen].sum(axis=1) - wanted).max(initial=0.0) <= _ROUNDING
    ]
    return fitting[0] if len(fitting) == 1 else None
