"""What compiled scorers answer to files, on the cores of this process: each image is read and decoded once for all.

It is the reading, preprocessing and kernel that `score` uses, so the answers are those that `score` will give.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import ImageFailure, ModelRefused, TryLater
from pipelines.images.preprocess import Preprocessing
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.scoring.ahead import READ_THREADS, ReadAhead
from pipelines.scoring.scorer import LARGEST_FILE
from pipelines.storage.reading import Blob, ImageReader

SECONDS_BETWEEN_NOTES = 0.25
_AGAIN = "Run the same command again: what it has computed so far is kept."

Answers = NDArray[np.float32]


def answer_images(
    models: Sequence[tuple[bytes, ScorerIO]],
    images: pa.Table,
    tell: Callable[[int], None] = lambda _done: None,
    mirrored: bool = False,
) -> list[Answers]:
    """Run scorers of one input size on images.

    A few images for each core are in memory at a time, however many there are.

    Args:
        models: LiteRT bytes, and how each is fed and read.
        images: image_uri (canonical), content_sha256 (as it was when training began); one row an image, N.
        tell: Called now and then with the number of images done.
        mirrored: Whether the models see left and right exchanged.

    Returns:
        For each model float32 `[N, K]`; a row of NaN where it has no finite answer.

    Raises:
        TryLater: If an image cannot be read any more, or is another one by now.
    """
    uris, contents = images["image_uri"].to_pylist(), images["content_sha256"].to_pylist()
    answers = [np.full((len(uris), io.size), np.nan, np.float32) for _, io in models]
    workers = max(1, min(len(os.sched_getaffinity(0)), len(uris)))
    done, stop = [0] * workers, threading.Event()
    reader, preprocessing = ImageReader(LARGEST_FILE), Preprocessing(models[0][1].input_size)

    def work(number: int) -> None:
        scorers = [Scorer(*model) for model in models]
        rows = range(number, len(uris), workers)
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read") as reading:
            blobs = ReadAhead(reader.read, reading).blobs([uris[row] for row in rows])
            for row, blob in zip(rows, blobs, strict=True):
                if stop.is_set():
                    reading.shutdown(wait=False, cancel_futures=True)
                    return
                pixels = _pixels(blob, preprocessing, uris[row], contents[row])
                if mirrored:
                    pixels = np.ascontiguousarray(pixels[:, ::-1])
                for scorer, own in zip(scorers, answers, strict=True):
                    own[row] = _answer(scorer, pixels)
                done[number] += 1

    with ThreadPoolExecutor(workers, thread_name_prefix="answer") as pool:
        working = [pool.submit(work, number) for number in range(workers)]
        try:
            waiting: set[Future[None]] = set(working)
            while waiting and not any(one.done() and one.exception() for one in working):
                waiting = wait(working, SECONDS_BETWEEN_NOTES, FIRST_EXCEPTION).not_done
                tell(sum(done))
        finally:
            stop.set()
    for one in working:
        one.result()
    return answers


def _pixels(blob: Future[Blob], preprocessing: Preprocessing, uri: str, content: str) -> NDArray[np.uint8]:
    try:
        prepared = preprocessing.prepare(blob.result().data)
    except ImageFailure as failure:
        raise TryLater(f"The image {uri} cannot be read any more: {failure}", _AGAIN) from failure
    if prepared.content_sha256 != content:
        raise TryLater(f"The image {uri} changed while training ran.", _AGAIN)
    return prepared.pixels


def _answer(scorer: Scorer, pixels: NDArray[np.uint8]) -> Answers | float:
    try:
        return scorer(pixels)
    except ModelRefused:
        return np.nan
