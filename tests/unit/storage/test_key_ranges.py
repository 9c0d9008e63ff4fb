from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.storage.key_ranges import EVERYTHING, NOT_EXPRESSIBLE, KeyRange, apart, cut, expected_rest, gaps

KEYS = st.text(st.sampled_from("/.-0159aZz~é漢😀 "), min_size=1, max_size=12)
BOUNDS = st.one_of(st.just(""), KEYS)
RANGES = st.lists(st.builds(KeyRange, BOUNDS, st.one_of(st.none(), KEYS)), max_size=12)


def is_in(key: str, one: KeyRange) -> bool:
    return key > one.after and (one.until is None or key <= one.until)


@settings(max_examples=60)
@given(RANGES, st.lists(KEYS, max_size=10))
def test_what_is_covered_and_the_gaps_hold_each_key_once(ranges: list[KeyRange], keys: list[str]) -> None:
    covered = apart(ranges)
    assert set(covered) <= set(ranges)
    rest = gaps(covered)
    for key in [*keys, *(one.after for one in ranges if one.after), *(one.until for one in ranges if one.until)]:
        assert sum(is_in(key, one) for one in [*covered, *rest]) == 1
    whole = sorted([*covered, *rest], key=lambda one: one.after)
    assert (whole[0].after, whole[-1].until) == ("", None)
    assert all(one.until == following.after for one, following in pairwise(whole))


def test_of_ranges_that_overlap_one_is_used_and_empty_ones_are_not() -> None:
    ranges = [KeyRange("b", "d"), KeyRange("a", "c"), KeyRange("d", "d"), KeyRange("x", "g"), KeyRange("m", None)]
    assert apart(ranges) == [KeyRange("a", "c"), KeyRange("m", None)]
    assert gaps(apart(ranges)) == [KeyRange("", "a"), KeyRange("c", "m")]
    assert gaps([]) == [EVERYTHING]
    assert gaps([EVERYTHING]) == []


@settings(max_examples=60)
@given(KEYS, st.one_of(st.none(), KEYS), st.integers(0, 12))
def test_a_cut_lies_strictly_inside_and_can_be_expressed(last: str, until: str | None, steady: int) -> None:
    assume(until is None or last < until)
    where = cut(last, until, min(steady, len(last)))
    if where is not None:
        assert last < where.key and (until is None or where.key < until)
        assert not NOT_EXPRESSIBLE.search(where.key)
        where.key.encode()


def test_one_empty_answer_takes_a_long_path_that_all_keys_share() -> None:
    last = "hospital/radiology/xray/2024/01/patient-000001/image-0999.jpg"
    until: str | None = None
    answers = 0
    steady = len("hospital/radiology/xray/2024/01/patient-00000")
    while until is None or not until.startswith(last[: steady - 2]):
        where = cut(last, until, steady)
        assert where is not None
        until, answers = where.key, answers + 1
    assert answers <= 6


def test_the_space_of_names_is_halved_again_and_again_until_one_key_is_left() -> None:
    source = random.Random(3)
    for _ in range(200):
        low = f"{source.randrange(10**8):08d}.jpg"
        high: str | None = None
        for _ in range(60):
            where = cut(low, high, 0)
            if where is None:
                break
            high = where.key
        assert high is not None and high.startswith(low[:5])


@given(st.integers(1, 98))
def test_what_is_left_is_guessed_from_what_is_done(done: int) -> None:
    first, last = "p/00/x.jpg", f"p/{done:02d}/x.jpg"
    guess = expected_rest(first, last, "p/99/x.jpg", done)
    assert (99 - done) / 3 <= guess <= 3 * (99 - done)
    assert expected_rest(first, first, None, 1) > 1e6
