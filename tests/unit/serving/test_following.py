"""A service on its champion: what is swapped in, what is left alone, and when it is tried again."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from pathlib import Path

import pytest

from pipelines.errors import ModelRefused
from pipelines.models import registry
from pipelines.models.bundle import write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.serving.following import FIRST_PAUSE, LONGEST_PAUSE, Following
from pipelines.serving.served_model import LoadedModel

SPEC = BundleSpec(("a", "b"), ("b",), 8, "p", {"float32": ScorerEntry("scorer.tflite", ScorerIO(8, 2))})


class Answering:
    """Something that answers with whatever it was given, and refuses the models that it is told to refuse."""

    def __init__(self) -> None:
        self.promotion_failed: str | None = None
        self.models: list[LoadedModel] = []
        self.refuses: set[str] = set()
        self.tried = 0

    async def serve(self, model: LoadedModel) -> None:
        self.tried += 1
        if model.served.version in self.refuses:
            raise ModelRefused("The model fails its self-test.")
        self.models.append(model)

    @property
    def version(self) -> str:
        return self.models[-1].served.version


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number in range(3):
        write_bundle(str(tmp_path / "MODELS"), "cells", SPEC, {"scorer.tflite": bytes([number])})
    return tmp_path / "MODELS"


@pytest.fixture
def answering() -> Answering:
    return Answering()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def following(models: Path, answering: Answering, clock: Clock, told: list[str]) -> Following:
    made = Following(str(models / "cells"), "float32", answering, told.append, clock)
    asyncio.run(made.load_first())
    assert answering.version == "v1" and answering.models[0].scorer == b"\x00"
    return made


def look(following: Following, at_once: bool = False) -> None:
    asyncio.run(following.look(at_once))


def promote(models: Path, version: str) -> None:
    registry.promote(str(models / f"cells@{version}"))


def test_a_promotion_takes_over_and_a_step_back_too(
    following: Following, models: Path, answering: Answering, told: list[str]
) -> None:
    look(following)
    assert answering.tried == 1
    promote(models, "v3")
    look(following)
    look(following)
    assert (answering.version, answering.tried) == ("v3", 2)
    assert told == ["cells@v3 was promoted and answers from now on."]
    promote(models, "v1")
    look(following)
    assert (answering.version, answering.promotion_failed) == ("v1", None)


def test_one_that_is_refused_leaves_the_old_one_and_is_tried_again_more_and_more_rarely(
    following: Following, models: Path, answering: Answering, clock: Clock, told: list[str]
) -> None:
    answering.refuses = {"v2"}
    promote(models, "v2")
    tries = []

    async def three_hours() -> None:
        for _ in range(190):
            before = answering.tried
            await following.look()
            if answering.tried > before:
                tries.append(clock.now)
            clock.now += 60

    asyncio.run(three_hours())
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert pauses[0] == FIRST_PAUSE and pauses[-1] == LONGEST_PAUSE and pauses == sorted(pauses)
    assert (answering.version, len(told)) == ("v1", 1)
    assert answering.promotion_failed is not None and "self-test" in answering.promotion_failed
    before = answering.tried
    look(following)
    assert answering.tried == before
    look(following, at_once=True)
    assert answering.tried == before + 1
    answering.refuses = set()
    look(following, at_once=True)
    assert (answering.version, answering.promotion_failed) == ("v2", None)


def test_another_promotion_is_not_kept_waiting_by_a_failed_one(
    following: Following, models: Path, answering: Answering
) -> None:
    answering.refuses = {"v2"}
    promote(models, "v2")
    look(following)
    promote(models, "v3")
    look(following)
    assert (answering.version, answering.promotion_failed) == ("v3", None)
    promote(models, "v2")
    look(following)
    assert answering.promotion_failed is not None
    promote(models, "v3")  # the one that answers
    look(following)
    assert answering.promotion_failed is None


def test_an_altered_file_is_found_before_anything_is_swapped(
    following: Following, models: Path, answering: Answering
) -> None:
    promote(models, "v2")
    (models / "cells" / "v2" / "scorer.tflite").write_bytes(b"other")
    look(following)
    assert answering.promotion_failed is not None and "altered" in answering.promotion_failed
    assert (answering.version, answering.tried) == ("v1", 1)


def test_storage_that_is_away_is_no_failure_and_said_once(
    following: Following, models: Path, answering: Answering, told: list[str]
) -> None:
    models.rename(models.parent / "unmounted")
    look(following)
    look(following)
    assert answering.promotion_failed is None and len(told) == 1 and "does not answer" in told[0]
    (models.parent / "unmounted").rename(models)
    promote(models, "v2")
    look(following)
    assert answering.version == "v2"


def test_a_champion_that_cannot_be_told_is_a_failure_where_the_models_are_there(
    following: Following, models: Path, answering: Answering
) -> None:
    champion = models / "cells" / "champion.json"
    before = champion.read_text()
    for damaged in ("{", json.dumps({**json.loads(before), "format": 99})):
        champion.write_text(damaged)
        look(following)
        assert answering.promotion_failed is not None and "cannot be told" in answering.promotion_failed
    champion.write_text(before)
    look(following)
    assert answering.promotion_failed is None and answering.version == "v1"


def test_only_a_name_follows(models: Path, answering: Answering) -> None:
    shutil.copytree(models / "cells" / "v1", models.parent / "copy")
    for ref in (f"{models}/cells@v1", f"{models}/cells/v2", str(models.parent / "copy")):
        one = Following(ref, "float32", answering, print)
        asyncio.run(one.load_first())
        asyncio.run(one.follow())  # returns: there is nothing to wait for
    assert registry.follows_champion(str(models / "cells"))
