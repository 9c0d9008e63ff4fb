"""Labelled images in a bucket: folders and manifests, as the S3 server lists them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.storage.reading import ImageReader
from pipelines.training.labelled import DataConfig, read_labelled


def test_folders_and_manifests_in_a_bucket(s3: Any) -> None:
    rows = ["file,kind,mrn,part"]
    for part in ("train", "test"):
        for label in ("benign", "malignant"):
            for number in range(6):
                key = f"{part}/{label}/p{number // 2} ü/{number}.png"
                s3.filesystem.pipe_file(f"{s3.bucket}/data/{key}", key.encode())
                rows.append(f"data/{key},{label},{label}{number // 2},{part}")
            s3.filesystem.pipe_file(f"{s3.bucket}/data/{part}/{label}/0_mask.png", b"mask")
    s3.filesystem.pipe_file(f"{s3.bucket}/lists/labels.csv", "\n".join(rows).encode())
    folders = DataConfig(f"{s3.uri}/data", exclude=("*_mask*",), group_by="p([0-9]) ")
    columns = {"uri": "file", "label": "kind", "patient_id": "mrn", "split": "part"}
    manifest = DataConfig(f"{s3.uri}/lists/labels.csv", columns, root=s3.uri)
    found = [read_labelled(config) for config in (folders, manifest)]
    for one in found:
        assert Counter(one.table["label"].to_pylist()) == {"benign": 12, "malignant": 12}
        assert Counter(one.table["part"].to_pylist()) == {"train": 12, "test": 12}
        assert all(one.table["image_version"].to_pylist())
    assert found[0].table["image_uri"].equals(found[1].table["image_uri"])
    assert set(found[0].table["person"].to_pylist()) == {"0", "1", "2"}
    assert found[1].table["person"].to_pylist()[0] == "benign0"
    uri = found[0].table["image_uri"][0].as_py()
    assert ImageReader(1 << 20).read(uri).data == uri.removeprefix(f"{s3.uri}/data/").encode()
