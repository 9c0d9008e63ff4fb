"""What the CronJob's pod runs, with a real kubectl against a stand-in for the API of a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

KUBERAY = Path(__file__).resolve().parents[3] / "cluster" / "deploy" / "kuberay"
STAND_IN = Path(__file__).with_name("kubernetes_stand_in.py")

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


@contextlib.contextmanager
def cluster(home: Path, there: dict[str, Any], endings: list[dict[str, Any]], *options: str) -> Iterator[int]:
    """A stand-in API with RayJobs that are there already, and what will become of those that run; yields its port."""
    (home / "there.json").write_text(json.dumps(there))
    (home / "endings.json").write_text(json.dumps(endings))
    process = subprocess.Popen([sys.executable, str(STAND_IN), str(home), *options])
    try:
        for _ in range(300):
            if (home / "port").exists():
                break
            assert process.poll() is None
            time.sleep(0.05)
        yield int((home / "port").read_text())
    finally:
        process.kill()
        process.wait()


def night(home: Path, port: int) -> subprocess.CompletedProcess[str]:
    """Run the script as the pod does."""
    (home / "kubeconfig").write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "nightread"}}],
                "users": [{"name": "u", "user": {"token": "x"}}],
                "current-context": "c",
            }
        )
    )
    environment = {**os.environ, "KUBECONFIG": str(home / "kubeconfig"), "HOME": str(home), "NIGHTREAD_PAUSE": "0"}
    return subprocess.run(
        ["sh", str(KUBERAY / "night.sh"), str(KUBERAY / "rayjob.yaml")],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def ended(code: int) -> dict[str, str]:
    """The status that KubeRay gives to a job whose command ended so."""
    if code == 0:
        return {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "message": "Job finished successfully."}
    message = f"Job entrypoint command failed with exit code {code}, last available logs (truncated):\nexit code 99"
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": message}


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_pod_ends_with_the_exit_code_of_the_night(tmp_path: Path, code: int) -> None:
    old = {"metadata": {"name": "old", "namespace": "nightread"}, "status": ended(2)}
    with cluster(tmp_path, {"old": {"apiVersion": "ray.io/v1", "kind": "RayJob", **old}}, [ended(code)]) as port:
        done = night(tmp_path, port)
    assert done.returncode == code, done.stderr
    created = [json.loads(line) for line in (tmp_path / "created.jsonl").read_text().splitlines()]
    assert len(created) == 1 and created[0]["spec"]["entrypoint"].startswith("sh -c 'exec nightread score")
    assert (tmp_path / "deleted").read_text() == "old\n"


def test_a_night_that_still_runs_is_followed_and_not_doubled(tmp_path: Path) -> None:
    running = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "late", "namespace": "nightread"}}
    with cluster(tmp_path, {"late": {**running, "status": {"jobDeploymentStatus": "Running"}}}, [ended(3)]) as port:
        done = night(tmp_path, port)
    assert done.returncode == 3 and "Following late" in done.stderr
    assert not (tmp_path / "created.jsonl").exists()


def test_a_job_that_could_not_be_submitted_is_tried_again(tmp_path: Path) -> None:
    lost = {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": "submitter ended"}
    with cluster(tmp_path, {}, [lost]) as port:
        done = night(tmp_path, port)
    assert done.returncode == 75 and "SubmissionFailed" in done.stderr


def test_a_cluster_without_kuberay_is_told_with_its_cure(tmp_path: Path) -> None:
    with cluster(tmp_path, {}, [], "without-kuberay") as port:
        done = night(tmp_path, port)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "nightread: This cluster does not know RayJobs. "
        "Install the KubeRay operator (1.6 or newer) with its CRDs, then repeat."
    )


def test_a_cluster_that_does_not_answer_is_tried_again(tmp_path: Path) -> None:
    with cluster(tmp_path, {}, []) as port:
        pass
    done = night(tmp_path, port)
    assert done.returncode == 75 and "does not answer" in done.stderr


def test_everything_that_the_folder_makes_is_what_it_holds(tmp_path: Path) -> None:
    import yaml

    made = subprocess.run(["kubectl", "kustomize", str(KUBERAY)], capture_output=True, text=True, check=True).stdout
    objects = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(made)}
    assert all(item["metadata"]["namespace"] == "nightread" for item in objects.values())
    night_files = objects["ConfigMap", "nightread-night"]["data"]
    assert night_files == {name: (KUBERAY / name).read_text() for name in ("night.sh", "rayjob.yaml")}
    volumes = objects["CronJob", "nightread"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "night", "configMap": {"name": "nightread-night"}} in volumes
    assert "NIGHTREAD_SCORE_RESULTS" in objects["ConfigMap", "nightread-settings"]["data"]
