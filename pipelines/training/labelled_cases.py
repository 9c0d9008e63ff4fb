"""A model's answers to labelled images, by the same actors that score archives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.gathered import Seen, Unread
from pipelines.evaluation.subgroups import split_column
from pipelines.models.bundle import SPLIT_FILE, Bundle
from pipelines.models.golden import self_test
from pipelines.models.runtime import Scorer
from pipelines.scoring.features import CacheModel, Features, compute_features
from pipelines.scoring.report import ScoreProgress
from pipelines.scoring.scorer import LARGEST_FILE
from pipelines.storage.reading import ImageReader
from pipelines.training.audit import refuse_two_labels
from pipelines.training.duplicates import HASH_BYTES, Hashes, survey
from pipelines.training.inherit import Predecessor, read_split
from pipelines.training.labelled import DataConfig, LabelledImages, read_for_model
from pipelines.training.labelled_parts import (
    EXTERNAL,
    TRAINED,
    Chosen,
    Selection,
    choose_part,
    near_to,
    parts_by_content,
    without_unreadable,
)
from pipelines.training.split import group_images, hash_person

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]

EVERYTHING = Selection("all")
"""Every image that the model was not made from."""


@dataclass(frozen=True, eq=False)
class LabelledCases:
    """Labelled images with a model's answers; N of them.

    Attributes:
        cases: Images and answers, by name; copies of the same bytes stand once.
        versions: `image_version` of each.
        facts: What decoding gave of each, rows of `compute_features` without the answers: content_sha256,
            perceptual_hash, width, height and mean_intensity among them.
        parts: `train`, `val`, `test` or `external` of each.
        chosen: What was chosen and why.
        seen: How many of them the model was made from.
        near_seen: Which of them are near-duplicates of a training or validation image, bool `[N]`.
        unreadable: What could not be read.
        left_out: Files that were no images, and images that were left out, by reason.
        copies: Images left out because others have the same bytes.
    """

    cases: Cases
    versions: tuple[str, ...]
    facts: pa.Table
    parts: tuple[str, ...]
    chosen: Chosen
    seen: Seen
    near_seen: NDArray[np.bool_]
    unreadable: tuple[Unread, ...]
    left_out: Mapping[str, int]
    copies: int


def answer_labelled(
    bundle: Bundle,
    precision: str,
    data: DataConfig,
    by: Sequence[str],
    work_folder: str,
    connect: Connect,
    tell: Tell,
    selection: Selection = EVERYTHING,
) -> LabelledCases:
    """Let a model answer labelled images.

    Args:
        bundle: The model.
        precision: Which of its scorers.
        data: Which images; what the model's recipe leaves out, such as masks, is left out here too.
        by: Further columns of a manifest to keep.
        work_folder: Where answers are kept meanwhile, safe to delete.
        connect: Starts or joins Ray; not called where all answers are there.
        tell: Called with progress; phases `listing`, `identifying` and `scoring`.
        selection: Which part of them.

    Raises:
        UsageError: If the data are unusable for this model, have the same image under two labels, or nothing of the
            part that was asked for.
        ModelRefused: If the model fails its self-test.
        TryLater: If storage or the cluster fails; the same call goes on from there.
    """
    cache = _cache(bundle, precision)
    tell(ScoreProgress("listing"))
    excluded = _recipe_excludes(bundle, data)
    found = read_for_model(replace(data, exclude=(*data.exclude, *excluded)), bundle.classes, by)
    split = read_split(bundle) if SPLIT_FILE in bundle.files else None
    rows, parts, chosen = _chosen_rows(bundle, found, split, selection, tell)
    for name, values in found.columns.items():
        split_column([values[row] for row in rows.tolist()], name)  # what cannot be groups is refused before the work
    images = found.table.take(pa.array(rows))
    features = compute_features(images, cache, bundle.input_size, work_folder, connect, tell)
    answered = _answered(found, split, rows, parts, features.facts)
    return _assemble(bundle, found, split, selection, chosen, features, answered)


def answer_again(
    bundle: Bundle,
    precision: str,
    labelled: LabelledCases,
    work_folder: str,
    connect: Connect,
    tell: Tell,
) -> tuple[NDArray[np.int64], Cases]:
    """Let another model answer the same images.

    Args:
        bundle: The other model; its classes are those of the first, in any order.
        precision: Which of its scorers.
        labelled: What the first one answered.
        work_folder: As for `answer_labelled`.
        connect: As for `answer_labelled`.
        tell: As for `answer_labelled`.

    Returns:
        Rows of `labelled.cases` that this model could answer too, rising; and its answers to them, columns in the
        order of the first model's classes.

    Raises:
        UsageError: If its classes are others.
        ModelRefused, TryLater: As `answer_labelled`.
    """
    cases = labelled.cases
    if set(bundle.classes) != set(cases.classes):
        raise UsageError(
            f"{bundle.name}@{bundle.version} knows the classes {', '.join(bundle.classes)}, and the model that it is "
            f"compared with {', '.join(cases.classes)}.",
            "Compare models of the same classes.",
        )
    cache = _cache(bundle, precision)
    images = pa.table({"image_uri": list(cases.uris), "image_version": list(labelled.versions)})
    features = compute_features(images, cache, bundle.input_size, work_folder, connect, tell)
    rows = np.flatnonzero([status == "scored" for status in features.facts["status"].to_pylist()]).astype(np.int64)
    order = [bundle.classes.index(name) for name in cases.classes]
    answers = np.ascontiguousarray(features.read(rows)[:, 0][:, order])
    return rows, replace(cases.take(rows), probabilities=answers)


def _cache(bundle: Bundle, precision: str) -> CacheModel:
    """The scorer as what is kept of each image, after its self-test."""
    model, io = bundle.scorer(precision)
    self_test(bundle, Scorer(model, io), precision)
    return CacheModel(model, io, len(bundle.classes), "float32")


def _recipe_excludes(bundle: Bundle, data: DataConfig) -> tuple[str, ...]:
    recipe = bundle.provenance.get("recipe") or {}
    return tuple(glob for glob in recipe.get("exclude") or () if glob not in data.exclude)


def _chosen_rows(
    bundle: Bundle, found: LabelledImages, split: Predecessor | None, selection: Selection, tell: Tell
) -> tuple[NDArray[np.int64], list[str | None], Chosen]:
    """Rows to score, the part of every image as far as it is known before, and what was chosen.

    Images of which no part is known before they are read are scored with whatever was chosen: what cannot be read is
    to be named.
    """
    uris: list[str] = found.table["image_uri"].to_pylist()
    name = f"{bundle.name}@{bundle.version}"
    given = found.has_split and selection.part != EXTERNAL
    parts: list[str | None]
    if given:
        parts = found.table["part"].to_pylist()
    elif split is None:
        parts = [EXTERNAL] * len(uris)
    elif selection.part == "all":
        parts = [None] * len(uris)
    else:
        reader = ImageReader(LARGEST_FILE)
        parts = parts_by_content(uris, split, reader, lambda done: tell(ScoreProgress("identifying", done, len(uris))))
        if selection.part is None and EXTERNAL in parts and any(part in split.parts for part in parts):
            parts = without_unreadable(uris, parts, bundle.input_size, reader)
    chosen = choose_part(parts, selection.part, given, name, bundle.knows_training)
    wanted = [chosen.part == "all" or part in (chosen.part, None) for part in parts]
    return np.flatnonzero(wanted).astype(np.int64), parts, chosen


@dataclass(frozen=True, eq=False)
class _Answered:
    """The images that were answered; one entry an image.

    Attributes:
        rows: Their rows in the table of labelled images.
        at: Their rows in the features.
        contents: Hash of each image's bytes.
        parts: `train`, `val`, `test` or `external`.
        seen: Whether the model was trained or validated on the same bytes.
        first: Whether no earlier one has the same bytes.
    """

    rows: NDArray[np.int64]
    at: NDArray[np.int64]
    contents: list[str]
    parts: list[str]
    seen: NDArray[np.bool_]
    first: NDArray[np.bool_]


def _answered(
    found: LabelledImages,
    split: Predecessor | None,
    rows: NDArray[np.int64],
    parts: Sequence[str | None],
    facts: pa.Table,
) -> _Answered:
    at = np.flatnonzero([status == "scored" for status in facts["status"].to_pylist()]).astype(np.int64)
    own = rows[at]
    contents: list[str] = facts["content_sha256"].take(pa.array(at)).to_pylist()
    images = found.table.take(pa.array(own))
    refuse_two_labels(contents, images["label"].to_pylist(), images["image_uri"].to_pylist())
    of_model = split.part_of if split is not None else {}
    first = np.zeros(len(contents), bool)
    first[np.unique(np.array(contents, np.str_), return_index=True)[1]] = True
    return _Answered(
        rows=own,
        at=at,
        contents=contents,
        parts=[parts[row] or of_model.get(digest, EXTERNAL) for row, digest in zip(own, contents, strict=True)],
        seen=np.array([of_model.get(digest) in TRAINED for digest in contents], bool),
        first=first,
    )


def _assemble(
    bundle: Bundle,
    found: LabelledImages,
    split: Predecessor | None,
    selection: Selection,
    chosen: Chosen,
    features: Features,
    answered: _Answered,
) -> LabelledCases:
    """Leave out copies and, of what is called external or all, what the model was made from."""
    inside = np.array([chosen.part in ("all", part) for part in answered.parts], bool)
    drop = chosen.part in (EXTERNAL, "all") and not selection.include_training
    left = answered.first & inside & answered.seen & drop
    kept = np.flatnonzero(answered.first & inside & ~left)
    facts = features.facts.take(pa.array(answered.at[kept]))
    hashes = np.frombuffer(b"".join(facts["perceptual_hash"].to_pylist()), np.uint8).reshape(-1, HASH_BYTES)
    contents = [answered.contents[row] for row in kept.tolist()]
    near = _near_seen(hashes, contents, split)
    table = found.table.take(pa.array(answered.rows[kept]))
    answers = np.ascontiguousarray(features.read(answered.at[kept])[:, 0])
    failed = features.facts.filter(pc.not_equal(features.facts["status"], "scored"))
    return LabelledCases(
        cases=_cases(bundle, found, answered.rows[kept], answers, facts, hashes),
        versions=tuple(table["image_version"].to_pylist()),
        facts=facts,
        parts=tuple(answered.parts[row] for row in kept.tolist()),
        chosen=chosen,
        seen=Seen(
            known=bundle.knows_training,
            exact=int(answered.seen[kept].sum()),
            near_duplicates=int(near.sum()) if split is not None else None,
            left_out=int(left.sum()),
            same_patient=_of_trained_patients(table["person"].to_pylist(), contents, split),
        ),
        near_seen=near,
        unreadable=tuple(
            Unread(row["image_uri"], row["error_code"], row["error_message"]) for row in failed.to_pylist()
        ),
        left_out={reason: count for reason, count in found.left_out.items() if count},
        copies=int((inside & ~answered.first).sum()),
    )


def _cases(
    bundle: Bundle,
    found: LabelledImages,
    rows: NDArray[np.int64],
    answers: NDArray[np.float32],
    facts: pa.Table,
    hashes: Hashes,
) -> Cases:
    """Images, labels and answers; images of one patient and near-duplicates share a group."""
    table = found.table.take(pa.array(rows))
    contents = facts["content_sha256"].to_pylist()
    people = table["person"].to_pylist()
    number = {name: index for index, name in enumerate(bundle.classes)}
    links = survey(contents, hashes, {}).links() if len(contents) else []
    return Cases(
        classes=bundle.classes,
        positive=tuple(number[name] for name in bundle.positive_classes),
        uris=tuple(table["image_uri"].to_pylist()),
        contents=tuple(contents),
        labels=np.array([number[label] for label in table["label"].to_pylist()], np.int64),
        probabilities=answers,
        groups=tuple(group_images(contents, people, links)),
        patients=None if all(person is None for person in people) else tuple(people),
        mean_intensity=np.asarray(facts["mean_intensity"].to_numpy(zero_copy_only=False), np.float64),
        columns={name: tuple(values[row] for row in rows.tolist()) for name, values in found.columns.items()},
    )


def _of_trained_patients(
    people: Sequence[str | None], contents: Sequence[str], split: Predecessor | None
) -> int | None:
    """How many images, without those of the split itself, are of a patient of its training or validation images."""
    if split is None or all(person is None for person in people):
        return None
    parts = [
        split.parts_of_people.get(hash_person(person), set())
        for person, content in zip(people, contents, strict=True)
        if person is not None and content not in split.part_of
    ]
    return sum(not own.isdisjoint(TRAINED) for own in parts)


def _near_seen(hashes: Hashes, contents: Sequence[str], split: Predecessor | None) -> NDArray[np.bool_]:
    """Which images show the picture of a training or validation image, without being that very file."""
    if split is None:
        return np.zeros(len(contents), bool)
    theirs = np.array([part in TRAINED for part in split.parts], bool)
    itself = np.array([split.part_of.get(digest) in TRAINED for digest in contents], bool)
    near: NDArray[np.bool_] = near_to(hashes, split.hashes[theirs]) & ~itself
    return near
