"""The certificate authority of a hospital's own, which all S3 clients trust beside those that everyone trusts."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from pathlib import Path

from pipelines.errors import UsageError

VARIABLE = "NIGHTREAD_S3_CA_FILE"


def check_authority(path: str, variable: str) -> None:
    """Make sure that a file holds certificates.

    Args:
        path: A PEM file with one or more certificates.
        variable: Where it is named.

    Raises:
        UsageError: If it cannot be read or holds none.
    """
    cure = f"Set {variable} to a PEM file with the certificate of the authority that signed the store's."
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise UsageError(f"{variable} names {path!r}, which holds no certificate.", cure) from None
    except OSError:
        raise UsageError(f"{variable} names {path!r}, which cannot be read.", cure) from None


def with_common_authorities(path: str) -> str:
    """Return a path of this process under which the file's authorities stand together with the common ones.

    The usual clients take the path of a file and then trust nothing else, so that a store with a certificate that
    everyone trusts would be refused. The file lies in memory and ends with the process.
    """
    return _in_memory(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=4)
def _in_memory(path: str, _changed: int) -> str:
    from botocore.httpsession import where

    descriptor = os.memfd_create("authorities", os.MFD_CLOEXEC)
    # Duplicated by no one and never closed: clients open it anew for each connection.
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(Path(where()).read_bytes() + b"\n" + Path(path).read_bytes())
    return f"/proc/self/fd/{descriptor}"
