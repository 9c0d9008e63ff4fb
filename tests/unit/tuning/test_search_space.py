"""What `--grid` and `--random` say: which points they make, in which order, and what is refused before training."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.errors import UsageError
from pipelines.training.recipe_rules import RULES
from pipelines.training.recipes import load_recipe
from pipelines.tuning.points import Point
from pipelines.tuning.space import NOT_SEARCHED, Choices, Range, Space, make_points, read_space

BASE = load_recipe("skin-lesion")
LISTED = {
    "learning_rate": ["1e-5", "0.001", "0.5"],
    "epochs": ["10", "20", "50"],
    "scaling": ["0..1", "backbone"],
    "batch_norm": ["true", "False"],
    "dense_units": ["0", "100"],
    "activation": ["relu", "elu", "tanh"],
    "backbone": ["vgg16", "mobilenet_v2"],
}
RANGES = {
    "learning_rate": "log:1e-5..1e-2",
    "dropout": "0.1..0.9",
    "dense_units": "1..64",
    "batch_size": "log:4..64",
    "activation": "relu,elu,tanh",
    "label_smoothing": "0 .. 0.2",
}
NO_LIMIT = 10**9


def grids(texts: dict[str, list[str]]) -> st.SearchStrategy[dict[str, list[str]]]:
    """Some keys in some order, each with some of its values in some order."""
    keys = st.lists(st.sampled_from(sorted(texts)), min_size=1, max_size=4, unique=True)
    return keys.flatmap(
        lambda chosen: st.fixed_dictionaries(
            {key: st.lists(st.sampled_from(texts[key]), min_size=1, unique=True) for key in chosen}
        )
    )


def random_grids() -> st.SearchStrategy[list[str]]:
    texts = [f"{key}={said}" for key, said in RANGES.items()]
    return st.lists(st.sampled_from(texts), min_size=1, max_size=4, unique=True)


def points_of(texts: list[str], random: int | None = None, seed: int = 0) -> tuple[Point, ...]:
    return make_points(read_space(texts, random), BASE, NO_LIMIT, seed)


def refused(texts: list[str], random: int | None = None, limit: int = 1000) -> str:
    with pytest.raises(UsageError) as caught:
        make_points(read_space(texts, random), BASE, limit, 0)
    assert caught.value.message.endswith(".")
    assert caught.value.cure.endswith((".", "?"))
    return str(caught.value)


@settings(max_examples=30)
@given(grids(LISTED))
def test_every_combination_is_what_set_would_have_said_first_key_slowest(grid: dict[str, list[str]]) -> None:
    points = points_of([f"{key}={','.join(values)}" for key, values in grid.items()])
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    assert [point.recipe for point in points] == [load_recipe("skin-lesion", said) for said in combinations]
    assert [point.number for point in points] == list(range(len(combinations)))
    assert all(list(point.settings) == list(grid) for point in points)
    assert all(point.recipe.values() | dict(point.settings) == point.recipe.values() for point in points)
    assert len({point.key for point in points}) == len(points)


@settings(max_examples=50)
@given(grids(LISTED), st.randoms())
def test_the_order_of_the_options_changes_numbers_only(grid: dict[str, list[str]], random: Random) -> None:
    texts = [f"{key}={','.join(values)}" for key, values in grid.items()]
    shuffled = random.sample(texts, len(texts))
    assert {point.key for point in points_of(texts)} == {point.key for point in points_of(shuffled)}


@settings(max_examples=50)
@given(random_grids(), st.integers(1, 20), st.integers(0, 2**40))
def test_the_order_of_the_options_leaves_what_is_drawn(texts: list[str], count: int, seed: int) -> None:
    drawn = points_of(texts, count, seed)
    again = points_of(texts[::-1], count, seed)
    assert [(point.number, point.key) for point in drawn] == [(point.number, point.key) for point in again]


@settings(max_examples=50)
@given(random_grids(), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**40))
def test_a_larger_draw_begins_with_the_smaller_one(texts: list[str], count: int, more: int, seed: int) -> None:
    few, many = points_of(texts, count, seed), points_of(texts, count + more, seed)
    assert many[: len(few)] == few
    assert len({point.key for point in many}) == len(many)
    assert [point.number for point in many] == list(range(len(many)))


def test_what_is_drawn_twice_is_one_point() -> None:
    assert {point.recipe.epochs for point in points_of(["epochs=10,20"], 50)} == {10, 20}
    assert len(points_of(["epochs=10,20"], 50)) == 2


def test_another_seed_draws_other_points() -> None:
    texts = ["learning_rate=log:1e-5..1e-2"]
    assert not {point.key for point in points_of(texts, 20, 0)} & {point.key for point in points_of(texts, 20, 1)}


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("learning_rate=log:1e-5..1e-2", stats.loguniform(1e-5, 1e-2)),
        ("dropout=0.1..0.9", stats.uniform(0.1, 0.8)),
    ],
)
def test_numbers_are_drawn_evenly_or_evenly_in_their_logarithm(text: str, distribution: Any) -> None:
    key = text.partition("=")[0]
    values = [point.settings[key] for point in points_of([text], 2000)]
    assert len(values) == 2000
    assert stats.kstest(values, distribution.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("2..5", np.full(4, 1 / 4)),
        ("log:2..5", np.log(np.arange(3, 7) / np.arange(2, 6)) / math.log(6 / 2)),
        ("2,3,4,5", np.full(4, 1 / 4)),
    ],
)
def test_whole_numbers_and_values_have_their_share_both_ends_included(text: str, shares: np.ndarray) -> None:
    """Of a logarithmic range, n has the share of log((n + 1) / n)."""
    axis = read_space([f"batch_size={text}"], 5).axes["batch_size"]
    drawn = [axis.at(share) for share in np.random.default_rng(7).random(4000)]
    assert {type(value) for value in drawn} == {int}
    counts = np.bincount(np.array(drawn, np.int64), minlength=6)[2:6]
    assert counts.sum() == 4000
    assert stats.chisquare(counts, shares * 4000).pvalue > 0.01


@given(
    st.floats(1e-9, 1e3),
    st.floats(1e-9, 1e3),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=2),
    st.booleans(),
    st.booleans(),
)
def test_nothing_is_drawn_from_outside_its_range(
    one: float, other: float, shares: list[float], log: bool, whole: bool
) -> None:
    low, high = sorted((one, other)) if not whole else sorted((math.ceil(one), math.ceil(other)))
    values = [Range(low, high, log, whole).at(share) for share in sorted(shares)]
    assert all(low <= float(value) <= high for value in values)
    assert values == sorted(values, key=float)
    assert all(isinstance(value, int if whole else float) for value in values)


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_each_listed_value_has_an_equal_part(count: int, share: float) -> None:
    index = Choices(tuple(range(count))).at(share)
    assert isinstance(index, int)
    assert index / count <= share * (1 + 1e-12) and share <= (index + 1) / count * (1 + 1e-12)


def test_what_a_space_holds() -> None:
    said = ["learning_rate = log:1e-5..0.1", "dense_units=8..64", "scaling=0..1, backbone", "batch_norm=TRUE"]
    assert read_space(said, 3) == Space(
        {
            "learning_rate": Range(1e-5, 0.1, log=True, whole=False),
            "dense_units": Range(8, 64, log=False, whole=True),
            "scaling": Choices(("0..1", "backbone")),
            "batch_norm": Choices((True,)),
        },
        3,
    )


@pytest.mark.parametrize(
    ("texts", "random", "words"),
    [
        ([], None, ["empty", "--grid learning_rate="]),
        ([], 5, ["empty"]),
        (["epochs"], None, ["'epochs'", "key=value"]),
        (["=5"], None, ["'=5'"]),
        (["epochs="], None, ["epochs=", "empty value"]),
        (["epochs=10,,20"], None, ["epochs=10,,20", "empty value"]),
        (["epoch=10"], None, ["'epoch'", "Did you mean epochs?", "dropout", "restore_best"]),
        (["seed=1,2"], None, ["'seed'", "learning_rate"]),
        (["epochs=10", "dropout=0", "epochs=20"], None, ["epochs", "twice", "at once"]),
        (["epochs=10,20,10"], None, ["epochs = 10", "twice"]),
        (["learning_rate=0.001,1e-3"], None, ["learning_rate = 0.001", "twice"]),
        (["batch_norm=true,TRUE"], None, ["batch_norm = true", "twice"]),
        (["epochs=10,1.5"], None, ["epochs", "whole number", "'1.5'"]),
        (["dropout=0.1,2"], None, ["dropout", "0 to 0.95", "2.0"]),
        (["learning_rate=0.1,nan"], None, ["learning_rate", "nan"]),
        (["backbone=mobilenet"], None, ["'mobilenet'", "Did you mean mobilenet_v2?"]),
        (["epochs=10..20"], None, ["epochs=10..20", "range", "--random N"]),
        (["epochs=20..10"], 5, ["20 is not below 10"]),
        (["dropout=0.5..0.5"], 5, ["0.5 is not below 0.5"]),
        (["dropout=nan..0.5"], 5, ["nan is not below 0.5"]),
        (["learning_rate=log:0..1"], 5, ["logarithm", "0 does not", "leave log: out"]),
        (["shift=log:-1..0.3"], 5, ["logarithm", "-1 does not"]),
        (["learning_rate=0..1"], 5, ["learning_rate", "above 0", "0.0"]),
        (["dropout=0.5..1.5"], 5, ["dropout", "0 to 0.95", "1.5"]),
        (["epochs=10..inf"], 5, ["epochs", "whole number", "'inf'"]),
        (["dropout=0..inf"], 5, ["dropout", "0 to 0.95", "inf"]),
        (["epochs=1..2..3"], 5, ["epochs", "'2..3'"]),
        (["epochs=.."], 5, ["epochs", "''"]),
        (["epochs=log:3"], 5, ["epochs=log:3", "low..high"]),
        (["epochs=10..20,30"], 5, ["epochs=10..20,30", "mixes"]),
        (["activation=relu..tanh"], 5, ["activation", "no number", "gelu"]),
        (["activation=log:relu"], 5, ["activation", "no number"]),
        (["batch_norm=false..true"], 5, ["batch_norm", "no number", "true or false"]),
        (["epochs=10"], 0, ["--random 0", "1 or more"]),
        (["epochs=10"], -3, ["--random -3"]),
    ],
)
def test_what_is_no_grid_is_refused_with_its_cure(texts: list[str], random: int | None, words: list[str]) -> None:
    message = refused(texts, random)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("key", NOT_SEARCHED)
def test_keys_that_decide_which_images_there_are_cannot_be_searched(key: str) -> None:
    assert key in RULES
    assert f"--set {key}=" in refused([f"{key}=0.1,0.2"])


@pytest.mark.parametrize(
    ("texts", "random", "words"),
    [
        (["momentum=0,0.9", "optimizer=sgd,adam"], None, ["momentum = 0.9, optimizer = adam", "Set momentum to 0"]),
        (["alpha=1,0.5", "backbone=mobilenet_v2,vgg16"], None, ["alpha = 0.5, backbone = vgg16", "its width is fixed"]),
        (["head_epochs=5..15", "epochs=10,20"], 40, ["head_epochs = 1", "epochs = 10", "nothing of 10 epochs"]),
        (["batch_size=1,8", "batch_norm=false,true"], None, ["batch_size = 1, batch_norm = true", "average"]),
    ],
)
def test_keys_that_contradict_each_other_name_the_point(texts: list[str], random: int | None, words: list[str]) -> None:
    message = refused(texts, random)
    assert "point" in message
    assert [word for word in words if word not in message] == []


def test_a_value_that_no_point_may_have_is_told_before_a_contradiction() -> None:
    assert "epochs = 0" not in refused(["momentum=0.9", "epochs=0"])
    assert "it is 0" in refused(["momentum=0.9", "epochs=0"])


def test_more_points_than_the_limit_are_counted_and_never_made() -> None:
    """A grid of 10^24 points is refused at once."""
    values = ",".join(str(number) for number in range(1, 11))
    texts = [f"{key}={values}" for key, rule in RULES.items() if rule.kind is int][:4]
    assert "10,000 points" in refused(texts)
    many = ",".join(str(number / 10**6) for number in range(1, 1001))
    keys = ["learning_rate", "dropout", "mixup", "label_smoothing", "shift", "shear", "zoom", "rotation"]
    assert f"{10**24:,} points" in refused([f"{key}={many}" for key in keys])
    assert "2,000 points, and the limit is 1,000" in refused(["dropout=0..0.5"], 2000)
    assert "6 points, and the limit is 5. " in refused(["epochs=1,2,3", "dropout=0,0.1"], limit=5)
    assert len(make_points(read_space(["epochs=1,2,3", "dropout=0,0.1"], None), BASE, 6, 0)) == 6


def test_a_plan_is_made_without_ray_and_tensorflow() -> None:
    code = (
        "import sys, pipelines.tuning.estimate, pipelines.tuning.plan, pipelines.tuning.space\n"
        "print([name for name in ('ray', 'tensorflow', 'keras', 'pandas', 'scipy', 'sklearn') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
