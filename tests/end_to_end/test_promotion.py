"""A promoted version: what it costs is said beforehand, and nights take it at the pace that was asked for."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines.models.bundle import load_bundle, write_bundle


def test_a_promotion_is_told_before_and_taken_in_pieces_after_what_is_new(
    tmp_path: Path, tiny_models: Path, nightread: Callable, draw: Callable, rows_of: Callable
) -> None:
    archive, results, models = tmp_path / "archive", tmp_path / "results", tmp_path / "models"
    old = {str(path) for path in draw(archive, 8)}
    shutil.copytree(tiny_models / "cells", models / "cells")
    first = load_bundle(str(models / "cells" / "v1"))
    thresholds = {"image": {"threshold": 0.4, "target_sensitivity": 0.95}}
    files = {name: first.read(name) for name in first.files}
    second = write_bundle(str(models), "cells", replace(first.spec, thresholds=thresholds), files)
    command = ["score", archive, "--model", f"{models}/cells", "--results", results, "--json"]
    promotion = ["models", "promote", f"{models}/cells@v2", "--results", results, "--json"]
    assert nightread(*command).answer["scored"] == 8

    told = nightread(*promotion).answer
    assert (told["champion"], told["to_rescore"]) == ("v2", 8)
    assert "seconds_estimated" in told
    # The listing has them last; they go first for being new.
    new = {str(path) for path in draw(archive, 3, start=100)}
    night = nightread(*command, "--backfill", "2").answer
    assert (night["found"], night["new"], night["rescored_for_model"], night["backfilled"]) == (11, 3, 8, 2)
    assert night["scored"] == 5
    rows = [row for row in rows_of(results) if row["model_id"] == second.model_id]
    assert new < {row["image_uri"] for row in rows} < new | old and len(rows) == 5

    none = nightread(*command, "--backfill", "none", "--dry-run").answer
    assert (none["planned"], none["rescored_for_model"], none["unchanged"]) == (0, 6, 5)
    assert nightread(*promotion).answer["to_rescore"] == 6
    assert nightread(*command).answer["scored"] == 6
    assert Counter(row["image_uri"] for row in rows_of(results)) == dict.fromkeys(old, 2) | dict.fromkeys(new, 1)
