from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.dataset import PartImages
from pipelines.training.finishing import CALIBRATION_IMAGES, choose_calibration
from pipelines.training.labelled import SCHEMA, LabelledImages
from pipelines.training.run import patients_of


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=300), turn=st.integers(0, 1000))
def test_calibration_images_are_of_all_classes_alike(labels: list[int], turn: int) -> None:
    uris = [f"/data/{number}.jpg" for number in range(len(labels))]
    contents = [f"{number * 7919 % 100_003:064x}" for number in range(len(labels))]
    chosen = choose_calibration(uris, labels, contents)
    assert len(set(chosen)) == len(chosen) == min(len(labels), CALIBRATION_IMAGES)
    label_of = dict(zip(uris, labels, strict=True))
    taken, there = Counter(label_of[uri] for uri in chosen), Counter(labels)
    short = [taken[label] for label in there if taken[label] < there[label]]
    if short:
        # A class that gave less than it had gave as much as any other, but for the last turn.
        assert max(taken.values()) - min(short) <= 1
    # In whatever order the images come, the same are taken.
    turned = [(row + turn) % len(labels) for row in range(len(labels))]
    again = choose_calibration([uris[r] for r in turned], [labels[r] for r in turned], [contents[r] for r in turned])
    assert again == chosen


def test_patients_of_a_part_are_those_of_its_rows() -> None:
    people = ["a", None, "b", "a", None]
    rows = [{"image_uri": str(n), "image_version": "", "label": "x", "person": p} for n, p in enumerate(people)]
    labelled = LabelledImages(pa.Table.from_pylist(rows, SCHEMA), ("x",), {})

    def part(*numbers: int) -> PartImages:
        own = np.array(numbers, np.int64)
        return PartImages(own, own, ("g",) * len(own), labelled.table)

    assert patients_of(labelled, part(1, 2, 3)) == (None, "b", "a")
    assert patients_of(labelled, part(1, 4)) is None
