"""What goes and what stays when results are cleaned, and which versions of the table that costs."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

from jobs.cli import main
from jobs.runs_keeping import size
from pipelines.errors import TryLater
from pipelines.predictions import commit
from pipelines.predictions.cleaning import Cleaned, Compaction, clean
from pipelines.predictions.leftovers import DAY, Ages
from pipelines.predictions.rollback import roll_back
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.storage.leases import Lease

SCHEMA = prediction_schema(["benign"], None)
START = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
WHO = {"user": "it", "host": "pacs"}
OLD_RUN, YOUNG_RUN, STRANGER = "20240301T220000-00000001", "20240301T220000-00000002", "of-somebody-else"


def record(results: str, run: str, status: str, days: float = 1.0) -> None:
    started = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    RunFolder(results, run).write_record(RunRecord(run, "f", {}, {}, {}, {}, None, status, started))


def night(results: str, run: str, images: int = 2, day: int = 0) -> None:
    """Commit a run of scored rows and its record."""
    fixed = {"run_id": run, "frame": 0, "status": "scored", "scored_at": START}
    fixed |= {"scored_date": (START - datetime.timedelta(days=day)).date()}
    rows = [{**dict.fromkeys(SCHEMA.names), **fixed, "image_uri": f"/{run}/{n}"} for n in range(images)]
    commit.commit_run(results, run, SCHEMA, pa.Table.from_pylist(rows, SCHEMA).to_batches(), lambda: None)
    record(results, run, "committed")


def write(results: str, path: str, days: float = 0.0) -> None:
    """A file of ten bytes that was written so long ago."""
    file = Path(results, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"0123456789")
    then = datetime.datetime.now().timestamp() - days * DAY
    os.utime(file, (then, then))


def tree(results: str) -> dict[str, tuple[int, int]]:
    """Every file with its size and time, leases apart."""
    files = (path for path in Path(results).rglob("*") if path.is_file() and path.parent.name != "leases")
    return {str(path.relative_to(results)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def rows_of(results: str, version: int | None = None) -> list[dict[str, Any]]:
    table = DeltaTable(f"{results}/predictions", version=version)
    day = ds.partitioning(pa.schema([("scored_date", pa.date32())]), flavor="hive")
    whole = ds.dataset(table.file_uris(), schema=pa.schema(table.schema().to_arrow()), partitioning=day).to_table()
    return sorted(whole.to_pylist(), key=lambda row: (row["run_id"], row["image_uri"]))


def readable(results: str) -> set[int]:
    """The versions whose files are all there."""
    newest = DeltaTable(f"{results}/predictions").version()
    uris = {v: DeltaTable(f"{results}/predictions", version=v).file_uris() for v in range(newest + 1)}
    return {version for version, files in uris.items() if all(Path(file).exists() for file in files)}


def cleaned(results: str, older_than: float | None = None, force: bool = False, **options: bool) -> Cleaned:
    return clean(results, Ages.of(older_than, force), WHO, lambda *_: None, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("made") / "results")
    commit.ensure_table(place)
    night(place, "r1")
    night(place, "r2")
    return place


@pytest.fixture
def results(made: str, tmp_path: Path) -> str:
    return str(shutil.copytree(made, tmp_path / "results"))


# What stands here is there before; what is marked goes.
GOES = {
    "runs/r1/plan.parquet": 0, "runs/r1/closing": 0, "runs/r1/parts/00000000.parquet": 0,
    "runs/r1/attempts/00000000-1-1": 0, "runs/r4/plan.parquet": 0, "runs/r5/parts/00000003.parquet": 0,
    "runs/r6/parts/00000000.parquet": 0, f"runs/{OLD_RUN}/plan.parquet": 31, f"runs/{OLD_RUN}/parts/x": 31,
    "listings/aaaa/0.parquet": 1.1, "listings/aaaa/1.parquet": 2, "runs/r3/.run.json.0123.tmp": 1.1,
    "predictions/_delta_log/_commit_0123.json.tmp": 2, "predictions/scored_date=2026-01-01/part-0.parquet#1": 2,
    "predictions/scored_date=2026-01-01/killed.parquet": 7.1,
}  # fmt: skip
STAYS = {
    "runs/r1/cut.json": 900, "runs/r1/notes.txt": 900, "runs/r3/plan.parquet": 900, "runs/r3/closing": 900,
    "runs/r3/parts/00000000.parquet": 900, "runs/r3/attempts/00000000-1-1": 900, f"runs/{YOUNG_RUN}/plan.parquet": 29,
    f"runs/{YOUNG_RUN}/parts/x": 31, f"runs/{STRANGER}/plan.parquet": 900, "listings/bbbb/0.parquet": 0.9,
    "listings/bbbb/1.parquet": 2, "archives/aaaa.json": 900, "audit.jsonl": 900, "runs/r1/.run.json.0123.tmp": 0.9,
    "predictions/scored_date=2026-01-01/at-work.parquet": 6.9, "predictions/scored_date=2026-01-01/notes.txt": 900,
    "predictions/other/of-somebody-else.parquet": 900,
}  # fmt: skip


@pytest.fixture
def lived_in(results: str) -> str:
    """Results with something of every kind, old and young: r3 is interrupted, r6 lost its record's content."""
    record(results, "r3", "running", days=900)
    record(results, "r4", "abandoned")
    record(results, "r5", "rolled_back")
    night(results, "r6")
    Path(results, "runs", "r6", "run.json").write_bytes(b"")
    for path, days in (GOES | STAYS).items():
        write(results, path, days)
    return results


def test_exactly_what_nobody_needs_goes(lived_in: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, rows = tree(lived_in), rows_of(lived_in)
    assert main(["runs", "clean", lived_in, "--dry-run"]) == 0
    promised = capsys.readouterr().out.splitlines()
    assert tree(lived_in) == before
    assert not Path(lived_in, "leases").exists()

    assert main(["runs", "clean", lived_in, "--json"]) == 0
    captured = capsys.readouterr()
    assert [line.replace("  to go    ", "  would go ") for line in captured.err.splitlines()] == promised[1:]
    assert promised[0] == "Dry run: nothing is deleted or written."
    assert "  would go    parts, markers and plans of runs that are over: 7 files, 70 bytes" in promised
    told = json.loads(captured.out)
    assert sum(pile["files"] for pile in told["deleted"]) == len(GOES)
    assert sum(pile["bytes"] for pile in told["deleted"]) == 10 * len(GOES)
    assert (told["interrupted_runs"], told["unreadable_versions"]) == (["r3"], [])

    after, said = tree(lived_in), Path(lived_in, "audit.jsonl")
    assert json.loads(said.read_text().splitlines()[-1])["action"] == "clean"
    # The one file that clean adds to: who cleaned, and when.
    assert after | {said.name: None} == {p: facts for p, facts in before.items() if p not in GOES} | {said.name: None}
    assert not Path(lived_in, "runs", OLD_RUN).exists()
    assert rows_of(lived_in) == rows
    assert main(["runs", "clean", lived_in]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "  nothing to delete"


@pytest.mark.parametrize("older_than", ["40d", "1h"])
def test_an_age_that_is_given_holds_for_all(lived_in: str, older_than: str) -> None:
    assert main(["runs", "clean", lived_in, "--older-than", older_than, "--force"]) == 0
    left = tree(lived_in)
    gone = {path for path in GOES | STAYS if path not in left}
    short_lived = {path for path in GOES if "#" in path or ".tmp" in path or path.startswith("listings")}
    if older_than == "40d":
        assert gone == short_lived
    else:
        others = {"predictions/scored_date=2026-01-01/at-work.parquet", *(p for p in STAYS if YOUNG_RUN in p)}
        assert gone == (set(GOES) | others) - {"runs/r6/parts/00000000.parquet"}  # since when r6 is over nobody knows


def aged(results: str, days: float) -> None:
    """Make the log say that whatever left the table did so some days earlier."""
    for entry in Path(results, "predictions", "_delta_log").glob("*.json"):
        text = re.sub(
            r'"deletionTimestamp":(\d+)',
            lambda m: f'"deletionTimestamp":{int(m[1]) - int(days * DAY * 1000)}',
            entry.read_text(),
        )
        entry.write_text(text)


@pytest.mark.parametrize(
    ("days", "older_than", "force", "goes"),
    [
        (6.9, None, False, False),
        (7.1, None, False, True),
        (0.0, None, True, True),
        (7.1, 8 * DAY, False, False),
        (6.9, DAY, False, False),
        (6.9, DAY, True, True),
        (0.5, DAY, True, False),
    ],
)
def test_files_of_earlier_versions_go_after_a_week(
    results: str, days: float, older_than: float | None, force: bool, goes: bool
) -> None:
    roll_back(results, "r1", WHO)
    aged(results, days)
    done = cleaned(results, older_than, force)
    assert [pile.what for pile in done.leftovers.piles] == (
        ["files of the table that its newest version does not need"] if goes else []
    )
    assert done.leftovers.unreadable == (((1, 2),) if goes else ())
    assert readable(results) == ({0, 3} if goes else {0, 1, 2, 3})
    assert [row["run_id"] for row in rows_of(results)] == ["r2", "r2"]


@pytest.mark.parametrize("seed", range(3))
def test_the_versions_that_are_named_are_those_that_are_lost(results: str, seed: int) -> None:
    """Compared with a look at each version's files, whatever happened before."""
    moments = random.Random(seed)
    there = ["r1", "r2"]
    for number in range(3, 10):
        what = moments.choice(["night", "night", "roll back", "compact", "clean"])
        if what == "night":
            there.append(f"r{number}")
            night(results, there[-1], images=number, day=number % 2)
        elif what == "roll back" and there:
            roll_back(results, there.pop(moments.randrange(len(there))), WHO)
        else:
            before, rows = readable(results), rows_of(results)
            done = cleaned(results, force=what == "clean", compact=what == "compact")
            lost = {v for first, last in done.leftovers.unreadable for v in range(first, last + 1)}
            if done.compaction is None or not done.compaction.days:
                assert before - readable(results) == lost
            assert rows_of(results) == rows
    before = readable(results)
    assert {v for a, b in cleaned(results, force=True).leftovers.unreadable for v in range(a, b + 1)} == (
        before - readable(results)
    )
    assert {row["run_id"] for row in rows_of(results)} == set(there)


def test_compaction_keeps_every_row_and_every_reader(results: str) -> None:
    for number in (3, 4):
        night(results, f"r{number}", day=1)
    night(results, "r5", day=2)
    rows, version = rows_of(results), commit.table_version(results)
    reader = DeltaTable(f"{results}/predictions")
    promised = cleaned(results, compact=True, dry_run=True)
    assert (promised.compaction, promised.table_version) == (Compaction(2, 4), version)
    done = cleaned(results, compact=True)
    assert (done.compaction, done.table_version) == (Compaction(2, 4, 2), (version or 0) + 1)
    assert rows_of(results) == rows == rows_of(results, version)
    assert all(Path(file).exists() for file in reader.file_uris())
    entry = DeltaTable(f"{results}/predictions").history(1)[0]
    assert json.loads(entry["nightread_compact"]).items() >= WHO.items()
    again = cleaned(results, compact=True)
    assert (again.compaction, again.table_version) == (Compaction(0, 0, 0), done.table_version)
    schema = pa.schema(DeltaTable(f"{results}/predictions").schema().to_arrow())
    assert schema.field("image_uri").metadata == SCHEMA.field("image_uri").metadata


def test_a_compacted_run_can_be_rolled_back(results: str) -> None:
    cleaned(results, compact=True, force=True)
    roll_back(results, "r1", WHO)
    assert {row["run_id"] for row in rows_of(results)} == {"r2"}


def test_what_cannot_be_cleaned_now(lived_in: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(lived_in)
    with Lease.acquire(lived_in), pytest.raises(TryLater, match="is being written by"):
        cleaned(lived_in)
    with Lease.acquire(lived_in):
        assert main(["runs", "clean", lived_in]) == 75
        assert main(["runs", "clean", lived_in, "--dry-run"]) == 0
    assert main(["runs", "clean", str(tmp_path / "nowhere")]) == 2
    assert main(["runs", "clean", lived_in, "--older-than", "a month"]) == 2
    Path(lived_in, "runs", "r5", "run.json").write_text("{}")
    assert main(["runs", "clean", lived_in]) == 2
    assert "is no record of a run, or damaged" in capsys.readouterr().err.splitlines()[-2]
    assert tree(lived_in) == before | {"runs/r5/run.json": tree(lived_in)["runs/r5/run.json"]}


def test_sizes_in_words() -> None:
    sizes = {
        0: "0 bytes",
        999: "999 bytes",
        1500: "1.5 kB",
        250_000: "250 kB",
        10**9: "1.0 GB",
        4 * 10**15: "4,000.0 TB",
    }
    assert {number: size(number) for number in sizes} == sizes
