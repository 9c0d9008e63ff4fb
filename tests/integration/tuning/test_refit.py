"""The best point of a search trained again on training and validation together, against Keras doing the same."""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.demo.archive import draw_archive
from pipelines.images.preprocess import Preprocessing
from pipelines.models.backbones import import_keras
from pipelines.models.bundle import Bundle
from pipelines.models.heads import build_head
from pipelines.models.rebuild import rebuild
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
from pipelines.training.batches import plan_epoch
from pipelines.training.refit import WARNING

sys.path.insert(0, str(Path(__file__).parent))
from test_search_answers import BASE, Connect, search, train_config

pytestmark = pytest.mark.slow

SEED, BATCH = 3, 16
RECIPE = BASE | {"dropout": "0", "learning_rate": "0.006", "batch_size": str(BATCH), "reduce_on_plateau": "1"}
GRID = ("epochs=2,10",)


@dataclass(frozen=True)
class Refitted:
    """The best point as its search left it, which is kept as that of its backbone, and trained again."""

    labelled: Path
    before: Bundle
    after: Bundle


@pytest.fixture(scope="module")
def refitted(connect: Connect, tmp_path_factory: pytest.TempPathFactory) -> Refitted:
    """A search with `--refit`."""
    folder = tmp_path_factory.mktemp("refit")
    labelled = draw_archive(folder / "drawn", 5, labelled=60, archive=1).labelled
    config = train_config(labelled, folder / "models", RECIPE, seed=SEED)
    report = search(config, GRID, connect, metric="log_loss", refit=True).report
    assert (report.run, report.model) == (1, "moles@v1")
    return Refitted(labelled, resolve(report.backbones["mobilenet_v2"]), resolve(report.path or ""))


def fitted_by_keras(refitted: Refitted) -> tuple[Any, Any]:
    """Keras trains the head on all that is not test, from the same first weights, at the rates of the first history.

    Returns:
        The frozen backbone and the head.
    """
    keras, before = import_keras(), refitted.before
    parts = {row["content_sha256"]: row["part"] for row in rows(before, "split.parquet")}
    places = [place for place in sorted(refitted.labelled.rglob("*.*")) if parts[content(place)] != "test"]
    labels = np.array([before.classes.index(place.parent.name) for place in places])
    network = rebuild(before)
    features = np.concatenate([features_of(network.backbone, place) for place in places])
    head = build_head(network.head_spec, features.shape[1:], SEED)
    head.compile(keras.optimizers.Adam(), keras.losses.BinaryCrossentropy(from_logits=True))
    history = list(csv.DictReader(io.StringIO(before.read("history.csv").decode())))
    for epoch in range(1, before.provenance["best_epoch"] + 1):
        head.optimizer.learning_rate = float(history[epoch - 1]["learning_rate"])
        plan = plan_epoch(labels, seed=SEED, epoch=epoch, batch_size=BATCH, oversample=False, mixup=0)
        for start in range(0, len(places), BATCH):
            batch = plan.rows[start : start + BATCH]
            head.train_on_batch(features[batch], labels[batch, None])
    return network.backbone, head


def features_of(backbone: Any, place: Path) -> np.ndarray:
    pixels = Preprocessing(backbone.input_shape[1]).prepare(place.read_bytes()).pixels
    return np.asarray(backbone(pixels[None].astype(np.float32), training=False)).mean(axis=(1, 2))


def content(place: Path) -> str:
    return hashlib.sha256(place.read_bytes()).hexdigest()


def rows(bundle: Bundle, name: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(bundle.read(name))).to_pylist()


def test_it_is_the_fit_on_training_and_validation_for_the_chosen_epochs(refitted: Refitted) -> None:
    before, after = refitted.before, refitted.after
    rates = [row["learning_rate"] for row in csv.DictReader(io.StringIO(before.read("history.csv").decode()))]
    kept = before.provenance["best_epoch"]
    assert 1 < kept < len(rates)  # what is trained again ends where the first was best, not where it ended
    assert len(set(rates[:kept])) > 1  # and takes the reductions that validation asked for then
    backbone, head = fitted_by_keras(refitted)
    own, earlier = (rebuild(bundle).head.get_weights() for bundle in (after, before))
    for array, wanted in zip(own, head.get_weights(), strict=True):
        np.testing.assert_allclose(array, wanted, atol=1e-4)
    assert np.abs(own[0] - earlier[0]).max() > 1e-2
    for place in sorted(refitted.labelled.rglob("*.jpg"))[::20]:
        logit = float(np.asarray(head(features_of(backbone, place)))[0, 0]) / after.temperature
        answer = Scorer(*after.scorer("float32"))(Preprocessing(after.input_size).prepare(place.read_bytes()).pixels)
        assert answer[1] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)


def test_what_validation_said_is_of_the_model_before_and_the_bundle_says_so(refitted: Refitted) -> None:
    before, after = refitted.before, refitted.after
    assert after.read("validation.parquet") == before.read("validation.parquet")
    assert after.read("history.csv") == before.read("history.csv")
    assert after.temperature == before.temperature
    float32 = {unit: point for unit, point in before.thresholds.items() if "int8" not in unit}
    assert after.thresholds == float32
    assert "int8" not in after.spec.scorers
    assert "trained again on its validation images" in after.spec.scorers_absent["int8"]
    card, card_before = ((Path(bundle.uri) / "MODEL_CARD.md").read_text() for bundle in (after, before))
    assert WARNING in card
    assert WARNING not in card_before


def test_its_split_names_all_that_it_has_seen(refitted: Refitted) -> None:
    split = rows(refitted.after, "split.parquet")
    assert {row["part"] for row in split} == {"train", "val", "test"}
    seen = {row["content_sha256"] for row in split if row["part"] in ("train", "val")}
    assert refitted.after.training_hashes() == seen
    assert {row["content_sha256"] for row in rows(refitted.after, "validation.parquet")} < seen
