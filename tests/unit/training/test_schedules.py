"""Learning rates and what validation does to them: laws here, Keras' own classes beside them in test_loop.py."""

from __future__ import annotations

import contextlib
import math
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.training.recipes import Recipe, load_recipe
from pipelines.training.resources import Resources, checking, choose_resources, parse_resources
from pipelines.training.schedules import Plateau, is_better, is_over, learning_rates

PLAIN = {"schedule": "constant", "warmup_epochs": "0", "head_epochs": "0", "reduce_on_plateau": "0"}


def recipe(**changes: object) -> Recipe:
    return load_recipe("default", PLAIN | {key: str(value) for key, value in changes.items()})


def rates(how: Recipe, steps: int) -> np.ndarray:
    return np.concatenate([learning_rates(how, epoch, steps) for epoch in range(1, how.epochs + 1)])


def test_a_constant_rate() -> None:
    np.testing.assert_allclose(rates(recipe(epochs=3, learning_rate=0.01), 4), np.full(12, 0.01), rtol=1e-6)


def test_two_phases_with_rates_of_their_own() -> None:
    how = recipe(epochs=4, head_epochs=2, head_learning_rate=0.1, learning_rate=0.001)
    np.testing.assert_allclose(rates(how, 2), [0.1] * 4 + [0.001] * 4, rtol=1e-6)


def test_cosine_after_the_warm_up_of_the_second_phase() -> None:
    how = recipe(
        epochs=6, head_epochs=1, head_learning_rate=0.5, warmup_epochs=2, schedule="cosine", learning_rate=0.02
    )
    steps = 5
    given_rates = rates(how, steps)
    warm = 0.02 * np.arange(1, 11) / 10
    fall = [0.02 * 0.5 * (1 + math.cos(math.pi * t / 15)) for t in range(15)]
    np.testing.assert_allclose(given_rates, np.concatenate([[0.5] * 5, warm, fall]), rtol=1e-5)


@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 5))
def test_rates_are_positive_and_never_above_the_recipe(epochs: int, steps: int, warmup: int) -> None:
    warmup = min(warmup, epochs - 1)
    how = recipe(epochs=epochs, warmup_epochs=warmup, schedule="cosine", learning_rate=0.3)
    given_rates = rates(how, steps)
    assert ((given_rates > 0) & (given_rates <= np.float32(0.3))).all()
    assert (np.diff(given_rates[: warmup * steps]) > 0).all() and (np.diff(given_rates[warmup * steps :]) < 0).all()


def test_better_is_by_the_metric_and_no_number_is_never_better() -> None:
    assert is_better("roc_auc", 0.9, 0.8) and not is_better("log_loss", 0.9, 0.8)
    assert not is_better("roc_auc", 0.8, 0.8)
    assert is_better("roc_auc", 0.1, math.nan) and not is_better("roc_auc", math.nan, 0.1)
    assert not is_better("roc_auc", math.nan, math.nan)


def test_the_plateau_waits_as_long_as_the_recipe_says() -> None:
    how = recipe(reduce_on_plateau=2, reduce_factor=0.5, reduce_metric="log_loss")
    state, factors = Plateau(), []
    for value in (1.0, 0.9, 0.91, 0.95, 0.92, 0.93, 0.5, 0.6):
        state = state.after(value, how)
        factors.append(state.factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_training_ends_after_waiting_or_at_the_last_epoch() -> None:
    how = recipe(epochs=30, head_epochs=5, early_stopping=3)
    assert [is_over(how, epoch, 2) for epoch in (5, 6, 7, 8)] == [False, False, False, True]
    assert not is_over(how, 12, 10) and is_over(how, 13, 10)
    assert not is_over(how, 29, 0) and is_over(how, 30, 0)  # nothing could be judged: no epoch to wait since
    assert not is_over(recipe(epochs=30, early_stopping=0), 29, 1)


class Nodes:
    def __init__(self, *nodes: tuple[int, int]) -> None:
        self.node_cpus = tuple(cpus for cpus, _ in nodes)
        self.node_gpus = tuple(gpus for _, gpus in nodes)
        self.nodes = len(nodes)


def test_workers_share_what_there_is() -> None:
    assert choose_resources(1, {}, Nodes((2, 0))) == Resources(1, 2, 0)
    assert choose_resources(2, {}, Nodes((2, 0))) == Resources(2, 1, 0)
    assert choose_resources(3, {}, Nodes((8, 0))) == Resources(3, 2, 0)
    assert choose_resources(2, {}, Nodes((16, 1), (8, 1))) == Resources(2, 8, 1)
    assert choose_resources(2, {"gpu": 0}, Nodes((16, 2))) == Resources(2, 8, 0)
    assert choose_resources(2, {"cpu": 3}, Nodes((4, 0), (4, 0))) == Resources(2, 3, 0)


@pytest.mark.parametrize(
    ("workers", "said", "nodes", "message"),
    [
        (3, {}, Nodes((2, 0)), "--workers 3 with 1 core each .* nodes have 2 cores"),
        (2, {"cpu": 3}, Nodes((5, 0)), "--workers 1, or fewer"),
        (1, {"gpu": 1}, Nodes((2, 0)), "1 core and 1 GPU each"),
        (2, {"cpu": 3}, Nodes((4, 0), (2, 0)), "nodes have 4 cores, 2 cores"),
    ],
)
def test_more_than_there_is_is_refused(workers: int, said: dict[str, int], nodes: Nodes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_resources(workers, said, nodes)


def test_resources_as_text() -> None:
    assert parse_resources("cpu=2, gpu=1") == {"cpu": 2, "gpu": 1}
    assert parse_resources("") == {}
    for wrong in ("cpu", "cpu=0", "cpu=1.5", "tpu=1", "cpu=-1"):
        with pytest.raises(UsageError, match="--resources"):
            parse_resources(wrong)


def test_a_cluster_on_which_training_cannot_end_is_refused_before_anything_is_computed() -> None:
    def begin(nodes: Nodes, workers: int, work: str) -> Nodes:
        with checking(lambda: contextlib.nullcontext(nodes), workers, {}, work)() as cluster:
            return cast(Nodes, cluster)

    one, three = Nodes((2, 0)), Nodes((2, 0), (2, 0), (2, 0))
    assert begin(one, 2, "/data/cache") is one
    assert begin(three, 4, "s3://bucket/cache") is three
    with pytest.raises(UsageError, match="--workers 3"):
        begin(one, 3, "/data/cache")
