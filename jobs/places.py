"""Which options name the archive, the results and the models: each of these may have an S3 account of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from pipelines.storage import paths
from pipelines.storage.roles import EVERYWHERE, Role, declare, is_declared

# By the parameter's name, which means the same in every command.
PLACES = {
    "archive": Role.ARCHIVE,
    "data": Role.ARCHIVE,
    "root": Role.ARCHIVE,
    "labels": Role.ARCHIVE,
    "results": Role.RESULTS,
    "publish": Role.RESULTS,
    "report": Role.RESULTS,
    "html": Role.RESULTS,
    "output": Role.RESULTS,
    "models": Role.MODELS,
    "cache": Role.MODELS,
    "weights": Role.MODELS,
}
# These name one model: MODELS/NAME or MODELS/NAME@VERSION.
REFS = ("ref", "model", "bundle", "against", "from_")


class PlacedCommand(TyperCommand):
    """A command that says what its places are for before it runs."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        declare_places(ctx.params)
        return super().invoke(ctx)


def place_commands(app: typer.Typer) -> None:
    """Make all commands of an app, and of the groups in it, ones that say what their places are for."""
    for command in app.registered_commands:
        command.cls = PlacedCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            place_commands(group.typer_instance)


def declare_places(parameters: Mapping[str, Any]) -> None:
    """Note what each place of a command is for.

    Every other bucket that a command meets is the archive's: images that a manifest or a table names in full.

    Args:
        parameters: The command's parameters by name.
    """
    declare(Role.ARCHIVE, EVERYWHERE)
    for name, role in PLACES.items():
        if isinstance(place := parameters.get(name), str):
            declare(role, place)
    for name in REFS:
        ref = parameters.get(name)
        if isinstance(ref, str) and paths.is_bucket(ref):
            _declare_model(ref)


def _declare_model(ref: str) -> None:
    place = paths.canonical(ref)
    model = place.removesuffix(paths.name(place)) + paths.name(place).partition("@")[0]
    declare(Role.MODELS, model)
    # The folder of all models is looked into to say which there are; another option may have said what it is.
    if not is_declared(paths.parent(model)):
        declare(Role.MODELS, paths.parent(model))
