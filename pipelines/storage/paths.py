"""Names of files: one canonical spelling for each, and an escape that keeps every name a plain text.

Two spellings meet here. A *place* (an archive, a results folder) is what a person types: an operating system path
or a URI. An *image URI* is a place whose name went through `escape_name`, so that it is valid UTF-8 whatever the
file is called; `unescape_name` leads back to the file. `canonical` does neither: it only settles the spelling.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from pipelines.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TO_ESCAPE = re.compile("[\\\\\udc80-\udcff]")
_ESCAPED = re.compile(r"\\(?:\\|x([89a-f][0-9a-f]))")


def scheme(uri: str) -> str:
    """Return the scheme in lower case (`s3`, `gs`, `memory`, …); `file` for a path without one."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else "file"


def is_local(uri: str) -> bool:
    """Say whether this names a file or folder of this machine's own file systems."""
    return scheme(uri) == "file"


def is_bucket(uri: str) -> bool:
    """Say whether this names something in an S3 bucket."""
    return scheme(uri) in ("s3", "s3a")


def canonical(uri: str) -> str:
    """Settle the one spelling of a place.

    Local: an absolute path without scheme, `.`, `..` and double slashes removed by text alone, links not
    resolved. `file://` URIs are read by their standard, `%20` included. Buckets: `s3://bucket/key`; what stands
    after the bucket is a key, in which `..`, `//` and `%20` are ordinary characters, so it stays as it is, but
    for slashes at the end. Nothing is escaped. Applying it twice changes nothing.

    Raises:
        UsageError: For an empty name, one with a zero byte, a `file://` URI of another host, `s3://` without bucket,
            or a URI that carries a user name or a password.
    """
    if not uri or "\0" in uri:
        raise UsageError(
            f"{uri!r} is not the name of a place.", "Give a folder, a file or a URI such as s3://bucket/prefix."
        )
    if not is_local(uri):
        return _canonical_remote(uri)
    match = _SCHEME.match(uri)
    path = _path_of_file_uri(uri, uri[match.end() :]) if match else uri
    path = os.path.normpath(os.path.join(os.getcwd(), path))
    return path[1:] if path.startswith("//") else path


def _path_of_file_uri(uri: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(f"{uri!r} names another host.", "Give the path under which it is mounted on this machine.")
    return unquote("/" + path, errors="surrogateescape")


def _canonical_remote(uri: str) -> str:
    kind = scheme(uri)
    rest = uri.split("://", 1)[1].rstrip("/")
    if "@" in rest.partition("/")[0]:
        raise UsageError(
            f"A {kind}:// URI carries a user name or a password, which would be written into records.",
            "Leave it out of the URI; give credentials in the environment.",
        )
    if kind not in ("s3", "s3a"):
        return f"{kind}://{rest}"
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UsageError(f"{uri!r} has no bucket.", "Write s3://bucket/prefix.")
    return f"s3://{bucket}/{key}" if key else f"s3://{bucket}"


def split_bucket(uri: str) -> tuple[str, str]:
    """Return (bucket, key) of an `s3://` URI; the key is empty for the bucket itself."""
    bucket, _, key = uri.split("://", 1)[1].partition("/")
    return bucket, key


def escape_name(os_name: str) -> str:
    r"""Turn a name as the operating system gives it into plain text: `\` as `\\`, a byte that is not UTF-8 as `\xNN`.

    Args:
        os_name: As from `os.listdir` or `os.fsdecode`: odd bytes are lone surrogates.

    Returns:
        Text that encodes to UTF-8; `unescape_name` gives `os_name` back exactly.
    """
    return _TO_ESCAPE.sub(_escape_character, os_name)


def _escape_character(match: re.Match[str]) -> str:
    character = match.group()
    return "\\\\" if character == "\\" else f"\\x{ord(character) - 0xDC00:02x}"


def unescape_name(name: str) -> str:
    r"""Undo `escape_name`. A backslash that begins no escape stands for itself."""
    if "\\" not in name:
        return name
    return _ESCAPED.sub(lambda match: chr(0xDC00 + int(match[1], 16)) if match[1] else "\\", name)


def join(base: str, *parts: str) -> str:
    """Put relative parts below a folder: `join("s3://b/p", "runs", "1")` is `s3://b/p/runs/1`."""
    joined = base
    for part in parts:
        if part:
            joined = joined + part if joined.endswith("/") else f"{joined}/{part}"
    return joined


def is_inside(uri: str, root: str) -> bool:
    """Say whether a canonical URI lies below a canonical root (the root itself does not)."""
    return uri.startswith(root if root.endswith("/") else root + "/") and len(uri) > len(root)


def relative(uri: str, root: str) -> str:
    """Return the part of a canonical URI below a canonical root, without a leading slash.

    Raises:
        UsageError: If it does not lie below the root.
    """
    if not is_inside(uri, root):
        raise UsageError(f"{uri!r} does not lie in {root!r}.", "Name the common folder with --root.")
    return uri[len(root) :].lstrip("/")


def name(uri: str) -> str:
    """Return the last part of a URI or path."""
    return uri.rstrip("/").rpartition("/")[2]


def parent(uri: str) -> str:
    """Return the folder that a canonical URI lies in; a bucket and `/` are their own parents."""
    if not is_local(uri):
        head, _, tail = uri.split("://", 1)[1].rpartition("/")
        return f"{scheme(uri)}://{head or tail}"
    return os.path.dirname(uri) or "/"
