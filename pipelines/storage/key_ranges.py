"""Stretches of a bucket's keys: which of them are still to be listed, and where to cut one so that two can share it.

Python compares text by code points; that is the order of its UTF-8 bytes, which is the order of a bucket.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What obstore's paths cannot be: with control characters, empty segments, `.` or `..`, slashes at the ends.
NOT_EXPRESSIBLE = re.compile(r"[\x00-\x1f\x7f]|//|(?:^|/)\.{1,2}(?:/|$)|^/|/$")

# How the characters of names are spread, as far as anybody can know: the first of each group, and the group's share.
# Nothing but the evenness of cuts depends on it.
_GROUPS = ((" ", 0.05), ("0", 0.45), (":", 0.01), ("A", 0.13), ("[", 0.04), ("a", 0.25), ("{", 0.02), ("\x7f", 0.05))
_FIRST = [ord(first) for first, _ in _GROUPS] + [0x110000]
_BELOW = [sum(share for _, share in _GROUPS[:number]) for number in range(len(_GROUPS))] + [1.0]
_DEPTH = 8
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class KeyRange:
    """The keys above `after`, up to and including `until`.

    Attributes:
        after: "" for the very first key on.
        until: None for no end.
    """

    after: str
    until: str | None

    @property
    def order(self) -> tuple[bool, str]:
        """Where it ends, as something that can be compared."""
        return self.until is None, self.until or ""


EVERYTHING = KeyRange("", None)


def apart(ranges: Iterable[KeyRange]) -> list[KeyRange]:
    """Return those that overlap none before them, in the order of keys; of two that overlap one is left out."""
    kept: list[KeyRange] = []
    for one in sorted(ranges, key=lambda one: (one.after, one.order)):
        is_real = one.order > (False, one.after)
        if is_real and (not kept or kept[-1].order <= (False, one.after)):
            kept.append(one)
    return kept


def gaps(covered: Sequence[KeyRange]) -> list[KeyRange]:
    """Return what lies between ranges, before the first and after the last.

    Args:
        covered: As `apart` returns them.

    Returns:
        Ranges, in order, that make the whole space of keys together with these.
    """
    found = []
    after: str | None = ""
    for one in covered:
        assert after is not None
        if one.after != after:
            found.append(KeyRange(after, one.after))
        after = one.until
    return found if after is None else [*found, KeyRange(after, None)]


def in_common(one: str, other: str | None) -> int:
    """Return with how many same characters two keys begin."""
    pairs = enumerate(zip(one, other or "", strict=False))
    return next((number for number, (mine, yours) in pairs if mine != yours), min(len(one), len(other or "")))


def expected_rest(first: str, last: str, until: str | None, pages: int) -> float:
    """Guess how many pages are left in a range from how far the ones so far went.

    Args:
        first: The first key that was there.
        last: The last one so far.
        until: The range's end.
        pages: How many it took to get from `first` to `last`.
    """
    shared = in_common(first, until)
    start, here = _place(first[shared:]), _place(last[shared:])
    end = 1.0 if until is None else _place(until[shared:])
    done = (here - start) / (end - start) if end > start else 1.0
    return pages * (1 - done) / max(done, 1e-9)


@dataclass(frozen=True)
class Cut:
    """Where a range is cut in two.

    Attributes:
        key: The end of the lower part; no key of the bucket need be there.
        depth: For a cut behind all that begins as the lower part's keys do: with how many characters. Else None.
    """

    key: str
    depth: int | None


def cut(last: str, until: str | None, steady: int) -> Cut | None:
    """Choose where to cut the rest of a range.

    Where the keys of a page begin with more in common than the range's ends have, the cut goes behind that, at half
    of its depth: one empty answer then tells that all keys begin so, be it a path of a hundred characters. Otherwise
    it halves the space of names between the two ends.

    Args:
        last: The last key that was listed; the rest begins after it.
        until: The range's end.
        steady: How many characters the latest page's keys had in common.

    Returns:
        A key that obstore can express, above `last` and below `until`; None where none was found.
    """
    shared = in_common(last, until)
    if steady > shared + 1:
        depth = (shared + steady + 1) // 2
        following = _following(last[depth])
        if following is not None and not NOT_EXPRESSIBLE.search(last[:depth] + following):
            return Cut(last[:depth] + following, depth)
    middle = _between(last, until, shared)
    return None if middle is None else Cut(middle, None)


def _following(character: str) -> str | None:
    number = ord(character) + 1
    if number == ord("/"):
        number += 1
    if 0x7F <= number <= 0xA0:
        number = 0xA1
    if number in _SURROGATES:
        number = _SURROGATES.stop
    return chr(number) if number < 0x110000 else None


def _between(low: str, high: str | None, shared: int) -> str | None:
    """Return a short key in the middle of two, which have `shared` characters in common."""
    end = 1.0 if high is None else _place(high[shared:])
    rest = (_place(low[shared:]) + end) / 2
    found = low[:shared]
    for _ in range(_DEPTH):
        group = bisect_right(_BELOW, rest, hi=len(_GROUPS)) - 1
        width = (_BELOW[group + 1] - _BELOW[group]) / (_FIRST[group + 1] - _FIRST[group])
        number = min(int((rest - _BELOW[group]) / width), _FIRST[group + 1] - _FIRST[group] - 1)
        rest = min(max((rest - _BELOW[group]) / width - number, 0.0), 1 - 1e-12)
        number += _FIRST[group]
        found += chr(_SURROGATES.start - 1 if number in _SURROGATES else number)
        if low < found and (high is None or found < high) and not NOT_EXPRESSIBLE.search(found):
            return found
    return None


def _place(tail: str) -> float:
    """Return where a name lies between the first that could be (0) and the last (1)."""
    place, width = 0.0, 1.0
    for character in tail[:_DEPTH]:
        number = max(ord(character), _FIRST[0])
        group = bisect_right(_FIRST, number) - 1
        size = (_BELOW[group + 1] - _BELOW[group]) / (_FIRST[group + 1] - _FIRST[group])
        place += width * (_BELOW[group] + size * (number - _FIRST[group]))
        width *= size
    return place
