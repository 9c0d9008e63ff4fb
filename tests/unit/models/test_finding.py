"""The bundle that scored an image is found by its id, wherever the name points today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.runs_keeping import _proved
from pipelines.errors import ModelRefused
from pipelines.models.bundle import Bundle, write_bundle
from pipelines.models.finding import prove_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.registry import promote
from pipelines.models.runtime import ScorerIO
from pipelines.predictions.verifying import UsedModel

SPEC = BundleSpec(("a", "b"), ("b",), 8, "p", {"float32": ScorerEntry("scorer.tflite", ScorerIO(8, 2))})


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    return [write_bundle(str(tmp_path / "MODELS"), "cells", SPEC, {"scorer.tflite": bytes([n])}) for n in range(3)]


@pytest.mark.parametrize("ref", ["cells", "cells@v1", "cells@v3", "cells/v2", "cells/", "cells@v9"])
def test_every_version_is_found_from_any_reference_to_its_name(bundles: list[Bundle], tmp_path: Path, ref: str) -> None:
    promote(f"{tmp_path}/MODELS/cells@v3")
    Path(bundles[0].uri, "bundle.json").with_name("MODEL_CARD.md").write_text("not hashed")
    for bundle in bundles:
        assert prove_bundle(f"{tmp_path}/MODELS/{ref}", bundle.model_id) is True


def test_a_bundle_of_its_own_folder(bundles: list[Bundle], tmp_path: Path) -> None:
    Path(bundles[1].uri).rename(tmp_path / "copy@home")
    assert prove_bundle(str(tmp_path / "copy@home"), bundles[1].model_id) is True


def test_what_is_altered_or_gone_is_refused_and_where_nothing_is_nobody_can_tell(
    bundles: list[Bundle], tmp_path: Path
) -> None:
    ref = f"{tmp_path}/MODELS/cells"
    Path(bundles[0].uri, "scorer.tflite").write_bytes(b"other")
    with pytest.raises(ModelRefused, match="was altered"):
        prove_bundle(ref, bundles[0].model_id)
    record = Path(bundles[1].uri, "bundle.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"temperature": 7.0}))
    with pytest.raises(ModelRefused, match=f"has the id {bundles[1].model_id[:12]}"):
        prove_bundle(ref, bundles[1].model_id)
    with pytest.raises(ModelRefused, match="No model in"):
        prove_bundle(f"{tmp_path}/MODELS/gone", bundles[1].model_id)
    assert prove_bundle(f"{tmp_path}/not mounted/cells", bundles[2].model_id) is False


def test_one_place_where_it_is_whole_is_enough(bundles: list[Bundle], tmp_path: Path) -> None:
    there, gone = f"{tmp_path}/MODELS/cells", f"{tmp_path}/not mounted/cells"
    own = bundles[2].model_id
    assert _proved(UsedModel("cells", own, (gone, there))) == ([], [])
    (problem,), notes = _proved(UsedModel("cells", "f" * 64, (gone, there)))
    assert (problem, notes) == (f"The model cells ffffffffffff: No model in {there} has the id ffffffffffff.", [])
    problems, (note,) = _proved(UsedModel("cells", own, (gone,)))
    assert (problems, note) == ([], f"The model cells {own[:12]} was not looked at: there is nothing in {gone}.")
