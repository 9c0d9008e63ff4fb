"""`nightread serve` in a process of its own, and a browser that visits its page and watches what leaves it."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass
class Served:
    """A running endpoint.

    Attributes:
        url: Its page.
        model: What answers.
        process: The command.
        log: What it writes to standard error.
    """

    url: str
    model: dict[str, str]
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def begin(
    folder: Path, model: Path | str, environment: Mapping[str, str], *options: str, port: int = 0
) -> tuple[subprocess.Popen[str], Path]:
    """Start the command without waiting until it is ready."""
    folder.mkdir(exist_ok=True)
    log = folder / "serve.log"
    command = [sys.executable, "-m", "jobs", "serve", "--model", str(model), "--workers", "1", "--json"]
    with log.open("a") as errors:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            env={**environment},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    return process, log


def finished(process: subprocess.Popen[str]) -> int:
    """End a command as systemd does; its exit code."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(20)
    finally:
        process.kill()


@contextlib.contextmanager
def serving(
    folder: Path, model: Path | str, environment: Mapping[str, str], *options: str, port: int = 0
) -> Iterator[Served]:
    """Serve a model until the end of the block."""
    process, log = begin(folder, model, environment, *options, port=port)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        told: dict[str, Any] = json.loads(line)
        yield Served(told["url"], told["model"], process, log)
    finally:
        if process.poll() is None:
            assert finished(process) == 0, log.read_text()


def worker_of(process: subprocess.Popen[str], seconds: float = 10.0) -> int:
    """The process that answers for a command, as soon as it is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for thread in Path(f"/proc/{process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in thread.read_text().split():
                    if b"pipelines.serving.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        time.sleep(0.005)
    raise AssertionError("no process that answers")


@contextlib.contextmanager
def standing_still(process: int) -> Iterator[None]:
    """Stop a process, and let it go on at the end of the block."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


class Changes:
    """Files that are made, written or moved in some folders, as the kernel tells of them (inotify).

    Args:
        folders: They and the folders in them at this moment.
    """

    _MODIFY, _MOVED_TO, _CREATE = 0x2, 0x80, 0x100

    def __init__(self, *folders: Path) -> None:
        kernel = ctypes.CDLL(None, use_errno=True)
        self._descriptor = kernel.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watched: dict[int, Path] = {}
        for folder in (inner for one in folders for inner in (one, *one.rglob("*")) if inner.is_dir()):
            number = kernel.inotify_add_watch(
                self._descriptor, os.fsencode(folder), self._MODIFY | self._MOVED_TO | self._CREATE
            )
            assert number > 0, os.strerror(ctypes.get_errno())
            self._watched[number] = folder

    def seen(self) -> set[Path]:
        """What changed since the last time."""
        found: set[Path] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                told, place = os.read(self._descriptor, 1 << 16), 0
                while place < len(told):
                    watch, _, _, length = struct.unpack_from("iIII", told, place)
                    name = told[place + 16 : place + 16 + length].rstrip(b"\0")
                    found.add(self._watched[watch] / os.fsdecode(name))
                    place += 16 + length
        return found

    def close(self) -> None:
        os.close(self._descriptor)


def bytes_written(processes: list[int]) -> int:
    """What processes have caused to be written to any disk, by the kernel's own count."""
    told = [Path(f"/proc/{process}/io").read_text() for process in processes]
    return sum(int(line.split()[1]) for text in told for line in text.splitlines() if line.startswith("write_bytes"))


@dataclass
class Visit:
    """A visit to the page by one browser that knows nothing of others.

    Attributes:
        page: Playwright's page.
        asked: Address of every request.
        said: What the browser wrote to its console and what scripts threw.
    """

    page: Page
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def choose(self, *files: Path | dict[str, Any]) -> None:
        """Choose files as the dialog of the system would."""
        self.page.set_input_files("#chooser", list(files))

    def verdict(self) -> str:
        """The decision's word, once there is an answer."""
        self.page.wait_for_selector(".verdict:not(.pending)")
        return self.page.inner_text(".verdict .word")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector).replace("\u00a0", " ")

    def texts(self, selector: str) -> list[str]:
        return [text.replace("\u00a0", " ") for text in self.page.locator(selector).all_inner_texts()]

    def all_done(self) -> None:
        """Wait until no picture is on its way."""
        self.page.wait_for_selector("#progress[hidden]", state="attached", timeout=180_000)


@contextlib.contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """Visit the page; at the end nothing was asked of anyone else and the policy had nothing to block."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(60_000)
    visit = Visit(context.new_page())

    visit.page.on("request", lambda request: visit.asked.append(request.url))
    visit.page.on("console", lambda message: visit.said.append(message.text))
    visit.page.on("pageerror", lambda error: visit.said.append(f"thrown: {error}"))
    try:
        visit.page.goto(url)
        yield visit
        origin = url.rstrip("/")
        assert [one for one in visit.asked if not one.startswith((f"{origin}/", f"blob:{origin}/", "data:"))] == []
        # Answers other than 200 are written to the console by the browser itself.
        assert [text for text in visit.said if not text.startswith("Failed to load resource")] == []
    finally:
        context.close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that somebody made for this machine, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reading room")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"
