"""`nightread serve` in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """A response: its status, headers by small name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Command:
    """A command that serves.

    Attributes:
        process: It.
        log: Where its standard error goes.
        port: Where it listens.
        told: The line that it printed when it was ready.
    """

    process: subprocess.Popen[str]
    log: Path
    port: int = 0
    told: dict[str, Any] | None = None

    def wait_until_ready(self) -> None:
        """Read the one line of standard output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.told = json.loads(line)
        self.port = urlsplit(json.loads(line)["url"]).port or 0

    def ask(self, path: str, body: bytes | None = None, secure: bool = False) -> Reply:
        """One request on a connection of its own."""
        with contextlib.closing(self.connect(secure)) as connection:
            return exchange(connection, path, body)

    def connect(self, secure: bool = False) -> http.client.HTTPConnection:
        if not secure:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)

    def workers(self) -> list[int]:
        """Processes that answer for it and live."""
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                text = status.read_text()
                if f"PPid:\t{self.process.pid}\n" in text and "State:\tZ" not in text:
                    found.append(int(status.parent.name))
        return found

    def end(self) -> int:
        """End it as systemd does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()


def exchange(connection: http.client.HTTPConnection, path: str, body: bytes | None = None) -> Reply:
    """One request on a connection: GET, or POST of a file's bytes."""
    headers = {} if body is None else {"Content-Type": "application/octet-stream"}
    connection.request("GET" if body is None else "POST", path, body, headers)
    found = connection.getresponse()
    return Reply(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())


@contextlib.contextmanager
def begun(folder: Path, environment: Mapping[str, str], *arguments: object) -> Iterator[Command]:
    """Start the command; where it still runs at the end of the block, it ends by SIGTERM, with exit code 0."""
    folder.mkdir(exist_ok=True)
    log = folder / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", "serve", *map(str, arguments), "--json"],
            env={**environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    command = Command(process, log)
    try:
        yield command
    finally:
        if process.poll() is None:
            assert command.end() == 0, log.read_text()
        if process.stdout is not None:
            rest = process.stdout.read()
            process.stdout.close()
            assert rest == ""  # one JSON value and nothing else


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that shall become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody has signed but itself, and its key; each time another one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reading room")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    dated = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
        now + datetime.timedelta(days=2)
    )
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(dated.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"
