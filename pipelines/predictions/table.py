"""The Delta table as a file format: where it lies, how it is opened, and what its library's errors mean.

Only this file and those that write the table know deltalake.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import pyarrow as pa

from pipelines.errors import NightreadError, NoAnswer, TryLater, UsageError
from pipelines.storage import faults, local_files, paths
from pipelines.storage.faults import Fault, Result
from pipelines.storage.preflight import has_hard_links
from pipelines.storage.settings import delta_storage_options

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from pipelines.storage.leases import Lease

FORMAT: Final = 1

_DESCRIPTION: Final = "Predictions of nightread, format {number}"
_FORMAT_PATTERN: Final = re.compile(r"nightread, format (\d+)")

# Where deltalake 1.6 panics, reads another folder or finds no history (measured, character by character).
_UNWRITABLE: Final = re.compile(r"[#?\[\]^|\\\x00-\x1f\ud800-\udfff]|%[0-9A-Fa-f]{2}")

# The library words each store's errors in its own way; the first pattern that is found decides.
_FAULTS: Final = (
    (re.compile(r"No space left|os error 28\b|StorageFull|File too large|os error 27\b|quota", re.I), Fault.FULL),
    (re.compile(r"NoSuchBucket", re.I), Fault.NO_BUCKET),
    (re.compile(r"invalid peer certificate", re.I), Fault.NOT_TRUSTED),
    (re.compile(r"AuthorizationHeaderMalformed|PermanentRedirect"), Fault.WRONG_REGION),
    (re.compile(r"ExpiredToken|TokenRefreshRequired"), Fault.EXPIRED),
    (re.compile(r"169\.254\.169\.254|credential", re.I), Fault.NO_CREDENTIALS),
    (
        re.compile(
            r"Permission ?denied|os error (13|1|30)\b|Read-only|AccessDenied|Forbidden|\b40[13]\b|Signature", re.I
        ),
        Fault.DENIED,
    ),
    (
        re.compile(r"Not a directory|Invalid table location|os error (20|21|36)\b|Is a directory|too long", re.I),
        Fault.WRONG_PLACE,
    ),
)
# The library's commit without hard links: a rename that replaces whatever is there. It would take the permission from
# the environment too, so the option is always given.
_UNSAFE_RENAME: Final = "MOUNT_ALLOW_UNSAFE_RENAME"
_LOCAL_TROUBLE: Final = re.compile(r"os error|I/O error", re.I)


def table_uri(results: str) -> str:
    """Where the table of a results folder lies.

    Args:
        results: A folder or bucket URI, in any spelling.

    Returns:
        `<results>/predictions`, canonical.

    Raises:
        UsageError: If the path has a character that the table's library cannot write to.
    """
    place = paths.canonical(results)
    odd = _UNWRITABLE.search(place)
    if odd:
        raise UsageError(
            f"The results folder {place!r} has {odd.group()!r} in its path, where no table can be kept.",
            "Choose a folder without # ? [ ] ^ | \\ and percent codes such as %20.",
        )
    return paths.join(place, "predictions")


def load_table(results: str, lease: Lease | None = None) -> DeltaTable | None:
    """Open the table at its newest version.

    Args:
        results: The results folder.
        lease: The right to write to it. Where the file system knows no hard links, only an object opened with it can
            commit.

    Returns:
        The table, or None where there is none yet.

    Raises:
        UsageError: If a newer release wrote it, or it is no table of nightread.
        TryLater: If storage does not answer.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    uri = table_uri(results)
    try:
        table = repeated(uri, lambda: DeltaTable(uri, storage_options=_options(uri, results, lease)))
    except TableNotFoundError:
        return None
    _check_format(table, uri)
    return table


def open_table(results: str, lease: Lease | None = None) -> DeltaTable:
    """Open the table at its newest version, where there must be one.

    Args:
        results: The results folder.
        lease: As for `load_table`.

    Raises:
        UsageError: As `load_table`, and if there is no table.
    """
    table = load_table(results, lease)
    if table is None:
        raise UsageError(
            f"There are no predictions in {paths.canonical(results)!r}.",
            "Check the path; the first `nightread score … --results` there makes the table.",
        )
    return table


def create_table(results: str, schema: pa.Schema, lease: Lease | None = None) -> None:
    """Create the table; that another process was faster is fine.

    Args:
        results: The results folder.
        schema: Its first columns.
        lease: As for `load_table`.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    from pipelines.predictions.schema import PARTITION_COLUMN

    uri = table_uri(results)

    def create() -> None:
        if paths.is_local(uri):
            local_files.make_folder(uri)
        options = _options(uri, results, lease)
        try:
            DeltaTable.create(
                uri,
                schema=schema,
                mode="error",
                partition_by=[PARTITION_COLUMN],
                name="predictions",
                description=_DESCRIPTION.format(number=FORMAT),
                # A checkpoint every 20 versions keeps opening quick after years of nights. The log itself is the
                # record of who committed what, so it outlives the 30 days that are the format's default.
                configuration={"delta.logRetentionDuration": "interval 3650 days", "delta.checkpointInterval": "20"},
                storage_options=options,
            )
        except DeltaError:
            if not DeltaTable.is_deltatable(uri, storage_options=options):
                raise

    repeated(uri, create)


def _options(uri: str, results: str, lease: Lease | None) -> dict[str, str]:
    """The library's storage options; they allow the unsafe rename to the lease's owner alone, and where it must be."""
    if not paths.is_local(uri):
        return delta_storage_options(uri)
    if lease is None:
        return {_UNSAFE_RENAME: "false"}
    if lease.results != paths.canonical(results):
        raise ValueError("the lease is another folder's")
    lease.check()
    return {_UNSAFE_RENAME: "false" if has_hard_links(uri) else "true"}


def table_schema(table: DeltaTable) -> pa.Schema:
    """The table's columns with their metadata."""
    return pa.schema(table.schema().to_arrow())


def live_files(table: DeltaTable, results: str) -> list[str]:
    """The Parquet files of this version: local paths, or bucket URIs, unescaped."""
    added = pa.table(table.get_add_actions())
    return [paths.join(table_uri(results), unquote(path)) for path in added.column("path").to_pylist()]


def _check_format(table: DeltaTable, uri: str) -> None:
    found = _FORMAT_PATTERN.search(table.metadata().description or "")
    if found is None:
        raise UsageError(f"{uri!r} is a Delta table, but none of nightread.", "Choose another results folder.")
    if int(found[1]) > FORMAT:
        raise UsageError(
            f"The table {uri!r} has format {found[1]}; this release knows formats up to {FORMAT}.",
            "Use the release of nightread that wrote it, or a later one.",
        )


def passes(error: TryLater, uri: str) -> bool:
    """Whether an explained error is a bucket's, and may be over at once: it was not said by us, as a lost lease is."""
    return type(error) in (TryLater, NoAnswer) and paths.is_bucket(uri)


def repeated(uri: str, action: Callable[[], Result]) -> Result:
    """Run what may be run more than once; errors are explained as `explained_errors` does.

    In buckets it is run again where an answer was cut or a connection broke: of such requests the library repeats only
    some by itself.

    Args:
        uri: The table.
        action: What to do.
    """

    def attempt() -> Result:
        try:
            with explained_errors(uri):
                return action()
        except TryLater as error:
            if passes(error, uri):
                raise _Broken(error) from error.__cause__
            raise

    try:
        return faults.with_retries(attempt)
    except _Broken as broken:
        raise broken.explained from broken.__cause__


class _Broken(OSError):
    """An explained error on its way through retries, which know those of storage only."""

    def __init__(self, explained: TryLater) -> None:
        super().__init__(errno.EAGAIN, "broken off")
        self.explained = explained


@contextlib.contextmanager
def explained_errors(uri: str) -> Iterator[None]:
    """Turn errors of the table's library within the block into ones that a person can act on.

    `CommitFailedError` and `TableNotFoundError` pass: they are answers, and the caller knows what to do.

    Args:
        uri: The table.
    """
    from deltalake.exceptions import CommitFailedError, TableNotFoundError

    try:
        yield
    except (NightreadError, CommitFailedError, TableNotFoundError):
        raise
    except Exception as error:
        explained = explain(error, uri)
        if explained is error:
            raise
        raise explained from error
    except BaseException as error:
        # The library's Rust panics derive from BaseException, and so pass by those who clean up after an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"the table's library gave up at {uri!r}: {error}") from error


def explain(error: Exception, uri: str) -> Exception:
    """What a person can act on instead of an error of the table's library; the error itself if it is none of those."""
    from deltalake.exceptions import DeltaProtocolError, SchemaMismatchError

    text = str(error)
    if isinstance(error, DeltaProtocolError):
        return UsageError(
            f"The table {uri!r} uses features of Delta Lake that this release does not know.",
            "Use a later release of nightread.",
        )
    if isinstance(error, SchemaMismatchError):
        return UsageError(f"The columns do not fit those of the table {uri!r}.", "Write to another results folder.")
    from_library = type(error).__module__.partition(".")[0] in ("_internal", "deltalake") or isinstance(error, OSError)
    for pattern, fault in _FAULTS:
        if from_library and pattern.search(text):
            return _as_exception(faults.explained(fault, uri))
    if paths.is_bucket(uri) and (from_library or type(error) is Exception):
        return _as_exception(faults.explained(Fault.PASSING, uri))
    if from_library and _LOCAL_TROUBLE.search(text):
        return _as_exception(faults.explained(Fault.PASSING, uri))
    if isinstance(error, OSError):
        return _as_exception(faults.translated(error, uri))
    if from_library:
        return TryLater(
            f"The table {uri!r} could not be read or written ({type(error).__name__}).",
            "Its log may be damaged or being copied; check the folder, then start the same command again.",
        )
    return error


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(str(error))
