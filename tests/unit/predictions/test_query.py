"""Questions: what the views say, and what no question may do."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import TryLater, UsageError
from pipelines.predictions import commit, runs
from pipelines.predictions.query import connect, open_query, run_query
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema

sys.path.insert(0, str(Path(__file__).parent))
from committed_nights import OTHER, SCHEMA, START, night


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three nights: some images change, fail and recover; the third is of another model with another class."""
    place = str(tmp_path_factory.mktemp("query") / "results of='ward' *2")
    commit.ensure_table(place)
    positive = {"decision": "positive", "p_malignant": 0.9, "p_positive": 0.9}
    night(
        place,
        0,
        SCHEMA,
        [
            {"image_uri": "/a", "patient_id": "007", "p_malignant": 0.2, "p_positive": 0.2, "decision": "negative"},
            {"image_uri": "/b", **positive},
            {"image_uri": "/c", "status": "failed", "error_code": "permission"},
            {"image_uri": "/d", "status": "failed", "error_code": "truncated"},
            {"image_uri": "/f", "decision": "refer", "p_positive": 0.5},
        ],
    )
    night(
        place,
        1,
        SCHEMA,
        [
            {"image_uri": "/a", **positive, "p_positive": 0.99},
            {"image_uri": "/b", "p_positive": float("nan"), "decision": "negative"},
            {"image_uri": "/c", "p_positive": 0.1, "decision": "negative"},
            {"image_uri": "/f", "status": "failed", "error_code": "storage"},
        ],
    )
    night(place, 2, OTHER, [{"image_uri": "/a", "model_name": "other", "p_normal": 1.0}])
    RunFolder(place, "run0").write_record(
        RunRecord(
            "run0", "f", {"model_name": "m"}, {"scored": 3}, {"seconds": 2.5}, {"user": "u"}, 1, "committed", START
        )
    )
    return place


def column(results: str, sql: str) -> list[object]:
    """The first column of an answer."""
    return run_query(results, sql).column(0).to_pylist()


def test_rows_are_all_of_them_with_all_columns(results: str) -> None:
    assert column(results, "SELECT count(*) FROM rows") == [10]
    names = column(results, "SELECT column_name FROM (DESCRIBE rows)")
    at = names.index("score")
    assert names[at : at + 5] == ["score", "p_benign", "p_malignant", "p_normal", "p_positive"]
    assert names[-2:] == ["scored_date", "patient_id"]
    assert column(results, "SELECT scored_date FROM rows WHERE run_id = 'run2'") == [datetime.date(2026, 3, 3)]
    assert column(results, "SELECT count(*) FROM rows WHERE scored_date = DATE '2026-03-02'") == [4]


@pytest.mark.parametrize(
    ("sql", "answer"),
    [
        ("SELECT count(*) FROM predictions", [7]),
        ("SELECT image_uri || run_id FROM failures ORDER BY 1", ["/crun0", "/drun0", "/frun1"]),
        (
            "SELECT image_uri || run_id || model_name FROM latest ORDER BY 1",
            ["/arun1m", "/arun2other", "/brun1m", "/crun1m", "/frun0m"],
        ),
        ("SELECT image_uri FROM unresolved ORDER BY 1", ["/d", "/f"]),
        ("SELECT image_uri FROM referrals", ["/a", "/f"]),
        ("SELECT run_id FROM runs WHERE os_user = 'u' AND scored = 3 AND seconds = 2.5", ["run0"]),
        ("SELECT patient_id FROM latest WHERE image_uri = '/a' AND model_name = 'm'", [None]),
    ],
)
def test_views(results: str, sql: str, answer: list[object]) -> None:
    assert column(results, sql) == answer


def test_a_table_without_rows_has_the_views_with_their_columns(tmp_path: Path) -> None:
    commit.ensure_table(str(tmp_path))
    for view in ("rows", "predictions", "failures", "latest", "unresolved", "referrals"):
        answer = run_query(str(tmp_path), f"FROM {view}")
        assert answer.num_rows == 0
        assert "p_positive" in answer.column_names and "scored_date" in answer.column_names
    assert run_query(str(tmp_path), "FROM runs").num_rows == 0


def test_columns_of_rows_that_were_taken_back_stay(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    place = str(tmp_path)
    commit.ensure_table(place)
    night(place, 0, SCHEMA, [{"image_uri": "/a"}])
    night(place, 1, OTHER, [{"image_uri": "/b"}])
    DeltaTable(str(tmp_path / "predictions")).delete("run_id = 'run1'")
    assert run_query(place, "SELECT image_uri, p_normal FROM rows").to_pylist() == [
        {"image_uri": "/a", "p_normal": None}
    ]


def test_one_version_is_seen_while_another_is_committed(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    night(place, 0, SCHEMA, [{"image_uri": "/a"}])
    with connect(place) as connection:
        night(place, 1, SCHEMA, [{"image_uri": "/b"}])
        assert connection.sql("SELECT count(*) FROM rows").fetchall() == [(1,)]


def test_numbers_are_plain(results: str) -> None:
    sql = """SELECT sum(frame) AS whole, 1.25 AS part, 170141183460469231731687303715884105727 AS large,
        [1::HUGEINT] AS many, {'a': 2.5} AS struct, 'x'::ENUM('x') AS word, count(*) AS n FROM rows"""
    answer = run_query(results, sql)
    assert [str(kind) for kind in answer.schema.types] == [
        "int64", "double", "double", "list<item: int64>", "struct<a: double>", "string", "int64",
    ]  # fmt: skip
    assert answer.to_pylist()[0] == {
        "whole": 0, "part": 1.25, "large": 2.0**127, "many": [1], "struct": {"a": 2.5}, "word": "x", "n": 10,
    }  # fmt: skip


def test_times_are_utc(results: str) -> None:
    assert column(results, "SELECT max(scored_at) FROM rows") == [START + datetime.timedelta(days=2)]
    assert str(run_query(results, "SELECT scored_at FROM rows").schema.types[0]) == "timestamp[us, tz=UTC]"


@pytest.mark.parametrize(
    "sql",
    [
        "COPY rows TO '{out}'",
        "/* a */ -- b\n COPY (FROM rows) TO '{out}' (FORMAT parquet)",
        "COPY (PIVOT rows ON run_id USING count(*)) TO '{out}'",
        "EXPLAIN ANALYZE COPY rows TO '{out}'",
        "EXPLAIN ANALYZE /* a */ COPY rows TO '{out}'",
        "EXPLAIN (ANALYZE) COPY rows TO '{out}'",
        "EXPLAIN EXPLAIN ANALYZE COPY rows TO '{out}'",
        "FROM rows; COPY rows TO '{out}'",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}'",
        "ATTACH '{out}' AS x (TYPE sqlite)",
        "CREATE TABLE x AS FROM rows",
        "CREATE TABLE x AS PIVOT rows ON run_id USING count(*)",
        "CREATE VIEW x AS FROM rows",
        "CREATE SECRET (TYPE s3)",
        "INSERT INTO runs FROM runs",
        "WITH a AS (FROM runs) INSERT INTO runs FROM a",
        "DELETE FROM runs",
        "DROP VIEW rows",
        "ALTER TABLE runs ADD COLUMN x INT",
        "SET memory_limit = '1TB'",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA enable_external_access = true",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CALL pragma_version()",
        "USE memory",
        "BEGIN",
        "VACUUM",
        "CHECKPOINT",
        "PREPARE x AS COPY rows TO '{out}'",
        "WITH x AS (COPY rows TO '{out}') SELECT 1",
        "EXPLAIN ANALYZE WITH x AS (COPY rows TO '{out}') SELECT 1",
        "EXPLAIN /* a */ (ANALYZE) WITH x AS (COPY rows TO '{out}') SELECT 1",
        "SELECT * FROM (WITH x AS MATERIALIZED (COPY rows TO '{out}') FROM x)",
        "DESCRIBE WITH x AS (DELETE FROM runs RETURNING *) FROM x",
        "WITH x AS (DELETE FROM runs RETURNING *) FROM x",
        "WITH x AS (UPDATE runs SET run_id = '' RETURNING *) FROM x",
        "WITH x AS (INSERT INTO runs FROM runs RETURNING *) FROM x",
        "WITH x AS (COPY rows TO '{out}') PIVOT rows ON status USING count(*)",
        "WITH x AS (/* a */ DELETE FROM runs RETURNING *) PIVOT x ON status USING count(*)",
        "WITH x AS (WITH y AS (SELECT 1) DELETE FROM runs RETURNING *) PIVOT x ON status USING count(*)",
        "FROM query('WITH x AS (COPY rows TO ''{out}'') FROM x')",
        "FROM query_table('ru' || 'ns')",
        "FROM json_execute_serialized_sql('')",
        "FROM enable_logging()",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "FROM read_csv('{secret}')",
        "FROM read_text('{secret}')",
        "FROM read_blob('{secret}')",
        "SELECT (SELECT content FROM read_text('{secret}'))",
        "FROM sniff_csv('{secret}')",
        "FROM parquet_metadata('{foreign}')",
        "FROM read_parquet('{foreign}')",
        "FROM '{foreign}'",
        "FROM glob('{folder}/*')",
        "FROM read_parquet('http://127.0.0.1:1/x.parquet')",
        "FROM duckdb_secrets()",
        "SELECT getenv('HOME')",
        "EXPLAIN ANALYZE FROM read_text('{secret}')",
        "",
        "   -- nothing",
        "SELEC 1",
        "FROM no_such_view",
        "SELECT no_such_column FROM rows",
        "SELECT 1; SELECT 2",
    ],
)
def test_a_question_that_writes_or_leaves_is_refused(results: str, tmp_path: Path, sql: str) -> None:
    import pyarrow.parquet as pq

    places = {name: tmp_path / name for name in ("out", "secret", "foreign")}
    places["secret"].write_text("hush")
    pq.write_table(pa.table({"a": [1]}), places["foreign"])
    with pytest.raises(UsageError) as refused:
        run_query(results, sql.format(folder=tmp_path, **places))
    assert refused.value.cure
    assert "\n" not in refused.value.message and "hush" not in str(refused.value)
    assert not places["out"].exists()


def test_duckdb_itself_cannot_write_a_file_of_the_table(tmp_path: Path) -> None:
    import duckdb

    place = str(tmp_path)
    commit.ensure_table(place)
    night(place, 0, SCHEMA, [{"image_uri": "/a"}])
    (file,) = commit.committed_files(place)
    before = Path(file).read_bytes()
    with connect(place) as connection:
        names = connection.sql("SELECT unnest(current_setting('allowed_paths'))").fetchall()
        assert connection.sql("SELECT count(*) FROM rows").fetchall() == [(1,)]
        for target in (file, *(name for (name,) in names)):
            for options in ("FORMAT parquet", "FORMAT parquet, USE_TMP_FILE false", "FORMAT csv, USE_TMP_FILE false"):
                for sql in (
                    "COPY (SELECT 1 AS a) TO '{}' ({})",
                    "WITH x AS (COPY (SELECT 1 AS a) TO '{}' ({})) SELECT * FROM x",
                ):
                    with pytest.raises(duckdb.Error):
                        connection.execute(sql.format(target, options))
    assert Path(file).read_bytes() == before
    assert [path.name for path in Path(file).parent.iterdir()] == [Path(file).name]


def test_nothing_was_changed_by_all_of_them(results: str) -> None:
    assert commit.table_version(results) == 3
    assert column(results, "SELECT count(*) FROM rows") == [10]


@pytest.mark.parametrize(
    "sql",
    [
        "FROM rows",
        "(SELECT 1)",
        "WITH a AS (FROM rows) SELECT count(*) FROM a",
        "VALUES (1)",
        "TABLE rows",
        "DESCRIBE rows",
        "SHOW TABLES",
        "SUMMARIZE rows",
        "PIVOT rows ON status USING count(*) GROUP BY run_id",
        "SELECT * FROM (PIVOT rows ON status USING count(*) GROUP BY run_id)",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) FROM t",
        "FROM rows UNION ALL BY NAME FROM rows",
        "SELECT 'COPY_QUERY_NODE' AS \"DELETE_NODE\", replace('(delete', 'e', 'copy')",
        "PIVOT (SELECT status, '(DELETE' AS a, run_id -- (DELETE\n FROM rows) ON status USING count(*) GROUP BY run_id",
        "FROM range(3), unnest([1])",
        "EXPLAIN FROM rows",
        "EXPLAIN ANALYZE SELECT count(*) FROM rows",
        "-- how many\nSELECT count(*) FROM rows;",
    ],
)
def test_a_question_that_reads_is_answered(results: str, sql: str) -> None:
    assert run_query(results, sql).num_rows


def test_show_tables_names_the_views_and_nothing_else(results: str) -> None:
    assert column(results, "SHOW TABLES") == [
        "failures", "latest", "patients", "predictions", "referrals", "rows", "runs", "unresolved",
    ]  # fmt: skip


def test_local_python_objects_are_out_of_reach(results: str) -> None:
    hidden = pa.table({"a": [1]})
    with pytest.raises(UsageError, match="hidden"):
        run_query(results, "FROM hidden")
    assert hidden.num_rows == 1


def test_an_answer_can_be_read_in_batches(results: str) -> None:
    with open_query(results, "SELECT range AS n FROM range(200_000)") as reader:
        batches = list(reader)
    assert sum(batch.num_rows for batch in batches) == 200_000
    assert max(batch.num_rows for batch in batches) <= 1 << 17


def test_a_carried_column_may_have_any_name_that_is_not_reserved(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    names = ["filename", "file_index", "rowid", "file_row"]
    schema = prediction_schema(["a", "b"], pa.schema([(name, pa.string()) for name in names]))
    night(place, 0, schema, [{"image_uri": "/a", **{name: f"my {name}" for name in names}}])
    assert run_query(place, f"SELECT {', '.join(names)}, scored_date FROM latest").to_pylist() == [
        {**{name: f"my {name}" for name in names}, "scored_date": START.date()}
    ]


def test_a_record_with_a_byte_that_is_not_utf8_is_shown(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    record = RunRecord("r", "f", {"archive": "/pacs/\udcff"}, {}, {}, {"host": "\udcfe"}, 1, "committed", START)
    RunFolder(place, "r").write_record(record)
    assert run_query(place, "SELECT archive, host FROM runs").to_pylist() == [
        {"archive": "/pacs/\\udcff", "host": "\\udcfe"}
    ]


def test_a_damaged_record_hinders_questions_about_runs_only(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "run.json").write_text("{}")
    for sql in ("FROM latest", "SHOW TABLES", "PIVOT rows ON status USING count(*) GROUP BY run_id"):
        run_query(place, sql)
    for sql in ("FROM runs", 'SELECT * FROM "Runs"', "PIVOT runs ON status USING count(*) GROUP BY run_id"):
        with pytest.raises(UsageError, match=r"run\.json"):
            run_query(place, sql)


def test_no_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no predictions"):
        run_query(str(tmp_path / "nothing"), "FROM rows")


def test_a_file_that_was_cleaned_away_is_explained(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    night(place, 0, SCHEMA, [{"image_uri": "/a"}])
    Path(commit.committed_files(place)[0]).unlink()
    with pytest.raises(TryLater, match=r"scored_date=2026-03-01.* is gone"):
        run_query(place, "FROM rows")


def test_a_damaged_file_is_explained(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    night(place, 0, SCHEMA, [{"image_uri": "/a"}])
    Path(commit.committed_files(place)[0]).write_bytes(b"not parquet at all")
    with pytest.raises(UsageError) as refused:
        run_query(place, "FROM rows")
    assert "\n" not in refused.value.message


def test_runs_without_a_table_of_their_own_are_listed(results: str) -> None:
    assert [record.run_id for record in runs.list_runs(results)] == ["run0"]
