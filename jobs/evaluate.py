"""`nightread evaluate`: what a model, or what it has predicted, is worth; one report, one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Console, JsonOption
from jobs.score import AddressOption, InsecureOption, ScoreDisplay
from jobs.streams import LogFormat, LogFormatOption
from pipelines.errors import UsageError

if TYPE_CHECKING:
    from jobs.evaluation import EvaluationReport

PHASES = {
    "listing": "images found",
    "identifying": "images identified",
    "scoring": "images",
    "joining": "joining labels and predictions",
    "measuring": "figures",
    "drawing": "report",
}
"""What is counted in each phase of an evaluation."""

SHOWN_UNREADABLE = 20


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("evaluate")(evaluate)


def evaluate(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A folder per class, train|val|test folders of them, or a manifest."),
    ] = None,
    report: Annotated[str | None, typer.Option(help="The folder to write: report.html, metrics.json …")] = None,
    part: Annotated[str | None, typer.Option(help="test, val, train, external or all.")] = None,
    results: Annotated[str | None, typer.Option(help="Instead of REF and DATA: committed predictions.")] = None,
    labels: Annotated[str | None, typer.Option(help="Labels of them, .csv or .parquet.")] = None,
    on: Annotated[str, typer.Option(help="What names an image there: uri, content_sha256 or a column.")] = "uri",
    run: Annotated[str | None, typer.Option(help="Only predictions of this run.")] = None,
    model: Annotated[str | None, typer.Option(help="Only predictions of this model: its name, or its id.")] = None,
    bundle: Annotated[str | None, typer.Option(help="REF of the model that made the predictions.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare with another model: its REF; with --results its name or id.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Columns of subgroups: site,sex.")] = None,
    aggregate: Annotated[str, typer.Option(help="A patient's probability from the images': max or mean.")] = "max",
    prevalence: Annotated[str | None, typer.Option(help="Tell PPV and NPV at these too: 0.5%,5%.")] = None,
    columns: Annotated[str | None, typer.Option(help="A manifest's columns: uri=image_path,label=target.")] = None,
    class_names: Annotated[str | None, typer.Option(help="Names of the labels: 0=normal,1=pneumonia.")] = None,
    root: Annotated[str | None, typer.Option(help="Where relative URIs of a manifest start.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob of images to leave out; repeatable.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Pattern in a path that names the patient.")] = None,
    include_training: Annotated[
        bool, typer.Option("--include-training", help="Keep images that the model was made from.")
    ] = False,
    precision: Annotated[
        str | None, typer.Option(help="float32 (unless said) or int8; with --results: only rows of it.")
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Show no image in the report.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the report in the folder.")] = False,
    address: AddressOption = "local",
    insecure: InsecureOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    json: JsonOption = False,
) -> None:
    """Measure a model on labelled images, or committed predictions joined to labels, and write a report."""
    from cluster.session import shared_session
    from jobs.evaluation import EvaluateConfig
    from jobs.evaluation import evaluate as run_evaluate
    from jobs.evaluation_sources import CommittedRows, ModelOnImages
    from jobs.options import labelled_data, parse_names, parse_pairs
    from pipelines.evaluation.labelled_rows import JoinConfig
    from pipelines.evaluation.labels import LabelsConfig
    from pipelines.predictions.runs import who_and_where
    from pipelines.training.labelled_parts import Selection

    console = Console(json)
    subgroups = parse_names(by)
    source: ModelOnImages | CommittedRows
    if results is not None or labels is not None:
        others: dict[str, object] = {"REF": ref, "--part": part, "--exclude": exclude, "--group-by": group_by}
        _refuse(others, "REF and DATA", "--results and --labels")
        table = LabelsConfig(
            _needed(labels, "--labels"),
            on,
            parse_pairs("--columns", columns),
            parse_pairs("--class-names", class_names),
            root,
        )
        join = JoinConfig(_needed(results, "--results"), table, run, model, precision, subgroups, include_training)
        source = CommittedRows(join, bundle, against)
    else:
        others = {"--run": run, "--model": model, "--bundle": bundle, "--on": on != "uri"}
        _refuse(others, "--results and --labels", "REF and DATA")
        images = labelled_data(_needed(data, "DATA"), columns, class_names, root, exclude, group_by)
        selection = Selection(part, include_training)
        source = ModelOnImages(_needed(ref, "REF"), images, selection, precision or "float32", against)
    config = EvaluateConfig(
        report=_needed(report, "--report"),
        source=source,
        by=subgroups,
        aggregate=aggregate,
        prevalences=tuple(read_share("--prevalence", text) for text in parse_names(prevalence)),
        pictures=not no_images,
        overwrite=overwrite,
        who=who_and_where(),
    )
    with ScoreDisplay(console, PHASES) as display, shared_session(address, insecure) as connect:
        answer = run_evaluate(config, connect, display.tell)
    show(console, answer)


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise UsageError(
            f"{name} is missing.",
            "Write nightread evaluate REF DATA --report DIR, or nightread evaluate --results URI --labels FILE "
            "--report DIR.",
        )
    return value


def _refuse(given: Mapping[str, object], home: str, here: str) -> None:
    """Refuse options of the other way in.

    Raises:
        UsageError: Naming the first.
    """
    for name, value in given.items():
        if value:
            raise UsageError(f"{name} belongs to {home}, and here are {here}.", "Leave it out.")


def read_share(option: str, text: str) -> float:
    """Read `0.5%` or `0.005`.

    Raises:
        UsageError: If it is no number.
    """
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"{option} has {text!r}, which is no share.", f"Write {option} 0.5%,5%.") from None


def show(console: Console, answer: EvaluationReport) -> None:
    """Print what was left out, and the answer as a person or a program wants it."""
    for text in answer.unreadable[:SHOWN_UNREADABLE]:
        console.warn(f"left out: {text}")
    if len(answer.unreadable) > SHOWN_UNREADABLE:
        console.warn(f"and {len(answer.unreadable) - SHOWN_UNREADABLE:,} more; metrics.json names them all.")
    for note in answer.notes:
        console.warn(note)
    console.result(answer.as_json(), "\n".join(summary(answer)))


def summary(answer: EvaluationReport) -> Iterator[str]:
    """The figures that matter, with their intervals, for a person."""
    metrics = answer.metrics
    model = metrics["model"]
    yield f"Evaluated: {answer.chosen}."
    patients = f", {metrics['patients']:,} patients" if metrics["patients"] else ", patients not known"
    yield f"  model       {model['name']}{'@' + model['version'] if model['version'] else ''}, {model['precision']}"
    yield f"  images      {metrics['n']:,}{patients}, {metrics['groups']:,} groups"
    names = " or ".join(metrics["positive_classes"])
    yield f"  ROC AUC     {_figure(metrics['positive_vs_rest']['roc_auc'])}, {names} against the rest"
    yield from _point_lines(metrics["operating_point"])
    yield f"  calibration slope {_figure(metrics['overall']['calibration_slope'])}, 1 is ideal"
    yield f"              mean error {_figure(metrics['overall']['calibration_error'])}"
    yield from _left_out_lines(metrics)
    if metrics["comparison"]:
        yield f"  compared    {metrics['comparison'].get('sentence') or metrics['comparison'].get('reason')}"
    for number, text in enumerate(metrics["concerns"]):
        yield f"  {'careful' if number == 0 else '':<11} {text}"
    yield f"  report      {answer.report} ({answer.seconds:.1f} s)"


def _point_lines(point: Mapping[str, Any]) -> Iterator[str]:
    if "reason" in point:
        yield f"  threshold   {point['reason']}"
        return
    yield f"  threshold   {point['threshold']:.6g} of p_positive, frozen when the model was made:"
    yield f"              sensitivity {_figure(point['sensitivity'])}"
    yield f"              specificity {_figure(point['specificity'])}"
    if point["refer_low"] is not None and point["refer_low"] < point["refer_high"]:
        band = f"{point['refer_low']:.4g} to {point['refer_high']:.4g}"
        yield f"              referred    {_figure(point['referred'])}, p_positive from {band}"


def _left_out_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    data, seen = metrics["data"], metrics["seen_in_training"]
    counted = {**data["left_out"], "copies": data["copies"], "unreadable": data["unreadable"]}
    counted["known to the model from its training"] = seen["left_out"]
    told = [f"{reason}: {count:,}" for reason, count in counted.items() if count]
    if told:
        yield f"  left out    {', '.join(told)}"
    if seen["exact"]:
        yield f"  seen        {seen['exact']:,} of these images when the model was made"
    if seen["near_duplicates"]:
        yield f"  seen        near-duplicates of {seen['near_duplicates']:,} of these images"


def _figure(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"– ({figure.get('reason', 'not defined')})"
    if figure["low"] is None:
        return f"{figure['value']:.4f}"
    return f"{figure['value']:.4f} (95 % interval {figure['low']:.3f} to {figure['high']:.3f})"
