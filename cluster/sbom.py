"""The bill of materials of a folder of wheels, in the form of CycloneDX: `python -m cluster.sbom WHEELS FILE`.

Everything in it is read from the wheels themselves: names, versions, licences, what needs what, and sums.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "nightread"
# What the archive installs of the project: the extra for the nodes of a cluster too.
EXTRAS = ("", "cluster")
FORMAT = "1.6"
LONGEST_LICENCE_NAME = 80


@dataclass(frozen=True)
class Wheel:
    """One distribution.

    Attributes:
        name: Its name, in its one canonical form.
        version: Its version.
        metadata: What it says of itself.
        sha256: The sum of the file, 64 hexadecimal digits.
    """

    name: str
    version: str
    metadata: Message
    sha256: str

    @property
    def purl(self) -> str:
        """Its package URL, which names it in the bill."""
        return f"pkg:pypi/{self.name}@{self.version}"


def bill_of_materials(folder: Path, made_at: datetime) -> dict[str, Any]:
    """Describe all wheels of a folder.

    Args:
        folder: Holds `*.whl`, that of this project among them.
        made_at: The moment that the bill gives as its own, with a time zone.

    Returns:
        A CycloneDX document; the same for the same wheels and moment.

    Raises:
        ValueError: If the project's own wheel is not there, or one name is there in two versions.
    """
    wheels = {wheel.name: wheel for wheel in sorted(map(_read, folder.glob("*.whl")), key=lambda wheel: wheel.name)}
    if len(wheels) != len(list(folder.glob("*.whl"))):
        raise ValueError(f"{folder} holds a distribution twice")
    if PROJECT not in wheels:
        raise ValueError(f"{folder} does not hold the wheel of {PROJECT}")
    sums = "".join(wheel.sha256 for wheel in wheels.values())
    needs = _dependencies(wheels)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": FORMAT,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, sums)}",
        "version": 1,
        "metadata": {
            "timestamp": made_at.astimezone(UTC).isoformat(timespec="seconds"),
            "component": _component(wheels[PROJECT], "application"),
        },
        "components": [_component(wheel, "library") for name, wheel in wheels.items() if name != PROJECT],
        "dependencies": [
            {"ref": wheel.purl, "dependsOn": sorted(wheels[other].purl for other in needs[name])}
            for name, wheel in wheels.items()
        ],
    }


def _read(path: Path) -> Wheel:
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(found[0]).decode("utf-8"))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Wheel(canonicalize_name(metadata["Name"]), metadata["Version"], metadata, digest)


def _component(wheel: Wheel, kind: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": wheel.purl,
        "name": wheel.name,
        "version": wheel.version,
        "purl": wheel.purl,
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }
    if wheel.metadata["Summary"]:
        component["description"] = wheel.metadata["Summary"]
    if licences := _licences(wheel.metadata):
        component["licenses"] = licences
    return component


def _licences(metadata: Message) -> list[dict[str, Any]]:
    """The expression where the newer field is there, else the classifiers, else the older field if it is a name."""
    if expression := metadata["License-Expression"]:
        return [{"expression": expression}]
    prefix = "License :: "
    classifiers = [line for line in metadata.get_all("Classifier", []) if line.startswith(prefix)]
    names = sorted({line.rpartition(" :: ")[2] for line in classifiers} - {"OSI Approved"})
    older = (metadata["License"] or "").strip()
    if not names and older and len(older) <= LONGEST_LICENCE_NAME and "\n" not in older:
        names = [older]
    return [{"license": {"name": name}} for name in names]


def _dependencies(wheels: Mapping[str, Wheel]) -> dict[str, set[str]]:
    """What each needs of the others here, with the extras that are asked for from the project on."""
    needs: dict[str, set[str]] = {name: set() for name in wheels}
    seen: set[tuple[str, str]] = set()
    waiting = [(PROJECT, extra) for extra in EXTRAS]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for requirement in _requirements(wheels[name], extra):
            other = canonicalize_name(requirement.name)
            if other in wheels and other != name:
                needs[name].add(other)
            if other in wheels:
                waiting.extend((other, wanted) for wanted in ("", *requirement.extras))
    return needs


def _requirements(wheel: Wheel, extra: str) -> Iterable[Requirement]:
    for line in wheel.metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def main(arguments: list[str]) -> None:
    """Write the bill of the wheels in a folder to a file.

    Args:
        arguments: The folder and the file.
    """
    folder, target = map(Path, arguments)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", datetime.now(UTC).timestamp()))
    bill = bill_of_materials(folder, datetime.fromtimestamp(seconds, UTC))
    target.write_text(json.dumps(bill, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
