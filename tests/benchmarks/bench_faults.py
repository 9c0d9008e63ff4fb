"""What machines do to a night: each fault is really caused on a Ray of several nodes, and the table counted afterwards.

    python tests/benchmarks/bench_faults.py [--only node_killed --only spot_notice] [--models DIR]

Each node is a `ray start` of its own on this machine, with one core and a token; reading an image is slowed down, so
that there is time for the fault. Afterwards each image of the archive has to be in the table exactly once, and the exit
code has to be the one that is written down here. Prints one JSON line a fault. What this machine does not allow is told
as `skipped`, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from fault_lab import CHECKOUT, Lab, Skipped, make_models, memory, small_disk
from ray_nodes import CLOCK, ray_nodes


def node_killed(lab: Lab) -> dict[str, Any]:
    """SIGKILL to all processes of one of two nodes after six shards."""
    with lab.begun(240, 2) as (nodes, night):
        _, first, second = nodes.nodes
        first.kill()
        code, _, said = night.end()
        return lab.answer(code, said) | {"expected": 0, "left": len(second.processes("raylet"))}


def head_lost(lab: Lab) -> dict[str, Any]:
    """SIGKILL to the head and to what runs on its machine but the driver; then the same command on a new cluster."""
    with lab.begun(240, 1) as (nodes, night):
        nodes.nodes[0].kill()
        began = time.monotonic()
        first, told, said = night.end()
        noticed = time.monotonic() - began
    with ray_nodes(lab.environment) as nodes:
        nodes.head()
        nodes.add()
        code, answer, more = lab.night(nodes).end()
    seen = {"first_exit_code": first, "first_error": told.get("error"), "noticed_after": round(noticed)}
    seen["resumed"] = bool(answer.get("resumed"))
    assert first == 75 and seen["resumed"], (first, told, answer)
    return lab.answer(code, said + more) | {"expected": 0} | seen


def spot_notice(lab: Lab) -> dict[str, Any]:
    """A notice of preemption with 15 s to one of two nodes; after these the machine is switched off."""
    with lab.begun(400, 2) as (nodes, night):
        _, first, second = nodes.nodes
        began = time.monotonic()
        nodes.drain(first, 15)
        time.sleep(max(0.0, began + 15 - time.monotonic()))
        at_work = bool(second.actors())
        first.terminate()
        code, _, said = night.end()
        return lab.answer(code, said) | {"expected": 0, "other_node_at_work": at_work}


def killed_by_memory(lab: Lab) -> dict[str, Any]:
    """An image takes all memory wherever it is decoded, and the kernel kills what decodes it; it is named."""
    lab.draw(240)
    hungry = lab.archive / "b00100.jpg"
    hungry.write_bytes(hungry.read_bytes() + b"HUNGRY-HERE")
    with ray_nodes(lab.environment | {"FAULTS": "slow,hungry"}) as nodes:
        nodes.head()
        nodes.add()
        nodes.add()
        code, _, said = lab.night(nodes).end()
        answer = lab.answer(code, said) | {"expected": 0}
    named = [Path(row["image_uri"]).name for row in lab.rows() if row["error_code"]]
    assert named == [hungry.name], named
    return answer


def memory_monitor(lab: Lab) -> dict[str, Any]:
    """Something else takes a node's memory; Ray's monitor kills the actor, until the other has gone."""
    lab.draw(400)
    total, free = memory()
    limit = (total - free + 1.5e9) / total
    if free < 6e9 or limit > 0.95:
        raise Skipped(f"{free / 1e9:.1f} GB of memory are free, 6 are needed")
    with ray_nodes(lab.environment) as nodes:
        nodes.head()
        nodes.add(env={"RAY_memory_usage_threshold": f"{limit:.4f}", "RAY_memory_monitor_refresh_ms": "100"})
        night = lab.night(nodes)
        night.await_parts(6)
        before = nodes.nodes[-1].actors()
        hog = "import time; held = bytearray(3_500_000_000); print(len(held), flush=True); time.sleep(6)"
        subprocess.run([sys.executable, "-c", hog], check=True, stdout=subprocess.DEVNULL)
        killed = not set(before) & set(nodes.nodes[-1].actors())
        code, _, said = night.end()
        assert killed, "the monitor did not kill the actor"
        return lab.answer(code, said) | {"expected": 0}


def one_to_four_and_back(lab: Lab) -> dict[str, Any]:
    """Three nodes join while one scores, get work, and are drained and switched off again, one after the other."""
    with lab.begun(3000, 1, "--actors", "1:4", parts=10, env={"FAULT_SECONDS": "1"}) as (nodes, night):
        joined = [nodes.add() for _ in range(3)]
        until = time.monotonic() + 120
        while not all(node.actors() for node in joined) and time.monotonic() < until:
            time.sleep(0.2)
        at_work = sum(bool(node.actors()) for node in joined)
        finished = night.finished()
        night.await_parts(finished + 20)
        for node in joined:
            nodes.drain(node, 5)
            time.sleep(5)
            node.terminate()
        code, _, said = night.end()
        record = json.loads(next(lab.results.glob("runs/*/run.json")).read_text())
    assert at_work == 3, f"{at_work} of the nodes that joined got work"
    return lab.answer(code, said) | {"expected": 0, "nodes_that_scored": record["timings"].get("nodes")}


def clock_skewed(lab: Lab) -> dict[str, Any]:
    """The clock of one of two nodes is an hour ahead."""
    library = lab.folder / "clock.so"
    if shutil.which("cc") is None:
        raise Skipped("there is no C compiler")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-o", library, "-", "-ldl"], input=CLOCK, text=True, check=True
    )
    lab.draw(240)
    skew = {"LD_PRELOAD": str(library), "CLOCK_SKEW": "3600"}
    with ray_nodes(lab.environment) as nodes:
        nodes.head()
        nodes.add(env=skew)
        nodes.add()
        code, answer, said = lab.night(nodes, "--min-age", "1s").end()
        again, second, more = lab.night(nodes).end()
    hours = Counter(round((row["scored_at"].timestamp() - time.time()) / 3600) for row in lab.rows())
    assert answer["scored"] == 240 and again == 0 and second["new"] == 0, (answer, second)
    assert set(hours) == {0, 1}, hours
    assert len(list((lab.results / "predictions").glob("scored_date=*"))) == 1
    return lab.answer(code, said + more) | {"expected": 0, "rows_an_hour_ahead": hours[1]}


def disk_full(lab: Lab) -> dict[str, Any]:
    """The disk of one of two nodes, where Ray has its folder, is full from the tenth shard on."""
    lab.draw(240)
    with small_disk(60) as disk, ray_nodes(lab.environment) as nodes:
        nodes.head()
        nodes.add(temp=disk / "ray")
        nodes.add()
        night = lab.night(nodes)
        night.await_parts(10)
        with contextlib.suppress(OSError), (disk / "full").open("wb") as file:
            while True:
                file.write(bytes(65536))
        code, _, said = night.end()
        return lab.answer(code, said) | {"expected": 0}


def results_full(lab: Lab) -> dict[str, Any]:
    """The disk of the results is full in mid-run; then there is room again, and the same command goes on."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(4))
        lab.results = disk / "results"
        nodes, night = stack.enter_context(lab.begun(240, 1))
        with contextlib.suppress(OSError), (disk / "full").open("wb") as file:
            while True:
                file.write(bytes(4096))
        first, told, said = night.end()
        (disk / "full").unlink()
        code, answer, more = lab.night(nodes).end()
        assert first in (2, 75) and answer["resumed"], (first, told, answer)
        seen = {"first_exit_code": first, "first_error": told["error"]}
        return lab.answer(code, said + more) | {"expected": 0} | seen


def network_cut(lab: Lab, seconds: float = 60.0) -> dict[str, Any]:
    """Archive and results lie in a bucket; for a minute every connection to it is cut, the driver's and the actors'."""
    from fault_proxy import running_proxy

    import_of = importlib.util.spec_from_file_location("s3", CHECKOUT / "tests/integration/conftest.py")
    assert import_of and import_of.loader
    s3 = importlib.util.module_from_spec(import_of)
    sys.modules["s3"] = s3
    import_of.loader.exec_module(s3)
    lab.draw(400)
    with s3.running_s3() as endpoint, running_proxy(endpoint) as proxy:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        _upload(lab.archive, endpoint, keys)
        with ray_nodes(lab.environment | keys | {"AWS_ENDPOINT_URL": proxy.endpoint}) as nodes:
            nodes.head()
            nodes.add()
            night = lab.night(nodes, archive="s3://hospital/archive", results="s3://hospital/results")
            while not any("/parts/" in path for path in _written(proxy)):
                assert night.process.poll() is None, night.end()
                time.sleep(0.1)
            proxy.rule = lambda _method, _path: "reset"
            time.sleep(seconds)
            proxy.rule = lambda _method, _path: None
            first, told, said = night.end()
            code = first
            if first == 75:
                code, _, more = lab.night(nodes, archive="s3://hospital/archive", results="s3://hospital/results").end()
                said += more
        options = {**keys, "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}
        rows = lab.rows(options, "s3://hospital/results/predictions")
    return lab.answer(code, said, rows=rows) | {"expected": 0, "first_exit_code": first, "error": told.get("error")}


def _upload(folder: Path, endpoint: str, keys: dict[str, str]) -> None:
    import s3fs

    place = s3fs.S3FileSystem(
        key=keys["AWS_ACCESS_KEY_ID"], secret=keys["AWS_SECRET_ACCESS_KEY"], endpoint_url=endpoint
    )
    place.call_s3("create_bucket", Bucket="hospital")
    for path in sorted(folder.iterdir()):
        place.pipe_file(f"hospital/archive/{path.name}", path.read_bytes())


def _written(proxy: Any) -> list[str]:
    if not hasattr(proxy, "seen"):
        proxy.seen = []
        proxy.rule = lambda method, path: proxy.seen.append(path) if method == "PUT" else None
    return list(proxy.seen)


FAULTS: dict[str, Callable[[Lab], dict[str, Any]]] = {
    fault.__name__: fault
    for fault in (
        node_killed,
        head_lost,
        spot_notice,
        killed_by_memory,
        memory_monitor,
        one_to_four_and_back,
        clock_skewed,
        disk_full,
        results_full,
        network_cut,
    )
}


def main() -> None:
    """Cause them, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", choices=list(FAULTS))
    parser.add_argument("--models", type=Path, help="A MODELS folder with `cells`; made unless given.")
    options = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        models = options.models or make_models(folder)
        for fault in options.only or FAULTS:
            lab = Lab(folder / fault, models)
            lab.folder.mkdir()
            began = time.monotonic()
            try:
                answer = FAULTS[fault](lab)
                right = answer["each_once"] and answer["exit_code"] == answer["expected"]
            except Skipped as skipped:
                answer, right = {"skipped": str(skipped)}, True
            except Exception as error:  # the other faults are still to be caused
                answer, right = {"wrong": f"{type(error).__name__}: {error}"}, False
            seconds = round(time.monotonic() - began, 1)
            print(
                json.dumps({"what": "fault", "fault": fault, "right": right, "seconds": seconds} | answer), flush=True
            )
            wrong += [] if right else [fault]
            shutil.rmtree(lab.folder, ignore_errors=True)
    if wrong:
        raise SystemExit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
