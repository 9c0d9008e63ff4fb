"""The published envelope: what a gateway expects of a function that answers for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_envelope(status: int, headers: Mapping[str, str], body: str) -> dict[str, Any]:
    """Put an answer into the envelope of the published endpoint.

    Args:
        status: HTTP status of the answer.
        headers: Its headers, its content type among them.
        body: JSON text: the answer, which has `predicted_label`, or a problem.

    Returns:
        `{"statusCode", "headers", "body"}`, the body being text.
    """
    return {"statusCode": status, "headers": dict(headers), "body": body}
