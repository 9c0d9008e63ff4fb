"""MODELS/<name>/champion.json: the promoted version, and the earlier ones with when and who."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.record import check_name, is_version
from pipelines.storage import files as storage
from pipelines.storage.paths import join

FORMAT = 1


@dataclass(frozen=True)
class Promotion:
    """One change of the champion.

    Attributes:
        version: What became champion.
        at: When, ISO 8601, UTC.
        by: Who: user@host.
        previous: The champion before; None for the first.
    """

    version: str
    at: str
    by: str
    previous: str | None


@dataclass(frozen=True)
class Champion:
    """The champion of one name, with every promotion there was, oldest first."""

    version: str
    history: tuple[Promotion, ...]


def read_champion(models: str, name: str) -> Champion | None:
    """The champion of a name; None where there is none.

    Raises:
        ModelRefused: If champion.json is damaged.
        UsageError: If a newer release wrote it.
    """
    uri = _uri(models, name)
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(data)
        if value["format"] > FORMAT:
            raise UsageError(f"{uri} has format {value['format']}.", "A newer release of nightread wrote it: upgrade.")
        history = tuple(_promotion(entry) for entry in value["history"])
        if not history or value["version"] != history[-1].version:
            raise ValueError("the history does not end with the champion")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelRefused(
            f"{uri} is damaged: {error}.", "Name a version (MODELS/NAME@v1), or promote one again after removing it."
        ) from error
    return Champion(history[-1].version, history)


def make_first_champion(models: str, name: str, version: str) -> bool:
    """Make `version` the champion unless the name has one; True if it became it.

    Of several writers at once exactly one gets True.
    """
    first = Promotion(version, _now(), _who(), None)
    return storage.create_exclusive(_uri(models, name), _to_bytes((first,)))


def make_champion(models: str, name: str, version: str) -> Champion:
    """Make `version` the champion, whatever it was before; without effect where it already is."""
    before = read_champion(models, name)
    if before is not None and before.version == version:
        return before
    history = before.history if before is not None else ()
    new = Promotion(version, _now(), _who(), before.version if before is not None else None)
    storage.write_atomic(_uri(models, name), _to_bytes((*history, new)))
    return Champion(version, (*history, new))


def _uri(models: str, name: str) -> str:
    return join(models, check_name(name), "champion.json")


def _promotion(value: Mapping[str, Any]) -> Promotion:
    promotion = Promotion(str(value["version"]), str(value["at"]), str(value["by"]), value["previous"])
    if not is_version(promotion.version):
        raise ValueError(f"{promotion.version!r} is no version")
    return promotion


def _to_bytes(history: tuple[Promotion, ...]) -> bytes:
    value = {"format": FORMAT, "version": history[-1].version, "history": [asdict(entry) for entry in history]}
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
