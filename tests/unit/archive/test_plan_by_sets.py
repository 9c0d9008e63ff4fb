"""The plan of any listing against any table, compared with plain Python over dictionaries."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.archive.listing import ListingFilter
from pipelines.archive.plan import ArchiveScope, Plan, PlanKey, make_plan
from pipelines.archive.plan_writing import PREVIOUS
from pipelines.errors import IMAGE_ERRORS

KEY = PlanKey("v2", "pixels", "float32", "cells")
KEYS = [
    KEY,
    replace(KEY, model_id="v1"),
    replace(KEY, precision="int8"),
    replace(KEY, preprocessing_id="other pixels"),
    replace(KEY, model_id="v9", model_name="other"),
]
LIES_IN_IMAGE = {"not_an_image", "unsupported", "truncated", "too_large", "decoder_crashed", "timed_out"}
COUNTER = itertools.count()
MORNING = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

# A root and names as hostile as they come: `_` and `%` stand for others in LIKE, backslashes are escaped.
ROOT = r"/a_%'\\r"


@dataclass(frozen=True)
class Filter:
    """A filter and, by hand, the names below the root that it lets pass."""

    wanted: ListingFilter
    passing: frozenset[str]


IMAGES = frozenset(
    {"1.jpg", r"b\\b/é 2.PNG", r"b\\b/x[1]*?.jpg", "locked/3.jpg", "locked 2/4.jpg", "locked/deep/5.jpg", "6.tif"}
)
JPEGS = {name for name in IMAGES if name.endswith(".jpg")}
LEFT_OUT = {"7.txt", ".8.jpg", "@eaDir/9.jpg", "c/.d/10.jpg", "jpg"}
FILTERS = [
    Filter(ListingFilter(), IMAGES),
    Filter(ListingFilter(include=("*.jpg", "@eaDir/*")), frozenset({*JPEGS, "@eaDir/9.jpg"})),
    Filter(ListingFilter(exclude=("locked/*", "*.tif")), IMAGES - {"locked/3.jpg", "locked/deep/5.jpg", "6.tif"}),
]
BELOW = [f"{ROOT}/{name}" for name in sorted(IMAGES | LEFT_OUT)]
ELSEWHERE = [ROOT, f"{ROOT}x/1.jpg", r"/aX%'\\r/1.jpg", "/1.jpg", ROOT.replace("a", "A") + "/1.jpg"]
VERSIONS = st.sampled_from(["", "1", "2"])


@dataclass(frozen=True)
class Row:
    """A row of the table; `code` is None where it was scored."""

    uri: str
    version: str
    key: PlanKey
    code: str | None
    minute: int
    score: float = 0.5


@dataclass(frozen=True)
class Case:
    """Everything that decides a plan."""

    listing: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    filter: Filter
    young: frozenset[str]
    unlistable: tuple[str, ...]
    limit: int | None
    backfill: int | None
    rescore: bool
    retry_failed: bool
    same_bytes: bool
    rows_a_run: int | None
    shard_size: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any listing that its filter could have made, any table, any options."""
    chosen = draw(st.sampled_from(FILTERS))
    passing = [f"{ROOT}/{name}" for name in sorted(chosen.passing)]
    minutes = draw(st.permutations(range(14)))
    rows = st.builds(
        Row,
        st.sampled_from(BELOW + ELSEWHERE),
        VERSIONS,
        st.sampled_from(KEYS),
        st.none() | st.sampled_from(sorted(IMAGE_ERRORS)),
        st.just(0),
        st.sampled_from([0.25, 0.5, 0.75]),
    )
    drawn = draw(st.lists(rows, max_size=14))
    return Case(
        listing=tuple(draw(st.lists(st.tuples(st.sampled_from(passing), VERSIONS), max_size=9))),
        rows=tuple(replace(row, minute=minute) for row, minute in zip(drawn, minutes, strict=False)),
        filter=chosen,
        young=draw(st.frozensets(st.sampled_from(passing), max_size=3)),
        unlistable=tuple(draw(st.lists(st.sampled_from([f"{ROOT}/locked", rf"{ROOT}/b\\b"]), max_size=2))),
        limit=draw(st.none() | st.integers(1, 5)),
        backfill=draw(st.none() | st.integers(0, 3)),
        rescore=draw(st.booleans()),
        retry_failed=draw(st.booleans()),
        same_bytes=draw(st.booleans()),
        rows_a_run=draw(st.none() | st.integers(1, 7)),
        shard_size=draw(st.integers(1, 3)),
    )


def write_rows(path: Path, rows: Sequence[Row]) -> str:
    """A file of the table with the columns that a plan needs, and one that it does not."""
    table = pa.table(
        {
            "run_id": pa.array(["run"] * len(rows), pa.string()),
            "image_uri": pa.array([row.uri for row in rows], pa.string()),
            "image_version": pa.array([row.version for row in rows], pa.string()),
            "content_sha256": pa.array([f"sha {row.minute}" for row in rows], pa.string()),
            "status": pa.array(["failed" if row.code else "scored" for row in rows], pa.string()),
            "error_code": pa.array([row.code for row in rows], pa.string()),
            "score": pa.array([row.score for row in rows], pa.float32()),
            "p_malignant": pa.array([row.score for row in rows], pa.float32()),
            "in_training_set": pa.array([row.minute % 2 == 0 for row in rows], pa.bool_()),
            "model_name": pa.array([row.key.model_name for row in rows], pa.string()),
            "model_id": pa.array([row.key.model_id for row in rows], pa.string()),
            "preprocessing_id": pa.array([row.key.preprocessing_id for row in rows], pa.string()),
            "precision": pa.array([row.key.precision for row in rows], pa.string()),
            "scored_at": pa.array(
                [MORNING + datetime.timedelta(minutes=row.minute) for row in rows], pa.timestamp("us", tz="UTC")
            ),
            "patient_id": pa.array(["p"] * len(rows), pa.string()),
            "number": pa.array([7] * len(rows), pa.int64()),
        }
    )
    pq.write_table(table, path)
    return str(path)


def planned(folder: Path, case: Case) -> tuple[Plan, list[list[dict[str, Any]]]]:
    """Make the plan in a folder of its own and read its files back."""
    place = folder / f"plan {next(COUNTER)} [x]*?"
    (place / "out").mkdir(parents=True)
    columns = {
        "image_uri": pa.array([uri for uri, _ in case.listing], pa.string()),
        "image_version": pa.array([version for _, version in case.listing], pa.string()),
        "number": pa.array(range(len(case.listing)), pa.int64()),
    }
    pq.write_table(pa.table(columns), place / "listing.parquet", row_group_size=3)
    pq.write_table(pa.table({"image_uri": pa.array(sorted(case.young), pa.string())}), place / "young.parquet")
    half = len(case.rows) // 2
    plan = make_plan(
        place / "listing.parquet",
        [write_rows(place / "1.parquet", case.rows[:half]), write_rows(place / "2.parquet", case.rows[half:])],
        None,
        KEY,
        shard_size=case.shard_size,
        rows_per_group=2 * case.shard_size,
        limit=case.limit,
        rescore=case.rescore,
        retry_failed=case.retry_failed,
        backfill=case.backfill,
        same_bytes=case.same_bytes,
        scope=ArchiveScope(ROOT, case.filter.wanted, case.unlistable, place / "young.parquet" if case.young else None),
        rows_a_run=case.rows_a_run,
        out_folder=place / "out",
    )
    assert sorted((place / "out").iterdir()) == sorted(plan.paths)
    return plan, [read_plan(path, case) for path in plan.paths]


def read_plan(path: Path, case: Case) -> list[dict[str, Any]]:
    """The rows of one plan file, its row groups and shards checked."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sizes[:-1] == [2 * case.shard_size] * (len(sizes) - 1) and 0 < sizes[-1] <= 2 * case.shard_size
    rows: list[dict[str, Any]] = file.read().to_pylist()
    assert [row["shard"] for row in rows] == [number // case.shard_size for number in range(len(rows))]
    return rows


def kind_of(uri: str, version: str, case: Case) -> str:
    """What a listed image is, by its rows alone."""
    settling = set() if case.retry_failed else LIES_IN_IMAGE
    rows = [row for row in case.rows if row.uri == uri]
    here = [row for row in rows if row.version == version]
    done = [row.key for row in here if row.code is None or row.code in settling]
    if KEY in done:
        return "unchanged"
    if not here and any(row.code is None or row.code in LIES_IN_IMAGE for row in rows):
        return "changed"
    return "rescored_for_model" if any(key.model_name == KEY.model_name for key in done) else "new"


def in_order(images: dict[str, str], kinds: dict[str, str], case: Case) -> list[str]:
    """The URIs that are to be planned, in order."""
    first = [uri for uri in images if kinds[uri] in ("new", "changed")]
    allowed = [uri for uri in images if kinds[uri] == "rescored_for_model"][: case.backfill]
    later = [uri for uri in images if uri in allowed or (case.rescore and kinds[uri] == "unchanged")]
    return [*first, *later][: case.limit]


def newest_of(uri: str, case: Case) -> dict[str, Any] | None:
    """What this very model said of an image last."""
    rows = [row for row in case.rows if (row.uri, row.key, row.code) == (uri, KEY, None)]
    if not rows:
        return None
    row = max(rows, key=lambda row: row.minute)
    return {
        "content_sha256": f"sha {row.minute}",
        "score": row.score,
        "p_malignant": row.score,
        "in_training_set": row.minute % 2 == 0,
    }


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_a_plan_is_what_plain_python_says(tmp_path: Path, case: Case) -> None:
    plan, runs = planned(tmp_path, case)
    images: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for number, (uri, version) in enumerate(case.listing):
        numbers.setdefault(uri, number)
        images.setdefault(uri, version)
    kinds = {uri: kind_of(uri, version, case) for uri, version in images.items()}
    for kind in ("new", "changed", "unchanged", "rescored_for_model"):
        assert getattr(plan, kind) == list(kinds.values()).count(kind), kind
    assert plan.found == len(images) == plan.new + plan.changed + plan.unchanged + plan.rescored_for_model

    wanted = in_order(images, kinds, case)
    rows = [row for run in runs for row in run]
    assert [(row["image_uri"], row["image_version"], row["number"]) for row in rows] == [
        (uri, images[uri], numbers[uri]) for uri in wanted
    ]
    assert plan.planned == len(wanted)
    assert plan.backfilled == sum(kinds[uri] == "rescored_for_model" for uri in wanted)
    assert plan.shards == sum(run[-1]["shard"] + 1 for run in runs)
    most = case.rows_a_run or len(wanted)
    assert [len(run) for run in runs] == [len(wanted[i : i + most]) for i in range(0, len(wanted), most or 1)]

    answers = {uri: newest_of(uri, case) for uri in wanted if kinds[uri] == "changed"}
    if case.same_bytes and any(answers.values()):
        assert [row[PREVIOUS] for row in rows] == [answers.get(uri) for uri in wanted]
    else:
        assert not any(PREVIOUS in row for row in rows)

    known = {row.uri for row in case.rows if row.code is None or row.code in LIES_IN_IMAGE}
    known &= {f"{ROOT}/{name}" for name in case.filter.passing}
    lost = known - set(images) - case.young
    assert plan.known == len(known)
    assert plan.gone == sum(not any(uri.startswith(f"{folder}/") for folder in case.unlistable) for uri in lost)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_what_was_scored_is_planned_no_more(tmp_path: Path, case: Case) -> None:
    _, runs = planned(tmp_path, case)
    scored = [(row["image_uri"], row["image_version"]) for run in runs for row in run]
    committed = tuple(Row(uri, version, KEY, None, 20) for uri, version in scored)
    again = replace(case, rows=(*case.rows, *committed), limit=None, backfill=None, rescore=False)
    plan, rest = planned(tmp_path, again)
    assert plan.planned == plan.found - plan.unchanged
    assert not set(scored) & {(row["image_uri"], row["image_version"]) for run in rest for row in run}


def test_the_codes_that_settle_are_the_documented_ones() -> None:
    assert {code for code, kind in IMAGE_ERRORS.items() if kind.lies_in_image} == LIES_IN_IMAGE
