"""The published file: the rows of `latest`, whole, never older than what is there, never where others keep files."""

from __future__ import annotations

import datetime
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import LeaseLost, TryLater, UsageError
from pipelines.predictions import commit
from pipelines.predictions import publish as publishing
from pipelines.predictions.publish import FILE_NAME, Published, check_place, publish
from pipelines.predictions.query import open_files, run_query
from pipelines.predictions.schema import column_order, prediction_schema
from pipelines.storage.leases import Lease

SCHEMA = prediction_schema(["benign", "malignant"], pa.schema([("patient_id", pa.string())]))
OTHER = prediction_schema(["normal"], None)
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
Row = dict[str, Any]


def night(results: str, run: str, rows: list[Row], schema: pa.Schema = SCHEMA) -> int:
    """Commit a run of the given rows."""
    fixed = {"run_id": run, "frame": 0, "status": "scored", "model_name": "m", "scored_at": START}
    whole = [{**dict.fromkeys(schema.names), **fixed, "scored_date": START.date(), **row} for row in rows]
    return commit.commit_run(results, run, schema, pa.Table.from_pylist(whole, schema).to_batches(), lambda: None)


@pytest.fixture
def results(tmp_path: Path) -> str:
    """Two nights, of which the second scored /a again and brought another class."""
    place = str(tmp_path / "results")
    commit.ensure_table(place)
    night(place, "r1", [{"image_uri": uri, "p_malignant": 0.25, "patient_id": "007"} for uri in ("/a", "/b", "/c")])
    later = START + datetime.timedelta(days=1)
    rows = [
        {"image_uri": uri, "scored_at": later, "scored_date": later.date(), "p_normal": 0.5} for uri in ("/a", "/d")
    ]
    night(place, "r2", [*rows, {"image_uri": "/e", "status": "failed", "error_code": "truncated"}], OTHER)
    return place


def read(folder: Path) -> list[Row]:
    return pq.read_table(folder / FILE_NAME).to_pylist()


def written(folder: Path) -> tuple[int, int]:
    """Which file it is, and when it was written; reading it changes neither."""
    state = (folder / FILE_NAME).stat()
    return state.st_ino, state.st_mtime_ns


def test_the_file_holds_the_view_in_its_columns(results: str, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "deep"
    done = publish(results, str(folder), 2)
    assert done == Published(str(folder / FILE_NAME), 4, done.seconds, False)
    table = pq.read_table(folder / FILE_NAME)
    assert table.column_names == run_query(results, "FROM latest LIMIT 0").column_names
    assert table.column_names == column_order(pa.schema(DeltaTable(f"{results}/predictions").schema().to_arrow()))
    assert not any(pa.types.is_dictionary(kind) or pa.types.is_nested(kind) for kind in table.schema.types)
    assert {name: table.schema.field(name).type for name in ("scored_at", "scored_date", "score", "frame")} == {
        "scored_at": pa.timestamp("us", tz="UTC"),
        "scored_date": pa.date32(),
        "score": pa.float32(),
        "frame": pa.int32(),
    }
    assert (
        sorted(table.to_pylist(), key=lambda row: row["image_uri"])
        == run_query(results, "FROM latest ORDER BY image_uri").to_pylist()
    )
    assert {row["image_uri"]: row["run_id"] for row in table.to_pylist()} == {
        "/a": "r2", "/b": "r1", "/c": "r1", "/d": "r2",
    }  # fmt: skip
    told = {key.decode(): value.decode() for key, value in pq.read_metadata(folder / FILE_NAME).metadata.items()}
    assert (told["nightread_results"], told["nightread_table_version"]) == (results, "2")
    assert datetime.datetime.fromisoformat(told["nightread_published_at"]).tzinfo is not None
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


image_rows = st.fixed_dictionaries(
    {
        "image_uri": st.sampled_from(["/a", "/b", "/c d", "/é\\xff", "/'\n"]),
        "frame": st.integers(0, 1),
        "model_name": st.sampled_from(["m", "n", None]),
        "status": st.sampled_from(["scored", "scored", "failed"]),
        "scored_at": st.integers(0, 3).map(lambda hours: START + datetime.timedelta(hours=hours)),
    }
)


@settings(max_examples=12)
@given(st.lists(st.lists(image_rows, max_size=12), max_size=4), st.sampled_from(["results", "re*sults {a}"]))
def test_each_image_frame_and_model_has_its_newest_row_once(runs: list[list[Row]], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / name)
        commit.ensure_table(place)
        newest: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for number, rows in enumerate(runs):
            night(place, f"r{number}", rows)
            for row in rows:
                if row["status"] == "scored":
                    key = (row["image_uri"], row["frame"], row["model_name"])
                    newest[key] = max(newest.get(key, (START,)), (row["scored_at"], f"r{number}"))
        publish(place, str(Path(folder) / "out"), len(runs))
        found = read(Path(folder) / "out")
    assert len(found) == len(newest)
    assert {
        (row["image_uri"], row["frame"], row["model_name"]): (row["scored_at"], row["run_id"]) for row in found
    } == newest


def test_what_is_there_already_is_not_written_again_and_nothing_older_over_it(results: str, tmp_path: Path) -> None:
    assert not publish(results, str(tmp_path / "out"), 1).skipped
    assert len(read(tmp_path / "out")) == 3
    assert not publish(results, str(tmp_path / "out"), 2).skipped
    state = written(tmp_path / "out")
    for version in (2, 1):
        again = publish(results, str(tmp_path / "out"), version)
        assert again.skipped and again.rows == 4
    assert written(tmp_path / "out") == state


def test_results_from_a_backup_replace_what_was_published_of_them_later(results: str, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "backup")
    out = tmp_path / "out"
    night(results, "r3", [{"image_uri": "/lost"}])
    assert publish(results, str(out), 3).rows == 5
    shutil.rmtree(results)
    (tmp_path / "backup").rename(results)
    done = publish(results, str(out), 2)
    assert (done.rows, done.skipped) == (4, False)
    assert {row["image_uri"] for row in read(out)} == {"/a", "/b", "/c", "/d"}
    assert publish(results, str(out), 2).skipped


def interrupted(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """Let something happen once the next publication has been written, and before it is swapped in."""
    write = publishing._write

    def slow(*arguments: Any) -> int:
        monkeypatch.setattr(publishing, "_write", write)
        rows = write(*arguments)
        meanwhile()
        return rows

    monkeypatch.setattr(publishing, "_write", slow)


def test_a_writer_that_slept_does_not_replace_what_another_has_published_meanwhile(
    results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def another() -> None:
        night(results, "r3", [{"image_uri": "/new"}])
        publish(results, str(out), 3)

    publish(results, str(out), 1)
    interrupted(monkeypatch, another)
    late = publish(results, str(out), 2)
    assert (late.skipped, late.rows, len(read(out))) == (True, 5, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "results"]
    assert [path.name for path in out.iterdir()] == [FILE_NAME]


def test_what_others_have_put_there_meanwhile_is_not_replaced(
    results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupted(monkeypatch, lambda: (out / FILE_NAME).write_bytes(b"mine"))
    with pytest.raises(UsageError, match="has not written it"):
        publish(results, str(out), 2)
    assert (out / FILE_NAME).read_bytes() == b"mine"


def test_who_has_lost_the_lease_while_writing_publishes_nothing(
    results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    publish(results, str(out), 1)
    with Lease.acquire(results) as lease:
        interrupted(monkeypatch, lambda: Path(results, "leases", f"{lease.number + 1}.json").write_bytes(b""))
        with pytest.raises(LeaseLost):
            publish(results, str(out), 2, check=lease.check)
    assert len(read(out)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "results"]
    with Lease.acquire(results, clock=iter(range(0, 1000, 100)).__next__, sleep=lambda _seconds: None) as lease:
        assert publish(results, str(out), 2, check=lease.check).rows == len(read(out)) == 4


def test_a_file_that_is_cleared_away_while_it_is_filled_can_be_filled_later(
    results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, lambda: next(tmp_path.glob(".latest*.tmp")).unlink())
    with pytest.raises(TryLater, match="removed"):
        publish(results, str(tmp_path / "out"), 2)
    assert publish(results, str(tmp_path / "out"), 2).rows == 4


def test_a_table_without_rows_gives_a_file_with_its_columns(results: str, tmp_path: Path) -> None:
    table = DeltaTable(f"{results}/predictions")
    table.delete()
    assert publish(results, str(tmp_path / "out"), table.version()).rows == 0
    assert pq.read_table(tmp_path / "out" / FILE_NAME).column_names == run_query(results, "FROM rows").column_names


def test_a_publication_that_fails_leaves_the_old_file_and_what_was_killed_is_cleaned(
    results: str, tmp_path: Path
) -> None:
    publish(results, str(tmp_path / "out"), 1)
    outside = f".{FILE_NAME}-{hashlib.sha256(b'out').hexdigest()[:12]}.0123456789ab.tmp"
    neighbour = tmp_path / outside.replace("-", "-a", 1)
    neighbour.write_bytes(b"another folder's")
    leftovers = [tmp_path / "out" / f".{FILE_NAME}.0123456789ab.tmp", tmp_path / outside]
    for killed in leftovers:
        killed.write_bytes(b"half")
    newer = Path(commit.committed_files(results)[-1])
    hidden = newer.rename(newer.with_suffix(".away"))
    with pytest.raises(Exception, match=r"could not be read|is gone"):
        publish(results, str(tmp_path / "out"), 2)
    assert len(read(tmp_path / "out")) == 3
    hidden.rename(newer)
    publish(results, str(tmp_path / "out"), 2)
    assert len(read(tmp_path / "out")) == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FILE_NAME]
    assert sorted(path.name for path in tmp_path.iterdir()) == [neighbour.name, "out", "results"]


@pytest.mark.parametrize(
    "inside",
    ["results", ".", "results/predictions", "results/predictions/x", "results/runs/r1", "results/leases", "delta/x/y"],
)
def test_places_in_which_others_keep_their_files_are_refused(results: str, tmp_path: Path, inside: str) -> None:
    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    for refuse in (check_place, lambda own, place: publish(own, place, 2)):
        with pytest.raises(UsageError, match=r"results|Delta table") as refused:
            refuse(results, str(tmp_path / inside))
        assert "folder of its own" in refused.value.cure
    assert not list(tmp_path.rglob(FILE_NAME))


def test_a_place_that_cannot_be_written_is_found_out_before_the_night(results: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError):
        check_place(results, str(tmp_path / "file" / "out"))
    check_place(results, str(tmp_path / "new"), try_writing=False)
    assert not (tmp_path / "new").exists()
    check_place(results, str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_nothing_is_drawn_on_standard_output(results: str) -> None:
    with open_files(results, {}, "100MB") as connection:
        assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]


def test_a_folder_of_its_own_inside_the_results_will_do(results: str) -> None:
    assert publish(results, f"{results}/published", 2).rows == 4


def test_files_of_others_are_never_replaced(results: str, tmp_path: Path) -> None:
    for content in (b"", b"text"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / FILE_NAME).write_bytes(content)
        with pytest.raises(UsageError, match="has not written it"):
            check_place(results, str(tmp_path / "mine"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine" / FILE_NAME)
    with pytest.raises(UsageError, match="has not written it"):
        publish(results, str(tmp_path / "mine"), 2)
    assert pq.read_table(tmp_path / "mine" / FILE_NAME).column_names == ["a"]


def test_what_was_published_from_another_table_is_refused_before_the_night(results: str, tmp_path: Path) -> None:
    other, out = str(tmp_path / "other"), str(tmp_path / "out")
    commit.ensure_table(other)
    publish(other, out, 0)
    check_place(other, out)
    state = written(tmp_path / "out")
    for refused in (results, str(tmp_path / "not yet")):
        with pytest.raises(UsageError, match="another table"):
            check_place(refused, out)
    assert not (tmp_path / "not yet").exists()
    with pytest.raises(UsageError, match="another table"):
        publish(results, out, 2)
    assert written(tmp_path / "out") == state
