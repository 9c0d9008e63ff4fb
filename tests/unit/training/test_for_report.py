"""What a report shows of a training: the paper's figures, and pictures of training images as training moved them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.evaluation.pictures import encode_jpeg
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import SCORER_FILE, SPLIT_FILE, WEIGHTS_FILE, Bundle, write_bundle
from pipelines.models.record import BundleSpec, plain
from pipelines.scoring.features import CacheKernel, CacheModel, Variants
from pipelines.training.batches import plan_epoch
from pipelines.training.feeding import Feeder, TrainingArrays, augmentation_of
from pipelines.training.for_report import published_work, training_section
from pipelines.training.job import Arrays, FitJob
from pipelines.training.labelled import DataConfig
from pipelines.training.published import published
from pipelines.training.recipe_document import papers
from pipelines.training.recipes import Recipe, load_recipe
from pipelines.training.records import split_file
from pipelines.training.sample_pictures import training_samples

SIDE = 48
CLASSES = ("benign", "malignant")
MOVED = load_recipe("histopathology", {"input_size": str(SIDE)})
FRESH = replace(MOVED, variants=0)
STILL = load_recipe("skin-lesion", {"input_size": str(SIDE)})


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """As a bundle's record has them."""
    return plain(recipe.values())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of each class, a folder each; every third trains."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in CLASSES:
        (folder / label).mkdir()
        for number in range(30):
            pixels = rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((60, 70)).save(folder / label / f"Doe, Jane {number:02}.png")
    return folder


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trains(path: Path) -> bool:
    return int(path.stem[-2:]) % 3 == 0


def bundle_of(recipe: Recipe, images: Path, models: Path, seed: int = 11) -> Bundle:
    files = sorted(images.glob("*/*.png"))
    split = {
        "content_sha256": [content(path) for path in files],
        "perceptual_hash": pa.array([bytes(32)] * len(files), pa.binary(32)),
        "group": [str(place) for place in range(len(files))],
        "part": ["train" if trains(path) else "test" for path in files],
        "person": pa.array([None] * len(files), pa.string()),
    }
    spec = BundleSpec(
        classes=CLASSES,
        positive_classes=CLASSES[1:],
        input_size=SIDE,
        preprocessing_id="0" * 64,
        scorers={},
        backbone={"name": "mobilenet_v2", "alpha": 1.0, "scaling": "0..1"},
        head={"classes": 2},
        provenance={"seed": seed, "recipe": {"name": recipe.name, **settings_of(recipe)}},
    )
    contents = {SPLIT_FILE: split_file(pa.table(split)), WEIGHTS_FILE: b"-", SCORER_FILE: b"-"}
    return write_bundle(str(models), "cells", spec, contents)


def by_picture(images: Path) -> dict[bytes, Path]:
    prepare = Preprocessing(SIDE).prepare
    return {encode_jpeg(prepare(path.read_bytes()).pixels): path for path in images.glob("*/*.png")}


def test_samples_are_training_images_as_the_model_saw_them(images: Path, tmp_path: Path) -> None:
    samples, absent = training_samples(bundle_of(STILL, images, tmp_path), STILL, DataConfig(str(images)))
    known = by_picture(images)
    shown = [known[sample.picture] for sample in samples]
    assert len(set(shown)) == 6 and all(trains(path) for path in shown)
    assert [sample.label for sample in samples] == [path.parent.name for path in shown] == sorted(CLASSES * 3)
    assert absent == "" and all(sample.moved == () for sample in samples)


def test_copies_are_those_that_training_kept(images: Path, tmp_path: Path) -> None:
    samples, _ = training_samples(bundle_of(MOVED, images, tmp_path), MOVED, DataConfig(str(images)))
    known = by_picture(images)
    cache = CacheModel(None, None, SIDE * SIDE * 3, "uint8")
    keep = CacheKernel(cache, Variants(augmentation_of(MOVED), MOVED.variants, 11))(b"")
    for sample in samples:
        kept = keep(Preprocessing(SIDE).prepare(known[sample.picture].read_bytes())).reshape(-1, SIDE, SIDE, 3)
        assert sample.moved == tuple(encode_jpeg(copy) for copy in kept[:3])
        assert len({sample.picture, *sample.moved}) == 4


def test_copies_are_those_of_the_first_epochs_where_each_moves_afresh(images: Path, tmp_path: Path) -> None:
    samples, _ = training_samples(bundle_of(FRESH, images, tmp_path), FRESH, DataConfig(str(images)))
    path = by_picture(images)[samples[0].picture]
    prepared = Preprocessing(SIDE).prepare(path.read_bytes())
    nobody = np.zeros((1, SIDE * SIDE * 3), np.uint8)
    inputs = np.concatenate([prepared.pixels.reshape(1, -1), nobody])[:, None]
    keys = np.array([int(prepared.content_sha256[:16], 16) >> 1, 5])
    arrays = TrainingArrays(inputs, np.array([0, 1]), keys, nobody, np.array([0]))
    recipe = replace(FRESH, batch_size=2, batch_norm=False)
    job = FitJob(recipe, 2, (1,), (1.0, 1.0), 11, True, Arrays(*["-"] * 5), "-", "-", "-")
    feeder = Feeder(job, arrays, rank=0, workers=1, threads=1, to_memory=lambda array: array)
    for epoch, moved in enumerate(samples[0].moved, start=1):
        plan = plan_epoch(arrays.labels, seed=11, epoch=epoch, batch_size=2, oversample=False, mixup=0)
        (fed,) = feeder.blocks(plan, epoch)
        place = int(np.flatnonzero(plan.rows[fed.block.places] == 0)[0])
        assert moved == encode_jpeg(fed.data[place].reshape(SIDE, SIDE, 3))


def test_why_there_are_no_samples(images: Path, tmp_path: Path) -> None:
    bundle = bundle_of(STILL, images, tmp_path / "models")
    assert "were not given" in training_samples(bundle, STILL, None)[1]
    strangers = tmp_path / "others"
    for label in CLASSES:
        (strangers / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (30, 30), (number, 7, 9)).save(strangers / label / f"{number}.png")
    assert "No training image" in training_samples(bundle, STILL, DataConfig(str(strangers)))[1]
    (strangers / "Jane Doe.png").write_bytes(b"-")
    absent = training_samples(bundle, STILL, DataConfig(str(strangers)))[1]
    assert "could not be listed" in absent and "Doe" not in absent
    without = replace(bundle, files={name: digest for name, digest in bundle.files.items() if name != SPLIT_FILE})
    assert "does not say which" in training_samples(without, STILL, DataConfig(str(images)))[1]


def test_a_model_that_was_not_trained_here_has_no_section(images: Path, tmp_path: Path) -> None:
    bundle = bundle_of(STILL, images, tmp_path)
    imported = replace(bundle, spec=replace(bundle.spec, backbone={}, head={}))
    assert training_section(imported, None, True) == (
        None,
        "The model cells@v1 was imported: it can be asked, but its layers are not known.",
    )
    silent = replace(bundle, spec=replace(bundle.spec, provenance={}))
    section, reason = training_section(silent, None, True)
    assert section is None and "does not say how it was trained" in reason


@pytest.mark.parametrize(("name", "paper"), list(papers()), ids=[name for name, _ in papers()])
def test_the_figures_of_every_paper_have_our_names(name: str, paper: Any) -> None:
    recipe = load_recipe(name)
    work = published_work(paper, name, settings_of(recipe), recipe.backbone, "9 layers and 8 parameters")
    assert work.source == paper.source and work.figures and set(work.figures) <= set(METRIC_NAMES)
    assert not any("other settings" in text for text in work.remarks)
    assert all(len(row) == len(work.compared[0]) for row in work.compared)
    assert all(text.endswith((".", "…")) for text in work.remarks)
    counted = any("9 layers and 8 parameters" in text for text in work.remarks)
    assert counted == (paper.architecture is not None)


def test_the_figures_are_those_of_the_models_own_backbone() -> None:
    paper = published("skin-lesion")
    assert paper is not None
    recipe = load_recipe("skin-lesion", {"backbone": "vgg16", "epochs": "40"})
    work = published_work(paper, "skin-lesion", settings_of(recipe), "vgg16", "")
    assert work.figures["accuracy"] == 0.8470 and work.figures["sensitivity"] == 0.9367
    said = " ".join(work.remarks)
    assert "vgg16 on its test part (660 images)" in said
    assert "backbone vgg16 (there mobilenet_v2), epochs 40 (there 20)" in said
    none = published_work(paper, "skin-lesion", settings_of(recipe), "xception", "")
    assert none.figures == {} and "no figures of xception" in " ".join(none.remarks)


def test_other_evaluations_of_a_paper_are_told_in_words() -> None:
    paper = published("histopathology")
    assert paper is not None
    recipe = load_recipe("histopathology")
    work = published_work(paper, "histopathology", settings_of(recipe), "mobilenet_v2", "158 layers")
    assert work.figures == {"accuracy": 0.80, "log_loss": 0.6501}
    assert any(text.startswith("On unseen images (10 images) it reports accuracy 0.7") for text in work.remarks)
    assert work.compared[0] == ("work", "method", "limits")
    assert "158 layers and 2,264,385 parameters; this network has 158 layers" in " ".join(work.remarks)
