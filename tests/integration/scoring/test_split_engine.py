"""The split engine on processors: rows as the direct engine gives them, whatever is killed or finished by the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.state import actors as ray_actors
from ray.core.generated import autoscaler_pb2

from cluster.session import shared_session
from pipelines.errors import Stopped, UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import Bundle, load_bundle
from pipelines.models.runtime import Scorer
from pipelines.scoring.config import Allowance, ScoreConfig
from pipelines.scoring.gpu_actors import GpuActor, GpuAddress, GpuOrder, SplitKernel, cluster_gpus
from pipelines.scoring.report import ScoreProgress, ScoreReport
from pipelines.scoring.run import score
from pipelines.scoring.sizing import ClusterGpus

Connect = Callable[[], AbstractContextManager[Any]]
IMAGES = 60
# What two runs may say differently of the same image.
OF_THE_RUN = {"run_id", "scored_at", "scored_date"}


@pytest.fixture(scope="module")
def connect() -> Iterator[Connect]:
    """One Ray for all of this file."""
    with shared_session("local") as session:
        yield session


@pytest.fixture(scope="module")
def bundle(tiny_models: Path) -> Bundle:
    return load_bundle(str(tiny_models / "other" / "v1"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., list[Path]]) -> Path:
    """Images of which the first is broken."""
    root = tmp_path_factory.mktemp("archive")
    images = draw(root, IMAGES)
    images[0].write_bytes(images[0].read_bytes()[:200])
    return root


def night(config: ScoreConfig, connect: Connect, tell: Callable[[ScoreProgress], None] = lambda _: None) -> ScoreReport:
    return score(config, connect, tell)


def pid_of_gpu_actor() -> int:
    alive = [one for one in ray_actors().values() if one["ActorClassName"] == "GpuActor" and one["State"] == "ALIVE"]
    assert len(alive) == 1
    return int(alive[0]["Pid"])


def test_a_run_begun_directly_and_finished_by_an_actor_that_is_killed_has_the_rows_of_the_direct_engine(
    archive: Path, bundle: Bundle, connect: Connect, tmp_path: Path, rows_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    direct = ScoreConfig(
        str(archive), bundle.uri, str(tmp_path / "direct"), shard_size=5, fail_threshold=Allowance.parse("", "1"),
        engine="direct",
    )  # fmt: skip
    assert night(direct, connect).engine == {"name": "direct", "why": "asked for"}
    begun = replace(direct, results=str(tmp_path / "split"))

    def stop(progress: ScoreProgress) -> None:
        if progress.phase == "scoring" and progress.done:
            raise KeyboardInterrupt

    with pytest.raises(Stopped):
        night(begun, connect, stop)
    # On a busy machine its actors finish more before they end: leave enough to be scored.
    for part in sorted((tmp_path / "split" / "runs").glob("*/parts/*.parquet"))[3:]:
        part.unlink()
    seen: list[int] = []
    killed: list[int] = []

    def kill(progress: ScoreProgress) -> None:
        if progress.phase == "scoring":
            seen.append(progress.done)
            if seen[0] < progress.done < IMAGES and not killed:
                killed.append(pid_of_gpu_actor())
                os.kill(killed[0], signal.SIGKILL)

    report = night(replace(begun, engine="split"), connect, kill)
    assert killed and report.exit_code == 0
    assert (report.counts.scored, report.counts.failed_by_code) == (IMAGES - 1, {"truncated": 1})
    assert report.engine is not None and report.engine["name"] == "split" and report.engine["devices"] == ["processor"]
    assert not [one for one in ray_actors().values() if one["ActorClassName"] == "GpuActor" and one["State"] == "ALIVE"]
    expected, found = ({row["image_uri"]: row for row in rows_of(tmp_path / name)} for name in ("direct", "split"))
    assert len(expected) == len(found) == IMAGES == len(rows_of(tmp_path / "split"))
    for uri, row in expected.items():
        for column, value in row.items():
            if column in OF_THE_RUN:
                continue
            same = pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
            assert found[uri][column] == same, (uri, column)
    record = json.loads(next((tmp_path / "split" / "runs").glob("*/run.json")).read_text())
    assert record["configuration"]["engine"] == "direct", "as the run was begun"
    assert record["timings"]["engine"] == report.engine
    # Nothing is left to score: no actor is started for it, whatever the engine.
    assert night(replace(begun, engine="split"), connect).engine is None


@pytest.mark.parametrize("cores", [0, 1000])
def test_batches_of_an_actor_that_never_answers_are_answered_here(
    bundle: Bundle, connect: Connect, archive: Path, cores: int
) -> None:
    model, io = bundle.scorer("float32")
    prepare = Preprocessing(bundle.input_size).prepare
    images = [prepare((archive / f"b{number:05d}.jpg").read_bytes()) for number in range(1, 6)]
    with connect():
        order = ray.put(GpuOrder(bundle, b"", np.zeros((6, 2), np.float32), on_gpu=False))
        # One that is gone for good, and one that waits for a processor that there is not.
        kind: Any = ray.remote(GpuActor)
        handle = kind.options(num_cpus=cores, max_task_retries=-1).remote([order])
        if not cores:
            ray.kill(handle)
        kernel = SplitKernel(io, (GpuAddress(handle, ""),), (2, 4), 2, answer_seconds=1.0)(model)
        promises = [kernel(one) for one in images]
        answers = [promise() for promise in promises]
    assert all(promise.stood_in for promise in promises)
    scorer = Scorer(model, io)
    np.testing.assert_array_equal(answers, [scorer(one.pixels) for one in images])


def test_what_tensorflow_cannot_answer_is_refused_before_anything_is_listed(
    archive: Path, tiny_models: Path, tmp_path: Path
) -> None:
    def never() -> Any:
        raise AssertionError("Ray was asked for")

    config = ScoreConfig(str(archive), str(tiny_models / "cells"), str(tmp_path / "r"), engine="split")
    with pytest.raises(UsageError, match="was imported") as refused:
        night(config, never)
    assert "--engine direct" in refused.value.cure
    assert not (tmp_path / "r").exists()


def test_gpus_that_an_autoscaler_tells_of_are_waited_for_and_not_computed_on_cores(connect: Connect) -> None:
    with connect():
        assert cluster_gpus() == ClusterGpus(0, 0, 0)
        told = autoscaler_pb2.ClusterConfig()
        group = told.node_group_configs.add(name="gpu", min_count=0, max_count=3)
        group.resources.update({"CPU": 8, "GPU": 1})
        client: Any = ray._private.worker.global_worker.gcs_client
        client.report_cluster_config(told.SerializeToString())
        try:
            assert cluster_gpus() == ClusterGpus(0, 0, promised=3)
        finally:
            client.report_cluster_config(autoscaler_pb2.ClusterConfig().SerializeToString())
        assert cluster_gpus().promised == 0


CHECK = """
import json, sys
import numpy as np
from dataclasses import replace
from pipelines.errors import ModelRefused, UsageError
from pipelines.models.bundle import load_bundle
from pipelines.models.golden import golden_answers
from pipelines.models.runtime import Scorer
from pipelines.scoring.tensorflow_scorer import TensorFlowScorer
bundle = load_bundle(sys.argv[1])
entry = bundle.spec.scorers["float32"]
entry = replace(entry, io=replace(entry.io, temperature=1.6))
warmer = replace(bundle, spec=replace(bundle.spec, temperature=1.6, scorers={"float32": entry}))
plain, wanted = (golden_answers(Scorer(*one.scorer("float32")), one.input_size) for one in (bundle, warmer))
assert np.abs(wanted - plain).max() > 1e-3
refused = []
try:
    TensorFlowScorer(warmer, b"", on_gpu=True, threads=1)
except UsageError as error:
    refused.append(str(error))
scorer = TensorFlowScorer(warmer, bundle.read("weights.weights.h5"), on_gpu=False, threads=1)
scorer.check(wanted)
try:
    scorer.check(wanted + np.float32(2e-4))
except ModelRefused as error:
    refused.append(str(error))
pictures = np.zeros((3, 96, 96, 3), np.uint8)
assert scorer(pictures, 4).shape == (3, 2) and scorer.rate(4) > 0
print(json.dumps([scorer.device, *refused]))
"""


def test_tensorflow_answers_as_litert_does_also_with_what_is_outside_of_the_graph(
    bundle: Bundle, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, bundle.uri],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    device, without_gpu, otherwise = json.loads(done.stdout.splitlines()[-1])
    assert device == "processor"
    assert "does not see it" in without_gpu and "tensorflow[and-cuda]" in without_gpu
    assert "fails its self-test in TensorFlow on processor" in otherwise
