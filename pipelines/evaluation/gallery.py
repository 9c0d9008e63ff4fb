"""The images that a reader wants to see: those that the model got most wrong, and those that it was surest of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageFailure
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.content import Gallery, Shown
from pipelines.evaluation.pictures import Reads, encode_jpeg, overlay, shrink
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import Bundle
from pipelines.models.rebuild import rebuild, why_not_rebuilt
from pipelines.storage.paths import canonical, escape_name, is_inside, relative

SHORT_HASH = 12
"""Characters of a content hash that stand for an image without a name."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Found:
    """An image of the gallery.

    Attributes:
        row: Its number in the cases.
        picture: Small, uint8 `[h, w, 3]`.
        seen: As the model sees it, uint8 `[S, S, 3]`; None where no heat map is made.
    """

    row: int
    picture: Bytes
    seen: Bytes | None


def make_gallery(cases: Cases, bundle: Bundle | None, root: str | None, count: int = 12) -> Gallery:
    """Choose images and make their pictures.

    Wrong ones are taken by the probability of the class that was wrongly named, highest first. Right ones are taken in
    turn from each class, the most probable first, so that an easy class does not fill the gallery. Equals go by content
    hash, and images with the same content are shown once. What cannot be read now, or has changed since it was judged,
    is passed over.

    Heat maps are those of the network as it was trained, in float32 and of the picture alone, whatever the scorer that
    answered was compiled to.

    Args:
        cases: Labelled answers.
        bundle: The model, for heat maps of the predicted class; None where only its answers are known.
        root: The place below which images are named by their path. Others, and all without it, are named by a short
            content hash: a report holds no path outside the places that were given.
        count: How many of each kind at most.

    Raises:
        ModelRefused: If the bundle's weights are missing or altered.
    """
    absent = _why_no_heat(cases, bundle)
    explained = None if absent else bundle
    size = explained.input_size if explained else None
    right_or_not = cases.predicted == cases.labels
    reads = Reads()
    wrong = _in_turn([_readable(cases, _surest_first(cases, ~right_or_not), reads, size)], count)
    of_classes = [right_or_not & (cases.labels == number) for number in range(len(cases.classes))]
    right = _in_turn([_readable(cases, _surest_first(cases, chosen), reads, size) for chosen in of_classes], count)
    place = None if root is None else escape_name(canonical(root))
    shown = [_shown(cases, one, place) for one in (*wrong, *right)]
    if explained is not None:
        shown = _with_heat(explained, cases, [*wrong, *right], shown)
    surest = sorted(shown[len(wrong) :], key=lambda one: -one.probability)
    return Gallery(tuple(shown[: len(wrong)]), int((~right_or_not).sum()), tuple(surest), absent)


def _why_no_heat(cases: Cases, bundle: Bundle | None) -> str:
    """Why no heat map can be made, one sentence; "" where it can."""
    if bundle is None:
        return "Heat maps need the model itself, and only its answers were given."
    if bundle.classes != cases.classes:
        return f"The model {bundle.name}@{bundle.version} has other classes than these answers."
    return why_not_rebuilt(bundle)


def _surest_first(cases: Cases, chosen: NDArray[np.bool_]) -> list[int]:
    """Numbers of the chosen images, the highest probability of the predicted class first, each content once."""
    probability = cases.probabilities.max(axis=1)
    rows = sorted(np.flatnonzero(chosen).tolist(), key=lambda row: (-probability[row], cases.contents[row]))
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(cases.contents[row], row)
    return list(first.values())


def _readable(cases: Cases, rows: Sequence[int], reads: Reads, size: int | None) -> Iterator[_Found]:
    """Those images that are still there as they were judged, read when they are asked for."""
    for row in rows:
        data = reads.read_unchanged(cases.uris[row], cases.contents[row])
        if data is None:
            continue
        try:
            yield _Found(row, shrink(data), None if size is None else Preprocessing(size).prepare(data).pixels)
        except ImageFailure:
            continue  # it was scored elsewhere, with decoders that this machine does not have


def _in_turn(sources: Sequence[Iterator[_Found]], count: int) -> list[_Found]:
    """One of each source after the other, until there are enough or all sources are empty."""
    waiting = deque(sources)
    taken: list[_Found] = []
    while waiting and len(taken) < count:
        source = waiting.popleft()
        found = next(source, None)
        if found is not None:
            taken.append(found)
            waiting.append(source)
    return taken


def _shown(cases: Cases, found: _Found, place: str | None) -> Shown:
    row = found.row
    uri, predicted = cases.uris[row], int(cases.predicted[row])
    inside = place is not None and is_inside(uri, place)
    return Shown(
        name=relative(uri, place) if inside and place is not None else cases.contents[row][:SHORT_HASH],
        true=cases.classes[int(cases.labels[row])],
        predicted=cases.classes[predicted],
        probability=float(cases.probabilities[row, predicted]),
        p_positive=float(cases.p_positive[row]),
        picture=encode_jpeg(found.picture),
        overlay=None,
    )


def _with_heat(bundle: Bundle, cases: Cases, found: Sequence[_Found], shown: Sequence[Shown]) -> list[Shown]:
    """The same entries with overlays; the network is built only where there is something to explain."""
    if not found:
        return list(shown)
    from pipelines.evaluation.gradcam import grad_cam  # only now: it loads TensorFlow

    seen = np.stack([one.seen for one in found if one.seen is not None])
    classes = cases.predicted[[one.row for one in found]]
    heat = grad_cam(rebuild(bundle), seen, classes)
    return [
        replace(entry, overlay=encode_jpeg(overlay(one.picture, own)))
        for entry, one, own in zip(shown, found, heat, strict=True)
    ]
