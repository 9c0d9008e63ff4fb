"""Which images are evaluated: the parts, and what a model has seen."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.storage.reading import ImageReader
from pipelines.training.duplicates import LEAST_TURNS, NEAR_BITS, count_turns
from pipelines.training.inherit import Predecessor
from pipelines.training.labelled_parts import Selection, choose_part, near_to, parts_by_content, without_unreadable

MODEL = "cells@v2"


@pytest.mark.parametrize(
    ("parts", "asked", "chosen"),
    [
        (["train", "val", "test", None], None, "test"),
        (["train", "val"], None, "val"),
        (["external", "external", None], None, "external"),
        (["train", "external"], "external", "external"),
        (["train", "external"], "all", "all"),
        (["train", "val"], "train", "train"),
        ([None, None], None, "external"),
        ([None], "all", "all"),
    ],
)
def test_the_part_that_is_chosen(parts: list[str | None], asked: str | None, chosen: str) -> None:
    assert choose_part(parts, asked, False, MODEL).part == chosen


def test_the_choice_is_said_with_its_reason() -> None:
    assert choose_part(["test"], None, True, MODEL).sentence == "the test part, as the data give it"
    said = choose_part(["train", "val"], None, False, MODEL).sentence
    assert "none of which cells@v2 was made from" in choose_part(["external"], None, False, MODEL).sentence
    imported = choose_part(["external"], "external", False, MODEL, knows=False).sentence
    assert "as far as is known" in imported and "none of which" not in imported
    assert "split of cells@v2" in said and "for want of a test part" in said and "flatter" in said


@pytest.mark.parametrize(
    ("parts", "asked", "message"),
    [
        (["test", "external", "external"], None, r"knows some .* \(test: 1, external: 2\)"),
        (["train", "train"], None, "say nothing"),
        (["test"], "val", r"no image of the part 'val' \(test: 1\)"),
        ([None], "test", "no image can be read"),
    ],
)
def test_what_needs_a_word_more(parts: list[str | None], asked: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_part(parts, asked, False, MODEL)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UsageError, match="no part 'tset'"):
        Selection("tset")


def picture(path: Path, seed: int) -> bytes:
    data = bytes(cv2.imencode(".png", np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8))[1].tobytes())
    path.write_bytes(data)
    return data


def test_parts_are_known_by_bytes_whatever_the_name(tmp_path: Path) -> None:
    import hashlib

    content = [hashlib.sha256(picture(tmp_path / f"{n}.png", n)).hexdigest() for n in range(3)]
    (tmp_path / "moved.png").write_bytes((tmp_path / "1.png").read_bytes())
    split = Predecessor(
        "v1", tuple(content[:2]), np.zeros((2, 32), np.uint8), ("a", "b"), (None, None), ("train", "test")
    )
    uris = [str(tmp_path / name) for name in ("0.png", "moved.png", "2.png", "gone.png")]
    counted: list[int] = []
    reader = ImageReader(1 << 20)
    parts = parts_by_content(uris, split, reader, counted.append)
    assert parts == ["train", "test", "external", None]
    assert counted == [1, 2, 3, 4]
    assert without_unreadable(uris, parts, 32, reader) == parts
    (tmp_path / "2.png").write_bytes(b"no picture at all")
    assert without_unreadable(uris, parts, 32, reader) == ["train", "test", None, None]


@given(st.integers(0, 2**32 - 1))
def test_near_pictures_are_those_that_brute_force_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    others = random.integers(0, 256, (12, 32), np.uint8)
    hashes = np.concatenate([random.integers(0, 256, (6, 32), np.uint8), others[:6]])
    for row in hashes[6:]:
        flipped = random.choice(256, random.integers(0, 16), replace=False)
        bits = np.unpackbits(row)
        bits[flipped] ^= 1
        row[:] = np.packbits(bits)
    hashes[0] = 0  # an even picture, which is near to nothing
    others[7] = 0
    distance = np.unpackbits(hashes[:, None] ^ others[None], axis=2).sum(axis=2)
    compared = (count_turns(hashes) >= LEAST_TURNS)[:, None] & (count_turns(others) >= LEAST_TURNS)[None]
    wanted = ((distance <= NEAR_BITS) & compared).any(axis=1)
    np.testing.assert_array_equal(near_to(hashes, others), wanted)


def test_nothing_is_near_to_nothing() -> None:
    assert near_to(np.zeros((0, 32), np.uint8), np.zeros((3, 32), np.uint8)).tolist() == []
    assert near_to(np.ones((2, 32), np.uint8), np.zeros((0, 32), np.uint8)).tolist() == [False, False]
