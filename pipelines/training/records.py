"""The tables of a bundle that say what it was trained and validated on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.predictions.schema import class_column


def split_file(split: pa.Table) -> bytes:
    """`split.parquet`: one row an image, columns as in `dataset.Dataset.split`."""
    return _parquet(split)


def validation_file(
    images: pa.Table,
    groups: Sequence[str],
    labels: Sequence[str],
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
) -> bytes:
    """`validation.parquet`: content_sha256, group, label, p_<class>…, mean_intensity, width, height, suffix.

    Args:
        images: Rows of `compute_features`, those of the validation part.
        groups: Group of each.
        labels: Class name of each.
        classes: In the bundle's order.
        probabilities: Calibrated, `[N, K]`: the float32 scorer's own.
    """
    suffixes = [PurePosixPath(uri).suffix.lower() for uri in images["image_uri"].to_pylist()]
    columns: dict[str, Any] = {
        "content_sha256": images["content_sha256"],
        "group": pa.array(groups, pa.string()),
        "label": pa.array(labels, pa.string()),
        **{
            class_column(name): pa.array(np.ascontiguousarray(probabilities[:, index]))
            for index, name in enumerate(classes)
        },
        "mean_intensity": images["mean_intensity"],
        "width": images["width"],
        "height": images["height"],
        "suffix": pa.array(suffixes, pa.string()),
    }
    return _parquet(pa.table(columns))


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
