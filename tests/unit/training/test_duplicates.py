from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipelines.images.fingerprint import difference_hash
from pipelines.images.preprocess import Preprocessing
from pipelines.training.duplicates import LEAST_TURNS, count_turns, find_near_pairs, survey

Bits = NDArray[np.uint8]


def families(seed: int, families: int, members: int, most: int) -> Bits:
    """Random hashes, each with relatives that differ in up to `most` bits: far more near pairs than chance gives."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(families):
        bits = rng.integers(0, 2, 256, dtype=np.uint8)
        for _ in range(members):
            turned = bits.copy()
            turned[rng.choice(256, rng.integers(0, most + 1), replace=False)] ^= 1
            made.append(np.packbits(turned))
    return np.array(made)


def distance(one: Bits, other: Bits) -> int:
    """One bit at a time, as the definition says."""
    return sum((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))


def near_by_hand(hashes: Bits) -> set[tuple[int, int]]:
    return {(a, b) for a, b in combinations(range(len(hashes)), 2) if distance(hashes[a], hashes[b]) <= 10}


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 14), members=st.integers(1, 8))
def test_every_near_pair_is_found_once(seed: int, most: int, members: int) -> None:
    hashes = np.unique(families(seed, 6, members, most), axis=0)
    found = [tuple(sorted(pair)) for batch in find_near_pairs(hashes) for pair in zip(*batch, strict=True)]
    assert len(found) == len(set(found))
    assert set(found) == near_by_hand(hashes)


def test_ten_bits_wherever_they_lie_and_not_eleven() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 256, dtype=np.uint8)
    # The worst case for any cut into blocks: the ten bits as far from each other as they can be, and all together.
    for places in [
        np.arange(10) * 25,
        np.arange(10),
        np.arange(10) * 12,
        *(rng.permutation(256)[:10] for _ in range(200)),
    ]:
        ten, eleven = base.copy(), base.copy()
        ten[places] ^= 1
        eleven[[*places, 255]] ^= 1
        assert sum(len(left) for left, _ in find_near_pairs(np.packbits([base, ten], axis=1))) == 1
        if 255 not in places:
            assert not list(find_near_pairs(np.packbits([base, eleven], axis=1)))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_survey_counts_what_a_look_at_every_pair_counts(seed: int, data: st.DataObject) -> None:
    hashes = families(seed, 4, 5, 8)
    hashes = hashes[data.draw(st.lists(st.integers(0, len(hashes) - 1), min_size=1, max_size=30))]
    rows = len(hashes)
    # Images of the same bytes have the same hash and the same kind.
    content = [f"{number:04d}" for number in range(rows)]
    kinds = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=rows, max_size=rows)), np.int64)
    for row in range(1, rows):
        if data.draw(st.booleans()) and (hashes[row] == hashes[row - 1]).all():
            content[row], kinds[row] = content[row - 1], kinds[row - 1]
    found = survey(content, hashes, {"kind": kinds})
    first = [row for row in range(rows) if content.index(content[row]) == row]
    near = [(a, b) for a, b in combinations(first, 2) if distance(hashes[a], hashes[b]) <= 10]
    assert found.pairs == len(near)
    apart = [(a, b) for a, b in near if kinds[a] >= 0 and kinds[b] >= 0 and kinds[a] != kinds[b]]
    assert found.apart["kind"].pairs == len(apart)
    assert found.apart["kind"].first == tuple(apart[:3])
    links = near + [(content.index(content[row]), row) for row in range(rows)]
    graph = coo_array((np.ones(len(links)), tuple(np.array(links).T)), shape=(rows, rows))
    joined = connected_components(graph, directed=False)[1]
    assert [list(found.alike == number) for number in found.alike] == [list(joined == number) for number in joined]


def test_thousands_of_equal_hashes_cost_no_more_than_one() -> None:
    hashes = np.repeat(families(1, 1, 1, 1), 30_000, axis=0)
    parts = np.arange(30_000) % 2
    found = survey([f"{number:05d}" for number in range(30_000)], hashes, {"part": parts})
    assert found.pairs == 30_000 * 29_999 // 2
    assert found.apart["part"].pairs == 15_000**2
    assert set(found.alike.tolist()) == {0}


def test_no_images_and_one_image() -> None:
    none = survey([], np.zeros((0, 32), np.uint8), {"part": np.zeros(0, np.int64)})
    assert (none.pairs, none.links()) == (0, [])
    assert survey(["a"], families(0, 1, 1, 1), {}).links() == ["alike-0"]


@given(st.binary(min_size=32, max_size=32))
def test_turns_are_counted_within_rows(data: bytes) -> None:
    rows = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(16, 16)
    assert count_turns(np.frombuffer(data, np.uint8)[None])[0] == sum(
        int(row[at] != row[at + 1]) for row in rows for at in range(15)
    )


def picture(kind: str, seed: int) -> bytes:
    """Drawings that differ from seed to seed, and that a hash of this kind cannot tell apart."""
    rng = np.random.default_rng(seed)
    size = 224
    y, x = np.mgrid[:size, :size] / size - 0.5
    grey = np.zeros((size, size))
    if kind == "blank":
        grey[:] = rng.integers(0, 200)
    elif kind == "gradient":
        grey = 120 + rng.uniform(50, 100) * x
    elif kind == "disc":  # a smooth bright field on black, as a fundus camera or a microscope gives
        away = np.hypot(x - rng.normal(0, 0.01), y - rng.normal(0, 0.01))
        grey = np.where(away < rng.uniform(0.44, 0.48), 150 - 300 * away**2, 0)
    elif kind == "spot":
        cv2.circle(grey, tuple(int(value) for value in rng.integers(40, 184, 2)), int(rng.integers(5, 25)), 200.0, -1)
    return difference_hash(np.repeat(grey[:, :, None].clip(0, 255).astype(np.uint8), 3, axis=2))


@pytest.mark.parametrize("kind", ["blank", "gradient", "disc", "spot"])
def test_pictures_without_structure_are_not_chained_into_one_group(kind: str) -> None:
    hashes = np.array([np.frombuffer(picture(kind, seed), np.uint8) for seed in range(60)])
    assert len(near_by_hand(hashes)) > 60
    found = survey([f"{number:02d}" for number in range(60)], hashes, {})
    assert found.pairs == 0
    assert not found.compared.any()
    assert len(set(found.alike.tolist())) == 60


@pytest.mark.parametrize(("name", "pairs", "least"), [("brain_tumor_mri", 17, 48), ("chest_xray", 0, 56)])
def test_real_sets(shared_data: Path, name: str, pairs: int, least: int) -> None:
    files = sorted(path for path in (shared_data / name).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    prepared = [Preprocessing(224).prepare(path.read_bytes()) for path in files]
    hashes = np.array([np.frombuffer(difference_hash(one.pixels), np.uint8) for one in prepared])
    found = survey([one.content_sha256 for one in prepared], hashes, {})
    # The 17 were looked at: each is one picture in two files.
    assert found.pairs == pairs
    assert count_turns(hashes).min() == least > LEAST_TURNS


def test_a_reencoded_or_resized_copy_is_near(shared_data: Path) -> None:
    files = sorted((shared_data / "chest_xray" / "img").iterdir())[:12]
    for path in files:
        image = cv2.imread(str(path))
        assert image is not None
        half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        versions = [path.read_bytes()]
        versions += [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()]
        versions += [cv2.imencode(".png", half)[1].tobytes()]
        hashes = [difference_hash(Preprocessing(224).prepare(data).pixels) for data in versions]
        found = survey(["a", "b", "c"], np.array([np.frombuffer(value, np.uint8) for value in hashes]), {})
        assert found.pairs == 3, path
