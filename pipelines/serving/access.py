"""Who may ask: the bearer token, pages of other origins, and who is asking."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipelines.serving.problems import Problem
from pipelines.serving.settings import ServeSettings, is_loopback

OPEN_PATHS = frozenset(
    {
        "/",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/docs/start.js",
    }
)
"""Paths that need no token: they tell nothing of the model and nothing of any image."""

Headers = list[tuple[bytes, bytes]]


class Access:
    """Decides from the head of a request, before anything of its body is read.

    Args:
        settings: The token, the origins that may ask, and whether a proxy stands in front.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._token = settings.required_token
        self._origins = frozenset(origin.encode() for origin in settings.cors)
        self._behind_proxy = settings.behind_proxy
        # Without a token, the only thing between a web page in a browser of this machine and us is where it came from.
        self._only_own_pages = self._token is None
        self._only_loopback_names = self._token is None and settings.is_loopback and not settings.behind_proxy
        self.token_id = hashlib.sha256(self._token).hexdigest()[:8] if self._token is not None else None

    def problem(self, scope: Mapping[str, Any]) -> Problem | None:
        """Why a request gets no answer; None where it gets one.

        Args:
            scope: The ASGI scope.
        """
        headers: Headers = scope["headers"]
        hosts = _all(headers, b"host")
        if len(hosts) != 1 and (hosts or scope.get("http_version") == "1.1"):
            return Problem("bad_request", "A request names one Host.")
        if self._only_loopback_names and not all(is_loopback(_host(host)) for host in hosts):
            # Otherwise a page could give its own name our address, and ask us as if we were its own server.
            return Problem("misdirected", "This server answers to names of its own machine only.")
        if self._only_own_pages and self._is_foreign(headers):
            return Problem("forbidden_origin", "Pages of this origin may not ask here; --cors lists those that may.")
        if self._token is None or scope["path"] in OPEN_PATHS:
            return None
        given = _all(headers, b"authorization")
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token):
            return None
        return Problem(
            "unauthorized",
            "This needs the server's token as bearer.",
            headers=(("WWW-Authenticate", 'Bearer realm="nightread"'),),
        )

    def cross_origin(self, scope: Mapping[str, Any]) -> Headers:
        """Headers that let a listed origin's page read the answer."""
        if not self._origins:
            return []
        origins = _all(scope["headers"], b"origin")
        if len(origins) != 1 or origins[0] not in self._origins:
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-expose-headers", b"Retry-After, X-Request-Id"),
        ]

    def preflight(self, scope: Mapping[str, Any]) -> Headers | Problem | None:
        """What a browser is told that asks whether it may ask, beside `cross_origin`; None for any other request.

        Args:
            scope: The ASGI scope.
        """
        if scope["method"] != "OPTIONS" or not _all(scope["headers"], b"access-control-request-method"):
            return None
        if len(self.cross_origin(scope)) < 2:
            return Problem("forbidden_origin", "Pages of this origin may not ask here; --cors lists those that may.")
        return [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"Authorization, Content-Type"),
            (b"access-control-max-age", b"600"),
        ]

    def caller(self, scope: Mapping[str, Any]) -> str | None:
        """The address that asks: the connection's, or behind a proxy the one that the proxy saw."""
        if self._behind_proxy and (forwarded := _all(scope["headers"], b"x-forwarded-for")):
            # Earlier entries are whatever the client said.
            last = forwarded[-1].rpartition(b",")[2].strip().decode("latin-1")
            try:
                return str(ipaddress.ip_address(last))
            except ValueError:
                return None
        client = scope.get("client")
        return None if client is None else str(client[0])

    def _is_foreign(self, headers: Headers) -> bool:
        origins = _all(headers, b"origin")
        if not origins or (len(origins) == 1 and origins[0] in self._origins):
            return False
        hosts = _all(headers, b"host")
        if len(origins) != 1 or len(hosts) != 1:
            return True
        return origins[0].partition(b"://")[2].lower() != hosts[0].lower()


def _all(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _host(value: bytes) -> str:
    """The name in a Host header, without port; empty where it has none."""
    try:
        return urlsplit(f"//{value.decode('latin-1')}").hostname or ""
    except ValueError:
        return ""
