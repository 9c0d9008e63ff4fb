"""What is loaded of a bundle, what clients may know of it, and the messages that carry it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.bundle import write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.serving.exchange import HEAD, LARGEST_REPLY, Incoming, head
from pipelines.serving.served_model import load_model

SECRETS = ("jane.doe", "workstation-7", "/mnt/oncology", "P-4711", "nightread train")
VALIDATION = {"roc_auc": {"value": 0.9, "low": 0.8, "high": 0.95}}
PROVENANCE = {
    "kind": "trained",
    "user": SECRETS[0],
    "host": SECRETS[1],
    "data": SECRETS[2],
    "command_line": [SECRETS[4], SECRETS[2]],
    "audit": {"patients": 12, "example": SECRETS[3]},
    "recipe": {"name": "default", "exclude": [SECRETS[2] + "/old/*"]},
    "started_from": {"model": SECRETS[2]},
    "images": {"train": {"a": 5, "b": 7}},
    "groups": 12,
    "validation": VALIDATION,
    "calibration": {"data": SECRETS[2], "images": {"a": 1, "b": 2}, "groups": 3, "before": {}},
}
FITTED = {"image": {"threshold": 0.4}, "image_int8": {"threshold": 0.5, "refer_low": 0.4, "refer_high": 0.6}}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    io = ScorerIO(8, 2)
    spec = BundleSpec(
        ("a", "b"),
        ("b",),
        8,
        "f" * 64,
        {"float32": ScorerEntry("scorer.tflite", io), "int8": ScorerEntry("scorer_int8.tflite", io)},
        backbone={"name": "mobilenet_v2", "alpha": 0.35, "weights": SECRETS[2] + "/w.h5"},
        thresholds=FITTED,
        provenance=PROVENANCE,
    )
    files = {"scorer.tflite": b"one", "scorer_int8.tflite": b"two", "golden.json": b"{}", "history.csv": b"epoch\n"}
    write_bundle(str(tmp_path / "MODELS"), "cells", spec, files)
    return tmp_path / "MODELS"


def test_a_precision_has_its_own_scorer_and_thresholds(models: Path) -> None:
    for precision, scorer, unit in (("float32", b"one", "image"), ("int8", b"two", "image_int8")):
        loaded = load_model(f"{models}/cells", precision)
        assert (loaded.scorer, loaded.golden, loaded.uri) == (scorer, b"{}", f"{models}/cells/v1")
        served = loaded.served
        assert (served.precision, served.thresholds) == (precision, FITTED[unit])
        assert (served.name, served.version, served.ref) == ("cells", "v1", f"{models}/cells")
        assert served.identity["model_id"] == served.model_id and len(served.model_id) == 64
    with pytest.raises(UsageError, match="no int4 scorer"):
        load_model(f"{models}/cells", "int4")


def test_clients_learn_figures_and_nothing_of_users_hosts_places_and_patients(models: Path) -> None:
    card = load_model(f"{models}/cells").served.card
    assert card["validation"] == VALIDATION and card["images"] == {"train": {"a": 5, "b": 7}} and card["groups"] == 12
    assert card["calibration"] == {"images": {"a": 1, "b": 2}, "groups": 3}
    assert card["backbone"] == {"name": "mobilenet_v2", "alpha": 0.35} and card["kind"] == "trained"
    assert "created_at" in card
    told = json.dumps(card)
    assert not any(secret in told for secret in (*SECRETS, str(models), "patients"))


@pytest.mark.parametrize("name", ["scorer.tflite", "scorer_int8.tflite", "golden.json", "history.csv"])
def test_no_file_of_the_bundle_may_be_altered_or_missing(models: Path, name: str) -> None:
    file = models / "cells" / "v1" / name
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ModelRefused, match=r"altered|larger"):
        load_model(f"{models}/cells")
    file.unlink()
    with pytest.raises(ModelRefused, match="missing"):
        load_model(f"{models}/cells")


@given(
    told=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, width=32) | st.text(max_size=9), max_size=4),
    data=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_a_message_comes_together_from_pieces_of_any_size(
    told: Mapping[str, Any], data: bytes, cuts: list[int]
) -> None:
    whole = head(told, len(data)) + data
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    incoming = Incoming()
    for _ in range(2):  # the next message begins anew
        found = [incoming.take(whole[start:end]) for start, end in itertools.pairwise(places)]
        assert found[:-1] == [None] * (len(found) - 1) and found[-1] == (told, data)


def test_a_message_longer_than_any_is_refused_before_it_is_kept() -> None:
    for length in (LARGEST_REPLY, 2**63):
        with pytest.raises(ValueError, match="a message of"):
            Incoming().take(HEAD.pack(2, length))
