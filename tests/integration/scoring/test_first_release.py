"""Results and a model of the first release: read, proven, continued and taken back by this one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.cli import main

FIRST_RELEASE = Path(__file__).parents[2] / "fixtures" / "first_release"
BUCKET = "first-release"
ARCHIVE = f"s3://{BUCKET}/archive"
FIRST, SECOND, KILLED = "20261121T232327-7fcdecd8", "20261121T232403-fda9e123", "20261121T232437-3ce45b37"


@dataclass
class Place:
    """A copy of what the first release left, and its archive."""

    results: Path
    models: Path
    filesystem: Any

    @property
    def score(self) -> list[str]:
        """The command of its nights."""
        words = [
            "score",
            ARCHIVE,
            "--model",
            f"{self.models}/tiny",
            "--results",
            str(self.results),
            "--address",
            "local",
        ]
        return [*words, "--shard-size", "2", "--actors", "1", "--json"]


@pytest.fixture
def place(tmp_path: Path, s3: Any) -> Place:
    """A copy in a place of its own, as after a restore; the archive is in a bucket of the name that it had."""
    for name in ("RESULTS", "MODELS"):
        shutil.copytree(FIRST_RELEASE / name, tmp_path / name)
    if not s3.filesystem.exists(BUCKET):
        s3.filesystem.call_s3("create_bucket", Bucket=BUCKET)
    for image in sorted((FIRST_RELEASE / "images").iterdir()):
        s3.filesystem.pipe_file(f"{BUCKET}/archive/{image.name}", image.read_bytes())
    return Place(tmp_path / "RESULTS", tmp_path / "MODELS", s3.filesystem)


def by_image(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by the image's name; fails where an image has two."""
    found = {row["image_uri"].removeprefix(f"{ARCHIVE}/"): row for row in rows}
    assert len(found) == len(rows)
    return found


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Run a command in this process; its one JSON value."""
    code = main([*map(str, words), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 0, answer
    return answer


def test_what_it_left_is_read(place: Place, rows_of: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((str(path), path.stat().st_mtime_ns) for path in place.results.parent.rglob("*"))
    runs = told(capsys, "runs", "list", place.results)
    assert [(run["run_id"], run["status"]) for run in runs] == [
        (FIRST, "committed"), (SECOND, "committed"), (KILLED, "running"),
    ]  # fmt: skip
    assert told(capsys, "runs", "show", place.results, FIRST)["counts"]["failed_by_code"] == {"truncated": 1}
    assert told(capsys, "runs", "verify", place.results, "--deep")["rows"] == 11
    sql = "SELECT status, count(*) AS images, min(scored_date)::text AS day FROM {} GROUP BY ALL ORDER BY 1"
    day = "2026-11-21"
    assert told(capsys, "query", place.results, sql.format("rows")) == [
        {"status": "failed", "images": 1, "day": day}, {"status": "scored", "images": 10, "day": day},
    ]  # fmt: skip
    assert len(told(capsys, "query", place.results, "FROM latest")) == 10
    assert [row["run_id"] for row in told(capsys, "query", place.results, "FROM runs ORDER BY 1")][:2] == [
        FIRST,
        SECOND,
    ]
    main(["runs", "check", str(place.results), "--json"])
    watched = json.loads(capsys.readouterr().out)
    assert watched["interrupted"] == [KILLED] and watched["finished_at"].startswith("2026-11-21T23:24:")
    models = told(capsys, "models", "list", place.models)
    assert [(model["name"], model["version"], model["champion"]) for model in models] == [
        ("tiny", "v1", True), ("tiny", "v2", False),
    ]  # fmt: skip
    assert told(capsys, "models", "show", f"{place.models}/tiny@v2")["classes"] == ["benign", "malignant"]
    assert sorted((str(path), path.stat().st_mtime_ns) for path in place.results.parent.rglob("*")) == before


def test_its_pixels_and_its_scores_are_the_same_today(place: Place, rows_of: Callable) -> None:
    from pipelines.images.preprocess import Preprocessing
    from pipelines.models.registry import resolve
    from pipelines.models.runtime import Scorer

    bundle = resolve(f"{place.models}/tiny@v1")
    prepare, scorer = Preprocessing(bundle.input_size), Scorer(*bundle.scorer("float32"))
    assert prepare.id == bundle.preprocessing_id
    rows = by_image(rows_of(place.results))
    for name, row in rows.items():
        if row["status"] == "scored":
            prepared = prepare.prepare((FIRST_RELEASE / "images" / name).read_bytes())
            assert [row["p_benign"], row["p_malignant"]] == pytest.approx(scorer(prepared.pixels).tolist(), abs=1e-5)
            assert (row["width"], row["height"]) == (48, 36)


def test_a_killed_night_and_the_following_ones_go_on(
    place: Place,
    draw: Callable,
    nightread: Callable,
    shared_ray: Callable[[], dict[str, str]],
    rows_of: Callable,
    tmp_path: Path,
    capsys: Any,
) -> None:
    before = by_image(rows_of(place.results))
    parts = [pq.read_table(path).to_pylist() for path in (place.results / "runs" / KILLED / "parts").iterdir()]
    staged = by_image([row for part in parts for row in part])
    assert len(before) == 11 and len(staged) == 4
    for image in draw(tmp_path / "later", 2):
        place.filesystem.pipe_file(f"{BUCKET}/archive/{image.name}", image.read_bytes())
    env = {name: text for name, text in os.environ.items() if name.startswith("AWS_")}
    done = nightread(*place.score, env=env | shared_ray())
    assert done.code == 0, done.err
    answer = done.answer
    assert answer["resumed"] == KILLED
    counted = {name: answer[name] for name in ("found", "new", "changed", "unchanged", "scored", "failed")}
    assert counted == {"found": 27, "new": 2, "changed": 0, "unchanged": 25, "scored": 16, "failed": 0}
    after = by_image(rows_of(place.results))
    assert len(after) == 27
    # What was scored before is neither scored again nor touched: the rows are those of the first release.
    for name, row in {**before, **staged}.items():
        kept = {
            key: value for key, value in row.items() if key != "scored_date"
        }  # of the table that is a folder's name
        assert {key: after[name][key] for key in kept} == kept
    assert told(capsys, "runs", "verify", place.results, "--deep")["sound"]

    taken = told(capsys, "runs", "rollback", place.results, FIRST)
    assert (taken["rows"], taken["table_version"]) == (7, answer["table_version"] + 1)
    assert len(by_image(rows_of(place.results))) == 20
    planned = told(capsys, *place.score[:-1], "--dry-run")
    assert (planned["new"], planned["unchanged"], planned["planned"]) == (7, 20, 7)
    promoted = told(capsys, "models", "promote", f"{place.models}/tiny@v2")
    assert (promoted["champion"], promoted["previous"]) == ("v2", "v1")
    assert told(capsys, "runs", "verify", place.results)["sound"]
