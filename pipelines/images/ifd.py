"""The directory structure that TIFF files and EXIF blocks share, read without trusting a single number in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

ORIENTATION_TAG = 274
MAX_ENTRIES = 4096

# TIFF field type -> (bytes of one value, struct letter); rationals are never needed here.
_TYPES = {
    1: (1, "B"), 3: (2, "H"), 4: (4, "I"), 6: (1, "b"), 8: (2, "h"), 9: (4, "i"),
    11: (4, "f"), 12: (8, "d"), 13: (4, "I"), 16: (8, "Q"),
}  # fmt: skip


class Damaged(Exception):
    """An offset or a length points outside the data, or the structure contradicts itself."""


@dataclass(frozen=True)
class Layout:
    """Byte order and width of the numbers of one TIFF structure.

    Attributes:
        order: `<` or `>` as `struct` wants it.
        big: True for BigTIFF, whose offsets have 8 bytes.
        first: Offset of the first directory.
    """

    order: str
    big: bool
    first: int


@dataclass(frozen=True)
class Entry:
    """One field of a directory: its type, how many values, where they lie."""

    kind: int
    count: int
    at: int


@dataclass(frozen=True)
class Directory:
    """One image file directory: fields by tag, and the offset of the next directory (0: none)."""

    layout: Layout
    entries: dict[int, Entry]
    following: int

    def numbers(self, data: bytes, tag: int) -> tuple[float, ...]:
        """The numbers of a field; empty where the tag is absent or of a type without numbers.

        Raises:
            Damaged: If they lie outside of `data`.
        """
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _TYPES:
            return ()
        size, letter = _TYPES[entry.kind]
        if entry.at + size * entry.count > len(data):
            raise Damaged
        return struct.unpack_from(f"{self.layout.order}{entry.count}{letter}", data, entry.at)

    def number(self, data: bytes, tag: int, default: int) -> int:
        """The first number of a field as an integer, or `default` where there is none."""
        numbers = self.numbers(data, tag)
        return int(numbers[0]) if numbers else default


def read_layout(data: bytes) -> Layout:
    """Read the 8 or 16 bytes with which a TIFF structure begins.

    Raises:
        Damaged: If they are not there.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise Damaged
    magic, first = struct.unpack_from(order + "HI", data, 2)
    if magic == 42:
        return Layout(order, False, first)
    if magic != 43 or len(data) < 16 or struct.unpack_from(order + "HH", data, 4) != (8, 0):
        raise Damaged
    return Layout(order, True, struct.unpack_from(order + "Q", data, 8)[0])


def read_directory(data: bytes, layout: Layout, offset: int) -> Directory:
    """Read the directory at `offset`, its link to the next one included.

    Raises:
        Damaged: If it does not lie wholly in `data` or has more than `MAX_ENTRIES` fields.
    """
    head, entry_size, link = ("Q", 20, "Q") if layout.big else ("H", 12, "I")
    try:
        (count,) = struct.unpack_from(layout.order + head, data, offset)
        start = offset + struct.calcsize("=" + head)
        if count > MAX_ENTRIES:
            raise Damaged
        entries: dict[int, Entry] = {}
        for at in range(start, start + count * entry_size, entry_size):
            tag, entry = _read_entry(data, layout, at)
            entries.setdefault(tag, entry)
        (following,) = struct.unpack_from(layout.order + link, data, start + count * entry_size)
    except (struct.error, OverflowError) as error:
        raise Damaged from error
    return Directory(layout, entries, following)


def _read_entry(data: bytes, layout: Layout, at: int) -> tuple[int, Entry]:
    tag, kind, count = struct.unpack_from(layout.order + ("HHQ" if layout.big else "HHI"), data, at)
    inline, letter, room = (at + 12, "Q", 8) if layout.big else (at + 8, "I", 4)
    value_size = _TYPES.get(kind, (8, ""))[0]
    place = inline
    if value_size * count > room:
        (place,) = struct.unpack_from(layout.order + letter, data, inline)
    return tag, Entry(kind, count, place)


def exif_orientation(block: bytes) -> int:
    """The orientation 1–8 that an EXIF block tells; 1 where it tells none or is damaged.

    A damaged EXIF block says nothing about the picture, so it never makes an image fail.
    """
    block = block.removeprefix(b"Exif\x00\x00")
    try:
        layout = read_layout(block)
        directory = read_directory(block, layout, layout.first)
        value = directory.number(block, ORIENTATION_TAG, 1)
    except Damaged:
        return 1
    return value if 1 <= value <= 8 else 1
