"""The two ways into an evaluation: a model on labelled images, and committed predictions joined to labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import UsageError
from pipelines.evaluation.gathered import Gathered, ModelName, refuse_one_class
from pipelines.evaluation.joining import Joined, join_predictions, pair
from pipelines.evaluation.labelled_rows import JoinConfig
from pipelines.evaluation.labels import URI
from pipelines.evaluation.writing import work_folder
from pipelines.models.bundle import SPLIT_FILE, Bundle, check_precision
from pipelines.models.registry import resolve
from pipelines.predictions.runs import without_secrets
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import paths
from pipelines.training.inherit import read_split
from pipelines.training.labelled import DataConfig
from pipelines.training.labelled_cases import LabelledCases, answer_again, answer_labelled
from pipelines.training.labelled_parts import EXTERNAL, TRAINED, UNKNOWN, Selection
from pipelines.training.reach import refuse_unseen

_FILES = {
    "suffix": "files that are no images",
    "hidden": "hidden files",
    "share_litter": "files of the share itself",
    "excluded": "excluded files",
}
"""Reasons of a listing in words."""

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]


@dataclass(frozen=True)
class ModelOnImages:
    """A model on labelled images.

    Attributes:
        ref: The model.
        data: The images.
        selection: Which part of them.
        precision: Which of the model's scorers.
        against: Another model to compare with on the same images.
    """

    ref: str
    data: DataConfig
    selection: Selection = field(default_factory=Selection)
    precision: str = "float32"
    against: str | None = None

    def __post_init__(self) -> None:
        """Refuse a precision that there is none of.

        Raises:
            UsageError: Naming those that there are.
        """
        check_precision(self.precision)


@dataclass(frozen=True)
class CommittedRows:
    """Committed predictions joined to labels.

    Attributes:
        join: Which predictions and which labels.
        bundle: REF of the model that scored, for its thresholds, its training and Grad-CAM.
        against: Another model, by name or id, whose predictions of the same images are compared.
    """

    join: JoinConfig
    bundle: str | None = None
    against: str | None = None

    def __post_init__(self) -> None:
        """Refuse a comparison of nobody knows what.

        Raises:
            UsageError: If `against` is given without a model.
        """
        if self.against is not None and self.join.model is None:
            raise UsageError(
                "--against compares two models of the results, and only one is named.", "Say --model NAME too."
            )


def gather_images(
    source: ModelOnImages, report: str, by: Sequence[str], connect: Connect, tell: Tell
) -> tuple[Gathered, Bundle]:
    """Answer labelled images.

    Args:
        source: Which model and images.
        report: The report's folder, below which answers are kept meanwhile.
        by: Further columns to keep.
        connect: Starts or joins Ray.
        tell: Called with progress.
    """
    bundle = resolve(source.ref)
    other = resolve(source.against) if source.against is not None else None
    connect = _reaching(report, connect)
    with work_folder(report) as work:
        found = answer_labelled(bundle, source.precision, source.data, by, work, connect, tell, source.selection)
        refuse_one_class(found.cases, found.chosen.sentence, found.seen.left_out)
        again = answer_again(other, source.precision, found, work, connect, tell) if other is not None else None
    gathered = Gathered(
        cases=found.cases,
        parts=found.parts,
        part=found.chosen.part,
        chosen=found.chosen.sentence,
        source=without_secrets([source.data.data])[0],
        root=_root(source.data),
        model=_name(bundle, source.precision),
        thresholds=bundle.thresholds,
        seen=found.seen,
        unreadable=found.unreadable,
        left_out={_FILES.get(reason, reason): count for reason, count in found.left_out.items()},
        copies=found.copies,
    )
    if other is None or again is None:
        return gathered, bundle
    paired, answers = again
    against = _name(other, source.precision)
    seen = _seen_by(other, found)
    return replace(gathered, other=answers, paired=paired, against=against, seen_by_other=seen), bundle


def _reaching(report: str, connect: Connect) -> Connect:
    """What connects and refuses a cluster of whose nodes one does not see the report's folder."""

    @contextlib.contextmanager
    def checked() -> Iterator[Any]:
        with connect() as cluster:
            if cluster.nodes > 1:
                refuse_unseen(paths.canonical(report))
            yield cluster

    return checked


def _root(data: DataConfig) -> str:
    return data.root or (paths.parent(paths.canonical(data.data)) if data.is_manifest else data.data)


def _name(bundle: Bundle, precision: str) -> ModelName:
    return ModelName(bundle.name, bundle.version, bundle.model_id, precision)


def _seen_by(bundle: Bundle, found: LabelledCases) -> int | None:
    """How many of the images another model was made from; None where it does not say."""
    known = bundle.training_hashes()
    count = sum(content in known for content in found.cases.contents) if known is not None else 0
    return count if count or bundle.knows_training else None


def gather_rows(source: CommittedRows, tell: Tell) -> tuple[Gathered, Bundle | None]:
    """Join committed predictions to labels.

    Args:
        source: Which.
        tell: Called with progress.
    """
    tell(ScoreProgress("joining"))
    bundle = resolve(source.bundle) if source.bundle is not None else None
    joined = join_predictions(source.join, bundle)
    parts = _parts(joined, bundle)
    labels = source.join.labels
    chosen = f"committed predictions, joined to {paths.name(labels.labels)} by {labels.on}"
    refuse_one_class(joined.cases, chosen, joined.seen.left_out)
    gathered = Gathered(
        cases=joined.cases,
        parts=parts,
        part=parts[0] if len(set(parts)) == 1 else "all",
        chosen=chosen,
        source=without_secrets([source.join.results])[0],
        root=labels.root or paths.parent(paths.canonical(labels.labels)) if labels.on == URI else None,
        model=joined.model,
        thresholds=joined.answerer.thresholds,
        seen=joined.seen,
        unreadable=joined.unreadable,
        left_out=_left_out(joined),
        copies=joined.copies,
        notes=tuple(_notes(joined)),
    )
    if source.against is None:
        return gathered, bundle
    other = join_predictions(replace(source.join, model=source.against))
    paired, answers = pair(joined, other)
    seen = other.seen.exact if other.seen.exact or other.seen.known else None
    return replace(gathered, other=answers, paired=paired, against=other.model, seen_by_other=seen), bundle


def _parts(joined: Joined, bundle: Bundle | None) -> tuple[str, ...]:
    """Part of each image in the model's split; `unknown` where the model was not named and did not train on it."""
    if bundle is not None and SPLIT_FILE in bundle.files:
        known = read_split(bundle).part_of
        return tuple(known.get(content, EXTERNAL) for content in joined.cases.contents)
    return tuple(TRAINED[0] if inside else UNKNOWN for inside in joined.in_training)


def _left_out(joined: Joined) -> dict[str, int]:
    counted = {
        "predictions without a label": joined.rows_without_label,
        "labels without a prediction": joined.labels_without_row,
        "rows with an empty label": joined.unlabelled,
    }
    return {reason: count for reason, count in counted.items() if count}


def _notes(joined: Joined) -> list[str]:
    told = []
    for kind, count, what in (
        ("rows", joined.rows_without_label, "predictions have no label"),
        ("labels", joined.labels_without_row, "labels have no prediction"),
    ):
        if count:
            names = joined.examples[kind]
            told.append(f"{count:,} {what}: {', '.join(names)}{', …' if count > len(names) else ''}")
    if joined.answerer.source == "columns":
        told.append(
            "classes were read off the columns, and no threshold is known: name the model with --bundle to have the "
            "operating point too"
        )
    return told
