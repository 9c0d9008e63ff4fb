"""Names of what lies directly in one folder, for whoever looks for a name and not for all images below."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pipelines.storage import faults, paths
from pipelines.storage.settings import fsspec_filesystem, settings_of
from pipelines.storage.throttle import Throttle


def names_in(folder: str, throttle: Throttle) -> Iterator[str]:
    """Give the names in a folder as they come; none where there is no such folder or it may not be read.

    Args:
        folder: A canonical place, not escaped.
        throttle: Announces each request to a bucket.

    Yields:
        Names, not escaped: of files and folders locally, of folders (what stands between two slashes of a key) in
        a bucket, whose files are found by listing it.

    Raises:
        UsageError: If a bucket may not be listed.
        TryLater: If a bucket's storage fails.
    """
    if paths.is_bucket(folder):
        try:
            yield from _bucket_folders(folder, throttle)
        except Exception as error:
            raise faults.translated(error, folder) from None
    elif paths.is_local(folder):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield entry.name
        except OSError:
            return
    else:
        file_system = fsspec_filesystem(folder)
        for info in file_system.ls(folder, detail=True) if file_system.isdir(folder) else ():
            yield paths.name(str(info["name"]))


def _bucket_folders(folder: str, throttle: Throttle) -> Iterator[str]:
    bucket, key = paths.split_bucket(folder)
    prefix = f"{key}/" if key else ""
    client = settings_of(folder).botocore_client()
    query: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}

    def ask() -> dict[str, Any]:
        throttle.wait()
        answer: dict[str, Any] = client.list_objects_v2(**query)
        return answer

    while True:
        page = faults.with_retries(ask)
        for common in page.get("CommonPrefixes", []):
            yield common["Prefix"][len(prefix) : -1]
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]
