"""`nightread models`: list, show, promote, import and calibrate model bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.audit import Audit, ReasonOption, models_of
from jobs.calibration import calibrate_command
from jobs.console import Console, JsonOption, duration

if TYPE_CHECKING:
    from pipelines.models.bundle import Bundle
    from pipelines.models.champion import Champion
    from pipelines.models.registry import Entry

ModelsArgument = Annotated[
    str, typer.Argument(metavar="MODELS", help="The folder of all models, or s3://bucket/prefix.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    models = typer.Typer(help="List, show, promote, import and calibrate models.", rich_markup_mode=None)
    models.command("list")(list_command)
    models.command("show")(show_command)
    models.command("promote")(promote_command)
    models.command("import")(import_command)
    models.command("calibrate")(calibrate_command)
    app.add_typer(models, name="models")


def list_command(models: ModelsArgument, json: JsonOption = False) -> None:
    """List every version; `*` marks the champions."""
    from pipelines.errors import UsageError
    from pipelines.models.registry import list_models
    from pipelines.storage import files, paths

    console = Console(json)
    entries = list_models(models)
    if not entries and paths.is_local(paths.canonical(models)) and not files.exists(paths.canonical(models)):
        raise UsageError(f"There is no folder {models}.", "Name the folder that `--models` was given.")
    if json:
        console.result([_listed(entry) for entry in entries])
    elif not entries:
        console.say(f"There are no models in {models}.")
    else:
        columns = ("model", "version", "champion", "classes", "positive", "px", "backbone", "made", "problem")
        console.table(columns, [_row(entry) for entry in entries])


def show_command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION.")],
    json: JsonOption = False,
) -> None:
    """Verify every file of a model and show what it is."""
    from pipelines.models.registry import resolve, standing

    bundle = resolve(ref)
    console = Console(json)
    crowned = standing(bundle)
    shown = _described(bundle, crowned)
    console.result(shown, "\n".join(_lines(shown)))


def promote_command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="MODELS/NAME@VERSION, or the version's folder.")],
    results: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Say how many images of these results the next night will score again."),
    ] = None,
    reason: ReasonOption = None,
    json: JsonOption = False,
) -> None:
    """Verify a version and make it its name's champion."""
    from pipelines.models.bundle import peek
    from pipelines.models.registry import locate, promote, standing

    console = Console(json)
    bundle = peek(locate(ref))
    # Counted first: where the results cannot be read, nothing is promoted yet.
    again = None if results is None else _rescoring(results, bundle)
    before = standing(bundle)
    audit = Audit(models_of(bundle), "promote", reason)
    crowned = promote(ref)
    audit.done(bundle.name, before.version if before else None, crowned.version, details={"model_id": bundle.model_id})
    compared = bundle.provenance.get("versus") or {}
    if compared.get("verdict") == "worse":
        console.warn(f"When it was trained, this version was {compared['sentence']}.")
    last = crowned.history[-1]
    value: dict[str, Any] = {
        "champion": crowned.version,
        "previous": last.previous,
        "at": last.at,
        "by": last.by,
    }
    earlier = f" (before: {last.previous})" if last.previous else ""
    told = f"{crowned.version} is the champion{earlier}, promoted {last.at} by {last.by}."
    if again is not None:
        value |= {"to_rescore": again.images, "seconds_estimated": again.seconds}
        told += f"\n{again.told(bundle.name)}"
    console.result(value, told)


@dataclass(frozen=True)
class _Rescoring:
    """What a promotion makes to be scored again: images, and seconds at the last rate, None where there is none."""

    images: int
    seconds: float | None

    def told(self, name: str) -> str:
        """In words."""
        if not self.images:
            return f"No image of the results waits for it: none was scored by another version of {name} only."
        count = "1 image" if self.images == 1 else f"{self.images:,} images"
        time = f" (about {duration(self.seconds)} at the last rate)" if self.seconds is not None else ""
        return (
            f"{count} of the results, scored by other versions of {name} only, will be scored again by the next "
            f"night{time}; --backfill N of score takes N of them a night, --backfill none leaves them."
        )


def _rescoring(results: str, bundle: Bundle) -> _Rescoring:
    from pipelines.predictions.backlog import count_to_rescore
    from pipelines.predictions.runs import last_rate

    images, rate = count_to_rescore(results, bundle.name, bundle.model_id), last_rate(results)
    return _Rescoring(images, images / rate if rate else None)


def import_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .keras, .h5 or .tflite file.")],
    models: Annotated[str, typer.Option(help="The folder of all models.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    classes: Annotated[str, typer.Option(help="Class names in the order of the model's outputs: a,b.")],
    input_size: Annotated[int, typer.Option(help="Side of the picture that the model takes, in pixels.")],
    scaling: Annotated[
        str, typer.Option(help="What its pixels are: 0..1, -1..1, none (0-255, or scaled inside) or a backbone's name.")
    ],
    outputs: Annotated[str, typer.Option(help="probabilities or logits.")] = "probabilities",
    positive: Annotated[str | None, typer.Option(help="The positive class; several: A,B.")] = None,
    reason: ReasonOption = None,
    json: JsonOption = False,
) -> None:
    """Make a bundle of a model that somebody else made. One sigmoid unit is the second of two classes."""
    from pipelines.images.preprocess import CONTRACT, Preprocessing
    from pipelines.models.importer import import_model
    from pipelines.models.registry import standing

    console = Console(json)
    audit = Audit(models, "import", reason)
    bundle = import_model(
        file,
        models,
        name,
        _class_names(classes),
        input_size,
        scaling,
        outputs,
        _names(positive) if positive is not None else None,
        preprocessing_id=Preprocessing(input_size).id,
        preprocessing_contract={**CONTRACT, "input_size": input_size},
    )
    crowned = standing(bundle)
    is_champion = crowned is not None and crowned.version == bundle.version
    told_of = {"model_id": bundle.model_id, "champion": is_champion}
    audit.done(bundle.name, file, bundle.version, details=told_of)
    place = (
        "the champion" if is_champion else f"not the champion: models promote {models}/{bundle.name}@{bundle.version}"
    )
    told = (
        f"{bundle.name}@{bundle.version} in {bundle.uri} ({place})\n"
        f"positive: {', '.join(bundle.positive_classes)}; no thresholds were fitted, so `decision` stays empty\n"
        f"to fit them to labelled images: models calibrate {models}/{bundle.name}@{bundle.version} DATA"
    )
    console.result({**_described(bundle, crowned), "model": bundle.name, "path": bundle.uri}, told)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _class_names(text: str) -> list[str]:
    """The classes of `--classes`.

    Raises:
        UsageError: If they cannot each have a column of the results: such a model could never score.
    """
    from pipelines.errors import UsageError
    from pipelines.predictions.schema import check_class_columns

    names = _names(text)
    try:
        check_class_columns(names)
    except UsageError as error:
        raise UsageError(error.message, "Give the classes other names: --classes …") from error
    return names


def _listed(entry: Entry) -> dict[str, Any]:
    """One version in `models list --json`."""
    value: dict[str, Any] = {
        "name": entry.name,
        "version": entry.version,
        "champion": entry.champion,
        "problem": entry.problem,
    }
    if entry.bundle is not None:
        value |= {
            "model_id": entry.bundle.model_id,
            "path": entry.bundle.uri,
            "classes": entry.bundle.classes,
            "positive_classes": entry.bundle.positive_classes,
            "input_size": entry.bundle.input_size,
            "backbone": entry.bundle.backbone.get("name"),
            "created_at": entry.bundle.provenance.get("created_at"),
        }
    return value


def _row(entry: Entry) -> tuple[object, ...]:
    bundle = entry.bundle
    mark = "*" if entry.champion else ""
    if bundle is None:
        return (entry.name, entry.version, mark, "", "", "", "", "", entry.problem)
    classes, positive = ", ".join(bundle.classes), ", ".join(bundle.positive_classes)
    backbone, made = bundle.backbone.get("name", "imported"), bundle.provenance.get("created_at", "")
    return (entry.name, entry.version, mark, classes, positive, bundle.input_size, backbone, made, "")


def _described(bundle: Bundle, crowned: Champion | None) -> dict[str, Any]:
    """What `models show` tells, in its order."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "champion": crowned is not None and crowned.version == bundle.version,
        "model_id": bundle.model_id,
        "uri": bundle.uri,
        "classes": list(bundle.classes),
        "positive_classes": list(bundle.positive_classes),
        "input_size": bundle.input_size,
        "precisions": sorted(bundle.spec.scorers),
        "temperature": bundle.temperature,
        "thresholds": dict(bundle.thresholds) or None,
        "backbone": dict(bundle.backbone) or None,
        "head": dict(bundle.head) or None,
        "preprocessing_id": bundle.preprocessing_id,
        "provenance": dict(bundle.provenance),
        "files": dict(bundle.files),
        "history": [
            {"version": entry.version, "at": entry.at, "by": entry.by, "previous": entry.previous}
            for entry in (crowned.history if crowned is not None else ())
        ],
    }


def _lines(values: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Names and values, one a line; what lies in a value stands below it, indented."""
    told = []
    for key, value in values.items():
        name = f"{'  ' * depth}{key}:"
        if isinstance(value, dict) and value:
            told += [name, *_lines(value, depth + 1)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            told += [name, *(f"{'  ' * (depth + 1)}- " + ", ".join(_pairs(item)) for item in value)]
        else:
            told.append(f"{name:<22} {_line(value)}")
    return told


def _pairs(item: Mapping[str, Any]) -> list[str]:
    return [f"{key} {_line(value)}" for key, value in item.items()]


def _line(value: object) -> str:
    """A plain value, or a list of them, as text."""
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "-"
    return "-" if value is None or value == {} else str(value)
