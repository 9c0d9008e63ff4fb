"""This installation as a wheel, made without a build tool and without a network, to travel with a job.

The wheel holds the packages as they are installed here, and `requirements.lock`: the versions of everything that they
need, as they are here. The same files give the same bytes, so that a cluster keeps one copy however often it is sent.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = "nightread"
PACKAGES = ("cluster", "jobs", "pipelines")
LOCK = "requirements.lock"
_LEFT_OUT = ("__pycache__",)
_BEGINNING = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can name
_WHEEL = "Wheel-Version: 1.0\nGenerator: nightread\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel() -> tuple[str, bytes]:
    """Make the wheel of what is installed here.

    Returns:
        Its file name and its bytes.
    """
    distribution = metadata.distribution(PROJECT)
    information = f"{PROJECT}-{distribution.version}.dist-info"
    contents = {name: place.read_bytes() for name, place in _files()}
    contents[f"{information}/METADATA"] = (distribution.read_text("METADATA") or "").encode()
    contents[f"{information}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    contents[f"{information}/WHEEL"] = _WHEEL.encode()
    contents[f"{information}/{LOCK}"] = "".join(f"{name}=={version}\n" for name, version in locked().items()).encode()
    record = f"{information}/RECORD"
    lines = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in contents.items()]
    contents[record] = "".join([*lines, f"{record},,\n"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _BEGINNING)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o640 << 16
            archive.writestr(entry, data)
    return f"{PROJECT}-{distribution.version}-py3-none-any.whl", packed.getvalue()


def locked() -> dict[str, str]:
    """The versions of all that the project needs, as they are installed here, by name."""
    found: dict[str, str] = {}
    asked = [(PROJECT, "")]
    seen = set(asked)
    while asked:
        name, extra = asked.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        found[name] = distribution.version
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *needed.extras):
                if (key := (_normal(needed.name), wanted)) not in seen:
                    seen.add(key)
                    asked.append(key)
    del found[PROJECT]
    return dict(sorted(found.items()))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _files() -> Iterator[tuple[str, Path]]:
    """Name within the wheel and place of each file of the packages, in order."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for place in sorted(root.rglob("*")):
            below = place.relative_to(root)
            if place.is_file() and not any(part in _LEFT_OUT or part.startswith(".") for part in below.parts):
                yield f"{package}/{below.as_posix()}", place


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
