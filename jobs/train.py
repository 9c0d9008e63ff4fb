"""`nightread train`: labelled images to a model that can score tonight."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import Console, JsonOption
from jobs.score import AddressOption, ScoreDisplay

if TYPE_CHECKING:
    from pipelines.training.report import TrainReport

PHASES = {
    "listing": "images found",
    "preparing": "preparing the backbone",
    "scoring": "images",
    "training": "epochs",
    "compiling": "compiling",
}
"""What is counted in each phase of a training."""


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("train")(train)


def train(
    data: Annotated[str, typer.Argument(help="A folder per class, train|val|test folders of them, or a manifest.")],
    models: Annotated[str, typer.Option(help="The MODELS folder or URI.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a .toml file.")] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", envvar="NIGHTREAD_TRAIN_SET", help="A key of the recipe: key=value; repeatable."),
    ] = None,
    weights: Annotated[str, typer.Option(help="The backbone's: imagenet, none or a .weights.h5 file.")] = "imagenet",
    positive: Annotated[str | None, typer.Option(help="The positive class; several with commas.")] = None,
    target_sensitivity: Annotated[float, typer.Option(help="What the threshold must reach on validation.")] = 0.95,
    columns: Annotated[str | None, typer.Option(help="A manifest's columns: uri=image_path,label=target.")] = None,
    class_names: Annotated[str | None, typer.Option(help="Names of the labels: 0=normal,1=pneumonia.")] = None,
    root: Annotated[str | None, typer.Option(help="Where relative URIs of a manifest start.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob of images to leave out; repeatable.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Pattern in a path that names the patient.")] = None,
    seed: Annotated[int, typer.Option(help="Decides split, first weights, order and dropout.")] = 0,
    address: AddressOption = "local",
    json: JsonOption = False,
) -> None:
    """Train a classifier on labelled images and write it as a bundle below MODELS/NAME."""
    from cluster.session import start_or_join
    from jobs.options import parse_pairs
    from pipelines.predictions.runs import who_and_where
    from pipelines.training.config import TrainConfig
    from pipelines.training.labelled import DataConfig
    from pipelines.training.recipes import load_recipe

    config = TrainConfig(
        data=DataConfig(
            data=data,
            columns=parse_pairs("--columns", columns),
            class_names=parse_pairs("--class-names", class_names),
            root=root,
            exclude=tuple(exclude or ()),
            group_by=group_by,
        ),
        models=models,
        name=name,
        recipe=load_recipe(recipe, read_settings(set_ or [])),
        weights=weights,
        positive=tuple(part.strip() for part in (positive or "").split(",") if part.strip()),
        target_sensitivity=target_sensitivity,
        seed=seed,
        who=who_and_where(),
    )
    console = Console(json)
    with ScoreDisplay(console, PHASES) as display:
        from pipelines.training.run import train as run_train

        report = run_train(config, lambda: start_or_join(address), display.tell)
    show(console, report)


def read_settings(texts: list[str]) -> dict[str, str]:
    """Read `--set key=value`, one key each; a value may hold commas and `=`.

    Raises:
        UsageError: If there is no `=`, or a key comes twice.
    """
    from pipelines.errors import UsageError

    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r} is not key=value.", "Write --set epochs=30.")
        if key.strip() in settings:
            raise UsageError(f"--set names {key.strip()!r} twice.", "Name it once.")
        settings[key.strip()] = value.strip()
    return settings


def show(console: Console, report: TrainReport) -> None:
    """Print warnings, and the answer as a person or a program wants it."""
    for image in report.unreadable:
        console.warn(f"{image.image_uri} was left out: {image.error_code} ({image.error_message})")
    for text in report.warnings:
        console.warn(text)
    console.result(report.as_json(), summary(report))


def summary(report: TrainReport) -> str:
    """The figures of a training for a person."""
    figures, (low, high) = report.validation, report.roc_auc_interval
    lines = ["  images      " + "; ".join(f"{part} {_counts(counts)}" for part, counts in report.parts.items())]
    left_out = {reason: count for reason, count in report.left_out.items() if count}
    if left_out:
        lines.append(f"  left out    {_counts(left_out)}")
    if report.without_patient:
        lines.append(
            f"  patients    not known for {report.without_patient:,} images: only equal files were kept together "
            f"({report.groups:,} groups)\n"
            "              a patient's images may stand in two parts; name patients with --group-by or patient_id"
        )
    lines += [
        f"  positive    {', '.join(report.positive_classes)}",
        f"  epochs      {report.epochs}, best {report.best_epoch}",
        f"  validation  accuracy {figures['accuracy']:.4f}, loss {figures['log_loss']:.4f}, "
        f"ROC AUC {figures['roc_auc']:.4f} (positive against the rest: 95 % interval {low:.3f} to {high:.3f})",
        f"  threshold   {report.threshold:.6g} of p_positive, temperature {report.temperature:.3f}",
        f"              on validation sensitivity {report.sensitivity:.3f} (asked for: {report.target_sensitivity:g}), "
        f"specificity {report.specificity:.3f}",
        "",
        "Validation by the most probable class, whatever the threshold:",
        "",
        *_matrix(report),
        "",
        report.classification_report.rstrip(),
        "",
        f"  model       {report.path} ({report.seconds:.1f} s)",
    ]
    if report.champion == report.version:
        lines.append(f"  champion    {report.version}: score with --model {_model(report)}")
    else:
        lines.append(f"  champion    still {report.champion}; to score with this one: {_promote(report)}")
    return "\n".join(lines)


def _model(report: TrainReport) -> str:
    """MODELS/NAME, quoted for a shell."""
    from pipelines.storage import paths

    return shlex.quote(paths.unescape_name(paths.parent(report.path)))


def _promote(report: TrainReport) -> str:
    return f"nightread models promote {_model(report)}@{report.version}"


def _counts(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _matrix(report: TrainReport) -> list[str]:
    """The confusion matrix on validation: a row for each true class, a column for each predicted one."""
    from jobs.console import plain_table

    rows = [
        [name, *(str(count) for count in counts)]
        for name, counts in zip(report.classes, report.confusion_matrix, strict=True)
    ]
    right = [False] + [True] * len(report.classes)
    return plain_table(["true \\ predicted", *report.classes], rows, right).splitlines()
