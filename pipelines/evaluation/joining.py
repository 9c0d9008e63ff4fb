"""Committed predictions joined to labels that came later."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.evaluation.answerer import Answerer, find_answerer
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.gathered import ModelName, Seen, Unread
from pipelines.evaluation.labelled_rows import KEY, JoinConfig, Question
from pipelines.evaluation.labels import CONTENT, URI, Labels, read_labels
from pipelines.models.bundle import Bundle
from pipelines.predictions.query import connect
from pipelines.predictions.runs import RunFolder
from pipelines.predictions.schema import class_column
from pipelines.storage import paths


@dataclass(frozen=True, eq=False)
class Joined:
    """Predictions with labels, and what found no partner.

    Attributes:
        cases: Images and answers, by name; copies of the same bytes stand once.
        in_training: Whether the model was made from each image; None where it does not say.
        model: Who answered.
        answerer: Its classes and thresholds, and where they are known from.
        seen: How many of the images it was made from.
        rows_without_label: Rows of the results that have no label.
        labels_without_row: Labels whose image has no answer.
        unlabelled: Rows of the labels whose label is empty.
        examples: The first of each kind by name, for the terminal.
        unreadable: Labelled images that could not be read.
        copies: Images left out because others have the same bytes.
    """

    cases: Cases
    in_training: tuple[bool | None, ...]
    model: ModelName
    answerer: Answerer
    seen: Seen
    rows_without_label: int
    labels_without_row: int
    unlabelled: int
    unreadable: tuple[Unread, ...]
    copies: int
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def join_predictions(config: JoinConfig, bundle: Bundle | None = None) -> Joined:
    """Join committed predictions to labels.

    Args:
        config: Which.
        bundle: The model that scored, where it is at hand: its classes and thresholds are taken.

    Raises:
        UsageError: If nothing matches, rows of several models do, a label is no class of the model, or one image has
            two labels.
        TryLater: If storage does not answer.
    """
    if config.run is not None:
        RunFolder(paths.canonical(config.results), config.run).read_record()
    labels = read_labels(config.labels, config.by)
    asked = Question(config, labels)
    with connect(config.results, with_runs=False) as connection:
        asked.prepare(connection)
        rows = asked.matched(connection)
        if not rows.num_rows:
            raise asked.no_overlap(connection)
        _refuse_mixture(rows)
        strangers, lonely = asked.without_label(connection), asked.without_row(connection)
        unreadable = asked.unreadable(connection)
    answerer = find_answerer(paths.canonical(config.results), rows, labels.labels, bundle)
    rows, copies = _each_content_once(rows, labels)
    kept, seen = _without_training(rows, answerer, bundle, config)
    return Joined(
        cases=_cases(kept, labels, answerer, config),
        in_training=tuple(kept["in_training_set"].to_pylist()),
        model=_model_of(rows, bundle),
        answerer=answerer,
        seen=seen,
        rows_without_label=strangers[0],
        labels_without_row=lonely[0],
        unlabelled=labels.unlabelled,
        unreadable=unreadable,
        copies=copies,
        examples={"rows": strangers[1], "labels": lonely[1]},
    )


def pair(this: Joined, other: Joined) -> tuple[NDArray[np.int64], Cases]:
    """Find the images that both models answered.

    Args:
        this: The one model's.
        other: The other's, on the same labels.

    Returns:
        Rows of `this.cases`, and the other's answers to them, columns in the order of this one's classes.

    Raises:
        UsageError: If the classes are not the same, or no image was answered by both.
    """
    mine, theirs = this.cases, other.cases
    if set(mine.classes) != set(theirs.classes):
        raise UsageError(
            f"{other.model} knows the classes {', '.join(theirs.classes)}, and {this.model} {', '.join(mine.classes)}.",
            "Compare models of the same classes.",
        )
    place = {content: row for row, content in enumerate(theirs.contents)}
    rows = [row for row, content in enumerate(mine.contents) if content in place]
    if not rows:
        raise UsageError(
            f"No labelled image was answered by both {this.model} and {other.model}.", "Score one archive with both."
        )
    found = theirs.take([place[mine.contents[row]] for row in rows])
    order = [theirs.classes.index(name) for name in mine.classes]
    own = np.asarray(rows, np.int64)
    return own, replace(mine.take(own), probabilities=np.ascontiguousarray(found.probabilities[:, order]))


def _refuse_mixture(rows: pa.Table) -> None:
    models = Counter(zip(*(rows[name].to_pylist() for name in ("model_name", "model_id", "precision")), strict=True))
    if len(models) > 1:
        listing = "; ".join(
            f"{name}, id {identity[:12]}, {precision}: {count} rows"
            for (name, identity, precision), count in models.most_common()
        )
        precisions = len({identity for _, identity, _ in models}) == 1
        whose = f"one model in {len(models)} precisions" if precisions else f"{len(models)} models"
        raise UsageError(
            f"The labelled rows were written by {whose} ({listing}): figures of a mixture say nothing.",
            "Choose one: --precision float32|int8, or --run ID."
            if precisions
            else "Choose one: --model NAME, --model and the beginning of its id, or --run ID.",
        )


def _each_content_once(rows: pa.Table, labels: Labels) -> tuple[pa.Table, int]:
    """Drop copies of the same bytes, the first by name stays.

    Raises:
        UsageError: If copies have two labels.
    """
    label_of = dict(zip(labels.keys, labels.labels, strict=True))
    first: dict[str, int] = {}
    kept = []
    uris, own = rows["image_uri"].to_pylist(), [label_of[key] for key in rows[KEY].to_pylist()]
    for row, content in enumerate(rows["content_sha256"].to_pylist()):
        earlier = first.setdefault(content, row)
        if earlier == row:
            kept.append(row)
        elif own[earlier] != own[row]:
            raise UsageError(
                f"The same image stands under two names with two labels: {uris[earlier]} ({own[earlier]}) and "
                f"{uris[row]} ({own[row]}).",
                "Correct the label that is wrong.",
            )
    return rows.take(pa.array(kept, pa.int64())), rows.num_rows - len(kept)


def _without_training(
    rows: pa.Table, answerer: Answerer, bundle: Bundle | None, config: JoinConfig
) -> tuple[pa.Table, Seen]:
    """Leave out what the model was made from, unless it is asked for."""
    known = bundle.training_hashes() if bundle is not None else None
    if known is not None:
        strange = False if bundle is not None and bundle.knows_training else None
        own = pa.array([content in known or strange for content in rows["content_sha256"].to_pylist()], pa.bool_())
        rows = rows.set_column(rows.column_names.index("in_training_set"), "in_training_set", own)
    told = rows["in_training_set"]
    inside = pc.fill_null(told, False)
    count = int(pc.sum(inside).as_py() or 0)
    told_of_all = told.null_count == 0
    if config.include_training:
        return rows, Seen(told_of_all, count, None, 0)
    return rows.filter(pc.invert(inside)), Seen(told_of_all, 0, None, count)


def _model_of(rows: pa.Table, bundle: Bundle | None) -> ModelName:
    name, identity, precision = (str(rows[column][0].as_py()) for column in ("model_name", "model_id", "precision"))
    return ModelName(name, bundle.version if bundle else None, identity, precision)


def _cases(rows: pa.Table, labels: Labels, answerer: Answerer, config: JoinConfig) -> Cases:
    """Images, labels and answers; images of one patient share a group, and so do those of one label."""
    place = {key: number for number, key in enumerate(labels.keys)}
    at = [place[key] for key in rows[KEY].to_pylist()]
    contents = rows["content_sha256"].to_pylist()
    people = _people(rows, labels, at)
    # What is joined by a column, such as an examination, has one label for all of its images.
    shared = [None] * len(at) if config.labels.on in (URI, CONTENT) else rows[KEY].to_pylist()
    groups = [_group(*names) for names in zip(people, shared, contents, strict=True)]
    columns = [rows[class_column(name)].to_numpy() for name in answerer.classes]
    return Cases(
        classes=answerer.classes,
        positive=tuple(answerer.classes.index(name) for name in answerer.positive_classes),
        uris=tuple(rows["image_uri"].to_pylist()),
        contents=tuple(contents),
        labels=np.array(list(_numbers([labels.labels[number] for number in at], answerer, config)), np.int64),
        probabilities=np.stack(columns, axis=1).astype(np.float32, copy=False),
        groups=tuple(groups),
        patients=None if not any(people) else tuple(people),
        mean_intensity=pc.fill_null(rows["mean_intensity"], np.nan).to_numpy().astype(np.float64),
        columns={name: _column(name, rows, labels, at) for name in config.by},
    )


def _group(person: str | None, shared: str | None, content: str) -> str:
    """Name of an image's group, as the model's split names it: the same groups give the same intervals."""
    if person is not None:
        return f"group-{_hashed(person)}"
    return f"content-{content}" if shared is None else f"label-{_hashed(shared)}"


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _numbers(names: Sequence[str], answerer: Answerer, config: JoinConfig) -> Iterator[int]:
    known = {name: number for number, name in enumerate(answerer.classes)}
    unknown = Counter(name for name in names if name not in known)
    if unknown:
        name, count = sorted(unknown.items())[0]
        raise UsageError(
            f"The model knows no class {name!r}, which {count} labels of {config.labels.labels} say; its classes are "
            f"{', '.join(answerer.classes)}.",
            "Name the labels as the model does: --class-names LABEL=CLASS,….",
        )
    return (known[name] for name in names)


def _people(rows: pa.Table, labels: Labels, at: Sequence[int]) -> list[str | None]:
    """Patient of each row: what the labels say, else what the results carry."""
    carried = rows["patient_id"].to_pylist() if "patient_id" in rows.column_names else [None] * rows.num_rows
    own = [None] * len(at) if labels.patients is None else [labels.patients[number] for number in at]
    return [said or _plain(there) for said, there in zip(own, carried, strict=True)]


def _column(name: str, rows: pa.Table, labels: Labels, at: Sequence[int]) -> tuple[str | None, ...]:
    if name in labels.columns:
        return tuple(labels.columns[name][number] for number in at)
    return tuple(_plain(value) for value in rows[name].to_pylist())


def _plain(value: Any) -> str | None:
    return None if value is None else str(value).strip() or None
