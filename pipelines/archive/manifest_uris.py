"""From what a manifest says to canonical image URIs, none of which leaves the archive."""

from __future__ import annotations

import os
import re
from typing import Final

from pipelines.errors import UsageError
from pipelines.storage import paths

# Names that need nothing but the root in front of them: no scheme, no dots as a folder, no escapes, no empty parts.
_SIMPLE: Final = re.compile(r"(?!/)(?:(?!\.{0,2}(?:/|$))[^/\\:\x00]+(?:/(?=.)|$))+")


class UriResolver:
    """Makes each row's URI canonical and checks that it stays inside.

    Relative URIs start at the root. Absolute ones must lie in the root where one was given or where any URI is
    relative; else they must share a folder (not `/`) or a bucket.

    Args:
        root: As given by the user, or None.
        folder: Canonical URI of the manifest's own folder.
        unit: `line` or `row`, for messages.

    Attributes:
        prefix: The deepest folder that holds all images so far, escaped; None before the first.
    """

    def __init__(self, root: str | None, folder: str, unit: str) -> None:
        self._given = root is not None
        self._place = paths.canonical(root) if root is not None else folder
        self._root = paths.escape_name(self._place)
        self._unit = unit
        self._any_relative = False
        self._stranger: int | None = None
        self.prefix: str | None = None

    def resolve(self, uri: str | None, number: int) -> str:
        """Return the canonical, escaped URI of a row.

        Args:
            uri: As it stands in the manifest, its names escaped as image URIs are.
            number: The row's number.

        Raises:
            UsageError: Naming the row, not its content.
        """
        if not uri:
            raise UsageError(f"The uri in {self._unit} {number} of the manifest is empty.", "Every row names an image.")
        if _SIMPLE.fullmatch(uri):
            self._any_relative = True
            resolved = paths.join(self._root, uri)
        else:
            resolved = self._resolve_odd(uri, number)
        self._widen(resolved)
        return resolved

    def check(self) -> None:
        """Check what only all rows together tell.

        Raises:
            UsageError: If absolute URIs lie outside the root, or share no folder.
        """
        if self._stranger is None:
            return
        if self._given or self._any_relative:
            raise self._leaves(self._stranger)
        if self.prefix in (None, "/") or (self.prefix or "").endswith("://"):
            raise UsageError(
                "The manifest's absolute URIs share no folder or bucket.",
                "Name the archive that may be read with --root.",
            )

    def _resolve_odd(self, uri: str, number: int) -> str:
        if "\0" in uri:
            raise self._refused(number, "holds a zero byte", "Correct the manifest.")
        if uri.startswith("file://"):
            place = paths.canonical(uri)
            absolute = True
        else:
            raw = paths.unescape_name(uri)
            if paths.escape_name(raw) != uri:
                raise self._refused(
                    number,
                    "has a backslash that stands for no character",
                    r"Separate folders by /; write a backslash that belongs to a name as \\.",
                )
            absolute = uri.startswith("/") or not paths.is_local(uri)
            place = self._placed(raw, absolute, number)
        resolved = paths.escape_name(place)
        inside = paths.is_inside(resolved, self._root)
        if absolute and not inside and self._stranger is None:
            self._stranger = number
        if not absolute:
            self._any_relative = True
        if not inside and (self._given or not absolute):
            raise self._leaves(number)
        return resolved

    def _placed(self, raw: str, absolute: bool, number: int) -> str:
        joined = raw if absolute else paths.join(self._place, raw)
        if paths.is_local(joined):
            return paths.canonical(os.path.normpath(joined))
        # In a bucket `..` is an ordinary character of a key, but whoever writes it into a manifest means a folder.
        if any(part in (".", "..") for part in joined.split("/")):
            raise self._refused(number, "has a part . or .., which buckets do not know", "Write the key itself.")
        return paths.canonical(joined)

    def _widen(self, resolved: str) -> None:
        if self.prefix is None:
            self.prefix = paths.parent(resolved)
        while not paths.is_inside(resolved, self.prefix):
            shorter = self.prefix.rpartition("/")[0]
            if not shorter or shorter.endswith(":/"):
                self.prefix = "/" if not shorter else shorter + "/"
                return
            self.prefix = shorter

    def _leaves(self, number: int) -> UsageError:
        return self._refused(
            number,
            f"leads out of {self._place!r}",
            "Correct the manifest, or name the folder that holds all with --root.",
        )

    def _refused(self, number: int, why: str, cure: str) -> UsageError:
        return UsageError(f"The uri in {self._unit} {number} of the manifest {why}.", cure)
