"""Readable images with their features and their part of the split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.training.head import Part
from pipelines.training.labelled import LabelledImages, check_counts
from pipelines.training.recipes import Recipe
from pipelines.training.report import Unreadable
from pipelines.training.split import group_images, make_split


@dataclass(frozen=True)
class Dataset:
    """The readable images with their features, and the split.

    Attributes:
        images: Rows of `compute_features`, `label` added.
        classes: Names.
        labels: Class numbers `[N]`.
        groups: Group of each image.
        parts: Part of each image.
        unreadable: What was left out.
    """

    images: pa.Table
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: list[str]
    parts: NDArray[np.str_]
    unreadable: tuple[Unreadable, ...]

    def label_names(self) -> list[str]:
        """Class name of each image."""
        return [self.classes[label] for label in self.labels]

    def part(self, name: str) -> Part:
        """Features and labels of one part."""
        rows = self.parts == name
        features = self.images["features"].combine_chunks()
        width = features.type.list_size
        matrix = np.asarray(features.values, np.float32).reshape(-1, width)
        return Part(np.ascontiguousarray(matrix[rows]), self.labels[rows])


def make_dataset(
    labelled: LabelledImages, images: pa.Table, recipe: Recipe, seed: int, looked_at: Sequence[int]
) -> Dataset:
    """Leave out what could not be read, refuse what two labels claim, and make the split.

    Args:
        labelled: What was found.
        images: Rows of `compute_features`, in the same order.
        recipe: Says the shares of the split.
        seed: Decides it.
        looked_at: Rows that the backbone has seen already; they go to `train`.

    Raises:
        UsageError: If too few images are left, the same bytes have two labels, or the split cannot be made.
    """
    table = labelled.table
    readable = pc.equal(images["status"], "scored")
    failed = images.filter(pc.invert(readable))
    unreadable = tuple(
        Unreadable(row["image_uri"], row["error_code"], row["error_message"])
        for row in failed.select(["image_uri", "error_code", "error_message"]).to_pylist()
    )
    images = images.append_column("label", table["label"]).filter(readable)
    names = images["label"].to_pylist()
    after = f" after {len(unreadable)} unreadable ones were left out" if unreadable else ""
    check_counts(names, labelled.classes, after)
    _refuse_torn_content(images)
    kept = table.filter(readable)
    content = images["content_sha256"].to_pylist()
    groups = group_images(content, kept["person"].to_pylist())
    taken = set(table["image_uri"].take(pa.array(looked_at, pa.int64())).to_pylist())
    uris = images["image_uri"].to_pylist()
    labels = np.array([labelled.classes.index(name) for name in names], np.int64)
    parts = make_split(
        labels.tolist(),
        groups,
        validation_share=recipe.validation_share,
        test_share=recipe.test_share,
        seed=seed,
        given=kept["part"].to_pylist() if labelled.has_split else None,
        pinned=frozenset(group for group, uri in zip(groups, uris, strict=True) if uri in taken),
        names=uris,
    )
    return Dataset(images, labelled.classes, labels, groups, parts, unreadable)


def _refuse_torn_content(images: pa.Table) -> None:
    """The same bytes under two labels: one of them is wrong."""
    first: dict[str, tuple[str, str]] = {}
    torn = []
    rows = images.select(["content_sha256", "label", "image_uri"]).to_pylist()
    for row in rows:
        label, uri = first.setdefault(row["content_sha256"], (row["label"], row["image_uri"]))
        if label != row["label"]:
            torn.append(f"{uri} ({label}) and {row['image_uri']} ({row['label']})")
    if torn:
        raise UsageError(
            f"{len(torn)} images stand in two classes under different names, among them {'; '.join(torn[:3])}.",
            "Remove the wrong copies.",
        )
