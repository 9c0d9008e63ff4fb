"""The validation set of a model in counts, from what its bundle keeps of it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ModelRefused
from pipelines.evaluation.drift_profile import Floats, Profile, profile_of
from pipelines.models.bundle import VALIDATION_FILE, Bundle
from pipelines.models.decision import decide
from pipelines.predictions.schema import class_column


def validation_profile(bundle: Bundle, precision: str) -> Profile | None:
    """Count the validation set as a night is counted.

    The bundle keeps the probabilities of the float32 scorer. Those of the 8-bit scorer lie on few steps and cannot be
    compared with them; its decisions can, for it has limits of its own by which it decides alike.

    Args:
        bundle: The model.
        precision: Of the night's scores.

    Returns:
        Its profile; None where the bundle keeps no validation set, as an imported one.

    Raises:
        ModelRefused: If the file is missing, altered or cannot be read.
    """
    if VALIDATION_FILE not in bundle.files:
        return None
    try:
        table = pq.read_table(io.BytesIO(bundle.read(VALIDATION_FILE)))
        score = np.sum([_numbers(table, class_column(name)) for name in bundle.positive_classes], axis=0)
        values = {
            "intensity": _numbers(table, "mean_intensity"),
            "size": np.sqrt(_numbers(table, "width") * _numbers(table, "height")),
        }
        shares = {"suffix": table.column("suffix").to_pylist()}
        groups = table.column("group").to_pylist()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ModelRefused(
            f"{VALIDATION_FILE} of {bundle.uri} cannot be read.", "Copy the bundle again from where it was made."
        ) from error
    fitted = bundle.fitted("float32")
    if fitted is not None:
        shares["decision"] = decide(np.clip(score, 0.0, 1.0), fitted).tolist()
    if precision == "float32":
        values["score"] = np.clip(score, 0.0, 1.0)
    return profile_of(values, shares, groups)


def _numbers(table: pa.Table, name: str) -> Floats:
    numbers: Floats = table.column(name).cast(pa.float64()).to_numpy()
    return numbers
