"""The token that a cluster asks for, found where Ray itself looks for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import UsageError

CURE = "Put the cluster's token into RAY_AUTH_TOKEN, or its file's name into RAY_AUTH_TOKEN_PATH."


def ray_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """Find the token: RAY_AUTH_TOKEN, else the file of RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token.

    Args:
        environment: Variables.

    Returns:
        The token; None where there is none.

    Raises:
        UsageError: If the file that was named cannot be read, or holds nothing; it never says what is in it.
    """
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    if named := environment.get("RAY_AUTH_TOKEN_PATH"):
        found = _read(Path(named))
        if found is None:
            raise UsageError(f"No token can be read from RAY_AUTH_TOKEN_PATH, {named}.", CURE)
        return found
    return _read(Path(environment.get("HOME") or "~").expanduser() / ".ray" / "auth_token")


def _read(place: Path) -> str | None:
    try:
        return place.read_text().strip() or None
    except (OSError, ValueError):
        return None
