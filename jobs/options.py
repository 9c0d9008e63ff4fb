"""Reads option values that several commands share."""

from __future__ import annotations

from pipelines.errors import UsageError


def parse_pairs(option: str, text: str | None) -> dict[str, str]:
    """Read `a=b,c=d`.

    Args:
        option: The option's name for the message.
        text: Its value; None or empty gives no pairs.

    Raises:
        UsageError: If a part has no `=`, an empty side, or a name comes twice.
    """
    pairs: dict[str, str] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and name and value):
            raise UsageError(f"{option} has the part {part!r}, which is not NAME=VALUE.", f"Write {option} a=b,c=d.")
        if name in pairs:
            raise UsageError(f"{option} names {name!r} twice.", "Name it once.")
        pairs[name] = value
    return pairs
