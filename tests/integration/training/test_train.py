"""Training from files to a bundle: with TensorFlow, and with Ray computing the features."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.demo.archive import draw_archive
from pipelines.errors import UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
from pipelines.training.config import TrainConfig
from pipelines.training.labelled import DataConfig
from pipelines.training.preparation import find, prepare
from pipelines.training.recipes import load_recipe
from pipelines.training.run import train

pytestmark = pytest.mark.slow

Connect = Callable[[], AbstractContextManager[Any]]
SMALL = {"alpha": "0.35", "input_size": "64"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty drawn images, one broken, one copied."""
    drawn = draw_archive(tmp_path_factory.mktemp("drawn"), 5, labelled=60, archive=1)
    benign = sorted((drawn.labelled / "benign").iterdir())
    (drawn.labelled / "benign" / "copy é.jpg").write_bytes(benign[3].read_bytes())
    (drawn.labelled / "malignant" / "broken.jpg").write_bytes(benign[0].read_bytes()[:300])
    return drawn.labelled


def config(data: Path | str, models: Path, **changes: Any) -> TrainConfig:
    values = {"recipe": load_recipe("skin-lesion", SMALL), "weights": "none", "name": "tissue"} | changes
    return TrainConfig(data=DataConfig(str(data)), models=str(models), **values)


def silent(_progress: object) -> None:
    pass


@pytest.fixture(scope="module")
def trained(labelled: Path, connect: Connect, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    models = tmp_path_factory.mktemp("models")
    return models, train(config(labelled, models), connect, silent)


def table(bundle: Any, name: str) -> Any:
    return pq.read_table(io.BytesIO(bundle.read(name)))


def test_the_report_says_what_was_done(trained: tuple[Path, Any]) -> None:
    _, report = trained
    assert (report.version, report.champion, report.positive_classes) == ("v1", "v1", ("malignant",))
    assert sum(sum(counts.values()) for counts in report.parts.values()) == 61
    assert [Path(image.image_uri).name for image in report.unreadable] == ["broken.jpg"]
    assert report.unreadable[0].error_code == "truncated"
    low, high = report.roc_auc_interval
    assert low <= report.validation["roc_auc"] <= high
    # So small a network on so few images may be useless; then the model is written all the same, and says so.
    assert any("coin" in text for text in report.warnings) == (low <= 0.5 <= high)
    assert sum(map(sum, report.confusion_matrix)) == sum(report.parts["val"].values())
    assert report.without_patient == 61
    assert any("Only 10 images validate" in text or "Only 9 images" in text for text in report.warnings)
    answer = report.as_json()
    assert {"model", "version", "path", "model_id", "champion", "epochs", "best_epoch", "validation"} <= set(answer)


def test_the_bundle_answers_what_validation_recorded(trained: tuple[Path, Any], labelled: Path) -> None:
    models, report = trained
    bundle = resolve(f"{models}/tissue")
    assert bundle.model_id == report.model_id
    scorer = Scorer(*bundle.scorer("float32"))
    rows = {row["content_sha256"]: row for row in table(bundle, "validation.parquet").to_pylist()}
    seen, decided, recorded = 0, [], bundle.thresholds["image"]
    for path in labelled.rglob("*.*"):
        if path.name == "broken.jpg":
            continue
        prepared = Preprocessing(bundle.input_size).prepare(path.read_bytes())
        if prepared.content_sha256 in rows:
            row, answer = rows[prepared.content_sha256], scorer(prepared.pixels)
            decided.append((row["label"], bundle.decision(float(np.float32(bundle.p_positive(answer))))))
            np.testing.assert_array_equal(answer, np.float32([row["p_benign"], row["p_malignant"]]))
            assert (row["label"], row["width"], row["height"]) == (path.parent.name, prepared.width, prepared.height)
            assert row["suffix"] == path.suffix
            seen += 1
    assert seen == len(rows) or seen == len(rows) + 1
    for label, word, kind in (("malignant", "positive", "sensitivity"), ("benign", "negative", "specificity")):
        own = [call == word for known, call in decided if known == label and call != "refer"]
        assert len(own) == recorded["decided"]["positives" if word == "positive" else "negatives"]
        assert (np.mean(own) if own else None) == recorded["decided"][kind]
        assert not own or np.mean(own) >= 0.95
    assert sum(call == "refer" for _, call in decided) == recorded["referred"]
    assert recorded["sensitivity"] == report.sensitivity >= 0.95
    assert recorded == report.thresholds["image"]


def test_the_split_is_in_the_bundle(trained: tuple[Path, Any]) -> None:
    models, _ = trained
    bundle = resolve(f"{models}/tissue")
    split = table(bundle, "split.parquet").to_pylist()
    assert set(split[0]) == {"content_sha256", "perceptual_hash", "group", "part", "person"}
    assert len(split) == 61
    assert len({row["content_sha256"] for row in split}) == 60
    by_content: dict[str, set[str]] = {}
    for row in split:
        by_content.setdefault(row["content_sha256"], set()).add(row["part"])
    assert all(len(found) == 1 for found in by_content.values())
    assert bundle.training_hashes() == {row["content_sha256"] for row in split if row["part"] != "test"}
    history = bundle.read("history.csv").decode().splitlines()
    assert history[0].startswith("epoch,loss,accuracy,precision,recall,roc_auc,val_loss")
    card = (Path(bundle.uri) / "MODEL_CARD.md").read_text()
    assert "malignant" in card
    assert "Warning" in card


def test_a_folder_is_split_alike_wherever_it_lies(
    trained: tuple[Path, Any], labelled: Path, connect: Connect, tmp_path: Path
) -> None:
    """All that stands before the weights are trained; that training depends on nothing else is a test of its own."""
    copy = tmp_path / "copied" / "data"
    shutil.copytree(labelled, copy)
    ready = prepare(config(copy, tmp_path / "models"), connect, silent)
    bundle = resolve(f"{trained[0]}/tissue")
    assert ready.data.split.to_pylist() == table(bundle, "split.parquet").to_pylist()
    # The images that the first weights were scaled by, which no split has moved out of `train`.
    chosen = ready.found.labelled.table["image_uri"].take(pa.array(ready.found.chosen)).to_pylist()
    here = find(config(labelled, tmp_path / "models"), silent)
    names = here.labelled.table["image_uri"].take(pa.array(here.chosen)).to_pylist()
    assert [Path(uri).relative_to(copy) for uri in chosen] == [Path(uri).relative_to(labelled) for uri in names]


def test_a_later_version_keeps_the_split_and_is_compared(
    trained: tuple[Path, Any], labelled: Path, connect: Connect
) -> None:
    """The later one has all layers trained, on pixels that each epoch moves afresh."""
    models, first = trained
    settings = {**SMALL, "trainable_layers": "200", "epochs": "2", "variants": "0", "rotation": "10"}
    settings |= {"mixup": "0.2", "label_smoothing": "0.1", "weight_averaging": "0.9", "flip_at_prediction": "true"}
    settings |= {"schedule": "cosine", "warmup_epochs": "1", "class_balance": "oversample", "optimizer": "adamw"}
    recipe = load_recipe("skin-lesion", {**settings, "test_share": "0.3"})
    report = train(config(labelled, models, recipe=recipe, seed=5), connect, silent)
    assert (report.version, report.champion, report.epochs) == ("v2", "v1", 2)
    one, two = (table(resolve(f"{models}/tissue@{version}"), "split.parquet") for version in ("v1", "v2"))
    assert one.select(["content_sha256", "part"]).equals(two.select(["content_sha256", "part"]))
    assert report.versus is not None and report.versus["champion"] == "v1"
    assert report.audit["origin"] == "inherited"
    assert first.versus is None
    # Nothing of the fit is left, only what another training can use again.
    assert not list((models / "tissue" / "work").rglob("fit-*"))
    scorer = Scorer(*resolve(report.path).scorer("float32"))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(scorer(pixels), scorer(np.ascontiguousarray(pixels[:, ::-1])), atol=1e-6)


def test_a_new_split_is_dealt_anew_and_takes_the_features_that_are_there(
    trained: tuple[Path, Any], labelled: Path, connect: Connect
) -> None:
    models, _ = trained
    phases = set()
    recipe = load_recipe("skin-lesion", {**SMALL, "dense_units": "8", "optimizer": "sgd", "test_share": "0.3"})
    how = config(labelled, models, recipe=recipe, new_split=True)
    anew = train(how, connect, lambda progress: phases.add(progress.phase))
    assert "scoring" not in phases, "the features are cached"
    one, dealt = (table(resolve(place), "split.parquet") for place in (f"{models}/tissue@v1", anew.path))
    assert not one.select(["content_sha256", "part"]).equals(dealt.select(["content_sha256", "part"]))
    assert resolve(anew.path).provenance["new_split"] is True


def test_last_layers_are_trained_on_moved_copies(
    trained: tuple[Path, Any], labelled: Path, connect: Connect, tmp_path: Path
) -> None:
    settings = {**SMALL, "variants": "2", "epochs": "3", "learning_rate": "0.001", "batch_size": "7"}
    start = f"{trained[0]}/tissue@v1"
    how = config(labelled, tmp_path, recipe=load_recipe("histopathology", settings), start=start, workers=2)
    with pytest.raises(UsageError, match=r"scaling backbone, and the recipe has 0\.\.1"):
        train(replace(how, recipe=load_recipe("histopathology", settings)), connect, silent)
    how = replace(how, recipe=load_recipe("histopathology", {**settings, "scaling": "backbone"}))
    report = train(how, connect, silent)
    bundle = resolve(report.path)
    assert report.started_from == report.audit["predecessor"] == "tissue@v1", "its split is kept: it has seen them"
    assert bundle.backbone["trainable_layers"] == 30
    assert report.epochs <= 3 and report.workers == 2
    before, after = (h5py.File(io.BytesIO(resolve(ref).read("weights.weights.h5"))) for ref in (start, report.path))
    changed = _changed_layers(before, after)
    assert changed and not any(name.startswith(("Conv1", "block_1_", "block_12")) for name in changed), changed
    rows = table(bundle, "validation.parquet").to_pylist()
    scorer = Scorer(*bundle.scorer("float32"))
    answers = {
        hashlib.sha256(path.read_bytes()).hexdigest(): scorer(Preprocessing(64).prepare(path.read_bytes()).pixels)
        for path in labelled.rglob("*.*")
        if path.name != "broken.jpg"
    }
    for row in rows:
        np.testing.assert_array_equal(answers[row["content_sha256"]][1], np.float32(row["p_malignant"]))
    if "int8" not in bundle.spec.scorers:
        with pytest.raises(UsageError, match=r"has no int8 scorer\. .+"):
            bundle.scorer("int8")


def _changed_layers(before: Any, after: Any) -> list[str]:
    """Names of the layers whose arrays differ."""
    found: list[str] = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name in before and not np.array_equal(item[()], before[name][()]):
            found.append(name.split("layers/", 1)[-1])

    after.visititems(look)
    return found


def test_neither_the_labels_of_the_test_part_nor_the_place_of_the_images_change_anything(
    trained: tuple[Path, Any], labelled: Path, connect: Connect, tmp_path: Path
) -> None:
    models, _ = trained
    bundle = resolve(f"{models}/tissue@v1")
    part = {row["content_sha256"]: row["part"] for row in table(bundle, "split.parquet").to_pylist()}
    copy = tmp_path / "copied" / "data"
    shutil.copytree(labelled, copy)
    written = []
    for root, turned in ((labelled, False), (copy, True)):
        rows = ["uri,label,split"]
        for path in sorted(root.rglob("*.*")):
            if path.name == "broken.jpg":
                continue
            own = part[hashlib.sha256(path.read_bytes()).hexdigest()]
            label = path.parent.name
            if turned and own == "test":
                label = "benign" if label == "malignant" else "malignant"
            rows.append(f"{path},{label},{own}")
        manifest = tmp_path / f"{turned}.csv"
        manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
        data = DataConfig(str(manifest), root=str(root))
        how = TrainConfig(data, str(tmp_path / "models"), f"m{turned}", load_recipe("skin-lesion", SMALL), "none")
        written.append(resolve(train(how, connect, silent).path))
    first, second = written
    for name in ("scorer.tflite", "split.parquet", "validation.parquet"):
        assert first.read(name) == second.read(name), name
    assert (first.temperature, first.thresholds) == (second.temperature, second.thresholds)


def test_bad_input_leaves_nothing_in_models(labelled: Path, connect: Connect, tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    for label in ("a", "b"):
        for number, path in enumerate(sorted((labelled / "benign").iterdir())[:11]):
            (twice / label).mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if number == 0 else path.read_bytes() + label.encode()
            (twice / label / path.name).write_bytes(data)
    models = tmp_path / "models"
    with pytest.raises(UsageError, match="two classes under different names"):
        train(config(twice, models), connect, silent)
    few = tmp_path / "few"
    for label in ("benign", "malignant"):
        (few / label).mkdir(parents=True)
        for number, path in enumerate(sorted((labelled / label).glob("?0*"))[:10]):
            whole = path.read_bytes()
            (few / label / path.name).write_bytes(whole[:200] if (label, number) == ("benign", 0) else whole)
    with pytest.raises(UsageError, match="'benign' has fewer than 10 images after 1 unreadable"):
        train(config(few, models), connect, silent)
    assert os.listdir(models / "tissue") == ["work"]


def test_a_real_set_is_trained_as_it_is(shared_data: Path, connect: Connect, tmp_path: Path) -> None:
    weights = str(shared_data / "weights" / "mobilenet_v2_0.35_224_no_top.weights.h5")
    recipe = load_recipe("skin-lesion", {"alpha": "0.35"})
    columns = {"uri": "images", "label": "labels"}
    data = DataConfig(str(shared_data / "brain_tumor_mri" / "data.csv"), columns=columns)
    report = train(TrainConfig(data, str(tmp_path), "mri", recipe, weights), connect, silent)
    assert report.validation["roc_auc"] > 0.8
    assert report.positive_classes == ("yes",)
    assert not report.unreadable
    assert report.audit["exact_copies"] == 25
