"""The sockets that the endpoint listens on, bound before anything else starts, so that a taken port is told at once."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator
from socket import socket as Socket

from pipelines.errors import UsageError
from pipelines.serving.settings import ServeSettings

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[list[Socket]]:
    """Bind every address of a host.

    Args:
        host: Name or address.
        port: 0 lets the system choose; all addresses then get the same.

    Yields:
        Sockets, at least one; closed at the end.

    Raises:
        UsageError: If the host is none of this machine, or the port is taken or not this user's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host} is no name or address that is known here.", _CURE) from error
    sockets: list[Socket] = []
    with contextlib.ExitStack() as stack:
        for family, kind, protocol, _, address in found:
            made = stack.enter_context(socket.socket(family, kind, protocol))
            chosen = sockets[0].getsockname()[1] if sockets else port
            if _bound(made, (address[0], chosen, *address[2:]), host):
                sockets.append(made)
        if not sockets:
            raise UsageError(f"--host {host} is no address of this machine.", _CURE)
        yield sockets


_CURE = "Say 127.0.0.1 for this machine only, or one of its own addresses."


def _bound(made: Socket, address: tuple[object, ...], host: str) -> bool:
    """Bind a socket; False where this machine does not have the address, as one without IPv6."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        made.bind(address)
    except PermissionError as error:
        raise UsageError(
            f"This user may not listen on port {address[1]}.", "Choose one from 1024 on: --port N."
        ) from error
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        if error.errno != errno.EADDRINUSE:
            raise
        raise UsageError(
            f"Port {address[1]} of {host} is taken.", "Choose another one: --port N; 0 takes any that is free."
        ) from error
    made.setblocking(False)
    return True


def check_certificate(settings: ServeSettings) -> None:
    """Look at certificate and key before anything starts.

    Raises:
        UsageError: If one cannot be read, or they are no pair that encrypts.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for option, path in (("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(f"{option} {path} cannot be read: {error.strerror}.", _PAIR) from error
    try:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
    except (OSError, ValueError) as error:
        what = "do not belong together" if "MISMATCH" in str(error) else "are no certificate and key without passphrase"
        raise UsageError(f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key} {what}.", _PAIR) from error


def load_certificate(context: ssl.SSLContext, settings: ServeSettings) -> None:
    """Have a context show the certificate, as its files are now.

    Raises:
        OSError, ValueError: If they cannot be used.
    """
    assert settings.tls_cert is not None
    # A key's passphrase would else be asked for on the terminal.
    context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")


_PAIR = "Give two PEM files: the certificate with those above it, and its own key without a passphrase."


def url_of(port: int, settings: ServeSettings) -> str:
    """Where clients find what listens on a port of these settings' host."""
    scheme = "http" if settings.tls_cert is None else "https"
    # "All addresses" is none that a browser finds.
    name = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
    host = f"[{name}]" if ":" in name else name
    return f"{scheme}://{host}:{port}/"
