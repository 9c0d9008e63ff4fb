"""`nightread train`: labelled images to a model that can score tonight."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import Console, JsonOption
from jobs.score import AddressOption, InsecureOption
from jobs.streams import LogFormat, LogFormatOption
from jobs.training_display import TrainDisplay, show


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("train")(train)


def train(
    data: Annotated[
        str | None, typer.Argument(help="A folder per class, train|val|test folders of them, or a manifest.")
    ] = None,
    models: Annotated[str | None, typer.Option(help="The MODELS folder or URI.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a .toml file.")] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", envvar="NIGHTREAD_TRAIN_SET", help="A key of the recipe: key=value; repeatable."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The backbone's: imagenet (unless said), none or a .weights.h5 file."),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", envvar="NIGHTREAD_TRAIN_FROM", help="REF of a model whose weights are the start."),
    ] = None,
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
    workers: Annotated[int, typer.Option(help="Data-parallel workers, which share each batch.")] = 1,
    resources: Annotated[str | None, typer.Option(help="Of each worker: cpu=4,gpu=1.")] = None,
    seed: Annotated[int, typer.Option(help="Decides split, first weights, order, augmentation and dropout.")] = 0,
    cache: Annotated[str | None, typer.Option(help="Where caches and checkpoints lie, not below MODELS.")] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list-recipes", help="Print the recipes with their sources and figures, and end.")
    ] = False,
    show_recipe: Annotated[str | None, typer.Option(help="Print the TOML of a recipe, and end.")] = None,
    address: AddressOption = "local",
    insecure: InsecureOption = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    json: JsonOption = False,
) -> None:
    """Train a classifier on labelled images and write it as a bundle below MODELS/NAME."""
    console = Console(json)
    if list_recipes or show_recipe is not None:
        from jobs import recipe_listing

        if show_recipe is not None:
            recipe_listing.show_recipe(console, show_recipe)
        else:
            recipe_listing.list_recipes(console)
        return
    from cluster.session import shared_session
    from jobs.options import labelled_data, parse_names
    from pipelines.errors import UsageError
    from pipelines.predictions.runs import who_and_where
    from pipelines.training.config import TrainConfig
    from pipelines.training.recipes import load_recipe
    from pipelines.training.resources import parse_resources

    if weights is not None and from_ is not None:
        raise UsageError("--weights and --from both say where to start.", "Say one of them.")
    data, models, name = _required(DATA=data, **{"--models": models, "--name": name})
    config = TrainConfig(
        data=labelled_data(data, columns, class_names, root, exclude, group_by),
        models=models,
        name=name,
        recipe=load_recipe(recipe, read_settings(set_ or [])),
        weights="imagenet" if weights is None else weights,
        start=from_,
        positive=parse_names(positive),
        target_sensitivity=target_sensitivity,
        target_specificity=target_specificity,
        new_split=new_split,
        workers=workers,
        resources=parse_resources(resources or ""),
        seed=seed,
        cache=cache,
        who=who_and_where(),
    )
    with TrainDisplay(console, config.recipe.metric) as display, shared_session(address, insecure) as connect:
        from pipelines.training.run import train as run_train

        report = run_train(config, connect, display.tell)
    show(console, report)


def _required(**given: str | None) -> list[str]:
    """Values that only `--list-recipes` and `--show-recipe` do without.

    Raises:
        UsageError: Naming the first that is missing.
    """
    from pipelines.errors import UsageError

    for name, value in given.items():
        if value is None:
            raise UsageError(f"{name} is missing.", "Write nightread train DATA --models MODELS --name NAME.")
    return [value for value in given.values() if value is not None]


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
