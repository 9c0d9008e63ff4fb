"""Decoding and resizing on one core: ours against the usual ways, with the answers checked.

`python tests/benchmarks/bench_decode.py [--images 24] [--rounds 5]` prints one JSON object a line. Rates are images a
second of processor time, the best of the rounds, so that other work on the machine matters little; each round runs all
ways, one after the other, on the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import time
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pipelines.images.decode import decode
from pipelines.images.preprocess import Preprocessing, resize

SIDE = 224
WIDTH, HEIGHT = 1024, 768
# Scaled decoding averages by the cosine transform instead of by area: the same picture, a little sharper.
MEAN_DIFFERENCE = 2.0

Pixels = np.ndarray


def draw_photo(random: np.random.Generator) -> bytes:
    """A JPEG of smooth blobs and fine noise, 4:2:0, quality 88: about 200 kB, as a photograph's."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
    for cells, height in ((8, 60), (32, 40), (128, 18)):
        blobs = random.normal(0, height, (cells * 3 // 4, cells, 3)).astype(np.float32)
        pixels += cv2.resize(blobs, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    pixels += random.normal(0, 4, (HEIGHT, WIDTH, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88, subsampling=2)
    return buffer.getvalue()


def opencv(data: bytes, flag: int) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    return cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def pillow(data: bytes, draft: bool) -> Pixels:
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (SIDE, SIDE))
    return cv2.resize(np.asarray(image.convert("RGB")), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def simple(data: bytes, least: int) -> Pixels:
    pixels = simplejpeg.decode_jpeg(data, min_height=least, min_width=least)
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


WAYS: dict[str, Callable[[bytes], Pixels]] = {
    "nightread prepare": lambda data: Preprocessing(SIDE).prepare(data).pixels,
    "nightread decode and resize": lambda data: resize(decode(data, SIDE).pixels, SIDE),
    "simplejpeg any eighth": lambda data: simple(data, SIDE),
    "simplejpeg full": lambda data: simple(data, 0),
    "OpenCV reduced by 2": lambda data: opencv(data, cv2.IMREAD_REDUCED_COLOR_2),
    "OpenCV full": lambda data: opencv(data, cv2.IMREAD_COLOR),
    "Pillow draft": lambda data: pillow(data, True),
    "Pillow full": lambda data: pillow(data, False),
}
SAME_PIXELS = {"nightread prepare", "nightread decode and resize", "OpenCV reduced by 2", "Pillow draft"}
"""Ways that follow our scaled-decode rule: held to 2 of 255, pixel by pixel."""


def seconds_of(work: Callable[[bytes], object], files: list[bytes]) -> float:
    """Processor seconds for one pass over the files."""
    start = time.process_time()
    for data in files:
        work(data)
    return time.process_time() - start


def check(name: str, found: list[Pixels], ours: list[Pixels]) -> dict[str, float]:
    """Hold a way's answers to ours; ends the benchmark where they differ."""
    differences = [np.abs(one.astype(np.int16) - two) for one, two in zip(found, ours, strict=True)]
    largest, mean = max(int(d.max()) for d in differences), max(float(d.mean()) for d in differences)
    if mean > MEAN_DIFFERENCE or (name in SAME_PIXELS and largest > 2):
        raise SystemExit(f"{name} differs: at most {largest}, on average {mean:.2f} of 255")
    return {"largest_difference": largest, "mean_difference": round(mean, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    random = np.random.default_rng(0)
    files = [draw_photo(random) for _ in range(options.images)]
    ours = [WAYS["nightread decode and resize"](data) for data in files]
    agreement = {name: check(name, [way(data) for data in files], ours) for name, way in WAYS.items()}
    best = dict.fromkeys(WAYS, float("inf"))
    hashing = float("inf")
    for _ in range(options.rounds):
        for name, way in WAYS.items():
            best[name] = min(best[name], seconds_of(way, files))
        hashing = min(hashing, seconds_of(lambda data: hashlib.sha256(data).digest(), files))
    print(json.dumps({"images": len(files), "mean_bytes": sum(map(len, files)) // len(files), "cores": os.cpu_count()}))
    for name, seconds in best.items():
        print(json.dumps({"way": name, "images_per_second": round(len(files) / seconds, 1), **agreement[name]}))
    start = time.process_time()
    identity = Preprocessing(SIDE).id
    first_id = time.process_time() - start
    overhead = best["nightread prepare"] - best["nightread decode and resize"]
    print(json.dumps({
        "prepare_beyond_decode_and_resize_us": round(overhead / len(files) * 1e6),
        "of_that_sha256_us": round(hashing / len(files) * 1e6),
        "preprocessing_id_ms": round(first_id * 1e3, 2),
        "preprocessing_id": identity,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
