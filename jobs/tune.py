"""`nightread tune`: many settings of a recipe on the same images, and the best of them as a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Console, JsonOption
from jobs.score import AddressOption, InsecureOption
from jobs.streams import LogFormat, LogFormatOption

if TYPE_CHECKING:
    from jobs.tuning_test import Connect, Tell
    from pipelines.tuning.config import TuneConfig
    from pipelines.tuning.progress import TuneReport
    from pipelines.tuning.space import Space


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("tune")(tune)


def tune(
    data: Annotated[str, typer.Argument(help="A folder per class, train|val|test folders of them, or a manifest.")],
    models: Annotated[str, typer.Option(help="The MODELS folder or URI.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(help="Values of a recipe's key: key=v1,v2; repeatable. With --random also key=[log:]low..high."),
    ] = None,
    random: Annotated[int | None, typer.Option(help="Draw so many points instead of every combination.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="What points are ranked by on validation; else the recipe's.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="none, or asha: end weak points early.")] = "none",
    concurrency: Annotated[int | None, typer.Option(help="At most so many trainings at a time.")] = None,
    resources: Annotated[str | None, typer.Option(help="Of each training: cpu=0.5,gpu=0.25.")] = None,
    search: Annotated[str | None, typer.Option(help="Go on with this search, or begin one of this name.")] = None,
    limit: Annotated[int, typer.Option(help="Refuse a grid of more points.")] = 1000,
    refit: Annotated[
        bool, typer.Option("--refit", help="Train the best again on train and validation, for the chosen epochs.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Make the best the name's champion.")] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate each backbone's best on the test part, once; closes the search.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    recipe: Annotated[
        str, typer.Option(help="A recipe's name, or a .toml file; every point starts from it.")
    ] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", envvar="NIGHTREAD_TUNE_SET", help="A key of the recipe for all points; repeatable."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="imagenet, none or a .weights.h5 file; by backbone: none,mobilenet_v2=imagenet.")
    ] = "imagenet",
    positive: Annotated[str | None, typer.Option(help="The positive class; several with commas.")] = None,
    target_sensitivity: Annotated[float, typer.Option(help="What the threshold must reach on validation.")] = 0.95,
    target_specificity: Annotated[
        float, typer.Option(help="What must be reached, beside the sensitivity, outside of the refer band.")
    ] = 0.95,
    columns: Annotated[str | None, typer.Option(help="A manifest's columns: uri=image_path,label=target.")] = None,
    class_names: Annotated[str | None, typer.Option(help="Names of the labels: 0=normal,1=pneumonia.")] = None,
    root: Annotated[str | None, typer.Option(help="Where relative URIs of a manifest start.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob of images to leave out; repeatable.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Pattern in a path that names the patient.")] = None,
    new_split: Annotated[
        bool, typer.Option("--new-split", help="Do not keep the split of the name's earlier version.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of every point: split, first weights, order, augmentation, dropout.")] = 0,
    cache: Annotated[str | None, typer.Option(help="Where caches and checkpoints lie, not below MODELS.")] = None,
    address: AddressOption = "local",
    insecure: InsecureOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    json: JsonOption = False,
) -> None:
    """Search a grid of recipes on labelled images, and write the best as a bundle below MODELS/NAME."""
    from cluster.session import shared_session, usable_cores
    from jobs.options import labelled_data, parse_names
    from jobs.train import read_settings
    from jobs.tuning_display import TuneDisplay, show, show_plan
    from pipelines.predictions.runs import who_and_where
    from pipelines.training.config import TrainConfig
    from pipelines.training.recipes import load_recipe
    from pipelines.tuning.capacity import parse_room
    from pipelines.tuning.config import TuneConfig
    from pipelines.tuning.space import make_points, read_space

    console = Console(json)
    common, weights_of = read_weights(weights)
    train = TrainConfig(
        data=labelled_data(data, columns, class_names, root, exclude, group_by),
        models=models,
        name=name,
        recipe=load_recipe(recipe, read_settings(set_ or [])),
        weights=common,
        positive=parse_names(positive),
        target_sensitivity=target_sensitivity,
        target_specificity=target_specificity,
        new_split=new_split,
        seed=seed,
        cache=cache,
        who=who_and_where(),
    )
    space = read_space(grid or [], random)
    config = TuneConfig(
        train=train,
        points=make_points(space, train.recipe, limit, seed),
        weights_of=weights_of,
        grid=grid_words(space),
        random=random,
        metric=metric or "",
        scheduler=scheduler,
        room=parse_room(resources or ""),
        concurrency=concurrency,
        search=search,
        refit=refit,
        promote=promote,
    )
    with TuneDisplay(console) as display, shared_session(address, insecure) as connect:
        from pipelines.tuning.run import plan_only
        from pipelines.tuning.run import tune as run_tune

        if dry_run:
            planned = plan_only(config, usable_cores(), display.tell)
        else:
            report = run_tune(config, connect, display.tell)
            tested = _tested(config, report, connect, display.tell) if test else None
    if dry_run:
        show_plan(console, planned)
    else:
        show(console, report, tested)


def _tested(config: TuneConfig, report: TuneReport, connect: Connect, tell: Tell) -> dict[str, Any]:
    from jobs.tuning_test import run_test

    return run_test(config, report, connect, tell)


def read_weights(text: str) -> tuple[str, dict[str, str]]:
    """Read `--weights`: those of every backbone, and those of some by name, as in `none,mobilenet_v2=imagenet`.

    Raises:
        UsageError: If it says twice what one backbone, or every other, has.
    """
    from pipelines.errors import UsageError
    from pipelines.models.backbones import BACKBONES

    parts = [part.strip() for part in text.split(",")]
    named = [part.partition("=")[::2] for part in parts if part.partition("=")[0] in BACKBONES and "=" in part]
    if not named:
        return text, {}  # a file's name may hold commas
    others = [part for part in parts if part.partition("=")[0] not in BACKBONES or "=" not in part]
    if len(others) > 1 or len(dict(named)) < len(named) or not all(said for _, said in named):
        raise UsageError(
            f"--weights {text!r} does not say one kind of weights for each backbone.",
            "Say --weights none,mobilenet_v2=imagenet: first what all others have.",
        )
    return (others or ["imagenet"])[0], dict(named)


def grid_words(space: Space) -> dict[str, str]:
    """What of each key is searched, in words: `0.001, 0.005`, or `1e-05 to 0.01 (log)`."""
    from pipelines.tuning.space import Choices

    words = {}
    for key, axis in space.axes.items():
        if isinstance(axis, Choices):
            words[key] = ", ".join(
                str(value).lower() if isinstance(value, bool) else str(value) for value in axis.values
            )
        else:
            words[key] = f"{axis.low:g} to {axis.high:g}{' (log)' if axis.log else ''}"
    return words
