"""The bill of materials says of each wheel what the wheel says of itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.sbom import bill_of_materials

CHECKOUT = Path(__file__).resolve().parents[3]
SCHEMA = jsonschema.Draft7Validator(json.loads((Path(__file__).parent / "schemas" / "cyclonedx.json").read_text()))
MADE_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def wheel(folder: Path, name: str, version: str, *lines: str) -> Path:
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines, "", "A long story."])
        archive.writestr(f"{name}-{version}.dist-info/METADATA", text)
        archive.writestr(f"{name}/vendored/other-9.dist-info/METADATA", "Name: other")
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """The project, which needs Alpha with an extra, and what these need."""
    wheel(tmp_path, "nightread", "1.2", "License-Expression: Apache-2.0", "Summary: Scores images.",
          "Requires-Dist: Al.pha[fast]>=1", 'Requires-Dist: never; python_version < "3"',
          'Requires-Dist: gamma; extra == "cluster"', 'Requires-Dist: delta; extra == "test"')  # fmt: skip
    wheel(tmp_path, "Al.pha", "1.0", "License: BSD", "Classifier: License :: OSI Approved :: MIT License",
          'Requires-Dist: beta; extra == "fast"', 'Requires-Dist: delta; extra == "slow"')  # fmt: skip
    wheel(tmp_path, "beta", "2.0", "License: BSD-3-Clause", "Requires-Dist: al-pha")
    wheel(
        tmp_path, "gamma", "3.0", "License: Permission is hereby granted, free of charge, to any person who " + "x" * 80
    )
    wheel(tmp_path, "delta", "4.0")
    return tmp_path


def test_names_sums_licences_and_who_needs_whom(wheels: Path) -> None:
    bill = bill_of_materials(wheels, MADE_AT)
    SCHEMA.validate(bill)
    found = {item["name"]: item for item in [bill["metadata"]["component"], *bill["components"]]}
    for path in wheels.glob("*.whl"):
        name = path.name.split("-")[0].lower().replace(".", "-")
        assert found[name]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]
    assert {name: item.get("licenses") for name, item in found.items()} == {
        "nightread": [{"expression": "Apache-2.0"}],
        "al-pha": [{"license": {"name": "MIT License"}}],
        "beta": [{"license": {"name": "BSD-3-Clause"}}],
        "gamma": None,
        "delta": None,
    }
    assert {item["ref"]: item["dependsOn"] for item in bill["dependencies"]} == {
        "pkg:pypi/nightread@1.2": ["pkg:pypi/al-pha@1.0", "pkg:pypi/gamma@3.0"],
        "pkg:pypi/al-pha@1.0": ["pkg:pypi/beta@2.0"],
        "pkg:pypi/beta@2.0": ["pkg:pypi/al-pha@1.0"],
        "pkg:pypi/gamma@3.0": [],
        "pkg:pypi/delta@4.0": [],
    }
    assert bill["metadata"]["timestamp"] == "2026-03-01T12:00:00+00:00"


def test_the_same_wheels_give_the_same_bill_and_others_another(wheels: Path) -> None:
    first = bill_of_materials(wheels, MADE_AT)
    assert bill_of_materials(wheels, MADE_AT) == first
    wheel(wheels, "epsilon", "5.0")
    assert bill_of_materials(wheels, MADE_AT)["serialNumber"] != first["serialNumber"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("components", 0, "type"), "thing"),
        (("components", 0, "hashes", 0, "alg"), "SHA-2"),
        (("components", 0, "hashes", 0, "content"), "xyz"),
        (("components", 0, "name"), None),
        (("dependencies", 0, "on"), []),
        (("metadata", "timestamp"), 5),
        (("serialNumber",), "1"),
    ],
    ids=str,
)
def test_the_schema_notices_what_is_wrong(wheels: Path, path: tuple[str | int, ...], value: object) -> None:
    bill: Any = bill_of_materials(wheels, MADE_AT)
    place = bill
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(bill)


def test_a_folder_that_is_no_archive_of_ours_is_refused(wheels: Path) -> None:
    wheel(wheels, "beta", "2.1")
    with pytest.raises(ValueError, match="twice"):
        bill_of_materials(wheels, MADE_AT)
    for path in wheels.glob("beta*"):
        path.unlink()
    next(wheels.glob("nightread*")).unlink()
    with pytest.raises(ValueError, match="nightread"):
        bill_of_materials(wheels, MADE_AT)


def test_it_is_written_by_one_command(wheels: Path, tmp_path: Path) -> None:
    target = tmp_path / "bill.json"
    subprocess.run([sys.executable, "-m", "cluster.sbom", str(wheels), str(target)], cwd=CHECKOUT, check=True,
                   env={"SOURCE_DATE_EPOCH": str(int(MADE_AT.timestamp()))})  # fmt: skip
    assert json.loads(target.read_text()) == bill_of_materials(wheels, MADE_AT)
