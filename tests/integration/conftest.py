"""What integration tests share: an S3 server in a process of its own, and a proxy that fails on demand."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fault_proxy import FaultProxy, running_proxy


@pytest.fixture(scope="module")
def connect(shared_ray: Callable[[], dict[str, str]]) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """What trainings, searches and answers in this process connect with: the Ray that the commands join too."""
    from cluster.session import shared_session

    variables = shared_ray()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.setenv(name, variables[name])
        with shared_session(variables["NIGHTREAD_TRAIN_ADDRESS"]) as session:
            yield session


@dataclass(frozen=True)
class S3Place:
    """A fresh bucket on the S3 server; the environment of this process and its children points at it.

    Attributes:
        endpoint: The server's address.
        bucket: The bucket's name.
        uri: `s3://bucket`.
        filesystem: An s3fs file system of its own, for looking at it from outside.
    """

    endpoint: str
    bucket: str
    uri: str
    filesystem: Any


@contextlib.contextmanager
def running_s3() -> Iterator[str]:
    """Run a moto server in a process of its own: in this one it deadlocks with the Rust clients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            assert process.poll() is None, "the S3 server ended"
            time.sleep(0.1)
        yield endpoint
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def second_s3_server() -> Iterator[str]:
    """The address of another S3 server, with buckets of its own."""
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Place:
    """A fresh bucket, with the clients' environment set to reach it."""
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    filesystem = s3fs.S3FileSystem(
        key="test-key",
        secret="test-secret",
        endpoint_url=s3_server,
        client_kwargs={"region_name": "us-east-1"},
        use_listings_cache=False,
    )
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    filesystem.call_s3("create_bucket", Bucket=bucket)
    return S3Place(s3_server, bucket, f"s3://{bucket}", filesystem)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[str], FaultProxy]]:
    """Start a proxy in front of an address: `fault_proxy(s3.endpoint)`; set its `rule`, then use its `endpoint`."""
    with contextlib.ExitStack() as stack:
        yield lambda target: stack.enter_context(running_proxy(target))
