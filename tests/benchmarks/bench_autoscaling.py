"""A search on a cluster that grows for it, from one node to four, and shrinks when it is over.

    python tests/benchmarks/bench_autoscaling.py [--trainings 16] [--epochs 1500] [--autoscaler 1|2]

Ray's own provider of pretended nodes on this machine: the head has one core, the autoscaler may add three nodes, of one
core or, one of them, of two. Every training must be answered once, none lost; the nodes are counted while it runs and
until only the head is left. Before that, a demand of two cores must be seen to come, and one of eight refused.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests/integration/training")]
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ |= {"PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3", "RAY_USAGE_STATS_ENABLED": "0"}
SECONDS_TO_SHRINK = 120
HEAD = "f" * 51 + "00000"
"""Id of the head, by which the pretended provider knows it."""


def config(address: str, autoscaler: int) -> dict[str, Any]:
    """Of the autoscaler: how it may grow, and that a node without work goes after six seconds."""
    small = {"CPU": 1, "object_store_memory": 80_000_000}
    nothing: dict[str, Any] = {key: {} for key in ("docker", "auth", "file_mounts")}
    empty = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
    provider = {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    provider |= {"launch_multiple": autoscaler == 2, "head_node_id": HEAD}
    commands = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "pretended",
        "max_workers": 3,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "provider": provider,
        "available_node_types": {
            "ray.head.default": {"resources": small, "node_config": {}, "max_workers": 0},
            "small": {"resources": small, "node_config": {}, "min_workers": 0, "max_workers": 3},
            "large": {"resources": small | {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
        **nothing,
        **{key: [] for key in (*empty, *commands)},
    }


@contextlib.contextmanager
def growing_cluster(autoscaler: int) -> Iterator[str]:
    """The address of a head that is started here, and ended with all that it started."""
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="grow-", dir="/tmp")
    host = ray.util.get_node_ip_address()
    address = f"{host}:{port}"
    Path(folder, "config.json").write_text(json.dumps(config(address, autoscaler)))
    environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    if autoscaler == 2:
        environment |= {"RAY_enable_autoscaler_v2": "1"}
    environment |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    options = ["--head", "--block", "--num-cpus=1", f"--node-ip-address={host}", f"--port={port}"]
    options += [f"--temp-dir={folder}/ray", "--include-dashboard=false", f"--autoscaling-config={folder}/config.json"]
    with Path(folder, "head.log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--object-store-memory=80000000"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection((host, port), timeout=1).close()
                break
            time.sleep(0.2)
        time.sleep(5)  # the head itself has still to enter
        yield address
    finally:
        for pid in {head.pid, *of_folder(folder)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def of_folder(folder: str) -> list[int]:
    """Processes that were started with this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if folder.encode() in place.read_bytes():
                found.append(int(place.parent.name))
    return [pid for pid in found if pid != os.getpid()]


class Nodes:
    """Counts the nodes that are alive, in a thread."""

    def __init__(self) -> None:
        self.course: list[tuple[float, int]] = []
        self._began = time.monotonic()
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        import ray

        while ray.is_initialized():
            alive = sum(node["Alive"] for node in ray.nodes())
            if not self.course or self.course[-1][1] != alive:
                self.course.append((round(time.monotonic() - self._began, 1), alive))
            time.sleep(0.25)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainings", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1500)
    parser.add_argument("--autoscaler", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    with growing_cluster(options.autoscaler) as address, tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"what": "autoscaling", "autoscaler": options.autoscaler} | run(address, folder, options)))


def run(address: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Search on the cluster; what was seen."""
    from test_loop import features, save_job

    from cluster.session import start_or_join
    from pipelines.errors import UsageError
    from pipelines.tuning.answers import load_answer
    from pipelines.tuning.capacity import TrialRoom, refuse_impossible
    from pipelines.tuning.trial import TrialSpec
    from pipelines.tuning.trials import run_trials

    job = save_job(Path(folder), features(), 3, epochs=options.epochs)
    specs, points = [], []
    for number in range(options.trainings):
        recipe = replace(job.recipe, learning_rate=1e-4 * (number + 1))
        one = replace(job, recipe=recipe, checkpoint=f"{folder}/trainings/{number}.npz")
        points.append(f"{number:016x}")
        specs.append(TrialSpec(f"{number:04x}", one, {options.epochs: (points[-1],)}, folder))
    seen: dict[str, Any] = {}
    with start_or_join(address) as cluster:
        began = time.monotonic()
        refuse_impossible(TrialRoom(2), cluster)
        seen["two_cores_came_after"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        try:
            refuse_impossible(TrialRoom(8), cluster)
        except UsageError as refused:
            seen["eight_cores"] = [round(time.monotonic() - began, 1), str(refused)]
        nodes, ends = Nodes(), Counter[tuple[str, str]]()
        began = time.monotonic()
        run_trials(
            specs,
            TrialRoom(1),
            None,
            None,
            "accuracy",
            lambda news: ends.update([(news.training, news.status)] if news.status != "running" else []),
        )
        seen["seconds"] = round(time.monotonic() - began, 1)
        until = time.monotonic() + SECONDS_TO_SHRINK
        while nodes.course[-1][1] > 1 and time.monotonic() < until:
            time.sleep(0.5)
        seen["nodes"] = list(nodes.course)
    whole = [load_answer(folder, point) for point in points]
    seen["answered"] = sum(answer is not None and len(answer.history) == options.epochs for answer in whole)
    seen["ended_once"] = ends == Counter({(spec.training, "done"): 1 for spec in specs})
    return seen


if __name__ == "__main__":
    main()
