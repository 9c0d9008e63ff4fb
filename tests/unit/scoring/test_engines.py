"""Which engine scores: what speaks for and against GPUs before one is asked."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.models.bundle import Bundle, write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.scoring.config import PoolSize, ScoreConfig
from pipelines.scoring.engines import check_rebuildable, open_engine, why_direct
from pipelines.scoring.report import NO_GPU, ScoreReport
from pipelines.scoring.sizing import ClusterGpus

KNOWN = {"name": "mobilenet_v2", "alpha": 1.0, "input_size": 96, "scaling": "backbone"}


@dataclass(frozen=True)
class Cluster:
    """What the connection to Ray says of its size."""

    cpus: int = 16
    nodes: int = 1
    local: bool = False
    may_carry_pixels: bool = True


FREE = ClusterGpus(there=2, free=1, promised=0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    io = ScorerIO(96, 2)
    spec = BundleSpec(
        ("a", "b"), ("b",), 96, "p",
        {"float32": ScorerEntry("scorer.tflite", io), "int8": ScorerEntry("scorer.tflite", io)},
        backbone=KNOWN, head={"pooling": "avg", "classes": 2},
    )  # fmt: skip
    return write_bundle(str(tmp_path / "MODELS"), "cells", spec, {"scorer.tflite": b"-", "weights.weights.h5": b"-"})


def config(engine: str, precision: str = "float32", **changes: object) -> ScoreConfig:
    return ScoreConfig("/archive", "/m", "/results", engine=engine, precision=precision, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["auto", "split"])
def test_gpus_that_are_free_are_taken(bundle: Bundle, engine: str) -> None:
    assert why_direct(config(engine), bundle, Cluster(), FREE) == ""


def test_auto_does_without_gpus_that_are_not_there_or_not_free(bundle: Bundle) -> None:
    assert why_direct(config("auto"), bundle, Cluster(), ClusterGpus(0, 0, 4)) == NO_GPU
    assert "in use" in why_direct(config("auto"), bundle, Cluster(), ClusterGpus(2, 0, 0))


@pytest.mark.parametrize("gpus", [ClusterGpus(2, 0, 0), ClusterGpus(0, 0, 4)])
def test_who_asks_for_the_split_engine_gets_it_or_waits_for_it(bundle: Bundle, gpus: ClusterGpus) -> None:
    assert why_direct(config("split"), bundle, Cluster(), gpus) == ""


def test_a_processor_stands_in_for_a_gpu_on_this_machine_and_in_no_cluster(bundle: Bundle) -> None:
    none = ClusterGpus(0, 0, 0)
    assert why_direct(config("split"), bundle, Cluster(local=True), none) == ""
    with pytest.raises(UsageError, match="the cluster has no GPU and tells of none"):
        why_direct(config("split"), bundle, Cluster(), none)


@pytest.mark.parametrize("engine", ["auto", "split"])
def test_what_the_split_engine_cannot_do_is_said_with_its_cure(bundle: Bundle, engine: str) -> None:
    imported = replace(bundle, spec=replace(bundle.spec, backbone={}, head={}))
    cases = [
        (imported, config(engine), Cluster(), "was imported"),
        (bundle, config(engine, "int8"), Cluster(), "--precision int8"),
        (bundle, config(engine), Cluster(cpus=1), "two cores"),
        (bundle, config(engine), Cluster(nodes=3, may_carry_pixels=False), "3 nodes, and Ray's TLS is off"),
    ]
    for model, asked, cluster, says in cases:
        with pytest.raises(UsageError, match=says) as refused:
            why_direct(asked, model, cluster, FREE)
        assert "--engine direct" in refused.value.cure


def test_a_cluster_that_has_no_worker_yet_is_planned_for_with_the_pool_that_was_asked_for(bundle: Bundle) -> None:
    waiting = ClusterGpus(0, 0, promised=2)
    assert why_direct(config("split", pool=PoolSize(1, 16)), bundle, Cluster(cpus=1), waiting) == ""
    with pytest.raises(UsageError, match="two cores"):
        why_direct(config("split", pool=PoolSize(1, 16)), bundle, Cluster(cpus=1, local=True), waiting)


def test_a_model_of_ours_can_be_built_again_without_tensorflow_being_loaded(bundle: Bundle) -> None:
    check_rebuildable(bundle, "float32")
    assert "tensorflow" not in sys.modules


def test_the_direct_engine_takes_a_core_for_each_actor(bundle: Bundle) -> None:
    with open_engine(config("direct"), bundle, Cluster(cpus=6)) as engine:
        assert (engine.name, engine.least, engine.most, engine.at_once, engine.cores) == ("direct", 6, 6, 6, 1.0)
    with open_engine(config("direct", pool=PoolSize(1, 9)), bundle, Cluster(cpus=6, local=True)) as engine:
        assert (engine.least, engine.most, engine.at_once) == (1, 9, 6)


def test_the_engine_decides_no_rows(bundle: Bundle) -> None:
    prints = {config(engine).fingerprint("m", "p") for engine in ("auto", "direct", "split")}
    assert len(prints) == 1
    assert config("split").as_record()["engine"] == "split"


def test_an_engine_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="--engine 'gpu'") as refused:
        config("gpu")
    assert "auto, direct, split" in refused.value.cure


def test_the_answer_names_the_engine() -> None:
    assert ScoreReport("/r").as_json()["engine"] is None
    facts = {"name": "split", "gpus": 1}
    assert ScoreReport("/r", engine=facts).as_json()["engine"] == facts
