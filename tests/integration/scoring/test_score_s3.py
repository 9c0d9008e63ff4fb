"""The main job where archive, model and results all lie in buckets, on a server in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import mixed

NAMES = ["b {:04d}.jpg", "Fälle/b#{:04d}.JPG", "2024/q?{:04d}.jpeg", "100%/b{:04d}.jpg"]


def fill(s3: Any, folder: Path, draw: Callable, count: int, start: int = 0) -> set[str]:
    """Put images into the archive's prefix under awkward names; returns their URIs."""
    keys = set()
    for number, path in enumerate(draw(folder, count, start=start), start):
        key = "archive/" + NAMES[number % len(NAMES)].format(number)
        s3.filesystem.pipe_file(f"{s3.bucket}/{key}", path.read_bytes())
        keys.add(f"s3://{s3.bucket}/{key}")
    return keys


def rows_in_bucket(s3: Any, results: str) -> list[dict[str, Any]]:
    """Rows of the table, read through its log and s3fs."""
    import pyarrow.parquet as pq
    from deltalake import DeltaTable

    options = {
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
    }
    files = DeltaTable(f"{results}/predictions", storage_options=options).file_uris()
    return [
        row
        for file in files
        for row in pq.read_table(file.removeprefix("s3://"), filesystem=s3.filesystem, partitioning=None).to_pylist()
    ]


@pytest.fixture
def model_in_bucket(s3: Any, tiny_models: Path) -> str:
    s3.filesystem.put(str(tiny_models), f"{s3.bucket}/models", recursive=True)
    return f"s3://{s3.bucket}/models/cells"


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def test_everything_in_buckets_with_one_request_in_five_failing(
    s3: Any,
    model_in_bucket: str,
    fault_proxy: Callable,
    nightread: Callable,
    shared_ray: Callable[[], dict[str, str]],
    draw: Callable,
    tmp_path: Path,
) -> None:
    keys = fill(s3, tmp_path / "drawn", draw, 60)
    s3.filesystem.pipe_file(f"{s3.bucket}/archive/notes.txt", b"text")
    proxy = fault_proxy(s3.endpoint)
    proxy.rule = mixed(0.2, [503, 500, "reset", "cut", "slow", "lost"])
    results = f"s3://{s3.bucket}/results"
    arguments = ["score", f"s3://{s3.bucket}/archive", "--model", model_in_bucket, "--results", results, "--json"]
    env = {**settings(), **shared_ray(), "AWS_ENDPOINT_URL": proxy.endpoint}
    done = nightread(*arguments, "--shard-size", 16, env=env)
    assert done.code == 0, done.err
    assert (done.answer["found"], done.answer["scored"], done.answer["failed"]) == (60, 60, 0)
    assert done.answer["left_out"] == {"suffix": 1}
    assert proxy.faults > 0.15 * proxy.requests
    rows = rows_in_bucket(s3, results)
    assert Counter(row["image_uri"] for row in rows) == dict.fromkeys(keys, 1)
    sample = rows[0]
    tag = s3.filesystem.info(sample["image_uri"].removeprefix("s3://"))["ETag"].strip('"')
    assert sample["image_version"] == tag
    again = nightread(*arguments, env=env)
    assert (again.code, again.answer["new"], again.answer["changed"]) == (0, 0, 0), again.err


def test_resume_after_a_kill_and_manifest_in_a_bucket(
    s3: Any,
    model_in_bucket: str,
    environment: dict[str, str],
    nightread: Callable,
    shared_ray: Callable[[], dict[str, str]],
    draw: Callable,
    tmp_path: Path,
) -> None:
    keys = sorted(fill(s3, tmp_path / "drawn", draw, 160))
    manifest = "uri;site\n" + "".join(f"{key.removeprefix(f's3://{s3.bucket}/')};north\n" for key in keys)
    s3.filesystem.pipe_file(f"{s3.bucket}/list.csv", manifest.encode())
    results = f"s3://{s3.bucket}/results"
    arguments = ["score", f"s3://{s3.bucket}/list.csv", "--model", model_in_bucket, "--results", results, "--json"]
    arguments += ["--shard-size", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments],
        env={**environment, **settings()},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(s3.filesystem.glob(f"{s3.bucket}/results/runs/*/parts/*")) < 3:
        time.sleep(0.1)
    assert process.poll() is None, "it was over before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = nightread(*arguments, env={**settings(), **shared_ray()})
    assert done.code == 0, done.err
    assert done.answer["resumed"] and done.answer["scored"] == 160 and done.answer["new"] == 0
    rows = rows_in_bucket(s3, results)
    assert Counter(row["image_uri"] for row in rows) == dict.fromkeys(keys, 1)
    assert {row["site"] for row in rows} == {"north"}
    counted = nightread(
        "query", results, "SELECT count(*) AS n, count(DISTINCT image_uri) AS d FROM latest", "--json", env=settings()
    )
    assert counted.answer == [{"n": 160, "d": 160}], counted.err


def test_what_is_wrong_with_a_bucket_is_said(s3: Any, tiny_models: Path, nightread: Callable, tmp_path: Path) -> None:
    model = ["--model", f"{tiny_models}/cells", "--results", tmp_path / "results"]
    for archive, env, code in (
        (f"s3://{s3.bucket}-not-there/archive", {}, 2),
        (f"s3://{s3.bucket}/nothing-there", {}, 75),
        (f"s3://{s3.bucket}/archive", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 75),
    ):
        began = time.monotonic()
        done = nightread("score", archive, *model, env={**settings(), **env})
        assert done.code == code, (archive, done.err)
        assert done.err.startswith("error: ") and "Traceback" not in done.err and "test-secret" not in done.err
        assert time.monotonic() - began < 60
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
