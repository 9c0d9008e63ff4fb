"""From what a manifest says to canonical image URIs, none of which leaves the archive."""

from __future__ import annotations

import os
import re
from typing import Final

from pipelines.archive.prefix_map import PrefixMap, looks_like_windows
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
        prefix_map: What names of other machines stand for here; such a name counts as an absolute one. None where the
            command cannot be told.

    Attributes:
        prefix: The deepest folder that holds all images so far, escaped; None before the first.
    """

    def __init__(self, root: str | None, folder: str, unit: str, prefix_map: PrefixMap | None = None) -> None:
        self._given = root is not None
        self._place = paths.canonical(root) if root is not None else folder
        self._root = paths.escape_name(self._place)
        self._unit = unit
        self._map = prefix_map or PrefixMap()
        self._can_map = prefix_map is not None
        self._used: set[str] = set()
        self._any_relative = False
        self._stranger: int | None = None
        self.prefix: str | None = None

    @property
    def base(self) -> str:
        """The place that no row may leave, escaped; `/` or a bucket where any may that the manifest names."""
        if self._given or self._any_relative or self.prefix is None:
            return self._root
        place = self.prefix
        return "/" if paths.is_local(place) else f"{paths.scheme(place)}://{paths.split_bucket(place)[0]}"

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
        mapped = self._map.find(uri) if self._map else None
        if mapped:
            resolved = self._resolve_mapped(mapped, number)
        elif _SIMPLE.fullmatch(uri):
            self._any_relative = True
            resolved = paths.join(self._root, uri)
        else:
            resolved = self._resolve_odd(uri, number)
        self._widen(resolved)
        return resolved

    def check(self) -> None:
        """Check what only all rows together tell.

        Raises:
            UsageError: If absolute URIs lie outside the root, or share no folder, or no row makes use of a mapped
                prefix.
        """
        unused = [text for text in self._map.texts if text not in self._used]
        if unused and self.prefix is not None:
            named = " and ".join(repr(text) for text in unused)
            raise UsageError(
                f"Not one row of the manifest begins with what --map-prefix {named} maps.",
                "Compare it with the manifest, and put it in quotes: a shell takes backslashes away.",
            )
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
            is_name = paths.escape_name(raw) == uri
            if looks_like_windows(uri) and not (is_name and uri.startswith("\\\\")):
                raise self._windows_path(number)
            if not is_name:
                raise self._refused(
                    number,
                    "has a backslash that stands for no character",
                    r"Separate folders by /; write a backslash that belongs to a name as \\.",
                )
            absolute = uri.startswith("/") or not paths.is_local(uri)
            place = self._placed(raw, absolute, number)
        return self._checked(place, absolute, number)

    def _resolve_mapped(self, mapped: tuple[str, str, str], number: int) -> str:
        text, target, rest = mapped
        self._used.add(text)
        if "\0" in rest:
            raise self._refused(number, "holds a zero byte", "Correct the manifest.")
        if ".." in rest.split("/"):
            raise self._refused(number, "has a part .. below the mapped prefix", "Correct the manifest.")
        return self._checked(paths.join(target, rest), True, number)

    def _checked(self, place: str, absolute: bool, number: int) -> str:
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

    def _windows_path(self, number: int) -> UsageError:
        if self._can_map:
            cure = r"Say where its share or drive lies here: --map-prefix '\\server\share=/mnt/images'."
            return self._refused(number, "is a Windows path that no --map-prefix maps", cure)
        return self._refused(number, "is a Windows path", "Write the path that the image has on this machine, with /.")

    def _leaves(self, number: int) -> UsageError:
        return self._refused(
            number,
            f"leads out of {self._place!r}",
            "Correct the manifest, or name the folder that holds all with --root.",
        )

    def _refused(self, number: int, why: str, cure: str) -> UsageError:
        return UsageError(f"The uri in {self._unit} {number} of the manifest {why}.", cure)
