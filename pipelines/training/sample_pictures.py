"""Training images as a report shows them: as the model saw them, and moved as training moved them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa

from pipelines.errors import ImageFailure, NightreadError
from pipelines.evaluation.content import Sample
from pipelines.evaluation.pictures import Reads, encode_jpeg, fit
from pipelines.images.augment import image_key
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import SPLIT_FILE, Bundle
from pipelines.training.feeding import augmentation_of
from pipelines.training.inherit import read_split
from pipelines.training.labelled import DataConfig, read_for_model
from pipelines.training.recipes import Recipe

OF_CLASS = 3
IN_ALL = 24
COPIES = 3
LOOKS = 60
"""Images of a class that are looked at: where one in twenty trained, that finds one nineteen times in twenty."""


@dataclass(frozen=True)
class _Moves:
    """How training moved an image."""

    recipe: Recipe
    seed: int

    def copies(self, content_sha256: str) -> list[tuple[int, ...]]:
        """Keys of the first movements of an image: of its kept copies, or of the first epochs where each moves anew."""
        recipe, content = self.recipe, image_key(content_sha256)
        if not recipe.augments:
            return []
        if recipe.variants:
            return [(self.seed, number, content) for number in range(min(COPIES, recipe.variants))]
        return [(self.seed, content >> 1, epoch, 0) for epoch in range(1, COPIES + 1)]


def training_samples(bundle: Bundle, recipe: Recipe, data: DataConfig | None) -> tuple[tuple[Sample, ...], str]:
    """Some training images of each class, found among labelled images by their content.

    Args:
        bundle: A model that was trained here; it names its images by their hash alone.
        recipe: What it was trained with.
        data: Where to look.

    Returns:
        Samples, class by class in the model's order, and why there are none, one sentence.
    """
    if data is None:
        return (), "The labelled images were not given, so that no training image can be shown."
    if SPLIT_FILE not in bundle.files:
        return (), "The bundle does not say which images it was trained on."
    try:
        images = read_for_model(replace(data, exclude=(*data.exclude, *recipe.exclude)), bundle.classes).table
    except NightreadError:
        # Its message may name images; whoever evaluates these data has met it already.
        return (), "The labelled images could not be listed again."
    trained = frozenset(content for content, part in read_split(bundle).part_of.items() if part == "train")
    moves = _Moves(recipe, int(bundle.provenance.get("seed", 0)))
    of_class = max(1, min(OF_CLASS, IN_ALL // len(bundle.classes)))
    reads, samples = Reads(), list[Sample]()
    for number, label in enumerate(bundle.classes[:IN_ALL]):
        found = _samples(label, _to_look_at(images, label, number), trained, moves, reads)
        samples += islice(found, of_class)
    return tuple(samples), "" if samples else "No training image was found among these images."


def _to_look_at(images: pa.Table, label: str, number: int) -> list[str]:
    """Names of some images of a class, in an order that chance made once and for all."""
    pairs = zip(images["image_uri"].to_pylist(), images["label"].to_pylist(), images["part"].to_pylist(), strict=True)
    uris = sorted(uri for uri, own, part in pairs if own == label and part in (None, "train"))
    order = np.random.default_rng(number).permutation(len(uris))[:LOOKS]
    return [uris[place] for place in order.tolist()]


def _samples(label: str, uris: Sequence[str], trained: frozenset[str], moves: _Moves, reads: Reads) -> Iterator[Sample]:
    """Those of the images that trained; each is read when it is asked for."""
    augmentation, preprocessing = augmentation_of(moves.recipe), Preprocessing(moves.recipe.input_size)
    for uri in uris:
        data = reads.read(uri)
        content = "" if data is None else hashlib.sha256(data).hexdigest()
        # What trained was decoded then without harm, so that it can be decoded here, outside the decoding process.
        if data is None or content not in trained:
            continue
        try:
            pixels = preprocessing.prepare(data).pixels
        except ImageFailure:
            continue  # it trained elsewhere, with decoders that this machine does not have
        moved = tuple(encode_jpeg(fit(augmentation.apply(pixels, key))) for key in moves.copies(content))
        yield Sample(label, encode_jpeg(fit(pixels)), moved)
