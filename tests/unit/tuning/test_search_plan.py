"""The plan of a grid: which points one training answers, which trainings read one pass, and what that takes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.images.augment import FILLS, warp
from pipelines.training.feeding import augmentation_of
from pipelines.training.network import head_spec
from pipelines.training.recipe_rules import RULES, Value
from pipelines.training.recipes import Recipe, load_recipe
from pipelines.training.schedules import Plateau, is_over, learning_rates
from pipelines.tuning.estimate import RATES, estimate
from pipelines.tuning.plan import Plan, base_key, make_plan, pass_key, training_key, without
from pipelines.tuning.points import Point, Training
from pipelines.tuning.space import make_points, read_space

PUBLISHED = ["learning_rate=1e-5,1e-4,5e-4,1e-3,5e-3", "epochs=10,20,30,40,50,100"]
FOUR = "backbone=mobilenet_v2,resnet50_v2,efficientnet_v2_b0,vgg16"
PLAIN = load_recipe("skin-lesion")
BASES = (
    PLAIN,
    replace(PLAIN, dense_units=0, head_epochs=2),
    replace(PLAIN, rotation=10.0, trainable_layers=30),
    replace(PLAIN, flip="horizontal", variants=4, schedule="cosine"),
    replace(PLAIN, early_stopping=3, reduce_on_plateau=2),
)
AXES: dict[str, list[Value]] = {
    "backbone": ["mobilenet_v2", "vgg16"],
    "input_size": [96, 224],
    "trainable_layers": [0, 30],
    "pooling": ["avg", "max"],
    "dense_units": [0, 100],
    "activation": ["relu", "elu", "tanh"],
    "batch_norm": [False, True],
    "learning_rate": [0.001, 0.01],
    "schedule": ["constant", "cosine"],
    "head_epochs": [0, 3],
    "head_learning_rate": [0.001, 0.1],
    "epochs": [5, 10, 20],
    "rotation": [0.0, 10.0],
    "fill": ["nearest", "wrap"],
    "variants": [0, 4],
    "metric": ["accuracy", "log_loss"],
    "restore_best": [False, True],
    "early_stopping": [0, 3],
    "reduce_on_plateau": [0, 2],
    "reduce_factor": [0.5, 0.1],
    "reduce_metric": ["log_loss", "roc_auc"],
    "flip_at_prediction": [False, True],
}


@st.composite
def some_points(draw: st.DrawFn) -> tuple[Point, ...]:
    """Points of a few keys in an order of their own; combinations that contradict themselves are left out."""
    base = draw(st.sampled_from(BASES))
    keys = draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=4, unique=True))
    values = [draw(st.lists(st.sampled_from(AXES[key]), min_size=1, unique=True)) for key in keys]
    points: list[Point] = []
    for combination in itertools.product(*values):
        said: dict[str, Any] = dict(zip(keys, combination, strict=True))
        try:
            points.append(Point(len(points), said, replace(base, **said)))
        except UsageError:
            continue
    return tuple(points)


def plan_of(*texts: str, base: Recipe = PLAIN) -> Plan:
    return make_plan(make_points(read_space(texts, None), base, 1000, 0))


def one_point(recipe: Recipe) -> Plan:
    return make_plan([Point(0, {}, recipe)])


@settings(max_examples=50)
@given(some_points())
def test_every_point_is_answered_once_and_every_training_reads_one_pass(points: tuple[Point, ...]) -> None:
    plan = make_plan(points)
    assert plan.points == points
    assert sorted(point.number for one in plan.trainings for point in one.points) == list(range(len(points)))
    keys = [training.key for training in plan.trainings]
    assert len(set(keys)) == len(keys)
    assert sorted(key for one in plan.passes for key in one.trainings) == sorted(keys)
    assert len({one.key for one in plan.passes}) == len(plan.passes)
    of_key = {key: one for one in plan.passes for key in one.trainings}
    for training in plan.trainings:
        assert {pass_key(point.recipe) for point in training.points} == {of_key[training.key].key}
        assert {training_key(point.recipe) for point in training.points} == {training.key}
        assert training.key == training_key(training.recipe)
        assert training.recipe == replace(training.points[0].recipe, epochs=training.marks[-1])
    assert len(plan.passes) <= len(plan.trainings) <= len(points)


@settings(max_examples=50)
@given(some_points())
def test_trainings_passes_and_points_come_in_the_order_of_the_grid(points: tuple[Point, ...]) -> None:
    plan = make_plan(points)
    firsts = {training.key: training.points[0].number for training in plan.trainings}
    assert list(firsts.values()) == sorted(firsts.values())
    assert all([p.number for p in one.points] == sorted(p.number for p in one.points) for one in plan.trainings)
    for one in plan.passes:
        assert [firsts[key] for key in one.trainings] == sorted(firsts[key] for key in one.trainings)


@settings(max_examples=50)
@given(some_points())
def test_one_training_is_all_that_its_points_ask_for(points: tuple[Point, ...]) -> None:
    """By what training itself computes of a recipe: of every key that points of one training differ in."""
    for training in make_plan(points).trainings:
        for point in training.points:
            ours, theirs = training.recipe, point.recipe
            differing = {key for key, value in ours.values().items() if value != theirs.values()[key]}
            assert differing <= {
                "epochs",
                "activation",
                "head_learning_rate",
                "fill",
                "reduce_factor",
                "reduce_metric",
                "flip_at_prediction",
            }
            for epoch in range(1, theirs.epochs + 1):
                assert learning_rates(ours, epoch, 3).tolist() == learning_rates(theirs, epoch, 3).tolist()
            for best, epoch in itertools.product(range(theirs.epochs), range(1, theirs.epochs)):
                assert is_over(ours, epoch, best) == is_over(theirs, epoch, best)
            assert is_over(theirs, theirs.epochs, 1)
            if not ours.reduce_on_plateau:
                assert not theirs.reduce_on_plateau  # then nothing asks a plateau
            else:
                for figures in ([0.5] * 6, [0.5, 0.4, 0.3, 0.2], [0.1, math.nan, 0.2, 0.2, 0.1]):
                    assert plateaus(ours, figures) == plateaus(theirs, figures)
            one, other = head_spec(ours, 2), head_spec(theirs, 2)
            assert one == other or (one.dense_units == () and replace(one, activation=other.activation) == other)
            assert augmentation_of(ours) == augmentation_of(theirs) or not augmentation_of(theirs).active


def plateaus(recipe: Recipe, figures: list[float]) -> list[float]:
    standing, factors = Plateau(), []
    for figure in figures:
        standing = standing.after(figure, recipe)
        factors.append(standing.factor)
    return factors


def test_outside_of_a_picture_that_stays_where_it_is_there_is_nothing_to_fill() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (33, 33, 3)).astype(np.uint8)
    for fill in FILLS:
        still = augmentation_of(replace(PLAIN, fill=fill))
        assert (warp(picture, still.draw((1, 2)), fill) == picture).all()


@settings(max_examples=50)
@given(some_points())
def test_points_of_two_trainings_differ_in_what_decides_the_weights(points: tuple[Point, ...]) -> None:
    """Pair by pair, by a table of its own."""
    plan = make_plan(points)
    of_point = {point.key: training.key for training in plan.trainings for point in training.points}
    for one, other in itertools.combinations(points, 2):
        same = all(
            a == b or no_effect(key, one.recipe, other.recipe)
            for (key, a), b in zip(one.recipe.values().items(), other.recipe.values().values(), strict=True)
        )
        assert (of_point[one.key] == of_point[other.key]) == same


def no_effect(key: str, one: Recipe, other: Recipe) -> bool:
    both = (one, other)
    if key == "epochs":
        return all(recipe.schedule == "constant" for recipe in both)
    if key in ("reduce_factor", "reduce_metric"):
        return not any(recipe.reduce_on_plateau for recipe in both)
    if key == "fill":
        return not any(recipe.rotation or recipe.zoom or recipe.flip != "none" for recipe in both)
    if key == "activation":
        return not any(recipe.dense_units for recipe in both)
    if key == "head_learning_rate":
        return not any(recipe.head_epochs for recipe in both)
    return key == "flip_at_prediction"


@settings(max_examples=50)
@given(some_points(), st.data())
def test_without_is_set_algebra(points: tuple[Point, ...], data: st.DataObject) -> None:
    plan = make_plan(points)
    keys = [point.key for point in points]
    one, other = (set(data.draw(st.lists(st.sampled_from([*keys, "a key of another search"])))) for _ in range(2))
    assert without(plan, []) == plan
    left = without(plan, one)
    assert [point.key for point in left.points] == [key for key in keys if key not in one]
    assert without(left, other) == without(plan, one | other) == without(without(plan, other), one)
    assert without(plan, keys) == Plan((), (), (), ())
    whole = {training.key: training for training in plan.trainings}
    for training in left.trainings:
        assert list(training.points) == [point for point in whole[training.key].points if point.key not in one]
        assert training.recipe.epochs == max(point.recipe.epochs for point in training.points)
    assert {part.key for part in left.passes} <= {part.key for part in plan.passes}


@settings(max_examples=50)
@given(some_points())
def test_what_is_saved(points: tuple[Point, ...]) -> None:
    plan = make_plan(points)
    assert plan.epochs_apart == sum(point.recipe.epochs for point in points)
    assert plan.epochs == sum(max(point.recipe.epochs for point in one.points) for one in plan.trainings)
    assert (plan.epochs < plan.epochs_apart) == (len(plan.trainings) < len(points))


@settings(max_examples=30)
@given(st.permutations(["learning_rate=0.1,0.01", "epochs=5,20", "activation=relu,elu", "dense_units=0,9"]))
def test_the_order_of_the_options_changes_no_key(texts: list[str]) -> None:
    said = ["learning_rate=0.1,0.01", "epochs=5,20", "activation=relu,elu", "dense_units=0,9"]
    one, other = plan_of(*said), plan_of(*texts)
    for name in ("points", "trainings", "passes"):
        assert {part.key for part in getattr(one, name)} == {part.key for part in getattr(other, name)}
    assert len(one.trainings) == 2 * (1 + 2)


@settings(max_examples=20)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 1000))
def test_a_larger_draw_keeps_the_trainings_of_the_smaller_one(count: int, more: int, seed: int) -> None:
    texts = ["learning_rate=log:1e-5..1e-2", "dense_units=0..3", "activation=relu,elu", "epochs=5,10"]
    few, many = (make_plan(make_points(read_space(texts, n), PLAIN, 1000, seed)) for n in (count, count + more))
    assert [one.key for one in many.trainings][: len(few.trainings)] == [one.key for one in few.trainings]


def test_the_published_grid_is_five_trainings_of_one_pass() -> None:
    plan = plan_of(*PUBLISHED)
    assert (len(plan.points), len(plan.trainings), len(plan.passes)) == (30, 5, 1)
    assert (plan.epochs, plan.epochs_apart) == (500, 1250)
    assert plan.separate == ()
    assert {training.marks for training in plan.trainings} == {(10, 20, 30, 40, 50, 100)}
    assert {training.recipe.epochs for training in plan.trainings} == {100}
    four = plan_of(FOUR, *PUBLISHED)
    assert (len(four.points), len(four.trainings), len(four.passes)) == (120, 20, 4)
    assert [one.recipe.backbone for one in four.passes] == FOUR.partition("=")[2].split(",")


def test_which_points_are_trained_apart_is_said() -> None:
    cosine = replace(PLAIN, schedule="cosine", warmup_epochs=1)
    (sentence,) = plan_of(*PUBLISHED, base=cosine).separate
    assert "30 points" in sentence and "schedule = cosine" in sentence and "(10, 20, 30, 40, 50, 100)" in sentence
    assert len(plan_of(*PUBLISHED, base=cosine).trainings) == 30
    (sentence,) = plan_of("schedule=constant,cosine", "epochs=10,20", "dropout=0,0.1").separate
    assert "4 points" in sentence and "(10, 20)" in sentence
    (sentence,) = plan_of(f"epochs={','.join(map(str, range(5, 45)))}", base=cosine).separate
    assert "40 points" in sentence and "(5 to 44)" in sentence
    assert plan_of("dropout=0,0.1", base=cosine).separate == ()


@settings(max_examples=50)
@given(some_points())
def test_a_sentence_stands_where_points_that_differ_only_in_epochs_are_apart(points: tuple[Point, ...]) -> None:
    def rates_depend(one: Recipe, other: Recipe) -> bool:
        shared = range(1, min(one.epochs, other.epochs) + 1)
        return any(learning_rates(one, at, 3).tolist() != learning_rates(other, at, 3).tolist() for at in shared)

    plan = make_plan(points)
    of_point = {point.key: training.key for training in plan.trainings for point in training.points}
    apart = {
        point.key
        for pair in itertools.combinations(points, 2)
        if training_key(replace(pair[0].recipe, epochs=20)) == training_key(replace(pair[1].recipe, epochs=20))
        and rates_depend(pair[0].recipe, pair[1].recipe)
        for point in pair
    }
    assert len(plan.separate) == bool(apart)
    assert all(sentence.startswith(f"{len(apart)} points ") for sentence in plan.separate)
    for one, other in itertools.combinations(sorted(apart), 2):
        recipes = {point.key: point.recipe for point in points}
        assert of_point[one] != of_point[other] or recipes[one].epochs == recipes[other].epochs


@pytest.mark.parametrize(
    ("changes", "kind", "copies"),
    [
        ({}, "features", 0),
        ({"trainable_layers": 30}, "cut", 0),
        ({"rotation": 10.0}, "pixels", 0),
        ({"rotation": 10.0, "trainable_layers": 30}, "pixels", 0),
        ({"rotation": 10.0, "variants": 4}, "features", 4),
        ({"flip": "both", "variants": 2, "trainable_layers": 30}, "cut", 2),
    ],
)
def test_what_a_pass_keeps_of_an_image(changes: dict[str, Any], kind: str, copies: int) -> None:
    (found,) = one_point(replace(PLAIN, **changes)).passes
    assert (found.kind, found.copies) == (kind, copies)


def test_what_decides_a_pass_and_what_its_base() -> None:
    """Of every key: whether another value of it asks for other numbers."""
    others: dict[str, Any] = {
        "backbone": "vgg16",
        "alpha": 1.4,
        "input_size": 96,
        "scaling": "0..1",
        "trainable_layers": 30,
        "pooling": "max",
    }
    moves: dict[str, Any] = {"rotation": 1.0, "shift": 0.2, "shear": 0.2, "zoom": 0.2, "flip": "both", "fill": "wrap"}
    heads: dict[str, Any] = {"dense_units": 3, "batch_norm": True, "dropout": 0.5, "head_start": "zeros"}
    trained: dict[str, Any] = {"learning_rate": 1.0, "epochs": 3, "batch_size": 8, "mixup": 0.1, "optimizer": "sgd"}
    kept, fresh = replace(PLAIN, rotation=5.0, variants=3), replace(PLAIN, rotation=5.0)
    for key, value in {**others, **moves, **heads, **trained}.items():
        for recipe, of_moves in ((kept, key in moves), (fresh, False)):
            changed = replace(recipe, **{key: value})
            assert (base_key(changed) != base_key(recipe)) == (key in others), key
            assert (pass_key(changed) != pass_key(recipe)) == (key in others or of_moves), key
    assert base_key(kept) == base_key(PLAIN) != base_key(fresh)
    assert len({pass_key(kept), pass_key(PLAIN), pass_key(fresh), pass_key(replace(kept, variants=4))}) == 4
    assert set(others) | set(moves) | set(heads) | set(trained) <= set(RULES)


def test_a_key_names_the_same_training_tomorrow() -> None:
    """Checkpoints and answers are found by it again; another set of keys of recipes gives others."""
    keys = {training_key(recipe) for recipe in BASES} | {pass_key(PLAIN), base_key(PLAIN)}
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys)
    assert training_key(load_recipe("skin-lesion")) == training_key(PLAIN)
    assert training_key(replace(PLAIN, name="mine")) == training_key(PLAIN)


@settings(max_examples=50)
@given(some_points(), st.data())
def test_less_work_never_takes_longer(points: tuple[Point, ...], data: st.DataObject) -> None:
    assume(points)
    plan = make_plan(points)
    images, cpus = data.draw(st.integers(10, 10**6)), data.draw(st.integers(1, 64))
    seconds = estimate(plan, images, cpus)
    assert 0 < seconds < math.inf
    left = without(plan, data.draw(st.lists(st.sampled_from([point.key for point in points]))))
    assert estimate(left, images, cpus) <= seconds * (1 + 1e-9)
    assert estimate(plan, 2 * images, cpus) > seconds
    assert estimate(plan, images, cpus + 1) < seconds
    assert estimate(without(plan, [point.key for point in points]), images, cpus) == 0


def seconds_an_epoch(recipe: Recipe, train: int) -> float:
    """What two plans that differ in 1,000 epochs of one training are apart, for each of them, on one core."""
    images = round(train / (1 - recipe.validation_share - recipe.test_share))
    few, many = (estimate(one_point(replace(recipe, epochs=count)), images, 1) for count in (1000, 2000))
    return (many - few) / 1000


@pytest.mark.parametrize(
    ("changes", "train", "measured"),
    [
        ({"dense_units": 0}, 2110, 0.0118),
        ({"dense_units": 0}, 8440, 0.0364),
        ({}, 2110, 0.048),
        ({}, 8440, 0.176),
        ({"dense_units": 1024}, 2110, 0.574),
        ({"batch_size": 8}, 2110, 0.141),
        ({"batch_size": 256}, 2110, 0.0236),
        ({"backbone": "vgg16"}, 2110, 0.0275),
        ({"pooling": "flatten", "input_size": 150, "dense_units": 1024}, 499, 4.75),
        ({"pooling": "flatten", "input_size": 150, "dense_units": 64}, 499, 0.229),
    ],
)
def test_estimates_are_within_a_factor_of_two_of_what_was_measured(
    changes: dict[str, Any], train: int, measured: float
) -> None:
    assert measured / 2 < seconds_an_epoch(replace(PLAIN, **changes), train) < measured * 2


def test_an_estimate_grows_with_size_width_and_trained_layers() -> None:
    def seconds(**changes: Any) -> float:
        return estimate(one_point(replace(PLAIN, **changes)), 10**6, 1)

    assert set(RATES) == set(FOUR.partition("=")[2].split(","))
    assert seconds(input_size=96) < seconds(input_size=224) < seconds(input_size=448)
    assert seconds(alpha=0.35) < seconds() < seconds(alpha=1.4)
    assert seconds() < seconds(trainable_layers=30) < seconds(trainable_layers=60) < seconds(trainable_layers=10_000)
    assert seconds(rotation=5.0, variants=10) > seconds(rotation=5.0, variants=2) > seconds()
    assert seconds() < seconds(backbone="efficientnet_v2_b0") < seconds(backbone="vgg16")


def test_trainings_share_the_cores_and_the_longest_alone_bounds_them() -> None:
    long = Training("a", replace(PLAIN, epochs=1000), ())
    short = [Training(str(number), replace(PLAIN, epochs=100), ()) for number in range(10)]
    alone, all_ten = (Plan((), tuple(trainings), (), ()) for trainings in ([long], [long, *short]))
    assert estimate(all_ten, 3000, 1) > 1.5 * estimate(alone, 3000, 1)
    assert estimate(all_ten, 3000, 64) == pytest.approx(estimate(alone, 3000, 64))
