"""An archive that was moved is recognised by what its images are called below the root, and by their versions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.archive.plan import Moved, PlanKey, make_plan

KEY = PlanKey("model", "pixels", "float32", "cells")
NAMES = st.sets(st.text("ab%_?'\\/é", min_size=1, max_size=6).filter(lambda name: "//" not in f"/{name}/"), min_size=1)


def moved(folder: Path, here: dict[str, str], known: dict[str, str], root: str) -> Moved | None:
    listing, table = folder / "listing.parquet", folder / "table.parquet"

    def columns(images: dict[str, str]) -> dict[str, pa.Array]:
        return {"image_uri": pa.array(images, pa.string()), "image_version": pa.array(images.values(), pa.string())}

    pq.write_table(pa.table(columns(here)), listing)
    texts = {"model_id": "model", "preprocessing_id": "pixels", "precision": "float32", "model_name": "cells"}
    others = {name: pa.array([text] * len(known)) for name, text in {**texts, "status": "scored"}.items()}
    pq.write_table(pa.table({**columns(known), **others, "error_code": pa.nulls(len(known), pa.string())}), table)
    plan = make_plan(
        listing,
        [str(table)],
        None,
        KEY,
        shard_size=2,
        rows_per_group=4,
        limit=None,
        rescore=False,
        retry_failed=False,
        root=root,
        out_folder=folder,
    )
    return plan.moved


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, staying=st.integers(0, 100))
def test_more_than_half_of_the_images_under_another_root(tmp_path: Path, names: set[str], staying: int) -> None:
    here = {f"/new/{name}": f"1-{len(name)}" for name in sorted(names)}
    kept = sorted(names)[: round(len(names) * staying / 100)]
    known = {f"/old/root/{name}": f"1-{len(name)}" for name in kept} | {"/elsewhere/x": "9-9"}
    found = moved(tmp_path, here, known, "/new")
    if 2 * len(kept) > len(names):
        assert found == Moved("/old/root", "/new", len(kept), len(names))
    else:
        assert found is None


@pytest.mark.parametrize(
    ("here", "known"),
    [
        ({"/new/a": "1", "/new/b": "2"}, {"/old/a": "1", "/old/b": "3"}),  # half of them only
        ({"/new/a": "1"}, {"/old/xa": "1"}),  # no whole part of a path
        ({"/new/a": ""}, {"/old/a": ""}),  # a version that says nothing
        ({"/new/a": "1", "/new/b": "2", "/new/c": "3"}, {"/old/a": "1", "/old/b": "2", "/new/c": "3"}),  # known here
        ({"/new/a": "1"}, {}),
    ],
)
def test_what_is_no_sign_of_a_move(tmp_path: Path, here: dict[str, str], known: dict[str, str]) -> None:
    assert moved(tmp_path, here, known, "/new") is None
