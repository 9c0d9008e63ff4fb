"""That every command says what its places are for, and takes it back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from jobs.cli import app, main
from jobs.places import PLACES, REFS, PlacedCommand, declare_places
from pipelines.storage.roles import PLACES as PLACES_VARIABLE
from pipelines.storage.roles import Role, declared, role_of


@pytest.fixture(autouse=True)
def nothing_declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("NIGHTREAD_S3_")]:
        monkeypatch.delenv(name)
    with declared():
        yield


def commands(group: Any) -> Iterator[Any]:
    for command in getattr(group, "commands", {}).values():
        yield from commands(command) if hasattr(command, "commands") else [command]


def test_every_command_declares_its_places() -> None:
    found = list(commands(typer.main.get_command(app)))
    assert len(found) > 10
    assert all(isinstance(command, PlacedCommand) for command in found)
    names = {parameter.name for command in found for parameter in command.params}
    assert {*PLACES, *REFS} <= names


def test_an_option_says_what_its_place_is_for() -> None:
    declare_places(
        {
            "archive": "s3://hospital/images/manifest.csv",
            "root": None,
            "results": "s3://hospital/night/",
            "model": "s3://ai/models/chest@3",
            "limit": 7,
            "data": "/local",
        }
    )
    expected = {
        "s3://hospital/images/manifest.csv": Role.ARCHIVE,
        "s3://hospital/night/runs/1/run.json": Role.RESULTS,
        "s3://ai/models/chest/3/bundle.json": Role.MODELS,
        "s3://ai/models/other": Role.MODELS,
        "s3://elsewhere/image.png": Role.ARCHIVE,
    }
    assert {place: role_of(place) for place in expected} == expected


def test_the_folder_of_all_models_may_be_something_else() -> None:
    declare_places({"results": "s3://all/night", "ref": "s3://all/night/chest"})
    assert role_of("s3://all/night/chest/1") is Role.MODELS
    assert role_of("s3://all/night/runs") is Role.RESULTS
    declare_places({"ref": "s3://chest"})


def test_a_command_declares_before_it_runs_and_takes_it_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTREAD_S3_ARCHIVE_REGION", "far")
    assert main(["score", "s3://all", "--model", "cells", "--results", "s3://all"]) == 2
    assert "'s3://all' is given both as archive and as results" in capsys.readouterr().err
    assert PLACES_VARIABLE not in os.environ
