"""The endpoint against its raw limit and the published way, in one run, with every answer compared.

    python tests/benchmarks/bench_serve.py [--images 200] [--seconds 15] [--rounds 3] [--peers] [--ray] [--minutes 30]

The client has one core, everything that answers has the others. What is compared takes turns within each round:

raw         the project's own decode and kernel in a plain loop, one process a core
nightread   `nightread serve`: bodies of raw bytes, then JSON with base64 as the published system sends it; closed loop
latency     at half of that load, open loop: at even distances, and as independent clients come
published   FastAPI and Keras `predict` (--peers)
start       from the command to its line that says ready
handler     cold start with the model in a bucket (a moto server), memory included
ray_serve   two replicas on this machine (--ray)
memory      full load for --minutes, the memory of all its processes every ten seconds

`cpu_ms_per_image` is the processors' time of all processes that answer: it hardly depends on who else works on the
machine. Prints one JSON line each.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_score import ENVIRONMENT, MAKE_BUNDLE, draw_images, run_script
from cores_and_memory import cpu_seconds, free_port, memory_mb, on_cores, process
from load_client import Check, Load, closed_loop, http_request, open_loop
from serving_peers import COLD, EXPECTED, HOLD_RAY, MAKE_SERVED, PUBLISHED, RAW

CORES = sorted(os.sched_getaffinity(0))
SECONDS_BETWEEN_LOOKS = 10.0


def tell(what: str, **figures: Any) -> None:
    """Print one line."""
    print(json.dumps({"what": what, **figures}), flush=True)


@contextlib.contextmanager
def serving(
    models: Path, workers: int, cores: list[int], joining: dict[str, str] | None = None
) -> Iterator[tuple[int, int, float]]:
    """`nightread serve` on some cores: its process, its port and the seconds until it was ready.

    Args:
        models: The MODELS folder.
        workers: How many processes answer.
        cores: Where they run.
        joining: Variables with which it deploys on a cluster; None: without Ray.
    """
    port = free_port()
    command = [sys.executable, "-m", "jobs", "serve", "--model", f"{models}/served", "--port", str(port), "--json"]
    environment = {**ENVIRONMENT, **(joining or {})}
    with on_cores(cores):
        began = time.perf_counter()
        with process([*command, "--workers", str(workers)], env=environment, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise SystemExit("nightread serve did not start")
            ready = time.perf_counter() - began
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10).close()
            yield server.pid, port, ready


@contextlib.contextmanager
def published(models: Path, cores: list[int]) -> Iterator[tuple[int, int, float]]:
    """FastAPI and Keras on some cores, likewise."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, on_cores(cores):
        script = Path(folder) / "published.py"
        script.write_text(PUBLISHED)
        began = time.perf_counter()
        with process([sys.executable, str(script), str(models), str(port)], stderr=subprocess.DEVNULL) as server:
            wait_for(port, server)
            yield server.pid, port, time.perf_counter() - began


def wait_for(port: int, server: subprocess.Popen[str]) -> None:
    """Wait until a server answers /readyz."""
    for _ in range(6000):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        if server.poll() is not None:
            raise SystemExit("a server ended before it was ready")
        time.sleep(0.05)
    raise SystemExit("a server did not become ready")


class RawLimit:
    """Decode and kernel in plain loops, one process a core, ready to be let loose for some seconds."""

    def __init__(self, stack: contextlib.ExitStack, models: Path, images: Path, cores: list[int]) -> None:
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "raw.py"
        script.write_text(RAW)
        command = [sys.executable, str(script), str(models), str(images)]
        with on_cores(cores):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._loops = [stack.enter_context(process(command, **pipes)) for _ in cores]
        for loop in self._loops:
            assert loop.stdout is not None and loop.stdout.readline() == "ready\n"

    def measure(self, seconds: float) -> dict[str, float]:
        """Run all loops at once."""
        for loop in self._loops:
            assert loop.stdin is not None
            loop.stdin.write(f"{seconds}\n")
            loop.stdin.flush()
        found = [json.loads(loop.stdout.readline()) for loop in self._loops if loop.stdout is not None]
        return {
            "images_per_second": sum(each["images"] / each["seconds"] for each in found),
            **{key: statistics.mean(each[key] for each in found) for key in ("cpu_ms_per_image", "p50_ms", "p99_ms")},
        }


class Requests:
    """The images as requests, and what each has to be answered."""

    def __init__(self, models: Path, images: Path) -> None:
        self.expected: dict[str, Any] = run_script(EXPECTED, str(models), str(images))
        self.names = sorted(self.expected)
        pictures = [(images / name).read_bytes() for name in self.names]
        self.raw = [http_request("/predict", picture, "image/jpeg") for picture in pictures]
        texts = [json.dumps({"image": base64.b64encode(picture).decode()}).encode() for picture in pictures]
        self.base64 = [http_request("/predict", text, "application/json") for text in texts]

    def is_right(self, number: int, status: int, body: bytes) -> bool:
        """Whether an answer is the kernel's own, to the last bit."""
        if status != 200:
            return False
        told, wanted = json.loads(body), self.expected[self.names[number]]
        return all(told[key] == value for key, value in wanted.items())


def any_answer(number: int, status: int, body: bytes) -> bool:
    """For peers, whose decoder is another."""
    return status == 200


def loaded(
    pid: int, port: int, requests: list[bytes], connections: int, seconds: float, check: Check
) -> dict[str, Any]:
    """A closed loop with the processors' time of what answers."""
    cpu = cpu_seconds(pid)
    load = closed_loop(port, requests, connections, seconds, check)
    cpu = cpu_seconds(pid) - cpu
    return {**load.figures(), "cpu_ms_per_image": round(1000 * cpu / max(1, load.statuses[200]), 3)}


def measure_rounds(options: argparse.Namespace, models: Path, images: Path, requests: Requests) -> None:
    """Raw limit, our endpoint and the published one in turn."""
    client, cores = CORES[:1], CORES[1:] or CORES
    seconds, connections = options.seconds, 8 * len(cores)
    with contextlib.ExitStack() as stack:
        raw = RawLimit(stack, models, images, cores)
        pid, port, _ = stack.enter_context(serving(models, len(cores), cores))
        peer = stack.enter_context(published(models, cores)) if options.peers else None
        stack.enter_context(on_cores(client))
        loaded(pid, port, requests.raw, connections, 3, requests.is_right)
        for number in range(options.rounds):
            limit = raw.measure(seconds)
            tell("raw", round=number, **limit)
            ours = loaded(pid, port, requests.raw, connections, seconds, requests.is_right)
            again = raw.measure(seconds)
            of_raw = 2 * ours["requests_per_second"] / (limit["images_per_second"] + again["images_per_second"])
            by_cpu = (limit["cpu_ms_per_image"] + again["cpu_ms_per_image"]) / 2 / ours["cpu_ms_per_image"]
            tell("nightread", round=number, body="bytes", **ours, of_raw=of_raw, of_raw_by_cpu=by_cpu)
            json_body = loaded(pid, port, requests.base64, connections, seconds, requests.is_right)
            tell("nightread", round=number, body="json", **json_body)
            halves = {}
            for arrivals in ("even", "independent"):
                rate, even = ours["requests_per_second"] / 2, arrivals == "even"
                load = open_loop(port, requests.raw, rate, seconds, requests.is_right, even=even)
                halves[arrivals] = latency(load, again)
                tell("latency", round=number, arrivals=arrivals, **halves[arrivals])
            if peer is not None:
                measure_peer(number, peer, requests, options, (ours, json_body, halves["even"]))
        tell("after_load", memory_mb=memory_mb(pid))


def latency(load: Load, raw: dict[str, float]) -> dict[str, Any]:
    """The figures of an open loop beside the raw time of one image."""
    p50, p99 = load.percentile(0.5) or 0.0, load.percentile(0.99) or 0.0
    return {**load.figures(), "p50_is_times_raw": p50 / raw["p50_ms"], "p99_is_times_raw": p99 / raw["p50_ms"]}


def measure_peer(
    number: int, peer: tuple[int, int, float], requests: Requests, options: argparse.Namespace, ours: tuple[Any, ...]
) -> None:
    """The published endpoint: full load, and half of it; `ours` had bytes, JSON, and half of the load of bytes."""
    pid, port, start = peer
    full = loaded(pid, port, requests.base64, 8, options.seconds, any_answer)
    half = open_loop(port, requests.base64, full["requests_per_second"] / 2, options.seconds, any_answer).figures()
    tell(
        "published",
        round=number,
        **full,
        p50_ms_at_half=half["p50_ms"],
        start_seconds=start,
        memory_mb=memory_mb(pid),
        nightread_is_times=ours[0]["requests_per_second"] / full["requests_per_second"],
        p50_of_published=ours[1]["p50_ms"] / full["p50_ms"],
        p50_of_published_at_half=ours[2]["p50_ms"] / half["p50_ms"],
        nightread_is_times_by_cpu=full["cpu_ms_per_image"] / ours[1]["cpu_ms_per_image"],
        nightread_is_times_with_json=ours[1]["requests_per_second"] / full["requests_per_second"],
    )


def measure_start(options: argparse.Namespace, models: Path) -> None:
    """From the command to ready, with all cores."""
    for number in range(options.rounds):
        with serving(models, len(CORES), CORES) as (pid, _, ready):
            tell("start", round=number, seconds_to_ready=ready, cpu_seconds=cpu_seconds(pid), memory_mb=memory_mb(pid))


def measure_handler(options: argparse.Namespace, models: Path, images: Path, requests: Requests) -> None:
    """Cold starts of the handler; the model lies in a bucket of a moto server."""
    import s3fs

    port = free_port()
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    name = requests.names[0]
    picture = base64.b64encode((images / name).read_bytes()).decode()
    event = {"httpMethod": "POST", "path": "/predict", "body": json.dumps({"image": picture}), "isBase64Encoded": False}
    with process(server, **quiet) as moto, tempfile.TemporaryDirectory() as folder:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            assert moto.poll() is None
            time.sleep(0.1)
        store = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=keys["AWS_ENDPOINT_URL"])
        store.call_s3("create_bucket", Bucket="models")
        store.put(str(models / "served"), "models/served", recursive=True)
        (Path(folder) / "event.json").write_text(json.dumps(event))
        (Path(folder) / "cold.py").write_text(COLD)
        command = [sys.executable, f"{folder}/cold.py", f"{folder}/event.json"]
        environment = {**ENVIRONMENT, **keys, "NIGHTREAD_MODEL": "s3://models/served"}
        for number in range(options.rounds):
            began = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            right = requests.is_right(0, figures.pop("status"), figures.pop("body").encode())
            tell("handler", round=number, process_seconds=time.perf_counter() - began, **figures, right_answer=right)


def measure_memory(options: argparse.Namespace, models: Path, requests: Requests) -> None:
    """Full load for a long time; a thread looks at the memory meanwhile."""
    client, cores = CORES[:1], CORES[1:] or CORES
    with serving(models, len(cores), cores) as (pid, port, _), on_cores(client):
        looks: list[float] = []
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(SECONDS_BETWEEN_LOOKS):
                looks.append(memory_mb(pid))

        watcher = threading.Thread(target=look)
        watcher.start()
        both = [request for pair in zip(requests.raw, requests.base64, strict=True) for request in pair]
        load = closed_loop(
            port, both, 8 * len(cores), 60 * options.minutes, lambda n, s, b: requests.is_right(n // 2, s, b)
        )
        stop.set()
        watcher.join()
    quarter = max(1, len(looks) // 4)
    tell(
        "memory",
        minutes=options.minutes,
        **load.figures(),
        memory_mb_first_quarter=statistics.median(looks[:quarter]),
        memory_mb_last_quarter=statistics.median(looks[-quarter:]),
        memory_mb_largest=max(looks),
        memory_mb=[round(look, 1) for look in looks[:: max(1, len(looks) // 30)]],
    )


def measure_ray(options: argparse.Namespace, models: Path, requests: Requests) -> None:
    """Two replicas of Ray Serve and two processes without Ray in turn, on all cores, which the client shares."""
    ray = [sys.executable, "-c", HOLD_RAY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with process(ray, **pipes) as held:
        assert held.stdout is not None
        address, token = held.stdout.readline().split()
        joining = {"NIGHTREAD_SERVE_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        with serving(models, 2, CORES, joining) as (_, port, ready), serving(models, 2, CORES) as (_, plain, _):
            for number in range(options.rounds):
                for what, at in (("ray_serve", port), ("two_processes", plain)):
                    closed_loop(at, requests.raw, 16, 2, requests.is_right)
                    load = closed_loop(at, requests.raw, 16, options.seconds, requests.is_right)
                    tell(what, round=number, **load.figures(), seconds_to_ready=ready if at == port else None)
        held.communicate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nightread-bench")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--only", choices=("rounds", "start", "handler", "ray", "memory"))
    options = parser.parse_args()
    images, models = options.folder / f"images-{options.images}", options.folder / "models"
    draw_images(images, options.images)
    models.mkdir(parents=True, exist_ok=True)
    if not (models / "bench").exists():
        run_script(MAKE_BUNDLE, str(models), str(images / "00000.jpg"))
    if not (models / "served").exists():
        run_script(MAKE_SERVED, str(models))
    requests = Requests(models, images)
    if options.only in (None, "rounds"):
        measure_rounds(options, models, images, requests)
    if options.only in (None, "start"):
        measure_start(options, models)
    if options.only in (None, "handler"):
        measure_handler(options, models, images, requests)
    if options.ray:
        measure_ray(options, models, requests)
    if options.minutes:
        measure_memory(options, models, requests)


if __name__ == "__main__":
    main()
