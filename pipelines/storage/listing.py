"""Every file below a root, as a stream of Arrow batches: local folders, S3 buckets, other fsspec places.

Locally a folder's files and sub-folders come in the order of their names, unless it has more than 65,536 entries:
those come as the file system gives them, so that memory stays flat. Keys of a bucket come in no particular order.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError
from pipelines.storage import faults, paths
from pipelines.storage.batches import MODIFIED
from pipelines.storage.batches import FileBatch as FileBatch
from pipelines.storage.bucket_listing import list_all
from pipelines.storage.faults import Fault
from pipelines.storage.reading import changed_at, other_version
from pipelines.storage.roles import setting_of
from pipelines.storage.settings import fsspec_filesystem, open_store, settings_of
from pipelines.storage.throttle import Throttle

BATCH_FILES = 8192
SORTED_ENTRIES = 65_536

# Reasons that `on_error` is given. The first two are of folders whose content is unknown.
PERMISSION = "permission"
STORAGE = "storage"
SPECIAL = "special"
LINK_OUTSIDE = "link_outside"
LINK_BROKEN = "link_broken"
LINK_INSIDE = "link_inside"
UNLISTABLE = frozenset((PERMISSION, STORAGE))

OnError = Callable[[str, str], None]
EnterFolder = Callable[[str, str], bool]


def root_uri(root: str) -> str:
    """Return the canonical, escaped URI of a root that a person typed: every listed URI begins with it."""
    return paths.escape_name(paths.canonical(root))


def check_root(root: str) -> None:
    """Make sure that there is something to list.

    Raises:
        UsageError: The folder or bucket does not exist, is no folder, or may not be listed.
        TryLater: Storage does not answer.
    """
    place = paths.canonical(root)
    try:
        faults.with_retries(lambda: _look_at(place))
    except UsageError:
        raise
    except Exception as error:
        fault = faults.fault_of(error)
        if fault is Fault.BAD_KEY:
            return
        if fault is Fault.MISSING:
            raise UsageError(f"{root!r} does not exist.", "Check the name, and that the share is mounted.") from None
        if fault is Fault.DENIED and paths.is_bucket(place):
            raise UsageError(
                f"{root!r} may not be listed with these S3 credentials.",
                f"Check {setting_of(place, 'ACCESS_KEY_ID')}, or ask for the right s3:ListBucket on that bucket.",
            ) from None
        raise faults.translated(error, place) from None


def _look_at(place: str) -> None:
    if paths.is_bucket(place):
        bucket, prefix = paths.split_bucket(place)
        store = open_store(bucket, settings_of(place), own_retries=True)
        next(iter(store.list(prefix or None, chunk_size=1)), None)
    elif paths.is_local(place):
        if not stat.S_ISDIR(os.stat(place).st_mode):
            raise UsageError(f"{place!r} is a file.", "Give a folder, or a manifest (.csv or .parquet).")
        os.scandir(place).close()
    elif not fsspec_filesystem(place).isdir(place):
        raise FileNotFoundError(place)


def list_files(
    root: str, on_error: OnError, enter: EnterFolder | None = None, throttle: Throttle | None = None
) -> Iterator[FileBatch]:
    """List all files below a root, folder by folder.

    Args:
        root: A folder as a person typed it (not escaped), or a URI.
        on_error: Called with (escaped URI, reason) for a folder that cannot be listed (`UNLISTABLE`), and for what is
            no file: sockets, pipes and devices (`special`), links that lead out of the root (`link_outside`), to
            nothing or to themselves (`link_broken`), or to a folder under the root (`link_inside`), whose files are
            listed where they lie.
        enter: Called with (escaped URI, name) of each local sub-folder; False leaves it out with all in it. Buckets
            have no folders to leave out.
        throttle: Announces each request to a bucket.

    Yields:
        Batches in listing order. Links to files under the root's real path are followed.

    Raises:
        UsageError: The root does not exist or may not be listed.
        TryLater: Storage does not answer.
    """
    place = paths.canonical(root)
    if paths.is_bucket(place):
        yield from list_all(place, throttle or Throttle())
        return
    check_root(root)
    if paths.is_local(place):
        yield from _Walk(place, on_error, enter).batches()
    else:
        yield from _list_other(place, on_error)


class _Walk:
    """One walk through a local tree."""

    def __init__(self, root: str, on_error: OnError, enter: EnterFolder | None) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        self._on_error = on_error
        self._enter = enter
        self._open: list[tuple[str, Iterator[os.DirEntry[str]]]] = []
        self._uris: list[str] = []
        self._sizes: list[int] = []
        self._times: list[int] = []

    def batches(self) -> Iterator[FileBatch]:
        self._push(self._root)
        while self._open:
            folder, entries = self._open[-1]
            prefix = folder if folder.endswith("/") else folder + "/"
            if self._read_some(prefix, entries):
                self._open.pop()
            if len(self._uris) >= BATCH_FILES:
                yield self._flush()
        if self._uris:
            yield self._flush()

    def _read_some(self, prefix: str, entries: Iterator[os.DirEntry[str]]) -> bool:
        """Take files until the batch is full or a sub-folder was entered; True at the folder's end."""
        uris, sizes, times = self._uris, self._sizes, self._times
        room = BATCH_FILES - len(uris)
        try:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    uris.append(prefix + entry.name)
                    sizes.append(status.st_size)
                    times.append(status.st_mtime_ns)
                    room -= 1
                    if not room:
                        return False
                elif self._is_entered(prefix + entry.name, entry):
                    return False
        except FileNotFoundError:
            # Gone between being seen and being asked: it was never listed.
            return False
        except OSError as error:
            self._unlistable(prefix, error)
        return True

    def _is_entered(self, path: str, entry: os.DirEntry[str]) -> bool:
        """Deal with what is no plain file; True where the walk went into a folder."""
        if entry.is_symlink():
            self._follow(path)
            return False
        if not entry.is_dir(follow_symlinks=False):
            self._on_error(paths.escape_name(path), SPECIAL)
            return False
        return self._wants(path, entry.name) and self._push(path)

    def _follow(self, path: str) -> None:
        """Take a link to a file under the root; note what else links lead to."""
        try:
            target = os.path.realpath(path, strict=True)
            status = os.stat(path)
        except FileNotFoundError:
            self._on_error(paths.escape_name(path), LINK_BROKEN)
            return
        except OSError as error:
            denied = faults.fault_of(error) is Fault.DENIED
            self._on_error(paths.escape_name(path), LINK_OUTSIDE if denied else LINK_BROKEN)
            return
        if target != self._real_root and not paths.is_inside(target, self._real_root):
            self._on_error(paths.escape_name(path), LINK_OUTSIDE)
        elif stat.S_ISREG(status.st_mode):
            self._uris.append(path)
            self._sizes.append(status.st_size)
            self._times.append(status.st_mtime_ns)
        elif stat.S_ISDIR(status.st_mode):
            # Its files are listed where they lie; under a second name each would be scored twice.
            self._on_error(paths.escape_name(path), LINK_INSIDE)
        else:
            self._on_error(paths.escape_name(path), SPECIAL)

    def _wants(self, path: str, name: str) -> bool:
        return self._enter is None or self._enter(paths.escape_name(path), paths.escape_name(name))

    def _push(self, path: str) -> bool:
        try:
            self._open.append((path, _in_order(os.scandir(path))))
        except FileNotFoundError:
            return False
        except OSError as error:
            self._unlistable(path, error)
            return False
        return True

    def _unlistable(self, path: str, error: OSError) -> None:
        denied = faults.fault_of(error) is Fault.DENIED
        self._on_error(paths.escape_name(path.rstrip("/")) or "/", PERMISSION if denied else STORAGE)

    def _flush(self) -> FileBatch:
        sizes, times = pa.array(self._sizes, pa.int64()), pa.array(self._times, pa.int64())
        versions = pc.binary_join_element_wise(sizes.cast(pa.string()), times.cast(pa.string()), "-")
        modified = pc.divide(times, 1000).cast(MODIFIED)
        batch = FileBatch(_escaped_array(self._uris), versions, sizes, modified)
        self._uris.clear()
        self._sizes.clear()
        self._times.clear()
        return batch


def _in_order(entries: Any) -> Iterator[os.DirEntry[str]]:
    """Give a folder's entries by name, or as they come where there are too many to hold."""
    with entries:
        held: list[os.DirEntry[str]] = []
        for entry in entries:
            held.append(entry)
            if len(held) == SORTED_ENTRIES:
                break
        else:
            held.sort(key=_name_of)
        # Handed out from the end, so that each entry is let go as soon as it is done with.
        held.reverse()
        while held:
            yield held.pop()
        yield from entries


def _name_of(entry: os.DirEntry[str]) -> str:
    return entry.name


def _escaped_array(uris: list[str]) -> pa.StringArray:
    try:
        array = pa.array(uris, pa.string())
    except UnicodeEncodeError:
        return pa.array([paths.escape_name(uri) for uri in uris], pa.string())
    return pc.replace_substring(array, "\\", "\\\\") if pc.any(pc.match_substring(array, "\\")).as_py() else array


def _list_other(place: str, on_error: OnError) -> Iterator[FileBatch]:
    file_system = fsspec_filesystem(place)
    kind = paths.scheme(place)

    def failed(error: OSError) -> None:
        on_error(paths.escape_name(place), PERMISSION if faults.fault_of(error) is Fault.DENIED else STORAGE)

    found = _Found()
    for _, _, inside in file_system.walk(place, detail=True, on_error=failed):
        for info in inside.values():
            found.add(f"{kind}://{str(info['name']).split('://', 1)[-1].lstrip('/')}", info)
            if len(found.uris) == BATCH_FILES:
                yield found.batch()
                found = _Found()
    if found.uris:
        yield found.batch()


class _Found:
    """Some files of another fsspec scheme."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._versions: list[str] = []
        self._sizes: list[int] = []
        self._times: list[datetime | None] = []

    def add(self, uri: str, info: Mapping[str, Any]) -> None:
        self.uris.append(uri)
        self._versions.append(other_version(info))
        self._sizes.append(int(info["size"] or 0))
        self._times.append(_moment(info))

    def batch(self) -> FileBatch:
        return FileBatch(
            _escaped_array(self.uris),
            pa.array(self._versions, pa.string()),
            pa.array(self._sizes, pa.int64()),
            pa.array(self._times, MODIFIED),
        )


def _moment(info: Mapping[str, Any]) -> datetime | None:
    changed = changed_at(info)
    if isinstance(changed, datetime):
        # A time without a zone is in UTC, as those of fsspec's own file systems are.
        return changed if changed.tzinfo else changed.replace(tzinfo=UTC)
    return datetime.fromtimestamp(changed, UTC) if isinstance(changed, int | float) else None
