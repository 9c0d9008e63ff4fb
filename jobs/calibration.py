"""`nightread models calibrate`: temperature, thresholds and refer bands of a model, fitted to new labelled images."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.audit import Audit, ReasonOption, models_of
from jobs.console import Console, JsonOption, program
from jobs.score import AddressOption, InsecureOption, ScoreDisplay
from jobs.training_display import band_lines

if TYPE_CHECKING:
    from pipelines.training.recalibration import CalibrationReport

PHASES = {
    "listing": "images found",
    "identifying": "images identified",
    "scoring": "images",
    "calibrating": "fitting",
}
"""What is counted in each phase of a calibration."""


def calibrate_command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder per class, or a manifest with labels.")],
    target_sensitivity: Annotated[float, typer.Option(help="What the thresholds must reach on these images.")] = 0.95,
    target_specificity: Annotated[
        float, typer.Option(help="What must be reached, beside the sensitivity, outside of the refer bands.")
    ] = 0.95,
    columns: Annotated[str | None, typer.Option(help="A manifest's columns: uri=image_path,label=target.")] = None,
    class_names: Annotated[str | None, typer.Option(help="Names of the labels: 0=normal,1=pneumonia.")] = None,
    root: Annotated[str | None, typer.Option(help="Where relative URIs of a manifest start.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob of images to leave out; repeatable.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Pattern in a path that names the patient.")] = None,
    address: AddressOption = "local",
    insecure: InsecureOption = False,
    reason: ReasonOption = None,
    json: JsonOption = False,
) -> None:
    """Make a new version with temperature, thresholds and refer bands fitted to images that it has not seen."""
    from cluster.session import shared_session
    from jobs.options import labelled_data
    from pipelines.models.bundle import peek
    from pipelines.models.registry import locate
    from pipelines.predictions.runs import who_and_where
    from pipelines.training.config import CalibrateConfig

    console = Console(json)
    audit = Audit(models_of(peek(locate(ref))), "calibrate", reason)
    config = CalibrateConfig(
        ref=ref,
        data=labelled_data(data, columns, class_names, root, exclude, group_by),
        target_sensitivity=target_sensitivity,
        target_specificity=target_specificity,
        who=who_and_where(),
    )
    with ScoreDisplay(console, PHASES) as display, shared_session(address, insecure) as connect:
        from pipelines.training.recalibration import calibrate

        report = calibrate(config, connect, display.tell)
    bundle = report.bundle
    told_of = {"model_id": bundle.model_id, "champion": report.champion == bundle.version, "data": data}
    audit.done(bundle.name, report.calibrated_from.version, bundle.version, details=told_of)
    show(console, report)


def show(console: Console, report: CalibrationReport) -> None:
    """Print warnings, and the answer as a person or a program wants it."""
    for image in report.new.labelled.unreadable:
        console.warn(f"{image.image_uri} was left out: {image.code} ({image.message})")
    for text in report.fitted.judged.warnings:
        console.warn(text)
    console.result(report.as_json(), "\n".join(_lines(report)))


def _lines(report: CalibrationReport) -> Iterator[str]:
    from pipelines.storage import paths
    from pipelines.training.calibration_card import compared
    from pipelines.training.recalibration_fit import class_counts

    bundle, earlier = report.bundle, report.calibrated_from
    counts = class_counts(report.new.labelled.cases)
    yield "  images      " + ", ".join(f"{count:,} {name}" for name, count in counts.items())
    for reason, count in report.new.left_out.items():
        yield f"  left out    {count:,} that {reason}"
    yield f"  temperature {earlier.temperature:.4g} before, {bundle.temperature:.4g} after"
    for title, before, after in compared(report.fitted.before, report.fitted.after):
        yield f"              {title} {_figure(before)} before, {_figure(after)} after"
    yield "              (after: on the images that it was fitted to)"
    fitted = next(iter(bundle.thresholds.values()))
    yield (
        f"  threshold   {fitted['threshold']:.6g} of p_positive: sensitivity {_figure(fitted['sensitivity'])} (asked "
        f"for: {fitted['target_sensitivity']:g}), specificity {_figure(fitted['specificity'])}"
    )
    yield from band_lines(bundle.thresholds)
    if report.fitted.int8 is not None:
        yield f"  int8        {report.fitted.int8.sentence()}"
    yield f"  model       {bundle.uri} ({report.seconds:.1f} s), calibrated from {earlier.version}"
    if report.champion == bundle.version:
        yield f"  champion    {bundle.version}"
    else:
        model = shlex.quote(paths.unescape_name(paths.parent(bundle.uri)))
        yield f"  champion    still {report.champion}; to score with this one:"
        yield f"              {program()} models promote {model}@{bundle.version}"


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"
