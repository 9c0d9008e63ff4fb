"""What the endpoint was told: where it listens, whom it lets in, and how much it takes from one client."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import UsageError

MEBIBYTE = 1024 * 1024
TOKEN = "NIGHTREAD_SERVE_TOKEN"
SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[\x21-\x7e]+")
# What a browser sends as Origin: no path, no name in capitals, no standard port.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


@dataclass(frozen=True)
class ServeSettings:
    """Settings that agree with each other.

    Attributes:
        host: Name or address to listen at.
        port: 0 to 65,535; 0 lets the system choose.
        token: The secret that clients send as bearer; None where none is set.
        auth: Whether a set token is asked for; False only where the user said so.
        tls_cert: PEM file of the certificate and those above it.
        tls_key: PEM file of its key.
        behind_proxy: Whether a proxy of ours stands in front: it encrypts, and the last entry of its X-Forwarded-For
            is the caller.
        cors: Origins whose pages may ask from a browser.
        max_body_bytes: Largest body of a request for one image.
        max_batch_bytes: Largest body of a request for several.
        max_held_bytes: What the bodies of all requests together may take of memory.
        connections: How many clients at once; beyond them only /healthz and /readyz are answered.
        header_seconds: Time for the head of a request, for a client to go on in its body, and for a TLS handshake.
        body_seconds: Time for a body, and one second more for every 128 KiB of it that has come.
        audit_log: File that gets a line for every image, or None.
        workers: Processes that answer.
        queue_per_worker: Images that may wait for each of them.

    Raises:
        UsageError: If a value cannot be used, or others could reach the endpoint without token or encryption.
    """

    host: str = "127.0.0.1"
    port: int = 8460
    token: str | None = field(default=None, repr=False)
    auth: bool = True
    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False
    cors: tuple[str, ...] = ()
    max_body_bytes: int = 64 * MEBIBYTE
    max_batch_bytes: int = 256 * MEBIBYTE
    max_held_bytes: int = 1024 * MEBIBYTE
    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    audit_log: Path | None = None
    workers: int = 1
    queue_per_worker: int = 32

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_token()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("A certificate and its key belong together.", "Give both --tls-cert and --tls-key.")
        for origin in self.cors:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--cors {origin} is not an origin.",
                    "Write it as a browser sends it: https://host or https://host:port.",
                )
        if self.is_loopback and not self.behind_proxy:
            return
        if self.auth and self.token is None:
            place = "the proxy" if self.behind_proxy else self.host
            raise UsageError(
                f"Other machines can reach {place}, and NIGHTREAD_SERVE_TOKEN is not set.",
                "Set it to a secret, or say --no-auth where anybody may ask.",
            )
        if self.tls_cert is None and not self.behind_proxy:
            raise UsageError(
                f"Other machines can reach {self.host}, and images would travel unencrypted.",
                "Give --tls-cert and --tls-key, or say --behind-proxy where a proxy encrypts.",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the endpoint."""
        return is_loopback(self.host)

    @property
    def required_token(self) -> bytes | None:
        """What a client has to send as bearer; None where it needs none."""
        return self.token.encode() if self.auth and self.token is not None else None

    def _check_numbers(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"--port {self.port} is no port.", "Give a number from 0 to 65535.")
        positive = {
            "workers": self.workers,
            "connections": self.connections,
            "max_body_bytes": self.max_body_bytes,
            "max_batch_bytes": self.max_batch_bytes,
            "max_held_bytes": self.max_held_bytes,
            "header_seconds": self.header_seconds,
            "body_seconds": self.body_seconds,
            "queue_per_worker": self.queue_per_worker,
        }
        for name, value in positive.items():
            if value <= 0:
                raise UsageError(f"{name} is {value:g}.", "Give a number above zero.")

    def _check_token(self) -> None:
        if self.token is None:
            return
        if len(self.token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(self.token):
            raise UsageError(
                f"NIGHTREAD_SERVE_TOKEN is not at least {SHORTEST_TOKEN} visible ASCII characters without spaces.",
                "Make one with: openssl rand -hex 32.",
            )


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
