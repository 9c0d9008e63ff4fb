"""The example for nginx, with a real nginx in front of real connections."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from guarded_in_thread import Running, running
from served_pages import certificate, free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

TOKEN = "a-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
AROUND = """
%(user)s
daemon off;
pid %(folder)s/nginx.pid;
error_log %(folder)s/error.log;
worker_processes 1;
events {}
http {
    access_log %(folder)s/access.log;
    client_body_temp_path %(folder)s/bodies;
    proxy_temp_path %(folder)s/answers;
    fastcgi_temp_path %(folder)s/f;
    uwsgi_temp_path %(folder)s/u;
    scgi_temp_path %(folder)s/s;
    include %(folder)s/nightread.conf;
}
"""


@dataclass
class Proxied:
    """An nginx in front of an endpoint.

    Attributes:
        client: Speaks to nginx, over TLS.
        endpoint: What is behind it.
        folder: Where nginx may write.
        audit: The endpoint's audit log.
    """

    client: httpx.Client
    endpoint: Running
    folder: Path
    audit: Path


@pytest.fixture(scope="module")
def proxied(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("nginx")
    cert, key = certificate(folder)
    audit = folder / "audit.jsonl"
    with running(behind_proxy=True, token=TOKEN, audit_log=audit, max_body_bytes=10_000_000) as endpoint:
        port = free_port()
        example = (checkout / "cluster" / "deploy" / "nginx" / "nightread.conf").read_text()
        for ours, here in {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:8460;": f"127.0.0.1:{endpoint.port};",
            "/etc/nginx/nightread.crt": str(cert),
            "/etc/nginx/nightread.key": str(key),
            "client_max_body_size 256m": "client_max_body_size 12m",
        }.items():
            assert ours in example
            example = example.replace(ours, here)
        (folder / "nightread.conf").write_text(example)
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(AROUND % {"folder": folder, "user": user})
        command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert tested.returncode == 0 and "warn" not in tested.stderr, tested.stderr
        process = subprocess.Popen(command)
        try:
            _await(port)
            trust = ssl.create_default_context(cafile=str(cert))
            with httpx.Client(verify=trust, base_url=f"https://127.0.0.1:{port}", timeout=20) as client:
                yield Proxied(client, endpoint, folder, audit)
        finally:
            process.terminate()
            process.wait(10)


def _await(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nginx does not listen")


def test_requests_pass_with_their_token_and_the_caller_is_whom_nginx_saw(proxied: Proxied) -> None:
    client = proxied.client
    assert "nightread" in client.get("/").text
    assert client.get("/readyz").json() == {"status": "ready"}
    for spoofed in ({}, {"X-Forwarded-For": "203.0.113.9"}):
        answer = client.post("/predict", files={"f": ("a.jpg", b"image")}, headers={**BEARER, **spoofed})
        assert answer.json()["predicted_label"] == "benign"
        assert (
            answer.headers["cache-control"] == "no-store" and "max-age" in answer.headers["strict-transport-security"]
        )
    assert [json.loads(line)["caller"] for line in proxied.audit.read_text().splitlines()] == ["127.0.0.1"] * 2
    assert client.post("/predict", content=b"image").status_code == 401
    assert client.get("/model", headers={"Host": "nightread.example", **BEARER}).status_code == 200
    assert client.get("/metrics", headers=BEARER).status_code == 404


def test_large_bodies_pass_without_touching_a_disk(proxied: Proxied) -> None:
    began = time.time_ns()
    big = b"x" * 9_000_000
    for _ in range(3):
        assert proxied.client.post("/predict", content=big, headers=BEARER).status_code == 200
    for folder in ("bodies", "answers"):
        # A file that was there for a moment would have changed its folder's time.
        assert list((proxied.folder / folder).iterdir()) == []
        assert (proxied.folder / folder).stat().st_mtime_ns < began


def test_what_is_too_large_gets_a_problem_from_whoever_notices(proxied: Proxied) -> None:
    for size in (11_000_000, 13_000_000):
        answer = proxied.client.post("/predict", content=b"x" * size, headers=BEARER)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["error_code"] == "too_large"


def test_an_endpoint_that_is_gone_is_a_problem_too(proxied: Proxied) -> None:
    """The last test of this file: afterwards nothing is behind nginx."""
    proxied.endpoint.server.should_exit = True
    deadline = time.monotonic() + 10
    while (answer := proxied.client.get("/healthz")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error_code"] == "not_ready"
