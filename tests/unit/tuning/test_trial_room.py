"""What a trial gets, what a cluster cannot give, and where poor trainings are ended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.tuning.capacity import TrialRoom, choose_room, parse_room, refuse_impossible
from pipelines.tuning.scheduling import KEPT, Asha


@dataclass(frozen=True)
class Nodes:
    """A cluster of this machine alone."""

    node_cpus: tuple[int, ...]
    node_gpus: tuple[int, ...]
    local: bool = True


@pytest.mark.parametrize(
    ("text", "room"),
    [
        ("", {}),
        ("cpu=2", {"cpu": 2}),
        ("cpu=0.5,gpu=0.25", {"cpu": 0.5, "gpu": 0.25}),
        (" gpu = 0 , cpu = 1 ", {"cpu": 1, "gpu": 0}),
    ],
)
def test_room_is_read(text: str, room: dict[str, float]) -> None:
    assert parse_room(text) == room


@pytest.mark.parametrize(
    "text", ["cpu", "cpu=", "cpu=0", "cpu=-1", "cpu=1.5", "gpu=nan", "cpu=inf", "gpu=1e-9", "ram=4", "cpu=2;gpu=1"]
)
def test_room_that_ray_could_not_give_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        parse_room(text)


@pytest.mark.parametrize("text", ["cpu=1,cpu=2", "gpu=0.5,gpu=0.5"])
def test_room_said_twice_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_room(text)


@pytest.mark.parametrize(
    ("said", "runs_backbone", "gpus", "room"),
    [
        ({}, False, (0, 4), TrialRoom(1, 0)),
        ({}, True, (0, 4), TrialRoom(1, 1)),
        ({}, True, (0, 0), TrialRoom(1, 0)),
        ({"cpu": 0.5}, True, (0, 4), TrialRoom(0.5, 1)),
        ({"gpu": 0.25}, False, (0, 4), TrialRoom(1, 0.25)),
        ({"gpu": 0}, True, (0, 4), TrialRoom(1, 0)),
    ],
)
def test_a_gpu_is_for_layers_of_the_backbone_unless_said_otherwise(
    said: dict[str, float], runs_backbone: bool, gpus: tuple[int, int], room: TrialRoom
) -> None:
    assert choose_room(said, runs_backbone, Nodes((8, 8), gpus)) == room


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), min_size=1, max_size=4),
    st.sampled_from([0.5, 1, 2, 4, 9]),
    st.sampled_from([0, 0.25, 1, 3]),
)
def test_a_machine_gives_what_one_of_its_nodes_has_and_no_more(
    nodes: list[tuple[int, int]], cpus: float, gpus: float
) -> None:
    """Cores of two nodes make no trial, and cores of one with the GPU of another neither."""
    cluster = Nodes(tuple(node[0] for node in nodes), tuple(node[1] for node in nodes))
    if any(cores >= cpus and cards >= gpus for cores, cards in nodes):
        refuse_impossible(TrialRoom(cpus, gpus), cluster)
    else:
        with pytest.raises(UsageError, match="A trial needs"):
            refuse_impossible(TrialRoom(cpus, gpus), cluster)


def test_a_refusal_names_the_demand_and_what_there_is() -> None:
    with pytest.raises(UsageError) as refused:
        refuse_impossible(TrialRoom(0.5, 1), Nodes((2, 4, 2), (0, 0, 0)))
    assert refused.value.message == (
        "A trial needs 0.5 cores and 1 GPU, and no node of the cluster has that: its nodes have 2 cores, 4 cores."
    )


@given(st.integers(1, 10_000))
def test_rungs_rise_threefold_and_end_before_the_longest_training(epochs: int) -> None:
    rungs = Asha(epochs).rungs
    assert all(1 <= rung < epochs for rung in rungs)
    assert all(later == KEPT * earlier for earlier, later in pairwise(rungs))
    assert bool(rungs) == (epochs > 1) and all(KEPT * rung >= epochs for rung in rungs[-1:])
