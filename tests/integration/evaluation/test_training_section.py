"""A bundle's network built again, its table of layers, and heat maps in a gallery: with Keras, on a small bundle."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ModelRefused
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.gallery import make_gallery
from pipelines.evaluation.gradcam import grad_cam
from pipelines.evaluation.pictures import encode_jpeg, overlay, shrink
from pipelines.images.preprocess import Preprocessing
from pipelines.models.backbones import BACKBONES, BackboneSpec, build_architecture, weights_to_bytes
from pipelines.models.bundle import HISTORY_FILE, SCORER_FILE, WEIGHTS_FILE, Bundle, write_bundle
from pipelines.models.compile import feature_length
from pipelines.models.cut import count_layers, count_parameters
from pipelines.models.golden import golden_images
from pipelines.models.heads import HeadSpec, build_head
from pipelines.models.rebuild import Rebuilt, joined, rebuild, rebuild_untrained, why_not_rebuilt
from pipelines.models.record import BundleSpec, plain
from pipelines.training.for_report import training_section
from pipelines.training.history import history_csv
from pipelines.training.layer_table import layer_table, stages
from pipelines.training.network import Network, build_network
from pipelines.training.recipes import load_recipe

SIZE = 96
CLASSES = ("Benign", "malignant")
RECIPE = load_recipe("histopathology", {"alpha": "0.35", "input_size": str(SIZE), "epochs": "2", "variants": "0"})
HISTORY = [{"epoch": 1, "loss": 0.7, "val_loss": float("nan")}, {"epoch": 2, "loss": 0.6, "val_loss": 0.65}]
COUNTS = {"train": {"Benign": 6, "malignant": 9}, "val": {"Benign": 2, "malignant": 3}}


@pytest.fixture(scope="module")
def network() -> Network:
    return build_network(RECIPE, 2, "none", 5, None)


@pytest.fixture(scope="module")
def bundle(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    spec = BundleSpec(
        classes=CLASSES,
        positive_classes=CLASSES[1:],
        input_size=SIZE,
        preprocessing_id="0" * 64,
        scorers={},
        backbone={**vars(network.spec), "weights": "none", "trainable_layers": RECIPE.trainable_layers},
        head=plain(vars(network.head_spec)),
        temperature=1.25,
        provenance={
            "recipe": {"name": RECIPE.name, **plain(RECIPE.values())},
            "images": COUNTS,
            "best_epoch": 2,
            "seed": 0,
        },
    )
    files = {
        WEIGHTS_FILE: weights_to_bytes(joined(network.backbone, network.head, "avg")),
        HISTORY_FILE: history_csv(HISTORY),
        SCORER_FILE: b"-",
    }
    return write_bundle(str(tmp_path_factory.mktemp("models")), "cells", spec, files)


def changed(bundle: Bundle, **record: Any) -> Bundle:
    return replace(bundle, spec=replace(bundle.spec, **record))


def test_the_network_is_that_which_was_trained(network: Network, bundle: Bundle) -> None:
    again = rebuild(bundle)
    assert (again.spec, again.head_spec) == (network.spec, network.head_spec)
    pixels = golden_images(SIZE).astype(np.float32)
    wanted = joined(network.backbone, network.head, "avg")(pixels, training=False)
    found = joined(again.backbone, again.head, "avg")(pixels, training=False)
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-6)
    assert why_not_rebuilt(bundle) == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: changed(one, backbone={}, head={}), "was imported"),
        (lambda one: replace(one, files={SCORER_FILE: one.files[SCORER_FILE]}), "was imported"),
        (lambda one: changed(one, backbone={**one.backbone, "name": "lenet"}), "describes no network"),
        (lambda one: changed(one, backbone={**one.backbone, "alpha": "wide"}), "describes no network"),
        (lambda one: changed(one, backbone={"name": "vgg16"}), "describes no network"),
        (lambda one: changed(one, head={**one.head, "dense_units": 3}), "describes no network"),
        (lambda one: changed(one, head={**one.head, "classes": 3, "output": "softmax"}), "describes no network"),
        (lambda one: changed(one, head={**one.head, "dense_units": [3]}), "is not of the network"),
        (lambda one: changed(one, backbone={**one.backbone, "alpha": 0.5}), "is not of the network"),
        (lambda one: replace(one, files={**one.files, WEIGHTS_FILE: "0" * 64}), "was altered"),
    ],
)
@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras', before it refuses
def test_what_cannot_be_built_is_refused(bundle: Bundle, change: Callable[[Bundle], Bundle], says: str) -> None:
    with pytest.raises(ModelRefused, match=says):
        rebuild(change(bundle))


def test_the_section_says_how_the_model_was_trained(bundle: Bundle) -> None:
    section, reason = training_section(bundle, None, True)
    assert section is not None and reason == ""
    assert (section.recipe, section.best_epoch, section.counts) == ("histopathology", 2, COUNTS)
    assert section.settings["trainable_layers"] == 30 and "name" not in section.settings
    assert [row["loss"] for row in section.history] == [0.7, 0.6] and np.isnan(section.history[0]["val_loss"])
    assert section.samples == () and "not given" in section.samples_absent
    assert set(section.class_descriptions) == set(CLASSES)
    assert all(
        text.endswith("(General knowledge, not the paper's words.)") for text in section.class_descriptions.values()
    )
    assert section.published is not None and section.published.figures["accuracy"] == 0.80
    said = " ".join(section.published.remarks)
    assert "alpha 0.35 (there 1.0), input_size 96 (there 224), epochs 2 (there 50), variants 0 (there 10)" in said
    without, _ = training_section(bundle, None, False)
    assert without is not None and without.samples_absent == "Pictures were left out."
    broken = replace(bundle, files={**bundle.files, HISTORY_FILE: bundle.files[SCORER_FILE]})
    with pytest.raises(ModelRefused):
        training_section(broken, None, False)


def test_a_recipe_of_a_later_release_costs_the_samples_alone(bundle: Bundle) -> None:
    said = {**bundle.provenance["recipe"], "name": "mine", "attention": True}
    section, _ = training_section(changed(bundle, provenance={"recipe": said}), None, True)
    assert section is not None and section.settings["attention"] is True
    assert "settings that this release does not know" in section.samples_absent
    assert section.published is None and section.best_epoch is None and section.counts == {}


def test_the_papers_table_of_layers() -> None:
    """Custom layers as the histopathology paper lists them, and the sums that it gives."""
    spec = BackboneSpec("mobilenet_v2", 1.0, 224, "0..1")
    head = HeadSpec(2, "avg", batch_norm=True, dropout=0.4, output="sigmoid")
    net = Rebuilt(spec, head, build_architecture(spec), build_head(head, (1280,)))
    rows = layer_table(net, 30)
    assert [(row.name, row.kind, row.shape, row.trainable, row.parameters) for row in rows[-4:]] == [
        ("global_average_pooling2d", "GlobalAveragePooling2D", "1280", False, 0),
        ("batch_normalization", "BatchNormalization", "1280", True, 5120),
        ("dropout", "Dropout", "1280", False, 0),
        ("logits", "Dense", "1", True, 1281),
    ]
    assert sum(row.parameters for row in rows) == count_parameters(net.backbone, net.head) == 2_264_385
    boxes = stages(net, 30, CLASSES, 1.25)
    assert [box.title for box in boxes] == [
        "Pixels",
        "MobileNetV2, layers 1–124",
        "MobileNetV2, layers 125–154",
        "GlobalAveragePooling2D",
        "BatchNormalization",
        "Dropout",
        "Dense",
        "Sigmoid",
    ]
    assert [box.trainable for box in boxes] == [False, False, True, False, True, False, True, False]
    assert boxes[-2].detail == "1 number, 1,281 parameters" and boxes[4].detail == "1280 numbers, 5,120 parameters"
    assert boxes[-1].detail == "temperature 1.25: Benign, malignant; 158 layers, 2,264,385 parameters in all"


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("trained", [0, 7, 10_000])
def test_a_table_holds_every_layer_once(name: str, trained: int) -> None:
    spec = BackboneSpec(name, 0.35 if BACKBONES[name].has_alpha else 1.0, 64)
    head = HeadSpec(3, "flatten", (5,), dropout=0.1)
    backbone = build_architecture(spec)
    net = Rebuilt(spec, head, backbone, build_head(head, (feature_length(backbone, "flatten"),)))
    rows = layer_table(net, trained)
    assert sum(row.parameters for row in rows) == count_parameters(backbone, net.head)
    counted = [int(row.kind.split()[0]) if "layers," in row.kind else 1 for row in rows]
    assert sum(counted) == count_layers(backbone, net.head)
    assert len(rows) <= 40 and len({row.name for row in rows}) == len(rows)
    assert all(row.shape and (row.trainable <= bool(row.parameters)) for row in rows)
    own = sum(counted[: next((place for place, row in enumerate(rows) if row.trainable), 0)])
    if 0 < trained < len(backbone.layers):
        # Training may begin with layers that have no arrays.
        assert len(backbone.layers) - trained <= own + 7
    boxes = stages(net, trained, tuple("abcdefgh"), 1.0)
    assert "8 classes" in boxes[-1].detail and boxes[1].trainable == (trained > len(backbone.layers))


def test_a_gallery_shows_where_the_network_looked(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    files = []
    for number in range(5):
        files.append(tmp_path / f"<b>{number}.png")
        Image.fromarray(rng.integers(0, 256, (40 + 9 * number, 80, 3), dtype=np.uint8)).save(files[-1])
    data = [path.read_bytes() for path in files]
    cases = Cases(
        classes=CLASSES,
        positive=(1,),
        uris=tuple(map(str, files)),
        contents=tuple(hashlib.sha256(one).hexdigest() for one in data),
        labels=np.array([0, 0, 1, 1, 1]),
        probabilities=np.array([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]], np.float32),
        groups=tuple("abcde"),
        patients=None,
        mean_intensity=np.full(5, 0.5),
    )
    gallery = make_gallery(cases, bundle, str(tmp_path))
    assert gallery.overlay_absent == ""
    assert [one.name for one in gallery.wrong] == ["<b>0.png", "<b>3.png"]
    assert [one.name for one in gallery.right] == ["<b>1.png", "<b>4.png", "<b>2.png"]
    net = rebuild(bundle)
    for one in (*gallery.wrong, *gallery.right):
        own = data[int(one.name[3])]
        pixels = Preprocessing(SIZE).prepare(own).pixels
        heat = grad_cam(net, pixels[None], np.array([CLASSES.index(one.predicted)]))[0]
        with Image.open(io.BytesIO(one.overlay or b"")) as found:
            wanted = Image.open(io.BytesIO(encode_jpeg(overlay(shrink(own), heat))))
            assert found.size == wanted.size
            assert np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).max() <= 12
    assert rebuild_untrained(bundle).spec == net.spec
