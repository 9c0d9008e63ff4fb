"""Names as archives have them: no UTF-8, decomposed, with signs that shells, URIs, tables and terminals know."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.cli import main

DECOMPOSED = "Mu\u0308ller"
# The archive's own folder; it is in the command line, in the run's record and in the report.
FOLDER = os.fsdecode(b"arch\xefve #1")
NAMES = [
    b"caf\xe9.jpg",
    b"\xff\xfe/\xe9\xe8.jpg",
    f"{DECOMPOSED}/Ro\u0308ntgen 1.jpg".encode(),
    f"{DECOMPOSED}/plain.jpg".encode(),
    b"hash#1.jpg",
    b"per%41cent%.jpg",
    b"q?x=1&y=2.jpg",
    b"quo'te\"`$HOME.jpg",
    b"line\nbreak.jpg",
    b"\nfolder\r/return\r\nfeed.jpg",
    b"tab\tand\x1b[2Jescape\x07.jpg",
    b"back\\slash\\x41.jpg",
    b" space .jpg",
    b"comma,semi;colon:.jpg",
    b"=cmd|' /C calc'!A0.jpg",
    b"-rf.jpg",
    b"[a-z]{1}*.jpg",
    "gnp.\u202egpj.jpg".encode(),
    "c1\u0085\u2028line.jpg".encode(),
    "\U0001fa7b 漢字.jpg".encode(),
    b"a" * 251 + b".jpg",
]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escaped(name: bytes) -> str:
    r"""The documented spelling in `image_uri`: a backslash twice, a byte that is no UTF-8 as \xNN."""
    return (
        os.fsdecode(name).replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., list[Path]]) -> Path:
    """One image under each name, and its label."""
    home = tmp_path_factory.mktemp("names")
    folder = os.fsencode(home / FOLDER)
    for name, drawn in zip(NAMES, draw(home / "drawn", len(NAMES)), strict=True):
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copyfile(drawn, path)
    return home


@pytest.fixture(scope="module")
def scored(archive: Path, tiny_models: Path, nightread: Callable[..., Any]) -> Any:
    """The archive, scored once."""
    expression = r"^(?P<folder>[^/]+)/(?P<name>.+)\.jpg$"
    return nightread(
        "score", archive / FOLDER, "--model", f"{tiny_models}/cells", "--results", archive / "results", "--list",
        "--path-columns", expression,
    )  # fmt: skip


def test_each_image_is_found_and_scored_once(archive: Path, scored: Any, rows_of: Callable[[Path], list[Any]]) -> None:
    assert scored.code == 0, scored.err
    rows = rows_of(archive / "results")
    assert sorted(row["image_uri"] for row in rows) == sorted(
        f"{archive}/{escaped(os.fsencode(FOLDER))}/{escaped(name)}" for name in NAMES
    )
    assert {row["status"] for row in rows} == {"scored"}
    folders = {row["image_uri"].rpartition("/")[2]: (row["folder"], row["name"]) for row in rows}
    assert folders["plain.jpg"] == (DECOMPOSED, "plain")
    assert folders["\\xe9\\xe8.jpg"] == ("\\xff\\xfe", "\\xe9\\xe8")
    assert folders["return\r\nfeed.jpg"] == ("\nfolder\r", "return\r\nfeed")
    assert folders["hash#1.jpg"] == (None, None)


def test_no_name_steers_the_terminal(archive: Path, scored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [line for line in scored.out.split("\n") if " => " in line]
    assert len(listed) == len(NAMES)
    assert any("line\\nbreak.jpg => " in line for line in listed)
    results = str(archive / "results")
    assert main(["query", results, "SELECT image_uri, folder, status FROM latest"]) == 0
    table = capsys.readouterr().out
    assert table.count("scored") == len(NAMES) == len(table.strip("\n").split("\n")) - 2
    record = json.loads(next((archive / "results" / "runs").glob("*/run.json")).read_text())
    assert main(["runs", "show", results, record["run_id"]]) == 0
    shown = capsys.readouterr().out
    assert record["run_id"] in shown
    assert not CONTROL.search(scored.out + scored.err + table + shown)


def test_names_come_out_of_every_question_as_they_are(
    archive: Path, scored: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = sorted(f"{archive}/{escaped(os.fsencode(FOLDER))}/{escaped(name)}" for name in NAMES)
    asked = ["query", str(archive / "results"), "SELECT image_uri FROM latest ORDER BY image_uri"]
    assert main([*asked, "--json"]) == 0
    assert [row["image_uri"] for row in json.loads(capsys.readouterr().out)] == expected
    for suffix in ("parquet", "csv"):
        assert main([*asked, "--output", str(archive / f"out.{suffix}")]) == 0
    assert pq.read_table(archive / "out.parquet")["image_uri"].to_pylist() == expected
    with open(archive / "out.csv", newline="", encoding="utf-8") as handle:
        assert [row["image_uri"] for row in csv.DictReader(handle)] == expected


def test_a_manifest_of_any_form_finds_the_files(
    archive: Path, scored: Any, tiny_models: Path, nightread: Callable[..., Any]
) -> None:
    """The second night has nothing to do: every row leads to the file, and the version, that the table has."""
    windows = [name for name in map(os.fsdecode, NAMES) if name.isprintable() and "\\" not in name][::2]
    assert len(windows) > 5
    others = [escaped(name) for name in NAMES if os.fsdecode(name) not in windows]
    rows = [f"\\\\SRV\\images\\{name.replace('/', chr(92))}" for name in windows]
    rows += [unicodedata.normalize(("NFC", "NFD")[at % 2], uri) for at, uri in enumerate(others)]
    manifest = archive / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["uri"], *([row] for row in rows)])
    done = nightread(
        "score", manifest, "--model", f"{tiny_models}/cells", "--results", archive / "results", "--json",
        "--root", archive / FOLDER, "--map-prefix", f"\\\\srv\\Images={archive / FOLDER}",
        env={"RAY_ADDRESS": "256.256.256.256:1"},
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (done.answer["found"], done.answer["unchanged"], done.answer["new"]) == (len(NAMES), len(NAMES), 0)


def test_a_report_on_such_names(archive: Path, scored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    labels, report = archive / "labels.csv", archive / "report"
    with labels.open("w", newline="", encoding="utf-8") as handle:
        uris = [unicodedata.normalize("NFC", escaped(name)) for name in NAMES]
        rows = [[uri, ("benign", "malignant")[at % 2], f"p{at}"] for at, uri in enumerate(uris)]
        csv.writer(handle).writerows([["uri", "label", "patient_id"], *rows])
    arguments = ["--labels", str(labels), "--root", str(archive / FOLDER), "--report", str(report)]
    assert main(["evaluate", "--results", str(archive / "results"), *arguments]) == 0
    told = capsys.readouterr()
    assert not CONTROL.search(told.out + told.err)
    assert sorted(pq.read_table(report / "predictions.parquet")["image_uri"].to_pylist()) == sorted(
        f"{archive}/{escaped(os.fsencode(FOLDER))}/{escaped(name)}" for name in NAMES
    )
    page = (report / "report.html").read_text()
    assert not CONTROL.search(page.replace("\t", " ")) and "\\x1b[2Jescape" in page
