"""The files of a bundle that say what it was trained and validated on: two tables and the card."""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.predictions.schema import class_column
from pipelines.training.split import PARTS


def split_table(images: pa.Table, groups: Sequence[str], parts: NDArray[np.str_]) -> bytes:
    """`split.parquet`: content_sha256, perceptual_hash (32 bytes), group, part; one row an image.

    Args:
        images: Rows of `compute_features`.
        groups: Group of each.
        parts: Part of each.
    """
    return _parquet(
        {
            "content_sha256": images["content_sha256"],
            "perceptual_hash": images["perceptual_hash"],
            "group": pa.array(groups, pa.string()),
            "part": pa.array(parts.tolist(), pa.string()),
        }
    )


def validation_table(
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
        probabilities: Calibrated, `[N, K]`.
    """
    suffixes = [PurePosixPath(uri).suffix.lower() for uri in images["image_uri"].to_pylist()]
    return _parquet(
        {
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
    )


def count_parts(labels: Sequence[str], parts: NDArray[np.str_], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Part to class to number of images."""
    counts = Counter(zip(parts.tolist(), labels, strict=True))
    return {part: {name: counts[part, name] for name in classes} for part in PARTS if (parts == part).any()}


def model_card(
    *,
    name: str,
    classes: Sequence[str],
    positive: Sequence[str],
    counts: Mapping[str, Mapping[str, int]],
    groups: int,
    recipe: Mapping[str, Any],
    weights: str,
    figures: Mapping[str, float],
    interval: tuple[float, float],
    temperature: float,
    threshold: Mapping[str, float],
    warnings: Sequence[str],
    command: Sequence[str],
) -> bytes:
    """`MODEL_CARD.md`: data, recipe, figures, use and limits, how to make it again."""
    lines = [
        f"# {name}",
        "",
        "A classifier of single images for the batch scoring of an archive. Not a medical device: its answers order "
        "work and prompt a second look, they are no diagnosis.",
        "",
        "## Data",
        "",
        "| part | " + " | ".join(classes) + " |",
        "|---" * (len(classes) + 1) + "|",
        *(f"| {part} | " + " | ".join(str(count) for count in own.values()) + " |" for part, own in counts.items()),
        "",
        f"{groups} groups (a patient's images, and copies of one image, stay in one part). Positive: "
        f"{', '.join(positive)}.",
        "",
        "## Validation",
        "",
        f"ROC AUC of the positive classes against the rest, 95 % interval: {interval[0]:.3f} to {interval[1]:.3f}. "
        f"Temperature {temperature:.3f}. At the threshold {threshold['threshold']:.6g} of p_positive (the largest that "
        f"reaches a sensitivity of {threshold['target_sensitivity']}) sensitivity is {threshold['sensitivity']:.3f} "
        f"and specificity {threshold['specificity']:.3f}; both were fitted on these images, so expect less on others.",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {key} | {value:.4f} |" for key, value in figures.items()),
        "",
        *(f"**Warning:** {text}\n" for text in warnings),
        "## Recipe",
        "",
        "```toml",
        *(f"{key} = {_toml(value)}" for key, value in recipe.items()),
        "```",
        f"Weights of the backbone: {weights}.",
        "",
        "## Limits",
        "",
        "The figures hold for images like those of the validation part. Another scanner, stain, age group or share of "
        "diseased changes them; measure on your own labelled images before use.",
        "",
        "## Make it again",
        "",
        "```sh",
        shlex.join(command),
        "```",
        "",
    ]
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _parquet(columns: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink)
    return sink.getvalue()
