"""The archive for machines without internet: it installs without network and compiler, and notices what is wrong.

Its wheels are made here of what is installed: whole where `nightread --help` loads them, else as a name and a version
that need nothing more. So pip has the project's own needs to find and to install, in seconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOADED_BY_HELP = {"typer", "rich", "click", "markdown-it-py", "mdurl", "shellingham", "annotated-doc",
                  "typing-extensions"}  # fmt: skip

# All that the script may need of a machine: no compiler, no pip but that of Python.
TOOLS = ("sh", "sha256sum", "find", "sort", "sed", "dirname", "cat", "cp", "mkdir", "rmdir")


def needed(checkout: Path) -> list[str]:
    """What the project names, on the nodes of a cluster too, and what of it is whole here needs in turn."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    seen: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        waiting += (metadata.requires(name) or []) if name in LOADED_BY_HELP else []
    return sorted(seen)


def pack(name: str, folder: Path) -> None:
    """Make a wheel of an installed distribution, whole or of its name alone."""
    distribution = metadata.distribution(name)
    stem = f"{re.sub('[-.]+', '_', name)}-{distribution.version}"
    information = f"{stem}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        if name in LOADED_BY_HELP:
            text = distribution.read_text("METADATA") or ""
            for file in distribution.files or []:
                if file.suffix != ".pyc" and not file.parts[0].endswith(".dist-info") and ".." not in file.parts:
                    wheel.write(str(file.locate()), str(file))
        else:
            extras = "".join(
                f"Provides-Extra: {extra}\n" for extra in distribution.metadata.get_all("Provides-Extra", [])
            )
            text = f"Metadata-Version: 2.4\nName: {name}\nVersion: {distribution.version}\n{extras}"
        wheel.writestr(f"{information}/METADATA", text)
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """The archive, unpacked."""
    home = tmp_path_factory.mktemp("offline")
    wheels = home / "wheels"
    wheels.mkdir()
    for name in needed(checkout):
        pack(name, wheels)
    (home / "net.h5").write_bytes(b"weights")
    done = subprocess.run(
        ["sh", str(checkout / "cluster/deploy/offline/build.sh"), sys.executable, str(home / "dist"), "net.h5"],
        cwd=home, env={**os.environ, "WHEELS": str(wheels)}, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (packed,) = (home / "dist").glob("*.tar.gz")
    summed = subprocess.run(["sha256sum", "--check", f"{packed.name}.sha256"], cwd=packed.parent, check=False)
    assert summed.returncode == 0
    subprocess.run(["tar", "-xzf", str(packed), "-C", str(home)], check=True)
    return home / packed.name.removesuffix(".tar.gz")


def can_be_alone() -> bool:
    """Whether a namespace without network is permitted here."""
    found = shutil.which("unshare")
    return bool(found) and not subprocess.run([found, "--net", "true"], check=False, capture_output=True).returncode


def install(archive: Path, target: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the archive's script with next to nothing on the path and without a network, where that is permitted."""
    tools = home / "tools"
    if not tools.exists():
        tools.mkdir()
        for tool in TOOLS:
            (tools / tool).symlink_to(str(shutil.which(tool)))
    alone = [str(shutil.which("unshare")), "--net"] if can_be_alone() else []
    return subprocess.run(
        [*alone, str(tools / "sh"), str(archive / "install.sh"), str(target)],
        env={"PATH": str(tools), "HOME": str(home), "PYTHON": sys.executable, "http_proxy": "http://127.0.0.1:9"},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


@pytest.fixture
def copied(archive: Path, tmp_path: Path) -> Path:
    """A copy of the archive that may be damaged; the wheels are links to the first one's until they are replaced."""
    return Path(shutil.copytree(archive, tmp_path / archive.name, copy_function=os.link))


@pytest.mark.slow
def test_it_installs_without_network_and_without_compiler(archive: Path, tmp_path: Path) -> None:
    if not can_be_alone():
        pytest.skip("a namespace without network is not permitted here (unshare --net)")
    done = install(archive, tmp_path / "installed", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "installed/SHA256SUMS").read_bytes() == (archive / "SHA256SUMS").read_bytes()
    shown = subprocess.run(
        [str(tmp_path / "installed/bin/nightread"), "--version"], capture_output=True, text=True, check=True
    )
    assert metadata.version("nightread") in shown.stdout
    listed = [
        str(tmp_path / "installed/bin/python"),
        "-m",
        "pip",
        "list",
        "--format=json",
        "--disable-pip-version-check",
    ]
    found = {item["name"].lower(): item["version"] for item in json.loads(subprocess.check_output(listed))}
    lock = dict(line.lower().split("==") for line in (archive / "requirements.lock").read_text().split())
    installed = {canonicalize_name(name): version for name, version in found.items()}
    locked = {canonicalize_name(name): version for name, version in lock.items()}
    ours = set(installed) - {"nightread", "pip", "setuptools"}
    assert {name: installed[name] for name in ours} == {name: locked[name] for name in ours}


def test_the_archive_holds_what_it_should_and_sums_of_all(archive: Path, checkout: Path) -> None:
    named = {line.split("  ", 1)[1] for line in (archive / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert named == there
    assert {"install.sh", "Dockerfile", "sbom.cdx.json", "weights/net.h5", "docs/operations.md", "LICENSE"} <= there
    assert all((archive / "deploy" / path.relative_to(checkout / "cluster/deploy")).is_file()
               for path in (checkout / "cluster/deploy").rglob("*") if path.is_file())  # fmt: skip


def test_the_bill_names_every_wheel_with_its_sum(archive: Path) -> None:
    bill = json.loads((archive / "sbom.cdx.json").read_text())
    components = [bill["metadata"]["component"], *bill["components"]]
    sums = {Path(line.split("  ", 1)[1]).name.split("-")[0].replace("_", "-").lower(): line.split()[0]
            for line in (archive / "SHA256SUMS").read_text().splitlines() if line.endswith(".whl")}  # fmt: skip
    assert {item["name"]: item["hashes"][0]["content"] for item in components} == sums


def test_a_folder_with_something_else_in_it_is_left_alone(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "letters").write_text("dear")
    done = install(archive, target, tmp_path)
    assert done.returncode == 2 and "not empty" in done.stderr
    assert [path.name for path in target.iterdir()] == ["letters"]


def test_a_changed_file_is_refused_by_name(copied: Path, tmp_path: Path) -> None:
    wheel = next((copied / "wheels").glob("rich-*.whl"))
    changed = wheel.read_bytes()[:-1] + b"\x01"
    wheel.unlink()
    wheel.write_bytes(changed)
    done = install(copied, tmp_path / "installed", tmp_path)
    assert done.returncode == 2 and wheel.name in done.stderr and "damaged" in done.stderr
    assert not (tmp_path / "installed" / "bin").exists()


def test_a_file_that_nobody_summed_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "wheels" / "evil-1.0-py3-none-any.whl").write_bytes(b"")
    done = install(copied, tmp_path / "installed", tmp_path)
    assert done.returncode == 2 and "does not name" in done.stderr


def test_another_python_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "PYTHON").unlink()
    (copied / "PYTHON").write_text("3.9\n")
    digest = subprocess.check_output(["sha256sum", "PYTHON"], cwd=copied, text=True)
    sums = copied / "SHA256SUMS"
    text = re.sub(r"^.*  PYTHON\n", digest, sums.read_text(), flags=re.MULTILINE)
    sums.unlink()
    sums.write_text(text)
    done = install(copied, tmp_path / "installed", tmp_path)
    assert done.returncode == 2 and "is for 3.9" in done.stderr


def test_weights_that_are_not_there_are_told(checkout: Path, tmp_path: Path) -> None:
    script = str(checkout / "cluster/deploy/offline/build.sh")
    done = subprocess.run(
        ["sh", script, sys.executable, str(tmp_path), "no.h5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no.h5" in done.stderr and list(tmp_path.iterdir()) == []
