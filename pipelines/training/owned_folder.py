"""A folder for what is computed meanwhile, of which one command at a time is the owner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.storage import files
from pipelines.storage.leases import Lease


@contextlib.contextmanager
def owned_folder(place: str) -> Iterator[str]:
    """Own a folder for as long as the block runs; removed once it has ended well, else kept for the next attempt.

    An owner elsewhere is watched for two minutes: one that died in a container is nowhere seen to be dead.

    Args:
        place: The folder, local or in a bucket.

    Raises:
        TryLater: If somebody else owns it.
    """
    with Lease.acquire(place) as lease:
        lease.start_renewing()
        yield place
    files.delete_tree(place)
