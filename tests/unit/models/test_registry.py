from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.errors import ModelRefused, UsageError
from pipelines.models import registry
from pipelines.models.bundle import write_bundle
from pipelines.models.champion import make_first_champion
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO

SPEC = BundleSpec(("a", "b"), ("b",), 8, "p", {"float32": ScorerEntry("scorer.tflite", ScorerIO(8, 2))})


@pytest.fixture
def models(tmp_path: Path) -> str:
    folder = str(tmp_path / "MODELS")
    for name, versions in (("cells", 3), ("tissue", 1)):
        for number in range(versions):
            write_bundle(folder, name, SPEC, {"scorer.tflite": bytes([number])})
    return folder


def test_a_ref_is_a_folder_a_name_or_a_name_with_version(models: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.resolve(f"{models}/cells").version == "v1"
    assert registry.resolve(f"{models}/cells@v3").version == "v3"
    assert registry.resolve(f"{models}/cells/v2").version == "v2"
    assert registry.resolve(f"{models}/cells/").name == "cells"
    monkeypatch.chdir(os.path.dirname(models))
    assert registry.resolve("MODELS/tissue").uri == f"{models}/tissue/v1"


def test_a_bundle_that_was_copied_elsewhere_is_still_one(models: str, tmp_path: Path) -> None:
    Path(models, "cells", "v2").rename(tmp_path / "copy@home")
    copy = registry.resolve(str(tmp_path / "copy@home"))
    assert (copy.name, copy.version) == ("cells", "v2")
    assert registry.standing(copy) is None
    with pytest.raises(UsageError, match="does not lie where"):
        registry.promote(str(tmp_path / "copy@home"))


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("cells@v9", "v1, v2, v3"),
        ("cells@nonsense", "v1, v2, v3"),
        ("cells@../tissue/v1", "v1"),
        ("lungs", "cells, tissue"),
        ("lungs@v1", "cells, tissue"),
        ("model.keras", "models import"),
    ],
)
def test_a_ref_to_nothing_lists_what_there_is(models: str, ref: str, says: str) -> None:
    with pytest.raises(ModelRefused) as caught:
        registry.resolve(f"{models}/{ref}")
    assert says in str(caught.value)


def test_an_empty_place_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="There are no models in"):
        registry.resolve(str(tmp_path / "x" / "y"))
    assert registry.list_models(str(tmp_path / "x")) == []


def test_promotions_are_remembered_with_when_and_who(models: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    registry.promote(f"{models}/cells@v3")
    registry.promote(f"{models}/cells/v2")
    registry.promote(f"{models}/cells@v2")  # already is
    champion = registry.champion(models, "cells")
    assert champion is not None and champion.version == "v2"
    assert [(entry.version, entry.previous) for entry in champion.history] == [("v1", None), ("v3", "v1"), ("v2", "v3")]
    for entry in champion.history[1:]:
        assert datetime.fromisoformat(entry.at) >= before
        assert entry.by.endswith(f"@{os.uname().nodename}")
    assert registry.resolve(f"{models}/cells").version == "v2"


def test_only_a_version_that_verifies_is_promoted(models: str) -> None:
    Path(models, "cells", "v2", "scorer.tflite").write_bytes(b"x")
    with pytest.raises(ModelRefused, match="altered"):
        registry.promote(f"{models}/cells@v2")
    with pytest.raises(UsageError, match="names no version"):
        registry.promote(f"{models}/cells")
    with pytest.raises(ModelRefused, match="no version v7"):
        registry.promote(f"{models}/cells@v7")
    assert registry.resolve(f"{models}/cells").version == "v1"


def test_of_first_versions_at_once_one_becomes_champion(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        became = list(pool.map(lambda n: make_first_champion(str(tmp_path), "cells", f"v{n}"), range(1, 13)))
    assert sum(became) == 1
    champion = registry.champion(str(tmp_path), "cells")
    assert champion is not None and champion.version == f"v{became.index(True) + 1}"


def test_the_listing_is_in_order_and_shows_damage(models: str) -> None:
    for _ in range(9):
        write_bundle(models, "cells", SPEC, {"scorer.tflite": b"x"})
    Path(models, "cells", "v2", "bundle.json").write_bytes(b"{}")
    Path(models, "tissue", "champion.json").write_bytes(b"no json")
    Path(models, "cells", "work", "1").mkdir(parents=True)
    Path(models, "stray.txt").write_text("x")
    entries = registry.list_models(models)
    assert [entry.version for entry in entries if entry.name == "cells"] == [f"v{n}" for n in range(1, 13)]
    assert [(entry.name, entry.version) for entry in entries if entry.champion] == [("cells", "v1")]
    assert [entry.version for entry in entries if entry.problem] == ["v2"]


def test_a_damaged_or_newer_champion_is_not_guessed(models: str) -> None:
    path = Path(models, "cells", "champion.json")
    value = json.loads(path.read_text())
    for damage in (b"no json", b"[]", json.dumps({**value, "version": "v2"}).encode(), b'{"format": 1, "history": []}'):
        path.write_bytes(damage)
        with pytest.raises(ModelRefused, match="damaged"):
            registry.resolve(f"{models}/cells")
    path.write_text(json.dumps({**value, "format": 2}))
    with pytest.raises(UsageError, match="format 2"):
        registry.resolve(f"{models}/cells")
    assert registry.resolve(f"{models}/cells@v2").version == "v2"
