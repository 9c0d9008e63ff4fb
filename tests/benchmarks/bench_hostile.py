"""`nightread serve` under requests that no honest client would send: no crash, no leak, no defect, and right answers.

    python tests/benchmarks/bench_hostile.py MODEL [--requests 10000] [--seed 1]

Starts the command with one answering process, sends it damaged, swollen and disguised images in every kind of body, and
holds every answer against what the decoder says in a process of its own: the same code, or the hash of the same bytes.
Memory and descriptors of the server are compared before and after. Exit code 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
from hostile_bodies import Hostile, hostile_requests

from pipelines.errors import ImageFailure
from pipelines.images.child import DecodeChild

STATUSES = {200, 400, 413, 415, 422}
PROBLEM = {"type", "title", "status", "detail", "error_code", "request_id"}


def attack(client: httpx.Client, requests: Iterable[Hostile], input_size: int) -> Counter[str]:
    """Send requests and check every answer.

    Args:
        client: Speaks to the endpoint.
        requests: What to send.
        input_size: Side of the model's input.

    Returns:
        How many got which outcome.

    Raises:
        AssertionError: At the first wrong answer.
    """
    outcomes: Counter[str] = Counter()
    with DecodeChild(input_size, 30) as decoder:
        for request in requests:
            answer = client.post(request.path, content=request.body, headers=request.headers)
            assert answer.status_code in STATUSES, (request, answer.text)
            outcomes[check(request, answer, decoder)] += 1
    return outcomes


def check(request: Hostile, answer: httpx.Response, decoder: DecodeChild) -> str:
    """Hold one answer against the request; the outcome's name."""
    kind = answer.headers["content-type"]
    if kind == "image/png":
        assert answer.content.startswith(b"\x89PNG")
        return "preview"
    told: dict[str, Any] = answer.json()
    if "statusCode" in told:
        assert told["statusCode"] == answer.status_code
        told = json.loads(told["body"])
    elif answer.status_code != 200:
        assert kind == "application/problem+json"
    if request.path == "/predict/batch" and answer.status_code == 200:
        assert 1 <= len(told["answers"]) <= 64
        return "batch"
    if answer.status_code != 200:
        assert set(told) == PROBLEM and told["status"] == answer.status_code
    code = str(told.get("error_code", "answered"))
    if request.image:
        assert code == expected(request.image, decoder), (request, told)
        assert code != "answered" or told["content_sha256"] == hashlib.sha256(request.image).hexdigest()
    return code


def expected(image: bytes, decoder: DecodeChild) -> str:
    """What scoring would make of an image, by a process that decodes nothing else."""
    try:
        decoder.prepare(image)
    except ImageFailure as failure:
        return failure.code
    return "answered"


@contextlib.contextmanager
def serving(model: str) -> Iterator[tuple[str, int]]:
    """Run the command until the end of the block; its address and its process id."""
    command = [sys.executable, "-m", "jobs", "serve", "--model", model, "--port", "0", "--workers", "1", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, "the server did not end well"
    finally:
        process.kill()


def figures(client: httpx.Client, name: str) -> float:
    """The sum of all samples of one of its figures."""
    found = re.findall(rf"^nightread_serve_{name}(?:{{.*}})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def main() -> None:
    """Attack a server of its own and print one JSON value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with serving(options.model) as (url, process), httpx.Client(base_url=url, timeout=90) as client:
        size = client.get("/model").json()["input_size"]
        descriptors = Path(f"/proc/{process}/fd")
        attack(client, hostile_requests(options.seed + 1, 500), size)  # what libraries load once is no leak
        before, open_before = figures(client, "memory_bytes"), len(list(descriptors.iterdir()))
        began = time.monotonic()
        outcomes = attack(client, hostile_requests(options.seed, options.requests), size)
        seconds = time.monotonic() - began
        after, open_after = figures(client, "memory_bytes"), len(list(descriptors.iterdir()))
        restarts = figures(client, "worker_restarts_total")
    measured = {
        "requests": options.requests,
        "seconds": round(seconds, 1),
        "outcomes": dict(outcomes.most_common()),
        "processes_replaced": int(restarts),
        "memory_bytes": [int(before), int(after)],
        "descriptors": [open_before, open_after],
    }
    print(json.dumps(measured))
    leaks = after - before > 20e6 or open_after > open_before
    if leaks:
        raise SystemExit("It leaks.")


if __name__ == "__main__":
    main()
