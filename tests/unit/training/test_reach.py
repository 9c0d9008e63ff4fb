"""Whether a node sees what another one wrote."""

from __future__ import annotations

from pathlib import Path

from pipelines.training.reach import refuse_unseen, sees


def test_only_the_same_bytes_are_seen(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.write_bytes(b"of the driver")
    assert sees(str(mark), b"of the driver")
    assert not sees(str(mark), b"of another disk")
    assert not sees(str(tmp_path / "missing"), b"of the driver")


def test_a_bucket_is_seen_without_looking() -> None:
    refuse_unseen("s3://bucket/cache")  # a look would need a cluster
