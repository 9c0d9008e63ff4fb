"""A share that falls away in mid-run: what was scored is committed, nothing is blamed, the next night does the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

INJECTOR = Path(__file__).parent / "injector"


def test_a_share_that_falls_away_for_good_blames_no_image(
    tmp_path: Path,
    tiny_models: Path,
    environment: dict[str, str],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    archive, results, away = tmp_path / "archive", tmp_path / "results", tmp_path / "away"
    paths = draw(archive, 300)
    command = ["score", str(archive), "--model", f"{tiny_models}/cells", "--results", str(results), "--json"]
    path = os.pathsep.join([str(INJECTOR), environment["PYTHONPATH"]])
    faults = {"FAULTS": "slow,hasty", "FAULT_SECONDS": "0.3", "FAULT_PATIENCE": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *command, "--shard-size", "4", "--commit-every", "200"],
        env={**environment, "PYTHONPATH": path, **faults},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and len(list(results.glob("runs/*/parts/*.parquet"))) < 8:
        time.sleep(0.01)
    archive.rename(away)
    archive.mkdir()  # as an unmounted share looks
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 75, errors.decode()[-3000:]
    told = json.loads(out)["error"]
    rows = rows_of(results)
    assert {row["status"] for row in rows} == {"scored"} and 32 <= len(rows) < 200
    assert f"{len(rows)} images that were scored before are committed" in told["message"]
    assert "gone or empty" in told["message"]
    statuses = [run["status"] for run in json.loads(nightread("runs", "list", results, "--json").out)]
    assert sorted(statuses) == ["abandoned", "committed"]

    empty = nightread(*command)
    assert empty.code == 75 and "mounted" in empty.answer["error"]["cure"]

    archive.rmdir()
    away.rename(archive)
    done = nightread(*command)
    assert done.code == 0, done.err
    assert (done.answer["unchanged"], done.answer["scored"]) == (len(rows), 300 - len(rows))
    counted = Counter(row["image_uri"] for row in rows_of(results))
    assert counted == {str(path): 1 for path in paths}
    assert {row["status"] for row in rows_of(results)} == {"scored"}
