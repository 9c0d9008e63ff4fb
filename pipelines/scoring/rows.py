"""From what became of each image to Arrow rows: the table's for a night, the feature table's for training."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archive.plan_writing import PREVIOUS
from pipelines.errors import ImageFailure
from pipelines.images.preprocess import Prepared
from pipelines.models.bundle import Bundle
from pipelines.models.decision import decide
from pipelines.predictions.schema import class_column


class Promise(Protocol):
    """An answer that comes later, with those of other images."""

    def __call__(self) -> np.ndarray:
        """The model's output, float32 `[K]`, waited for.

        Raises:
            ModelRefused: If it is not finite.
        """

    @property
    def stood_in(self) -> bool:
        """Whether something slower had to answer in place of what was asked; known once it is answered."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        version: The version of the bytes that were read; "" where nothing was read.
        prepared: What decoding gave; None for a failed image.
        answer: The model's output, float32 `[K]`; None for a failed image.
        failure: Why there is no answer; None for a scored image.
        kept: The bytes are those of the plan's previous row, whose answer holds: nothing was decoded.
        seconds: How long the actor was busy with the image, waiting for its bytes included.
        promise: Where the answer is still to come from; None once it is there.
        stood_in: The answer is that of the actor itself, because no GPU was there to give it.
    """

    version: str
    prepared: Prepared | None = None
    answer: np.ndarray | None = None
    failure: ImageFailure | None = None
    kept: bool = False
    seconds: float = 0.0
    promise: Promise | None = None
    stood_in: bool = False

    @property
    def scored(self) -> bool:
        """Whether the image has an answer."""
        return self.failure is None


@dataclass(frozen=True)
class RowContext:
    """What all rows of a run have in common.

    Attributes:
        run_id: The run that the rows belong to.
        scored_date: UTC day of the run's start; the table's partition.
        bundle: The model.
        precision: `float32` or `int8`.
        training_hashes: `content_sha256` of the images that the model was fitted to, as far as its bundle knows; None
            where it knows of none.
        versions_from_manifest: True where the plan's `image_version` is the manifest's own and not what reading gives.
        schema: The table's schema for this model and these carried columns.
    """

    run_id: str
    scored_date: datetime.date
    bundle: Bundle
    precision: str
    training_hashes: frozenset[str] | None
    versions_from_manifest: bool
    schema: pa.Schema


def shared_columns(outcomes: Sequence[Outcome]) -> dict[str, pa.Array]:
    """Columns that need no model's meaning: content_sha256, width, height, mean_intensity, status, error_*."""
    prepared = [outcome.prepared for outcome in outcomes]
    return {
        "content_sha256": pa.array([p.content_sha256 if p else None for p in prepared], pa.string()),
        "width": pa.array([p.width if p else None for p in prepared], pa.int32()),
        "height": pa.array([p.height if p else None for p in prepared], pa.int32()),
        "mean_intensity": pa.array([p.mean_intensity if p else None for p in prepared], pa.float32()),
        "status": pa.array(["scored" if o.scored else "failed" for o in outcomes], pa.string()),
        "error_code": pa.array([o.failure.code if o.failure else None for o in outcomes], pa.string()),
        "error_message": pa.array([o.failure.message if o.failure else None for o in outcomes], pa.string()),
    }


def prediction_rows(images: pa.Table, outcomes: Sequence[Outcome], context: RowContext) -> pa.Table:
    """One row of the predictions table for each image, in the order of `images`.

    Args:
        images: The plan's rows: image_uri, image_version, the carried columns, and where answers may be kept
            `PREVIOUS`: a struct of the old row's columns, null for most images.
        outcomes: What became of each, same length and order.
        context: What all rows share.

    Returns:
        A table of `context.schema`.
    """
    rows = len(outcomes)
    columns = shared_columns(outcomes)
    columns |= _answer_columns(outcomes, context)
    prepared = [outcome.prepared for outcome in outcomes]
    bundle = context.bundle
    constants = {
        "run_id": context.run_id,
        "frame": 0,
        "model_name": bundle.name,
        "model_id": bundle.model_id,
        "preprocessing_id": bundle.preprocessing_id,
        "precision": context.precision,
        "scored_date": context.scored_date,
        "scored_at": datetime.datetime.now(datetime.UTC),
    }
    for name, value in constants.items():
        columns[name] = pa.repeat(pa.scalar(value, context.schema.field(name).type), rows)
    columns["image_uri"] = images.column("image_uri")
    columns["image_version"] = _versions(images, outcomes, context)
    columns["frames"] = pa.array([p.frames if p else None for p in prepared], pa.int32())
    columns["decoder"] = pa.array([p.decoder if p else None for p in prepared], pa.string())
    known = context.training_hashes
    strange = False if bundle.knows_training else None
    columns["in_training_set"] = pa.array(
        [None if p is None or known is None else p.content_sha256 in known or strange for p in prepared], pa.bool_()
    )
    for field in context.schema:
        if field.name not in columns:
            columns[field.name] = images.column(field.name)
    if any(outcome.kept for outcome in outcomes):
        columns |= _with_kept(images.column(PREVIOUS), outcomes, columns, context.schema)
    return pa.table([columns[field.name] for field in context.schema], schema=context.schema)


def _with_kept(
    previous: pa.ChunkedArray, outcomes: Sequence[Outcome], columns: Mapping[str, pa.Array], schema: pa.Schema
) -> dict[str, pa.Array]:
    """Columns in which images whose bytes are the old ones have what the old row says."""
    old = previous.combine_chunks()
    kept = pa.array([outcome.kept for outcome in outcomes])
    return {
        name: pc.if_else(kept, pc.struct_field(old, name).cast(schema.field(name).type), columns[name])
        for name in (field.name for field in old.type)
        if name in columns
    }


def _answer_columns(outcomes: Sequence[Outcome], context: RowContext) -> dict[str, pa.Array]:
    """predicted_class, score, p_<class>…, p_positive, decision: null for failed images."""
    bundle, rows = context.bundle, len(outcomes)
    probabilities = np.zeros((rows, len(bundle.classes)), np.float32)
    for row, outcome in enumerate(outcomes):
        if outcome.answer is not None:
            probabilities[row] = outcome.answer
    missing = np.array([outcome.answer is None for outcome in outcomes])
    best = probabilities.argmax(axis=1)  # numpy takes the first of equals, as DESIGN asks
    positive = np.array([bundle.p_positive(row) for row in probabilities], np.float32)
    fitted = bundle.fitted(context.precision)
    decisions = [None] * rows if fitted is None else decide(positive, fitted).tolist()
    columns = {
        "predicted_class": pa.array([bundle.classes[i] for i in best], pa.string(), mask=missing),
        "score": pa.array(probabilities[np.arange(rows), best], pa.float32(), mask=missing),
        "p_positive": pa.array(positive, pa.float32(), mask=missing),
        "decision": pa.array(decisions, pa.string(), mask=missing),
    }
    for index, name in enumerate(bundle.classes):
        columns[class_column(name)] = pa.array(
            np.ascontiguousarray(probabilities[:, index]), pa.float32(), mask=missing
        )
    return columns


def _versions(images: pa.Table, outcomes: Sequence[Outcome], context: RowContext) -> pa.Array | pa.ChunkedArray:
    """The version of the bytes that were really read: an image replaced since the listing is not new tomorrow."""
    planned = images.column("image_version")
    if context.versions_from_manifest:
        return planned
    return pa.array([o.version or plan for o, plan in zip(outcomes, planned.to_pylist(), strict=True)], pa.string())


def feature_rows(images: pa.Table, outcomes: Sequence[Outcome], hashes: Sequence[bytes | None], width: int) -> pa.Table:
    """One row of features for each image, in the order of `images`.

    Args:
        images: image_uri, image_version.
        outcomes: What became of each; the answer is the image's features.
        hashes: 32 bytes of perceptual hash for each image, None for a failed one.
        width: Length of an answer in bytes.

    Returns:
        Columns image_uri, content_sha256, perceptual_hash (binary 32), width, height, mean_intensity, status,
        error_code, error_message, features (fixed_size_binary[width], null for a failed image). The numbers are kept
        as bytes because Parquet takes four bytes for each pixel and ten times as long for lists of them.
    """
    columns = shared_columns(outcomes)
    features = [None if outcome.answer is None else outcome.answer.tobytes() for outcome in outcomes]
    return pa.table(
        {
            "image_uri": images.column("image_uri"),
            "content_sha256": columns.pop("content_sha256"),
            "perceptual_hash": pa.array(hashes, pa.binary(32)),
            **columns,
            "features": pa.array(features, pa.binary(width)),
        }
    )
