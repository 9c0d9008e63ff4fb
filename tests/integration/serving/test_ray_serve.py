"""The endpoint as replicas on a cluster: equal answers, a killed decoder, the token, and nothing left at the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cluster.session import usable_cores
from pipelines.errors import ModelRefused, UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import load_bundle, write_bundle
from pipelines.models.runtime import Scorer
from pipelines.serving.answering import answer_image
from pipelines.serving.served_model import LoadedModel, load_model
from pipelines.serving.settings import ServeSettings

pytestmark = pytest.mark.skipif(usable_cores() < 2, reason="two replicas need two cores")


@pytest.fixture(scope="module")
def model(tiny_models: Path) -> LoadedModel:
    return load_model(str(tiny_models / "cells"))


@pytest.fixture(scope="module")
def url(
    model: LoadedModel,
    environment: dict[str, str],
    shared_ray: Callable[[], dict[str, str]],
    tmp_path_factory: Any,
    draw: Callable[..., list[Path]],
) -> Iterator[str]:
    """Where two replicas answer."""
    joining = shared_ray()
    log = tmp_path_factory.mktemp("serve") / "log"
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jobs", "serve", "--model", model.served.ref, "--workers", "2", "--json"]
    place = ["--address", joining["NIGHTREAD_SCORE_ADDRESS"], "--port", str(port)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *place], env={**environment, **joining}, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline() or "{}")
        assert told.get("workers") == 2, log.read_text()
        assert told["model"]["model_id"] == model.served.model_id
        yield told["url"]
        with asking(told["url"], draw(log.parent, 1)[0].read_bytes()) as outcomes:
            process.send_signal(signal.SIGTERM)
            asked_before = len(outcomes)
            assert process.wait(60) == 0, log.read_text()
        # What was accepted is answered; who comes later is told to come again, and in the end nobody listens any more.
        assert set(outcomes[:asked_before]) == {200} and set(outcomes[asked_before:]) <= {200, 503, None}
        assert outcomes[asked_before] in (200, 503) and outcomes[-1] is None
        assert process.stdout.read() == "" and not answering(joining)
        with pytest.raises(urllib.error.URLError):
            ask(told["url"] + "healthz")
    finally:
        process.kill()


@contextlib.contextmanager
def asking(url: str, body: bytes) -> Iterator[list[int | None]]:
    """Ask again and again until the end of the block; the status of each answer, None where there was none."""
    outcomes: list[int | None] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            try:
                status, told = ask(url + "predict", body)
            except OSError:
                status = None
                time.sleep(0.05)
            else:
                assert status == 200 or told["error_code"] == "not_ready"
            outcomes.append(status)

    asker = threading.Thread(target=run)
    asker.start()
    try:
        while not outcomes:
            time.sleep(0.01)
        yield outcomes
    finally:
        ended.set()
        asker.join()


def answering(joining: dict[str, str]) -> list[int]:
    """Processes of this Ray's replicas that answer."""
    found, token = [], f"RAY_AUTH_TOKEN={joining['RAY_AUTH_TOKEN']}".encode()
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if b"pipelines.serving.worker" in (status.parent / "cmdline").read_bytes():
                parent = status.read_text().split("PPid:")[1].split()[0]
                if token in Path(f"/proc/{parent}/environ").read_bytes():
                    found.append(int(status.parent.name))
    return found


OCTETS = {"Content-Type": "application/octet-stream"}


def ask(url: str, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, body, OCTETS)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def each_replicas_requests(url: str) -> dict[str, float]:
    """By replica how many images it was sent, as the endpoint tells in many visits: what is counted only grows."""
    counted: dict[str, float] = {}
    for _ in range(200):
        with urllib.request.urlopen(url + "metrics", timeout=60) as told:
            series = re.search(
                r'_requests_total\{replica="(\w+)",route="/predict",status="200"\} (.+)', told.read().decode()
            )
        if series:
            replica, value = series[1], float(series[2])
            assert value >= counted.get(replica, 0)
            counted[replica] = value
        if len(counted) == 2:
            break
    return counted


def test_two_replicas_answer_as_the_functions_do_and_outlive_a_decoder(
    url: str,
    model: LoadedModel,
    draw: Callable[..., list[Path]],
    shared_ray: Callable[[], dict[str, str]],
    tmp_path: Path,
) -> None:
    files = [path.read_bytes() for path in draw(tmp_path, 6)]
    scorer, prepare = Scorer(model.scorer, model.io), Preprocessing(model.served.input_size).prepare
    right = [replace(answer_image(data, prepare, scorer, model.served), milliseconds=0.0) for data in files]

    def all_right() -> None:
        for data, wanted in zip(files, right, strict=True):
            status, told = ask(url + "predict", data)
            assert status == 200 and {**told, "milliseconds": 0.0} == wanted.as_json(told["request_id"])

    all_right()
    with urllib.request.urlopen(urllib.request.Request(url + "predict", files[0], OCTETS), timeout=60) as found:
        # Ray's proxy gives the request its id; ours is the same, not a second one.
        assert found.headers.get_all("x-request-id") == [json.load(found)["request_id"]]
    status, problem = ask(url + "predict", files[0][:200])
    assert (status, problem["error_code"]) == (422, "truncated")
    status, page = ask(url + "model")
    assert status == 200 and page["version"] == model.served.version
    assert len(each_replicas_requests(url)) == 2
    before = answering(shared_ray())
    assert len(before) == 2
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(set(answering(shared_ray())) - set(before)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    all_right()


def test_a_second_command_does_not_touch_what_listens_elsewhere(
    url: str, model: LoadedModel, nightread: Callable[..., Any], shared_ray: Callable[[], dict[str, str]]
) -> None:
    joining = shared_ray()
    place = ("--address", joining["NIGHTREAD_SCORE_ADDRESS"], "--port", 1)
    done = nightread("serve", "--model", model.served.ref, *place, "--json", env=joining)
    assert done.code == 2 and f"listens at 127.0.0.1:{urlsplit(url).port}" in done.answer["error"]["message"]
    assert ask(url + "readyz")[0] == 200


def test_a_model_that_fails_its_test_is_refused_before_anything_is_deployed(model: LoadedModel, tmp_path: Path) -> None:
    from pipelines.serving.deployment import serve_on_cluster

    bundle = load_bundle(model.uri)
    other = load_model(str(Path(model.uri).parents[1] / "other"))
    files = {name: bundle.read(name) for name in bundle.files} | {"scorer.tflite": other.scorer}
    bad = write_bundle(str(tmp_path), "cells", bundle.spec, files)

    def never() -> Any:
        raise AssertionError("no cluster may be joined for it")

    with pytest.raises(ModelRefused, match="self-test"):
        serve_on_cluster(bad.uri, "float32", ServeSettings(), 2, never, print)


@pytest.mark.parametrize("arguments", [{}, {"model": "m", "replicas": "many"}, {"model": "m", "token": "t"}])
def test_arguments_of_a_config_file_are_checked(arguments: dict[str, str]) -> None:
    from pipelines.serving.deployment import build

    with pytest.raises(UsageError):
        build(arguments)
    assert build({"model": "m", "replicas": "3"}) is not None
