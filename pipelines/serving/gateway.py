"""What an API gateway hands to a function, read as one request: REST (v1), HTTP API (v2), load balancers and alike."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.serving.bodies import Form, form_of, from_base64, one_image
from pipelines.serving.problems import refused
from pipelines.serving.settings import ServeSettings

_REQUEST_ID = re.compile(r"[\w=.+/-]{1,128}", re.ASCII)


@dataclass(frozen=True)
class GatewayRequest:
    """One request.

    Attributes:
        method: `GET`, `POST` …
        content_type: The header; None where the client sent none.
        body: As the gateway hands it over: text, or base64 of the bytes.
        in_base64: Whether `body` is base64, which is how binary bodies come.
        request_id: The gateway's own, so that its logs and ours can be joined.
    """

    method: str
    content_type: str | None
    body: str = field(repr=False)
    in_base64: bool
    request_id: str

    def image(self) -> bytes:
        """The bytes of the one image in the body: JSON with base64, a form with a file, or the file itself.

        Raises:
            Refused: If there is none, or it cannot be read, or the body is too long.
        """
        if len(self.body) > ServeSettings.max_body_bytes * (4 / 3 if self.in_base64 else 1):
            raise refused("too_large", f"The body is longer than {ServeSettings.max_body_bytes} bytes.")
        form = form_of(self.content_type)
        if self.in_base64:
            return one_image(form, from_base64(self.body))
        if form.kind == "raw" and not self.body.lstrip().startswith("{"):
            # Text cannot be a file's own bytes: the client has written them in base64.
            return from_base64(self.body)
        if form.kind == "raw":  # many a client sends JSON without saying so
            form = Form("json")
        return one_image(form, self.body.encode("utf-8", "surrogatepass"))


def read_event(event: Any) -> GatewayRequest:
    """Read an event of either format; what is not there is taken as empty, so that every event has an answer.

    Args:
        event: What the platform calls the function with.
    """
    event = event if isinstance(event, Mapping) else {}
    about = _mapping(event.get("requestContext"))
    method = event.get("httpMethod") or _mapping(about.get("http")).get("method") or "POST"
    body = event.get("body")
    given = about.get("requestId")
    known = isinstance(given, str) and _REQUEST_ID.fullmatch(given)
    return GatewayRequest(
        method=str(method).upper(),
        content_type=_header(event, "content-type"),
        body=body if isinstance(body, str) else "",
        in_base64=event.get("isBase64Encoded") is True,
        request_id=str(given) if known else secrets.token_hex(16),
    )


def _header(event: Mapping[str, Any], name: str) -> str | None:
    """A header by its name in small letters: v1 keeps the client's own, and puts repeated ones into a second map."""
    for key, value in _mapping(event.get("headers")).items():
        if str(key).lower() == name and isinstance(value, str):
            return value
    for key, values in _mapping(event.get("multiValueHeaders")).items():
        if str(key).lower() == name and isinstance(values, list) and values and isinstance(values[-1], str):
            return values[-1]
    return None


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
