"""What is said of heads and job servers that are not as they should be: open, of another Ray, no Ray, gone."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any

import grpc
import pytest

from cluster.door import Head, knock
from cluster.jobs_api import IdTaken, JobsApi, open_jobs_api
from cluster.submission import JobForgotten, Order, follow, submit
from pipelines.errors import NightreadError, TryLater, UsageError

TOKEN = "f0" * 32
HERE = metadata.version("ray")


@contextlib.contextmanager
def head(version: str, token: str | None) -> Iterator[str]:
    """What a head answers to the one question that is put to it."""
    from ray.core.generated import gcs_service_pb2

    reply: Any = gcs_service_pb2

    def answer(_request: bytes, context: Any) -> bytes:
        if token and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return bytes(reply.CheckAliveReply(ray_version=version).SerializeToString())

    server = grpc.server(ThreadPoolExecutor(2))
    question = {"CheckAlive": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", question),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


Answer = tuple[int, Any]


@contextlib.contextmanager
def job_server(answers: Callable[[str, str, str | None], Answer]) -> Iterator[str]:
    """Answers HTTP: called with method, path and what stood under Authorization."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value = answers(self.command, self.path, self.headers.get("Authorization"))
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


def refused(kind: type[NightreadError], said: str, action: Callable[[], object]) -> NightreadError:
    with pytest.raises(kind, match=said) as raised:
        action()
    assert TOKEN not in str(raised.value)
    return raised.value


def test_a_head_is_joined_only_if_it_is_ray_of_this_version_and_asks_for_our_token() -> None:
    with head(HERE, TOKEN) as address:
        assert knock(address, insecure=False) == Head(HERE, asks_for_token=True)
    with head(HERE, None) as address:
        refused(UsageError, "takes anybody: it asks for no token", lambda: knock(address, insecure=False))
        assert knock(address, insecure=True) == Head(HERE, asks_for_token=False)
    with head(HERE, "another") as address:
        refused(UsageError, "refuses the token", lambda: knock(address, insecure=True))
    for token in (TOKEN, None):
        with head("2.9.3", token) as address:
            refused(UsageError, f"runs Ray 2.9.3, and this machine has {HERE}", lambda: knock(address, insecure=True))
    refused(TryLater, "No Ray cluster answers", lambda: knock(address, insecure=False))


def test_what_listens_and_is_no_head_is_told_from_one_that_is_gone() -> None:
    with job_server(lambda *_: (200, {})) as address:
        refused(UsageError, "does not answer as Ray does", lambda: knock(address.removeprefix("http://"), True))
    refused(TryLater, "No Ray cluster answers at nowhere.invalid:6379", lambda: knock("nowhere.invalid:6379", True))


def ray_answers(mode: str = "token", version: str = HERE, **more: Answer) -> Callable[[str, str, str | None], Answer]:
    def answers(_method: str, path: str, authorization: str | None) -> Answer:
        if path == "/api/authentication_mode":
            assert authorization is None, "a token is for those who ask for one"
            return 200, {"authentication_mode": mode}
        if mode == "token" and authorization != f"Bearer {TOKEN}":
            return (401 if authorization is None else 403), b"Unauthorized"
        assert mode == "token" or authorization is None, "an open cluster gets no token"
        if path == "/api/version":
            return 200, {"ray_version": version}
        return more.get(path.rpartition("/")[2], (404, b"does not exist"))

    return answers


def test_a_job_server_gets_a_token_only_if_it_is_ray_and_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    with job_server(ray_answers()) as address:
        assert open_jobs_api(f"{address}/", insecure=False).job("night") is None
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        refused(UsageError, "refuses the token", lambda: open_jobs_api(address, insecure=False))
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with job_server(ray_answers("disabled")) as address:
        refused(UsageError, "takes anybody", lambda: open_jobs_api(address, insecure=False))
        assert open_jobs_api(address, insecure=True).job("night") is None
    with job_server(ray_answers(version="2.9.3")) as address:
        refused(UsageError, "runs Ray 2.9.3", lambda: open_jobs_api(address, insecure=False))


def test_what_is_no_job_server_is_told_from_one_that_is_gone() -> None:
    elsewhere = "http://127.0.0.1:9/api/authentication_mode"
    for answer in ((200, b"<html>"), (404, b""), (302, elsewhere.encode()), (200, [1])):
        with job_server(lambda *_, answer=answer: answer) as address:  # type: ignore[misc]
            refused(UsageError, "is not the dashboard of a Ray", lambda: open_jobs_api(address, False))
    refused(TryLater, "No job server answers", lambda: open_jobs_api(address, False))
    with job_server(lambda *_: (503, b"Service Unavailable")) as address:
        refused(TryLater, r"refuses \(503\): Service Unavailable", lambda: open_jobs_api(address, False))
    with head(HERE, None) as grpc_address:
        refused(UsageError, "is not the dashboard of a Ray", lambda: open_jobs_api(grpc_address, False))
    for wrong in ("ftp://head", "http://", "http://u:hunter2@head:1", "http://head:port", "http://head?x=1"):
        error = refused(UsageError, "is not an address of Ray's", partial(open_jobs_api, wrong, False))
        assert "hunter2" not in str(error)


def test_two_timers_of_one_moment_start_one_job() -> None:
    """The other one's job appears between the look and the submission."""
    looks: list[str] = []

    def answers(method: str, path: str, authorization: str | None) -> Answer:
        if method == "POST":
            return 400, b"ValueError: Job with submission_id night already exists."
        if path == "/api/jobs/night":
            looks.append(path)
            return (404, b"") if len(looks) == 1 else (200, {"status": "RUNNING"})
        return (200, b"") if "/packages/" in path else ray_answers()(method, path, authorization)

    with job_server(answers) as address:
        job, started = submit(open_jobs_api(address, False), Order(("score",), ()), "night")
        assert (job.id, job.status, started) == ("night", "RUNNING", False)
        with pytest.raises(IdTaken):
            open_jobs_api(address, False).submit("night", "true", {}, {})


def test_jobs_that_failed_or_were_stopped_are_started_anew_and_finished_ones_are_not() -> None:
    ends: dict[str, Answer] = {
        "night": (200, {"status": "FAILED", "driver_exit_code": 75}),
        "night-2": (200, {"status": "STOPPED"}),
        "night-3": (200, {"status": "FAILED", "driver_exit_code": 3}),
    }
    with job_server(ray_answers(**ends)) as address:
        job, started = submit(open_jobs_api(address, False), Order(("score",), ()), "night")
    assert (job.id, job.exit_code, started) == ("night-3", 3, False), "3 is finished and committed"


def test_a_head_that_forgot_the_job_is_told_and_worth_another_start() -> None:
    with job_server(ray_answers(night=(200, {"status": "RUNNING"}))) as address:
        job = open_jobs_api(address, False).job("night")
        assert job is not None
    with job_server(ray_answers()) as address:
        api: JobsApi = open_jobs_api(address, False)
        error = refused(JobForgotten, "no longer knows the job night", lambda: follow(api, job, print))
    assert error.exit_code == 75


def test_a_server_that_says_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs_api.SECONDS_TO_ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        refused(TryLater, "No job server answers", lambda: open_jobs_api(address, False))
