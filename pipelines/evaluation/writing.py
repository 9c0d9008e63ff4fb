"""The report's folder: `report.html`, `metrics.json` and `predictions.parquet`, together or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import Stopped, TryLater, UsageError
from pipelines.evaluation.cases import Cases
from pipelines.models.decision import decide
from pipelines.models.record import plain
from pipelines.predictions.schema import class_column
from pipelines.storage import files, paths

REPORT_FILE = "report.html"
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.parquet"
WORK = "nightread-work"
"""What is computed meanwhile. It is deleted, so its name is none that a person's own folder has; a folder that holds
nothing else is what an interrupted evaluation left."""


def check_folder(report: str, overwrite: bool) -> None:
    """Refuse a folder that holds something.

    Args:
        report: Where the report will be written, local or in a bucket.
        overwrite: Whether an earlier report may be replaced.

    Raises:
        UsageError: Naming what is there.
        TryLater: If storage does not answer.
    """
    place = paths.canonical(report)
    if paths.is_local(place) and os.path.exists(place) and not os.path.isdir(place):
        raise UsageError(f"--report {report} is a file.", "Name a folder.")
    there = [name for name in files.list_names(report) if name != WORK]
    if there and not overwrite:
        raise UsageError(
            f"The report folder {report} is there already and holds {there[0]}.",
            "Name a new folder, or say --overwrite to replace the report in it.",
        )


@contextlib.contextmanager
def work_folder(report: str) -> Iterator[str]:
    """A folder below the report's for what is computed meanwhile.

    It is removed at the end, unless waiting or starting the same command again helps: then that goes on from there.
    """
    place = paths.join(paths.canonical(report), WORK)
    try:
        yield place
    except (TryLater, Stopped, KeyboardInterrupt):
        raise
    except BaseException:
        files.delete_tree(place)
        raise
    files.delete_tree(place)


def write_report(report: str, html: bytes, metrics: Mapping[str, Any], predictions: pa.Table) -> str:
    """Write the three files, the page last: where it stands, the others belong to it.

    Args:
        report: The folder.
        html: The page.
        metrics: What metrics.json says; what is not finite becomes null.
        predictions: One row an image.

    Returns:
        The page's canonical place.
    """
    folder = paths.canonical(report)
    page = paths.join(folder, REPORT_FILE)
    files.delete(page)
    sink = io.BytesIO()
    pq.write_table(predictions, sink, compression="zstd")
    files.write_atomic(paths.join(folder, PREDICTIONS_FILE), sink.getvalue())
    text = json.dumps(plain(metrics), indent=1, ensure_ascii=False, allow_nan=False)
    files.write_atomic(paths.join(folder, METRICS_FILE), f"{text}\n".encode(errors="backslashreplace"))
    files.write_atomic(page, html)
    return page


def prediction_table(cases: Cases, parts: Sequence[str], fitted: Mapping[str, Any] | None) -> pa.Table:
    """What was evaluated, one row an image, by name.

    Args:
        cases: Images, labels and answers.
        parts: Part of each image.
        fitted: The thresholds' unit for an image; without one decisions are null.

    Returns:
        Columns `image_uri, label, patient_id, part, group, predicted_class, score, p_<class>…, p_positive, decision`;
        `patient_id` only where patients are known.
    """
    names = np.array(cases.classes, object)
    predicted, rows = cases.predicted, np.arange(len(cases))
    columns: dict[str, Any] = {
        "image_uri": pa.array(cases.uris, pa.string()),
        "label": pa.array(names[cases.labels].tolist(), pa.string()),
    }
    if cases.patients is not None:
        columns["patient_id"] = pa.array(cases.patients, pa.string())
    columns |= {
        "part": pa.array(parts, pa.string()),
        "group": pa.array(cases.groups, pa.string()),
        "predicted_class": pa.array(names[predicted].tolist(), pa.string()),
        "score": pa.array(cases.probabilities[rows, predicted], pa.float32()),
    }
    for number, name in enumerate(cases.classes):
        columns[class_column(name)] = pa.array(np.ascontiguousarray(cases.probabilities[:, number]), pa.float32())
    p_positive = cases.p_positive
    columns["p_positive"] = pa.array(p_positive.astype(np.float32), pa.float32())
    decisions = [None] * len(cases) if fitted is None else decide(p_positive, fitted).tolist()
    columns["decision"] = pa.array(decisions, pa.string())
    return pa.table(columns).sort_by("image_uri")
