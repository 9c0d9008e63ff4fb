"""What the documents name exists: links, commands, options and make targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app

CHECKOUT = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELL_ENDS = {"|", "||", "&&", ";", ">", ">>", "2>"}


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def code_lines(document: Path) -> Iterator[str]:
    """Each line of a fenced block, continuations joined, and each piece of inline code."""
    text = document.read_text()
    for block in FENCED.findall(text):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from INLINE.findall(FENCED.sub("", text))


def headings(document: Path) -> set[str]:
    """The anchors that a page of this document has."""
    found = re.findall(r"^#+\s+(.*)$", FENCED.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def command_lines(document: Path) -> Iterator[list[str]]:
    """The words behind `nightread`, of every command line in a document."""
    for line in code_lines(document):
        line = re.sub(r"^\s*[$#]\s+", "", line)
        match = re.match(r"\s*(?:\.venv/bin/)?nightread\s+(\S.*)", line)
        if not match:
            continue
        try:
            words = shlex.split(match.group(1).replace("…", ""))
        except ValueError:  # prose with a lone quote
            words = match.group(1).split()
        ends = [i for i, word in enumerate(words) if word in SHELL_ENDS or word.startswith("#")]
        yield words[: ends[0]] if ends else words


def check_command(words: list[str]) -> None:
    """Walk the tree of commands along the words and look every option up."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        names = [name.strip("[]") for name in re.split(r"[|/]", words[0])]
        if names == ["COMMAND"]:
            return
        for name in names:
            assert name in command.commands, f"there is no command {name!r} among {sorted(command.commands)}"
        command, words = command.commands[names[0]], words[1:]
    known = {"-h", "--help"}
    for parameter in command.params:
        known.update(parameter.opts, parameter.secondary_opts)
    for word in words:
        if word == "--":
            return
        option = re.match(r"\[?(--?[a-z][a-z0-9-]*)", word)
        if option:
            assert option.group(1) in known, f"{command.name} has no option {option.group(1)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(FENCED.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{target} does not exist"
        assert linked.is_relative_to(CHECKOUT), f"{target} leaves the project"
        if anchor and linked.suffix == ".md":
            assert anchor in headings(linked), f"{target} names no heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_and_options_exist(document: Path) -> None:
    for words in command_lines(document):
        check_command(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    for line in code_lines(document):
        match = re.match(r"\s*(?:\$ )?make\s+([a-z]+)\b", line)
        if match:
            assert match.group(1) in targets, f"there is no target {match.group(1)!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(document: Path) -> None:
    for piece in INLINE.findall(FENCED.sub("", document.read_text())):
        if re.fullmatch(r"(?:jobs|pipelines|cluster|tests|docs)/[\w./-]+\.\w+", piece):
            assert (CHECKOUT / piece).exists(), f"{piece} does not exist"


def test_the_checks_notice_what_is_wrong() -> None:
    for wrong in (["scoer"], ["doctor", "--reslts", "x"], ["--nonsense"]):
        with pytest.raises(AssertionError):
            check_command(wrong)
    check_command(["doctor", "--results", "x"])
    check_command(["doctor", "[--address", "local]"])
