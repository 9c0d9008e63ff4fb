from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.errors import UsageError
from pipelines.training.audit import LeakAudit, refuse_parted_patients, refuse_two_labels, refuse_two_parts

CLEAN = LeakAudit(
    origin="made",
    predecessor=None,
    images=100,
    patients=20,
    without_patient=0,
    exact_copies=3,
    near_duplicate_pairs=2,
    uncompared=4,
    groups=20,
    largest_group=8,
    across_parts=0,
    across_labels=0,
)


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    assert CLEAN.warnings() == []


def test_the_bundle_gets_counts_and_no_names() -> None:
    named = replace(CLEAN, across_parts=4, named_across_parts=("/p/ann.png and /p/bob.png",), named_left_out=("/p/x",))
    counts = named.as_json()
    assert "/p" not in str(counts)
    assert counts["across_parts"] == 4 and counts["origin"] == "made"
    assert all(value is None or isinstance(value, int | str) for value in counts.values())


def test_warnings_name_the_first_and_say_that_there_are_more() -> None:
    pairs = ("a and b", "c and d", "e and f")
    audit = replace(CLEAN, origin="given", across_parts=4, named_across_parts=pairs, largest_group=11)
    across, large = audit.warnings()
    assert across.endswith(
        "stand in two parts of the given split, so its figures flatter the model: a and b; c and d; e and f; …."
    )
    assert large.startswith("One group") and "11 of 100" in large
    left = replace(CLEAN, predecessor="v7", left_out=1, named_left_out=("n.png",)).warnings()
    assert left[0].startswith("Left out: 1 new image of") and "v7's split" in left[0] and "n.png" in left[0]


def test_small_data_are_not_told_of_groups_that_are_natural() -> None:
    assert replace(CLEAN, images=20, uncompared=0, largest_group=3).warnings() == []


def test_refusals_count_each_copy_and_each_patient_once() -> None:
    uris = ["a", "b", "c", "d", "e"]
    with pytest.raises(UsageError, match=r"^2 images .* a \(x\) and c \(y\); b \(x\) and e \(y\)"):
        refuse_two_labels(["1", "2", "1", "1", "2"], ["x", "x", "y", "y", "y"], uris)
    with pytest.raises(UsageError, match=r"images of 2 patients in two parts, among them a \(train\) and c \(val\); b"):
        refuse_two_parts(list("12345"), ["p", "q", "p", "p", "q"], ["train", "train", "val", "test", "test"], uris)
    with pytest.raises(UsageError, match=r"split of v2 .* 1 patient .* b \(train\) and d \(test\)"):
        refuse_parted_patients(["p", "p", "q", "p", None], [None, "train", "val", "test", "test"], uris, "v2")


def test_what_nobody_groups_is_not_refused() -> None:
    parts = ["train", "test", "val"]
    refuse_two_parts(["1", "2", "3"], [None, None, None], parts, ["a", "b", "c"])
    refuse_parted_patients(["p", "p", "p"], ["train", None, "train"], ["a", "b", "c"], "v1")
