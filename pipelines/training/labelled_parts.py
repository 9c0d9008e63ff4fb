"""Which of some labelled images are evaluated: those of a part, as the data or the model's own split say it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageFailure, UsageError
from pipelines.images.child import DecodeChild
from pipelines.storage.reading import ImageReader
from pipelines.training.duplicates import HASH_BYTES, LEAST_TURNS, Hashes, count_turns, find_near_pairs
from pipelines.training.inherit import Predecessor

PARTS_ASKED = ("test", "val", "train", "external", "all")
TRAINED = ("train", "val")
EXTERNAL = "external"
UNKNOWN = "unknown"
"""Of committed predictions whose model was not named: whether its split knows an image, nobody says."""

_READERS = 16
_DECODE_SECONDS = 30.0
_FITTED_ON = "temperature and threshold were fitted on it, so its figures flatter the model"


@dataclass(frozen=True)
class Selection:
    """Which images are asked for.

    Attributes:
        part: One of `PARTS_ASKED`; None: `test` where there is one, else `val`, or `external` where all images are.
        include_training: Whether `external` and `all` keep images that the model was trained or validated on.
    """

    part: str | None = None
    include_training: bool = False

    def __post_init__(self) -> None:
        """Refuse a part that is none.

        Raises:
            UsageError: Naming the parts.
        """
        if self.part is not None and self.part not in PARTS_ASKED:
            raise UsageError(f"There is no part {self.part!r}.", f"Say --part {'|'.join(PARTS_ASKED)}.")


@dataclass(frozen=True)
class Chosen:
    """Which part it is, and why.

    Attributes:
        part: One of `PARTS_ASKED`.
        sentence: For the first line of the answer.
    """

    part: str
    sentence: str


def choose_part(parts: Sequence[str | None], asked: str | None, given: bool, model: str, knows: bool = True) -> Chosen:
    """The part that is evaluated.

    Args:
        parts: Part of each image, `external` where the split does not know it; None for one that cannot be read.
        asked: One of `PARTS_ASKED`, or None.
        given: Whether the data say the parts; else they are the model's.
        model: What to call the model.
        knows: Whether the model says what it was made from; an imported one does not.

    Raises:
        UsageError: If nothing stands in the part that was asked for, or nothing was asked for and the images are of
            several kinds, of which none is the natural one.
    """
    counts = Counter(part for part in parts if part is not None)
    listing = ", ".join(f"{part}: {counts[part]}" for part in PARTS_ASKED if counts[part])
    source = "as the data give it" if given else f"as the split of {model} has it"
    if asked == "all":
        return Chosen("all", f"all images ({listing})" if listing else "all images, whatever their part")
    if asked is not None:
        if not counts[asked]:
            raise UsageError(
                f"There is no image of the part {asked!r} ({listing or 'no image can be read'}).",
                "Say --part with one of these, or --part all.",
            )
        return Chosen(asked, _sentence(asked, source, model, knows))
    known = [part for part in ("test", *reversed(TRAINED)) if counts[part]]
    if known and counts[EXTERNAL]:
        raise UsageError(
            f"The split of {model} knows some of these images and others not ({listing}).",
            "Say --part external for those that it does not know, --part all for both, or one of its own parts.",
        )
    if not known:
        return Chosen(EXTERNAL, _sentence(EXTERNAL, source, model, knows))
    part = known[0]
    if part == "train":
        raise UsageError(
            f"All images stand in the part 'train' ({listing}), where figures say nothing.",
            "Name data with a test part, or say --part train all the same.",
        )
    why = ", for want of a test part" if part == "val" else ""
    return Chosen(part, _sentence(part, source, model, knows) + why)


def _sentence(part: str, source: str, model: str, knows: bool) -> str:
    if part == EXTERNAL and not knows:
        return f"external images, as far as is known: {model} does not say what it was made from"
    if part == EXTERNAL:
        return f"external images, none of which {model} was made from"
    if part == "val":
        return f"the val part, {source} ({_FITTED_ON})"
    if part == "train":
        return f"the train part, {source} (the model has learned these images by heart)"
    return f"the {part} part, {source}"


def parts_by_content(
    uris: Sequence[str], split: Predecessor, reader: ImageReader, tell: Callable[[int], None]
) -> list[str | None]:
    """Part of each image in a model's split, by the hash of its bytes.

    Args:
        uris: Canonical image URIs; each is read once.
        split: The model's.
        reader: Reads them.
        tell: Called with how many are done.

    Returns:
        `train`, `val`, `test`, `external` where the split does not know the bytes, None where nothing can be read.
    """

    def part_of(uri: str) -> str | None:
        try:
            digest = hashlib.sha256(reader.read(uri).data).hexdigest()
        except ImageFailure:
            return None  # scoring meets it again and names it
        return split.part_of.get(digest, EXTERNAL)

    parts = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="identify") as pool:
        for part in pool.map(part_of, uris):
            parts.append(part)
            tell(len(parts))
    return parts


def without_unreadable(
    uris: Sequence[str], parts: Sequence[str | None], input_size: int, reader: ImageReader
) -> list[str | None]:
    """Take files that are no pictures out of `external`, as far as it matters.

    A broken file beside the images that a model was made from must not make the data a mixture. The first `external`
    one that can be decoded ends the search: then there is a mixture.

    Args:
        uris: Canonical image URIs.
        parts: As from `parts_by_content`.
        input_size: Of the model.
        reader: Reads them.
    """
    cleaned = list(parts)
    with DecodeChild(input_size, _DECODE_SECONDS) as child:
        for row in [row for row, part in enumerate(parts) if part == EXTERNAL]:
            try:
                child.prepare(reader.read(uris[row]).data)
            except ImageFailure:
                cleaned[row] = None
            else:
                break
    return cleaned


def near_to(hashes: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Which pictures are near-duplicates of some other picture.

    Args:
        hashes: Difference hashes, uint8 `[N, 32]`.
        others: Likewise `[M, 32]`.

    Returns:
        Bool `[N]`; False for hashes that say too little to be compared.
    """
    if not len(hashes) or not len(others):
        return np.zeros(len(hashes), bool)
    both = np.concatenate([hashes, others])
    enough = count_turns(both) >= LEAST_TURNS
    rows = np.flatnonzero(enough)
    distinct, owner = np.unique(both[rows].reshape(-1, HASH_BYTES), axis=0, return_inverse=True)
    owner = owner.reshape(-1)
    theirs = np.zeros(len(distinct), bool)
    theirs[owner[rows >= len(hashes)]] = True
    near = theirs.copy()
    for left, right in find_near_pairs(distinct):
        near[left[theirs[right]]] = True
        near[right[theirs[left]]] = True
    found = np.zeros(len(both), bool)
    found[rows] = near[owner]
    return found[: len(hashes)]
