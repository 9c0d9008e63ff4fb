"""Reads option values that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.errors import UsageError

if TYPE_CHECKING:
    from pipelines.training.labelled import DataConfig

SECONDS_OF = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(option: str, text: str) -> float:
    """Read `7h`, `90m`, `1h30m` or `45s`.

    Args:
        option: The option's name for the message.
        text: Numbers, each with d, h, m or s behind it, the larger unit first.

    Returns:
        Seconds.

    Raises:
        UsageError: If it is no such text, or longer than a year.
    """
    match = re.fullmatch(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?", text.strip().lower())
    if not match or not any(match.groups()) or len(text) > 20:
        raise UsageError(f"{option} {text!r} is not a duration.", f"Write {option} 7h, 90m, 1h30m or 45s.")
    seconds = sum(int(number or 0) * unit for number, unit in zip(match.groups(), SECONDS_OF.values(), strict=True))
    if seconds > 366 * SECONDS_OF["d"]:
        raise UsageError(f"{option} {text!r} is longer than a year.", f"Write {option} 7h, 90m, 1h30m or 45s.")
    return seconds


def parse_backfill(text: str) -> int | None:
    """Read `all` (None), `none` (0) or a number.

    Raises:
        UsageError: If it is none of these.
    """
    known = {"all": None, "none": 0}
    cleaned = text.strip().lower()
    if cleaned in known:
        return known[cleaned]
    if re.fullmatch(r"[0-9]{1,15}", cleaned):
        return int(cleaned)
    raise UsageError(f"--backfill {text!r} is neither all nor none nor a number.", "Write --backfill all, none or N.")


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


def parse_names(text: str | None) -> tuple[str, ...]:
    """Read `a,b`; empty parts are nothing."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def labelled_data(
    data: str,
    columns: str | None,
    class_names: str | None,
    root: str | None,
    exclude: Sequence[str] | None,
    group_by: str | None,
) -> DataConfig:
    """Read the options that say which labelled images; see `DataConfig`.

    Raises:
        UsageError: If one cannot be read, or does not belong to this kind of data.
    """
    from pipelines.training.labelled import DataConfig

    return DataConfig(
        data=data,
        columns=parse_pairs("--columns", columns),
        class_names=parse_pairs("--class-names", class_names),
        root=root,
        exclude=tuple(exclude or ()),
        group_by=group_by,
    )
