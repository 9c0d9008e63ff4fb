"""Whether requests to a store go through a web proxy: one reading of the usual variables for all clients.

Left to themselves, the clients disagree on networks (`10.0.0.0/8`), `*` and ports in `NO_PROXY`, and on `ALL_PROXY`.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipelines.errors import UsageError

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Proxy:
    """A web proxy that the environment names.

    Attributes:
        url: Its address; may hold a password, so it is left out of the representation.
        spared: The store's host, where `NO_PROXY` says that it is reached without; else None.
    """

    url: str = field(repr=False)
    spared: str | None


def proxy_to(address: str, known: Mapping[str, str]) -> Proxy | None:
    """Say which proxy the environment names for an address; None if it names none.

    Args:
        address: `http(s)://host[:port]`.
        known: The environment; variables may be in small letters.

    Raises:
        UsageError: If the proxy's address cannot be one; it is not repeated, since it may hold a password.
    """
    parts = urlsplit(address)
    name = f"{parts.scheme.upper()}_PROXY"
    url = _said(known, name) or _said(known, "ALL_PROXY")
    if not url:
        return None
    url = url if "://" in url else f"http://{url}"
    try:
        sound = urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"{name} is not the address of a web proxy.", f"Set {name} to http://host:port.")
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Proxy(url, host if _is_spared(host, port, _said(known, "NO_PROXY")) else None)


def _said(known: Mapping[str, str], name: str) -> str:
    return known.get(name.lower()) or known.get(name, "")


def _is_spared(host: str, port: int, exceptions: str) -> bool:
    return any(_matches(host, port, entry.strip().lower()) for entry in exceptions.split(",") if entry.strip())


def _matches(host: str, port: int, entry: str) -> bool:
    """Compare with one entry: `*`, a host or domain with all below it, an address, a network; a port may follow."""
    if entry == "*":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, colon, only_port = entry.rpartition(":")
    if colon and only_port.isdigit():
        if int(only_port) != port:
            return False
        entry = name.strip("[]")
    domain = entry.removeprefix("*").lstrip(".")
    return host == domain or host.endswith(f".{domain}")
