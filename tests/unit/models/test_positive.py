from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.models.positive import choose_positive


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("benign", "malignant"), "malignant"),
        (("malignant", "normal"), "malignant"),  # by name, though not the last
        (("Cancer", "healthy"), "Cancer"),
        (("Tumour", "zebra"), "Tumour"),
        (("no", "yes"), "yes"),
        (("yes", "zero"), "yes"),
        (("0", "1"), "1"),
        (("1", "2"), "1"),
        (("TRUE", "false"), "TRUE"),
        (("positive", "q"), "positive"),
        (("cat", "dog"), "dog"),
        (("dog", "cat"), "dog"),
        (("cancer", "tumor"), "tumor"),  # both say so: the last in sorted order
        (("cancerous", "benign"), "cancerous"),  # not the whole name: the last in sorted order
        (("cancerous", "zz"), "zz"),
        (("benign", "malignant", "normal"), "malignant"),
        (("abnormal", "a", "b", "c"), "abnormal"),
    ],
)
def test_the_rule(classes: tuple[str, ...], positive: str) -> None:
    assert choose_positive(classes) == (positive,)


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("cancer", "tumor", "normal"), ("yes", "no", "maybe")])
def test_what_the_rule_does_not_decide_is_asked(classes: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        choose_positive(classes)
    assert all(name in caught.value.cure for name in classes)


def test_what_is_asked_for_wins_in_the_order_of_the_classes() -> None:
    assert choose_positive(("a", "malignant", "c"), ["c", "a"]) == ("a", "c")
    with pytest.raises(UsageError, match="no class 'd'"):
        choose_positive(("a", "b", "c"), ["d"])
    with pytest.raises(UsageError, match="All classes"):
        choose_positive(("a", "b"), ["b", "a"])


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=2, unique=True))
def test_two_classes_are_always_decided_and_their_order_does_not_matter(classes: list[str]) -> None:
    assert choose_positive(classes) == choose_positive(classes[::-1])
