"""How fast near-duplicates are found among 100,000 images, and that memory stays bounded where thousands are alike.

`python tests/benchmarks/bench_split.py [--images 100000] [--real FOLDER]` prints one JSON value. Without `--real` the
hashes are drawn with independent bits; with it, with the frequencies and correlations of a folder's images, which is
harder, because real pictures of one kind share much.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.images.fingerprint import difference_hash
from pipelines.images.preprocess import Preprocessing
from pipelines.training.duplicates import count_turns, survey

SECONDS = 30
GROWN_MB = 400


def drawn(images: int, real: str | None, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Hashes of images that have nothing to do with each other, uint8 `[N, 32]`."""
    if real is None:
        return rng.integers(0, 256, (images, 32), dtype=np.uint8)
    from scipy.stats import norm

    files = [path for path in sorted(Path(real).rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    prints = [difference_hash(Preprocessing(224).prepare(path.read_bytes()).pixels) for path in files]
    bits = np.unpackbits(np.array([np.frombuffer(value, np.uint8) for value in prints]), axis=1)
    # A Gaussian copula: normal numbers with the bits' correlations, cut where they give the bits' frequencies.
    with np.errstate(invalid="ignore"):  # a bit that is the same in all images has no correlation
        related = np.sin(np.pi / 2 * np.nan_to_num(np.corrcoef(bits.T), nan=0.0))
    values, vectors = np.linalg.eigh(related)
    shape = vectors * np.sqrt(values.clip(1e-3))
    shape /= np.linalg.norm(shape, axis=1, keepdims=True)
    limits = norm.ppf(1 - bits.mean(axis=0).clip(0.005, 0.995))
    parts = [rng.normal(size=(min(10_000, images - at), 256)) @ shape.T > limits for at in range(0, images, 10_000)]
    return np.packbits(np.concatenate(parts), axis=1)


def with_relatives(hashes: NDArray[np.uint8], relatives: int, flips: int, rng: np.random.Generator) -> None:
    """Turn the first images into near-duplicates of the very first."""
    bits = np.repeat(np.unpackbits(hashes[:1], axis=1), relatives, axis=0)
    for row in bits:
        row[rng.choice(256, flips, replace=False)] ^= 1
    hashes[:relatives] = np.packbits(bits, axis=1)


def main() -> None:
    """Measure three cases and compare each with what must come out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--real")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    content = [f"{number:064x}" for number in range(options.images)]
    parts = np.arange(options.images) % 3
    base = drawn(options.images, options.real, rng)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer: dict[str, object] = {"images": options.images, "least_turns": int(count_turns(base).min())}
    for name, relatives, flips in (("unrelated", 0, 0), ("20,000 identical", 20_000, 0), ("1,000 near", 1_000, 5)):
        hashes = base.copy()
        relatives = min(relatives, options.images)
        with_relatives(hashes, relatives, flips, rng)
        began = time.perf_counter()
        found = survey(content, hashes, {"parts": parts})
        seconds = time.perf_counter() - began
        assert found.pairs >= relatives * (relatives - 1) // 2
        assert seconds < SECONDS, (name, seconds)
        answer[name] = {"seconds": round(seconds, 2), "pairs": found.pairs, "across": found.apart["parts"].pairs}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < GROWN_MB, grown
    print(json.dumps({**answer, "grown_mb": grown}))


if __name__ == "__main__":
    main()
