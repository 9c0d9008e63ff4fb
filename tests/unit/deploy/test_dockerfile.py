"""The container files: what they begin with, what their last stage holds and as whom it runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
DEPLOY = CHECKOUT / "cluster" / "deploy"
FILES = ("Dockerfile", "serverless/Dockerfile")
INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}
PINNED = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*")
TOOLS_TO_BUILD = re.compile(r"\b(?:pip|apt|apt-get|gcc|g\+\+|make|build-essential|curl|wget)\b")


def stages(text: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, lines)):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest.strip()))
    return found


def complaints(text: str) -> list[str]:
    """What is wrong with a container file."""
    found = []
    for stage in stages(text):
        base = stage[0][1].split(" AS ")[0]
        if not PINNED.fullmatch(base):
            found.append(f"the base image {base} is not held to one release")
        found += [f"unknown instruction {name}" for name, _ in stage if name not in INSTRUCTIONS]
    last = stages(text)[-1]
    found += [f"the last stage runs {rest}" for name, rest in last if name == "RUN" and TOOLS_TO_BUILD.search(rest)]
    found += [f"the last stage copies {rest} from the context" for name, rest in last
              if name == "COPY" and not rest.startswith("--from=")]  # fmt: skip
    users = [rest for name, rest in last if name == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        found.append("it runs as root")
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_container_files_are_sound(name: str) -> None:
    assert complaints((DEPLOY / name).read_text()) == []
    assert len(stages((DEPLOY / name).read_text())) > 1


def test_the_container_files_begin_and_run_alike() -> None:
    bases, users = set(), set()
    for name in FILES:
        text = (DEPLOY / name).read_text()
        bases.update(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
        users.update(re.findall(r"^USER (\S+)", text, re.MULTILINE))
    assert len(bases) == len(users) == 1


def test_the_handlers_requirements_are_those_of_the_lock() -> None:
    locked = (CHECKOUT / "requirements.lock").read_text().split()
    lines = (DEPLOY / "serverless" / "requirements.txt").read_text().splitlines()
    named = [line for line in lines if not line.startswith("#")]
    assert named and set(named) <= set(locked)


def test_what_the_handlers_image_names_is_there() -> None:
    text = (DEPLOY / "serverless" / "Dockerfile").read_text()
    named = re.findall(r"\bdeploy/(serverless/[\w-]+\.txt)", text)
    assert len(set(named)) == 2 and all((DEPLOY / name).is_file() for name in named)
    command = re.search(r'^CMD \["python", "-m", "awslambdaric", "([\w.]+)"\]$', text, re.MULTILINE)
    assert command
    module, _, name = command[1].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_what_is_fetched_for_the_handler_is_held_to_a_release_and_sums() -> None:
    text = (DEPLOY / "serverless" / "runtime-client.txt").read_text()
    entries = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    assert entries and all(re.fullmatch(r"\w+==[\d.]+(?: +--hash=sha256:[0-9a-f]{64})+", entry) for entry in entries)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("python:3.11.14-slim-bookworm\nRUN groupadd", "python:3.11-slim\nRUN groupadd"),
        ("USER 10001:10001", "USER root"),
        ("USER 10001:10001\n", ""),
        ("COPY --from=build /opt/nightread /opt/nightread", "COPY . /archive"),
        ("RUN groupadd", "RUN apt-get install gcc && groupadd"),
        ("WORKDIR", "WORKDIRECTORY"),
    ],
    ids=["tag that moves", "root", "nobody", "context", "compiler", "typing error"],
)
def test_what_is_wrong_is_noticed(old: str, new: str) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert old in text and complaints(text.replace(old, new)) != []


def test_the_user_is_the_one_that_the_manifests_name() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    for name in ("rayjob.yaml", "cronjob.yaml"):
        text = (DEPLOY / "kuberay" / name).read_text()
        assert f"runAsUser: {user[1]}" in text and f"runAsGroup: {user[2]}" in text
