"""What docs/serving.md tells a programmer to run does what it says, against the command itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.problems import KINDS

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "serving.md").read_text()
COMMANDS = re.findall(r"^curl .*$", TEXT, re.MULTILINE)
PROGRAM = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
TOKEN = "a-token-of-the-test-0123456789"


@pytest.fixture(scope="module")
def ask(
    tiny_models: Path, environment: dict[str, str], draw: Callable[..., list[Path]], tmp_path_factory: Any
) -> Iterator[Callable[..., str]]:
    """Runs a command in a folder with pictures, against a server with a token; gives what it printed."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("programmer")
    [drawn] = draw(folder, 1)
    picture = drawn.rename(folder / "picture.jpg")
    Image.open(picture).rotate(90).save(folder / "other.png")
    command = [sys.executable, "-m", "jobs", "serve", "--model", f"{tiny_models}/other", "--port", "0", "--json"]
    server = subprocess.Popen(
        [*command, "--workers", "1"], env={**environment, "NIGHTREAD_SERVE_TOKEN": TOKEN}, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"].rstrip("/")

        def run(*words: str, token: str = TOKEN) -> str:
            done = subprocess.run(
                [word.replace("http://127.0.0.1:8460", url) for word in words],
                env={**os.environ, "TOKEN": token}, cwd=folder, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert done.stderr == ""
            return done.stdout

        yield run
    finally:
        server.terminate()
        assert server.wait(30) == 0


def test_every_command_of_the_document_is_answered(ask: Callable[..., str]) -> None:
    whole, form, batch, envelope = [json.loads(ask("sh", "-c", command)) for command in COMMANDS]
    assert whole["content_sha256"] == form["content_sha256"]
    assert whole["probabilities"] == form["probabilities"] == batch["answers"][0]["probabilities"]
    assert [answer["width"] for answer in batch["answers"]] == [160, 160]
    assert envelope["statusCode"] == 200
    assert json.loads(envelope["body"])["predicted_label"] == whole["predicted_label"]
    documented = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", TEXT.partition("The answer:")[2].partition("###")[0], re.M)
    assert re.findall(r"\w+", " ".join(documented)) == list(whole)


def test_the_program_of_the_document_prints_the_answer_or_the_problem(ask: Callable[..., str]) -> None:
    [program] = PROGRAM
    label, positive, decision = ask(sys.executable, "-c", program).split()
    assert label in ("benign", "malignant") and 0 <= float(positive) <= 1 and decision in ("negative", "positive")
    assert ask(sys.executable, "-c", program, token="another").startswith("unauthorized ")


def test_the_table_of_errors_has_their_statuses() -> None:
    table = TEXT.partition("### Errors")[2].partition("## Running it")[0]
    told: dict[str, int] = {}
    for statuses, codes in re.findall(r"^\| ([\d, ]+) \| (.+?) \|", table, re.MULTILINE):
        named = re.findall(r"`(\w+)`", codes)
        numbers = [int(status) for status in statuses.split(", ")]
        told |= dict(zip(named, numbers if len(numbers) > 1 else numbers * len(named), strict=True))
    # A defect needs no word.
    assert told == {code: kind.status for code, kind in KINDS.items() if code in told}
    assert set(KINDS) - set(told) == {"internal"}
