"""A network, what training sees of it, and the same in a worker: one set of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.models.backbones import BackboneSpec, build_backbone, import_keras, weights_to_bytes
from pipelines.models.bundle import SCORER_FILE, WEIGHTS_FILE, Bundle, write_bundle
from pipelines.models.compile import compile_scorer
from pipelines.models.cut import Cut, cut_backbone
from pipelines.models.golden import golden_images
from pipelines.models.heads import HeadSpec, build_head
from pipelines.models.rebuild import joined
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.training.network import Network, build_network
from pipelines.training.recipes import load_recipe
from pipelines.training.trainee import build_trainee, build_trainee_for_worker

SIZE = 64
DEFAULTS = {
    "backbone": "mobilenet_v2",
    "alpha": "0.35",
    "input_size": str(SIZE),
    "pooling": "avg",
    "scaling": "backbone",
    "dense_units": "0",
    "batch_norm": "false",
    "dropout": "0.2",
    "rotation": "0",
    "shift": "0",
    "shear": "0",
    "zoom": "0",
    "flip": "none",
    "variants": "0",
}
PIXELS = golden_images(SIZE).astype(np.float32)


def make(start: Bundle | None = None, classes: int = 3, **keys: str) -> Network:
    recipe = load_recipe("frozen", {**DEFAULTS, **keys})
    return build_network(recipe, classes, "none", 5, None, start)


@cache
def with_batch_norm(layers: int) -> Network:
    return make(trainable_layers=str(layers), dense_units="0", batch_norm="true", dropout="0.4")


def entering(network: Network) -> Any:
    """What is cached of the pictures."""
    return PIXELS if network.cut.lower is None else np.asarray(network.cut.lower(PIXELS, training=False))


@pytest.mark.parametrize("layers", [0, 30, 1000])
def test_the_pieces_make_the_network_and_the_worker_the_same_pieces(layers: int) -> None:
    network = with_batch_norm(layers)
    trainee = network.trainee()
    wanted = np.asarray(joined(network.backbone, network.head, "avg")(PIXELS, training=False))
    np.testing.assert_allclose(np.asarray(trainee.answer(entering(network))), wanted, atol=1e-4)
    weights = weights_to_bytes(network.backbone) if layers else None
    theirs = build_trainee_for_worker(network.spec, network.head_spec, layers, weights, 5, network.cut.size)
    for mine, other in zip(trainee.arrays(), theirs.arrays(), strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_allclose(np.asarray(theirs.answer(entering(network))), wanted, atol=1e-4)
    assert theirs.dropout == 0.4 and network.cache.dtype == {0: "float32", 30: "float16", 1000: "uint8"}[layers]
    with pytest.raises(ValueError):
        theirs.assign(trainee.arrays()[1:])


@pytest.mark.parametrize("layers", [0, 30])
def test_training_uses_the_statistics_of_the_batch_in_the_head_alone(layers: int) -> None:
    backbone = build_backbone(BackboneSpec("mobilenet_v2", 0.35, SIZE), "none", 6)
    spec = HeadSpec(3, "avg", batch_norm=True, dropout=0.4)
    head, cut = build_head(spec, (1280,)), cut_backbone(backbone, layers, "avg")
    trainee = build_trainee(cut, head, spec)
    before = [one.numpy() for one in [*backbone.weights, *head.weights]]
    answer = np.asarray(trainee.neck(np.asarray(cut.lower(PIXELS, training=False)), training=True))
    features = np.asarray(backbone(PIXELS, training=False)).mean(axis=(1, 2))
    normal = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + 1e-3)
    np.testing.assert_allclose(answer, normal, atol=2e-3)
    weights = [*backbone.weights, *head.weights]
    moved = [one.name for one, old in zip(weights, before, strict=True) if not np.array_equal(old, one.numpy())]
    assert moved == ["moving_mean", "moving_variance"]
    assert not any(np.array_equal(old, one.numpy()) for old, one in zip(before[-4:-2], head.weights[2:4], strict=True))
    # Those two are among what is saved and set, though they have no gradient.
    assert len(trainee.variables) == len(trainee.backbone_variables) + len(trainee.head_variables) + 2


@pytest.mark.parametrize(("units", "normal"), [((), False), ((7,), False), ((7, 5), True)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_kind_of_head_comes_apart(units: tuple[int, ...], normal: bool, dropout: float) -> None:
    spec = HeadSpec(3, "avg", units, batch_norm=normal, dropout=dropout)
    head = build_head(spec, (11,), 8)
    trainee = build_trainee(Cut(0, None, None, 11, ()), head, spec)
    features = np.random.default_rng(1).standard_normal((4, 11)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(trainee.answer(features)), np.asarray(head(features)), atol=1e-6)
    assert trainee.neck(features).shape[-1] == (units[-1] if units else 11)
    assert len(trainee.variables) == len(head.weights)


def test_arrays_set_in_the_driver_are_those_that_are_compiled() -> None:
    network = make(trainable_layers="30", dense_units="4")
    trainee = network.trainee()
    rng = np.random.default_rng(2)
    trained = [array + rng.normal(0, 0.02, array.shape).astype(np.float32) for array in trainee.arrays()]
    trainee.assign(trained)
    wanted = np.asarray(import_keras().ops.softmax(trainee.answer(entering(network))))
    scorer = Scorer(compile_scorer(network.backbone, network.head, 1.0, SIZE), ScorerIO(SIZE, 3))
    answers = np.stack([scorer(picture) for picture in golden_images(SIZE)])
    np.testing.assert_allclose(answers, wanted, atol=1e-4)


def bundle_of(network: Network, folder: Any, classes: Sequence[str], **changes: Any) -> Bundle:
    io = ScorerIO(SIZE, len(classes))
    spec = BundleSpec(
        classes=tuple(classes),
        positive_classes=(classes[-1],),
        input_size=SIZE,
        preprocessing_id="0" * 64,
        scorers={"float32": ScorerEntry(SCORER_FILE, io)},
        backbone={**vars(network.spec), "weights": "none", "trainable_layers": 0},
        head={**vars(network.head_spec), "dense_units": list(network.head_spec.dense_units)},
        **changes,
    )
    weights = weights_to_bytes(joined(network.backbone, network.head, network.head_spec.pooling))
    return write_bundle(str(folder), "first", spec, {SCORER_FILE: b"-", WEIGHTS_FILE: weights})


def test_a_training_starts_from_a_bundle(tmp_path: Any) -> None:
    first = make(trainable_layers="1000", dense_units="6", batch_norm="true")
    trainee = first.trainee()
    rng = np.random.default_rng(3)
    trainee.assign([np.abs(array + rng.normal(0, 0.02, array.shape)).astype(np.float32) for array in trainee.arrays()])
    bundle = bundle_of(first, tmp_path, ("a", "b", "c"))

    same = make(bundle, trainable_layers="1000", dense_units="6", batch_norm="true")
    for mine, other in zip(same.backbone.get_weights(), first.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    for mine, other in zip(same.head.get_weights()[:4], first.head.get_weights()[:4], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert same.weights_sha256 != first.weights_sha256

    # Another head: only the backbone is taken, and the head is the one that the seed draws.
    wider = make(bundle, trainable_layers="1000", dense_units="8", batch_norm="true")
    np.testing.assert_array_equal(wider.backbone.get_weights()[-1], first.backbone.get_weights()[-1])
    drawn = build_head(wider.head_spec, (1280,), 5)
    for mine, other in zip(wider.head.get_weights(), drawn.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_bundle_that_does_not_fit_is_refused_by_name(tmp_path: Any) -> None:
    bundle = bundle_of(make(trainable_layers="1000"), tmp_path, ("a", "b", "c"))
    for keys, says in (
        ({"alpha": "0.5"}, r"first@v1 has the alpha 0\.35, and the recipe has 0\.5"),
        ({"backbone": "vgg16", "alpha": "1"}, "first@v1 has the backbone mobilenet_v2, and the recipe has vgg16"),
        ({"scaling": "0..1"}, r"the scaling backbone, and the recipe has 0\.\.1"),
    ):
        with pytest.raises(UsageError, match=says):
            make(bundle, **keys)
    imported = SimpleNamespace(name="bought", version="v2", files={SCORER_FILE: ""}, backbone={}, head={})
    with pytest.raises(UsageError, match="bought@v2 was imported"):
        make(imported)  # type: ignore[arg-type]


def test_one_sigmoid_unit_for_the_histopathology_loss() -> None:
    network = make(classes=2, trainable_layers="1000", loss="binary_crossentropy")
    assert network.head.output_shape == (None, 1)
    assert BackboneSpec("mobilenet_v2", 0.35, SIZE) == network.spec


def test_pixels_are_kept_where_each_epoch_moves_them_afresh() -> None:
    fresh = make(trainable_layers="30", flip="horizontal", variants="0").cache
    assert (fresh.model, fresh.io, fresh.size, fresh.dtype) == (None, None, SIZE * SIZE * 3, "uint8")
