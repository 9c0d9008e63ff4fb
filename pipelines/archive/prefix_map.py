r"""What other machines call an archive: `\\srv\images\a.jpg` of a manifest is `/mnt/images/a.jpg` here.

A manifest written on Windows names images by a share or a drive, one from another machine by another mount. Each
`FROM=TO` says under which place a prefix of such names lies on this machine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipelines.errors import UsageError
from pipelines.storage import paths

_EXTENDED: Final = re.compile(r"[\\/]{2}[?.][\\/](?:(UNC)[\\/])?", re.IGNORECASE)
_SHARE: Final = re.compile(r"[\\/]{2}(?=[^\\/])")
_DRIVE: Final = re.compile(r"([A-Za-z]:)(?:[\\/]|$)")
_SEPARATORS: Final = re.compile(r"[\\/]+")
_EXAMPLE: Final = r"Write, in quotes, '\\server\share=/mnt/images', 'Z:\images=/mnt/images' or '/Volumes/x=/mnt/x'."

# How a name can be read: with a server or a drive, from the root of a file system, or below a folder that it does not
# tell. The last one is read as on Windows, for only names from there need a rule.
_Kind = Literal["windows", "posix", "relative"]


@dataclass(frozen=True)
class _Rule:
    """One `FROM=TO`.

    Attributes:
        text: As it was given.
        parts: FROM in parts, of a Windows path as they are compared; none for `.`.
        kind: What FROM is.
        target: TO, canonical and not escaped.
    """

    text: str
    parts: tuple[str, ...]
    kind: _Kind
    target: str


@dataclass(frozen=True)
class PrefixMap:
    r"""Which prefixes of a manifest's names stand for which places.

    Windows names are compared without case and with `/` and `\` alike, others exactly; always by whole parts. The
    rule with the longest FROM holds.

    Attributes:
        rules: In the order in which they were given.
    """

    rules: tuple[_Rule, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rules)

    @property
    def texts(self) -> tuple[str, ...]:
        """The rules as they were given."""
        return tuple(rule.text for rule in self.rules)

    def find(self, uri: str) -> tuple[str, str, str] | None:
        """Look for the rule that holds for a row's name.

        Args:
            uri: As it stands in the manifest.

        Returns:
            The text of the rule, its place (canonical, not escaped) and what is below it: separated by `/`, without
            empty parts and `.`, not escaped; None where no rule holds.
        """
        best: tuple[_Rule, tuple[str, ...]] | None = None
        for kind, parts in _readings(uri):
            compared = _compared(parts) if kind == "windows" else parts
            for rule in self.rules:
                longer = best is None or len(rule.parts) > len(best[0].parts)
                if rule.kind == kind and longer and compared[: len(rule.parts)] == rule.parts:
                    best = rule, parts[len(rule.parts) :]
        if best is None:
            return None
        rule, rest = best
        return rule.text, rule.target, "/".join(rest)


def parse_prefix_map(texts: Sequence[str]) -> PrefixMap:
    r"""Read what `--map-prefix` was given.

    Args:
        texts: `FROM=TO` each, cut at the first `=`. FROM: a share (`\\server\share`, also deeper), a drive
            (`Z:\images`), an absolute path, or `.` for names that say no root. TO: a folder or a URI.

    Raises:
        UsageError: If one is of another form, or two map the same prefix.
    """
    rules: list[_Rule] = []
    for text in texts:
        rule = _parsed(text)
        if any((rule.kind, rule.parts) == (other.kind, other.parts) for other in rules):
            raise UsageError(f"--map-prefix {text!r} maps a prefix that another one maps.", "Give one of them.")
        rules.append(rule)
    return PrefixMap(tuple(rules))


def looks_like_windows(uri: str) -> bool:
    r"""Say whether a name is meant as a Windows path: `Z:\…`, `Z:/…` or `\\server\share\…`."""
    return bool(_DRIVE.match(uri)) or (uri.startswith("\\\\") and len(_windows_parts(uri) or ()) > 2)


def _parsed(text: str) -> _Rule:
    source, equals, target = text.partition("=")
    readings = _readings(source)
    if not equals or not target or not readings:
        raise UsageError(f"--map-prefix {text!r} is not of the form FROM=TO.", _EXAMPLE)
    kind, parts = readings[0]
    if kind == "relative" and (parts or not source.startswith(".")):
        raise UsageError(f"--map-prefix {text!r} maps neither a share nor a drive nor an absolute path.", _EXAMPLE)
    if kind == "windows" and parts[0].startswith("\\\\") and len(parts) < 2:
        raise UsageError(f"--map-prefix {text!r} names a server without a share.", _EXAMPLE)
    if (kind == "posix" and not parts) or ".." in parts:
        raise UsageError(f"--map-prefix {text!r} maps / or has a part '..'.", _EXAMPLE)
    return _Rule(text, _compared(parts) if kind == "windows" else parts, kind, paths.canonical(target))


def _readings(uri: str) -> list[tuple[_Kind, tuple[str, ...]]]:
    """How a name can be read, with its parts; URIs with a scheme and empty names have no reading."""
    windows = _windows_parts(uri)
    name = paths.unescape_name(uri)
    # As every name of a manifest, one from a root is escaped as image URIs are; one that is not is no such name.
    posix = _parts(name.split("/")) if uri.startswith("/") and paths.escape_name(name) == uri else None
    if windows is None and not uri.startswith("/"):
        relative = bool(uri) and "://" not in uri
        return [("relative", _parts(_SEPARATORS.split(uri)))] if relative else []
    both: list[tuple[_Kind, tuple[str, ...] | None]] = [("windows", windows), ("posix", posix)]
    return [(kind, parts) for kind, parts in both if parts is not None]


def _windows_parts(text: str) -> tuple[str, ...] | None:
    r"""A Windows path in parts: the first is the drive, or the server with two backslashes before it."""
    long_form = _EXTENDED.match(text)
    if long_form:
        text = ("\\\\" if long_form[1] else "") + text[long_form.end() :]
    share = _SHARE.match(text)
    if share:
        first, *rest = _SEPARATORS.split(text[share.end() :])
        return _parts(["\\\\" + first, *rest])
    if _DRIVE.match(text):
        return _parts(_SEPARATORS.split(text))
    return None


def _parts(pieces: Sequence[str]) -> tuple[str, ...]:
    return tuple(piece for piece in pieces if piece not in ("", "."))


def _compared(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", part).lower() for part in parts)
