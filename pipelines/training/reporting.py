"""From what a training made to what it tells."""

from __future__ import annotations

from pipelines.models.bundle import Bundle
from pipelines.training.config import TrainConfig
from pipelines.training.labelled import LabelledImages
from pipelines.training.report import TrainReport
from pipelines.training.writing import Made


def make_report(
    config: TrainConfig,
    labelled: LabelledImages,
    made: Made,
    bundle: Bundle,
    champion: str | None,
    seconds: float,
) -> TrainReport:
    """Say what was made.

    Args:
        config: What the training was told.
        labelled: What was found.
        made: What it made.
        bundle: As it was written.
        champion: The version that the name means now; None: this one.
        seconds: The whole command.
    """
    data, judged, finished = made.data, made.judged, made.finished
    return TrainReport(
        model=bundle.name,
        version=bundle.version,
        path=bundle.uri,
        model_id=bundle.model_id,
        champion=champion or bundle.version,
        classes=data.classes,
        positive_classes=judged.positive,
        parts=data.counts,
        groups=data.audit.groups,
        without_patient=data.audit.without_patient,
        epochs=len(made.fit.history),
        best_epoch=made.fit.best_epoch,
        validation=judged.figures,
        intervals=judged.intervals,
        roc_auc=judged.roc_auc,
        roc_auc_interval=judged.roc_auc_interval,
        confusion_matrix=judged.matrix,
        classification_report=judged.report,
        temperature=finished.temperature,
        threshold=finished.point.threshold,
        target_sensitivity=finished.point.target,
        sensitivity=finished.point.sensitivity,
        specificity=finished.point.specificity,
        thresholds=bundle.thresholds,
        int8=finished.int8.record(),
        versus=made.versus.record(),
        audit=data.audit.as_json(),
        started_from=None if made.start is None else f"{made.start.name}@{made.start.version}",
        workers=config.workers,
        unreadable=data.unreadable,
        left_out=labelled.left_out,
        warnings=(*_of_the_data(labelled), *data.audit.warnings(), *judged.warnings),
        seconds=seconds,
    )


def _of_the_data(labelled: LabelledImages) -> list[str]:
    """What a person should know about how the data were read."""
    told = [f"{folder} could not be listed." for folder in labelled.unlistable]
    if labelled.repeated:
        more = ", …" if labelled.repeated > len(labelled.repeated_rows) else ""
        told.append(
            f"{labelled.repeated} rows of the manifest said the same again and were dropped: rows "
            f"{', '.join(map(str, labelled.repeated_rows))}{more}."
        )
    return told
