"""Which of a command's places is the archive, which the results, which the models: each may have its own S3 account.

What was declared stands in the environment, so that it reaches worker processes without being passed along.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
from collections.abc import Iterator
from functools import lru_cache

from pipelines.errors import UsageError
from pipelines.storage import paths

PLACES = "NIGHTREAD_S3_PLACES"
# Stands for every bucket that nothing else was said about.
EVERYWHERE = "s3://"


class Role(enum.Enum):
    """What a place is for; the value is the part of the variables' names that says so."""

    ARCHIVE = "ARCHIVE"
    RESULTS = "RESULTS"
    MODELS = "MODELS"


def variable(role: Role, name: str) -> str:
    """Return the name of a role's own variable: `NIGHTREAD_S3_ARCHIVE_REGION`."""
    return f"NIGHTREAD_S3_{role.value}_{name}"


@contextlib.contextmanager
def declared() -> Iterator[None]:
    """Begin with nothing declared, whoever started this process, and put back at the end of the block what was."""
    before = os.environ.pop(PLACES, None)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(PLACES, None)
        else:
            os.environ[PLACES] = before


def declare(role: Role, uri: str) -> None:
    """Note what a place and all below it is for; places outside of buckets need no settings and are left out.

    Args:
        role: What for.
        uri: The place as a person typed it, or `EVERYWHERE`.

    Raises:
        UsageError: If the very same place has another role already, and the two have settings of their own.
    """
    if not paths.is_bucket(uri):
        return
    place = uri if uri == EVERYWHERE else paths.canonical(uri)
    noted = dict(_places(os.environ.get(PLACES, "")))
    earlier = noted.setdefault(place, role)
    if earlier is not role and (_has_own_settings(role) or _has_own_settings(earlier)):
        raise UsageError(
            f"{place!r} is given both as {earlier.value.lower()} and as {role.value.lower()}, "
            "which have S3 settings of their own.",
            "Give each a prefix of its own in the bucket.",
        )
    os.environ[PLACES] = json.dumps({place: role.value for place, role in noted.items()})


def is_declared(uri: str) -> bool:
    """Say whether this very place was declared."""
    return paths.canonical(uri) in _places(os.environ.get(PLACES, ""))


def role_of(uri: str) -> Role | None:
    """Return what a place is for by the longest declared place that it is or lies below; None if there is none."""
    noted = _places(os.environ.get(PLACES, ""))
    if not noted:
        return None
    holding = [place for place in noted if place in (EVERYWHERE, uri) or paths.is_inside(uri, place)]
    return noted[max(holding, key=len)] if holding else None


def setting_of(uri: str, name: str) -> str:
    """Return which variable to look at for a place, for messages: its role's where that has settings of its own."""
    role = role_of(uri)
    return variable(role, name) if role and _has_own_settings(role) else f"AWS_{name}"


@lru_cache(maxsize=8)
def _places(text: str) -> dict[str, Role]:
    return {place: Role(role) for place, role in json.loads(text).items()} if text else {}


def _has_own_settings(role: Role) -> bool:
    return any(name.startswith(variable(role, "")) and value for name, value in os.environ.items())
