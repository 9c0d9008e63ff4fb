"""What `nightread evaluate` composes: answers with labels, their figures, and the report's folder."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from jobs.evaluation_sources import CommittedRows, ModelOnImages, gather_images, gather_rows
from pipelines.errors import UsageError
from pipelines.evaluation.concerns import DISCLAIMER
from pipelines.evaluation.content import Evaluated, Gallery, TrainingSection
from pipelines.evaluation.gathered import Gathered
from pipelines.evaluation.writing import check_folder, prediction_table, write_report
from pipelines.models.bundle import Bundle, threshold_unit
from pipelines.models.record import plain
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import paths

AGGREGATES = ("max", "mean")
FORMAT = 1

_TITLES = {
    "command": "Command that makes it again",
    "made_at": "Made at",
    "source": "Images or predictions",
    "images_and_labels_sha256": "SHA-256 of image contents and labels",
    "model_id": "Model id (SHA-256 of its record)",
    "model_made_at": "Model made at",
    "model_seed": "Seed of its training",
    "preprocessing_id": "Preprocessing id",
    "bootstrap_draws": "Draws of the intervals",
    "bootstrap_seed": "Seed of the intervals",
    "versions": "Versions",
}
"""What the provenance is called on the page."""

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]


@dataclass(frozen=True)
class EvaluateConfig:
    """One `evaluate` command.

    Attributes:
        report: The folder to write.
        source: A model on labelled images, or committed predictions joined to labels.
        by: Columns of subgroups.
        aggregate: How a patient's images make one probability.
        prevalences: Shares of positives, above 0 and below 1, for which PPV and NPV are told too.
        pictures: Whether the report may show images.
        overwrite: Whether an earlier report in the folder is replaced.
        who: Command line and versions, for the report's provenance.
    """

    report: str
    source: ModelOnImages | CommittedRows
    by: tuple[str, ...] = ()
    aggregate: str = "max"
    prevalences: tuple[float, ...] = ()
    pictures: bool = True
    overwrite: bool = False
    who: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can only fail later.

        Raises:
            UsageError: Naming the option and the value.
        """
        if self.aggregate not in AGGREGATES:
            raise UsageError(f"--aggregate knows no {self.aggregate!r}.", f"Say {' or '.join(AGGREGATES)}.")
        for share in self.prevalences:
            if not 0 < share < 1:
                raise UsageError(
                    f"A prevalence lies above 0 and below 100 %; {share:g} does not.", "Say --prevalence 0.5%,5%."
                )
        if len(set(self.by)) < len(self.by):
            raise UsageError(f"--by names a column twice: {', '.join(self.by)}.", "Name each once.")
        place = paths.canonical(self.report)
        if isinstance(self.source, CommittedRows):
            results = paths.canonical(self.source.join.results)
            if place == results or paths.is_inside(place, results):
                raise UsageError(
                    f"--report {self.report} lies in the results, which are only read.", "Choose another folder."
                )


@dataclass(frozen=True)
class EvaluationReport:
    """The answer of `evaluate`.

    Attributes:
        report: Place of report.html.
        metrics: As in metrics.json.
        chosen: Which images were evaluated and why, one sentence.
        unreadable: Names and reasons of images that could not be read, for the terminal.
        notes: What a person should know of the join, for the terminal.
        seconds: The whole command.
    """

    report: str
    metrics: Mapping[str, Any]
    chosen: str
    unreadable: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"report": self.report, "metrics": self.metrics, "seconds": self.seconds, "exit_code": 0}


def evaluate(config: EvaluateConfig, connect: Connect, tell: Tell) -> EvaluationReport:
    """Measure a model, or what it has predicted, and write the report.

    Args:
        config: What, and where to.
        connect: Starts or joins Ray; not called for committed predictions.
        tell: Called with progress; phases `listing`, `identifying`, `scoring`, `joining`, `measuring` and `drawing`.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    began = time.monotonic()
    check_folder(config.report, config.overwrite)
    source = config.source
    bundle: Bundle | None
    if isinstance(source, ModelOnImages):
        gathered, bundle = gather_images(source, config.report, config.by, connect, tell)
    else:
        gathered, bundle = gather_rows(source, tell)
    tell(ScoreProgress("measuring"))
    figures = measure(config, gathered, bundle)
    tell(ScoreProgress("drawing"))
    html = draw(config, gathered, bundle, figures)
    fitted = gathered.thresholds.get(threshold_unit(gathered.model.precision))
    page = write_report(config.report, html, figures, prediction_table(gathered.cases, gathered.parts, fitted))
    return EvaluationReport(
        report=page,
        metrics=figures,
        chosen=gathered.chosen,
        unreadable=tuple(f"{one.image_uri}: {one.code} ({one.message})" for one in gathered.unreadable),
        notes=gathered.notes,
        seconds=time.monotonic() - began,
    )


def measure(config: EvaluateConfig, gathered: Gathered, bundle: Bundle | None) -> dict[str, Any]:
    """All that metrics.json says, as plain values."""
    from pipelines.evaluation.comparison import compare_cases
    from pipelines.evaluation.concerns import certain_and_wrong, concerns, validation_counts
    from pipelines.evaluation.intensity import measure_intensity
    from pipelines.evaluation.study import Settings, measure_cases
    from pipelines.evaluation.subgroups import measure_subgroups

    settings = Settings(aggregate=config.aggregate, prevalences=config.prevalences)
    cases, precision = gathered.cases, gathered.model.precision
    fitted = gathered.thresholds.get(threshold_unit(precision))
    figures: dict[str, Any] = {
        "format": FORMAT,
        "model": gathered.model.as_json(),
        "data": _data(gathered),
        "part": gathered.part,
        **measure_cases(cases, gathered.thresholds, precision, settings),
        "subgroups": measure_subgroups(cases, config.by, fitted, settings),
        "comparison": None,
        "intensity": measure_intensity(cases),
        "seen_in_training": gathered.seen.as_json(),
        "validation": validation_counts(bundle) if bundle is not None else None,
        "certain_and_wrong": certain_and_wrong(cases),
        "unreadable": [{"image_uri": one.image_uri, "error_code": one.code} for one in gathered.unreadable],
        "provenance": provenance(config, gathered, bundle, settings.draws, settings.seed),
    }
    if gathered.other is not None and gathered.paired is not None and gathered.against is not None:
        against = {**gathered.against.as_json(), "seen_in_training": gathered.seen_by_other}
        common = cases.take(gathered.paired)
        compared = compare_cases(common, gathered.other, settings, against)
        compared["worst"] = [{**one, "image_uri": common.uris[one["row"]]} for one in compared["worst"]]
        figures["comparison"] = compared
    told: dict[str, Any] = plain(figures)
    told["concerns"] = concerns(told)
    return told


def draw(config: EvaluateConfig, gathered: Gathered, bundle: Bundle | None, figures: Mapping[str, Any]) -> bytes:
    """The page."""
    from pipelines.evaluation.report import render_report

    training, training_absent = _training(config, bundle)
    gallery, gallery_absent = _gallery(config, gathered, bundle)
    model = str(gathered.model)
    evaluated = Evaluated(
        title=f"{model} on {_part_text(gathered.part)} of {paths.name(gathered.source)}",
        model=model,
        paragraph=paragraph(gathered, figures),
        concerns=tuple(text for text in figures["concerns"] if text != DISCLAIMER),  # the page says it on top
        provenance=tuple((_TITLES[name], _text(value)) for name, value in figures["provenance"].items()),
    )
    fitted = gathered.thresholds.get(threshold_unit(gathered.model.precision))
    return render_report(evaluated, figures, gathered.cases, fitted, training, training_absent, gallery, gallery_absent)


def _training(config: EvaluateConfig, bundle: Bundle | None) -> tuple[TrainingSection | None, str]:
    if bundle is None:
        return None, "Nothing is known of the training: the model itself was not named (--bundle)."
    from pipelines.training.for_report import training_section

    data = config.source.data if isinstance(config.source, ModelOnImages) else None
    return training_section(bundle, data, config.pictures)


def _gallery(config: EvaluateConfig, gathered: Gathered, bundle: Bundle | None) -> tuple[Gallery | None, str]:
    if not config.pictures:
        return None, "Pictures were left out of this report (--no-images)."
    from pipelines.evaluation.gallery import make_gallery

    return make_gallery(gathered.cases, bundle, gathered.root), ""


def _data(gathered: Gathered) -> dict[str, Any]:
    return {
        "source": gathered.source,
        "chosen": gathered.chosen,
        "copies": gathered.copies,
        "left_out": dict(gathered.left_out),
        "unreadable": len(gathered.unreadable),
    }


def paragraph(gathered: Gathered, figures: Mapping[str, Any]) -> str:
    """What was evaluated, for the head of the report."""
    cases = gathered.cases
    positives = int(cases.truth.sum())
    names = " or ".join(cases.classes[number] for number in cases.positive)
    patients = figures.get("patients")
    of_patients = f" of {patients:,} patients" if patients else ""
    unknown = "" if patients else " Which patient an image is of is not known."
    left = {
        **gathered.left_out,
        "copies": gathered.copies,
        "unreadable": len(gathered.unreadable),
        "known to the model from its training": gathered.seen.left_out,
    }
    told = ", ".join(f"{reason}: {count:,}" for reason, count in left.items() if count)
    without = f" Left out: {told}." if told else ""
    return (
        f"{gathered.model} ({gathered.model.precision}) was evaluated on {gathered.chosen}. These are {len(cases):,} "
        f"images{of_patients}, {positives:,} of them {names} (positive), from {paths.name(gathered.source)}."
        f"{unknown}{without}"
    )


def provenance(
    config: EvaluateConfig, gathered: Gathered, bundle: Bundle | None, draws: int, seed: int
) -> dict[str, Any]:
    """What is needed to make the report again and to know that nothing has changed."""
    cases = gathered.cases
    rows = sorted(
        f"{content} {cases.classes[label]}"
        for content, label in zip(cases.contents, cases.labels.tolist(), strict=True)
    )
    made = bundle.provenance if bundle is not None else {}
    return {
        "command": ["nightread", *list(config.who.get("command_line", ()))[1:]],
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": gathered.source,
        "images_and_labels_sha256": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
        "model_id": gathered.model.model_id,
        "model_made_at": made.get("created_at"),
        "model_seed": made.get("seed"),
        "preprocessing_id": bundle.preprocessing_id if bundle is not None else None,
        "bootstrap_draws": draws,
        "bootstrap_seed": seed,
        "versions": dict(config.who.get("versions", {})),
    }


def _part_text(part: str) -> str:
    said = {"external": "external images", "all": "all parts", "unknown": "committed predictions"}
    return said.get(part, f"the {part} part")


def _text(value: Any) -> str:
    """A value of the provenance for a person."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        import shlex

        return shlex.join(str(item) for item in value)
    return "not known" if value is None else str(value)
