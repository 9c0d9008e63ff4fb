"""Keys that hardly any tool writes and every bucket may hold, in a bucket that these credentials may only read."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy

from pipelines.archive.manifest import read_manifest

DECOMPOSED, COMPOSED = "Mu\u0308ller", "M\u00fcller"
KEYS = [
    f"{DECOMPOSED}/Ro\u0308ntgen 1.jpg",
    f"{COMPOSED}/2.jpg",
    f"{DECOMPOSED}/3.jpg",
    "hash#1.jpg",
    "per%41cent%.jpg",
    "q?x=1&y=2.jpg",
    "quo'te\"`$HOME.jpg",
    "line\nbreak.jpg",
    "return\r/tab\t.jpg",
    "\n/escape\x1b[2J\x7f.jpg",
    "back\\slash\\x41.jpg",
    " space .jpg",
    "two//slashes.jpg",
    "<&>]]>.jpg",
]


def escaped(key: str) -> str:
    """The documented spelling in `image_uri`."""
    return key.replace("\\", "\\\\")


class ControlCharacters(FaultProxy):
    """Gives the server behind it keys with control characters, which it has no routes for, and refuses to write.

    The server knows `!0A!` for a line break, which sorts nearly as that does. Listings tell it as the vendor's: as a
    character reference, or percent-encoded where that was asked for.

    Attributes:
        writes: What somebody tried to write.
    """

    def __init__(self, target: str) -> None:
        self.writes: list[str] = []
        super().__init__(target)
        self.rule = self._only_list_and_get
        self.error_body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

    def _only_list_and_get(self, method: str, path: str) -> int | None:
        if method in ("GET", "HEAD"):
            return None
        self.writes.append(f"{method} {path}")
        return 403

    def forward(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        path = re.sub("%([01][0-9A-F]|7F)", r"!\1!", path, flags=re.IGNORECASE)
        status, given, content = super().forward(method, path, headers, body)
        if content.startswith(b"<?xml"):
            encoded = b"<EncodingType>url" in content
            content = re.sub(rb"(?:!|%21)([01][0-9A-F]|7F)(?:!|%21)", rb"%\1" if encoded else rb"&#x\1;", content)
        return status, given, content


@pytest.fixture
def read_only(s3: Any) -> Iterator[ControlCharacters]:
    """A bucket as seen with credentials that may only list and get."""
    with contextlib.closing(ControlCharacters(s3.endpoint)) as proxy:
        yield proxy


def test_each_key_is_scored_once_and_nothing_is_written(
    s3: Any,
    read_only: ControlCharacters,
    tiny_models: Path,
    nightread: Callable[..., Any],
    shared_ray: Callable[[], dict[str, str]],
    draw: Callable[..., list[Path]],
    rows_of: Callable[[Path], list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, drawn in zip(KEYS, draw(tmp_path / "drawn", len(KEYS)), strict=True):
        stored = "scans/" + re.sub("[\x00-\x1f\x7f]", lambda sign: f"!{ord(sign.group()):02X}!", key)
        s3.filesystem.call_s3("put_object", Bucket=s3.bucket, Key=stored, Body=drawn.read_bytes())
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    env |= shared_ray() | {"AWS_ENDPOINT_URL": read_only.endpoint}
    archive, results = f"{s3.uri}/scans", tmp_path / "results"
    done = nightread("score", archive, "--model", f"{tiny_models}/cells", "--results", results, env=env)
    assert done.code == 0, done.err
    rows = rows_of(results)
    assert sorted(row["image_uri"] for row in rows) == sorted(f"{archive}/{escaped(key)}" for key in KEYS)
    assert {row["status"] for row in rows} == {"scored"}

    # Rows of a manifest lead to the same keys and versions, in either form.
    monkeypatch.setenv("AWS_ENDPOINT_URL", read_only.endpoint)
    known = {row["image_uri"]: row["image_version"] for row in rows}
    keys = [escaped(key) for key in KEYS if "//" not in key]
    for form in ("NFC", "NFD"):
        uris = [unicodedata.normalize(form, f"{archive}/{key}") for key in keys]
        # Without a root, and below one folder only, that folder's own name is looked for in both forms.
        for chosen, root in ((uris, archive), ([uri for uri in uris if "ller/" in uri], None)):
            pq.write_table(pa.table({"uri": chosen}), tmp_path / "manifest.parquet")
            listing = read_manifest(str(tmp_path / "manifest.parquet"), {}, root, tmp_path / "listing.parquet")
            found = pq.read_table(listing.path)
            assert len(found) == len(chosen)
            for uri, version in zip(*(found[name].to_pylist() for name in found.column_names), strict=True):
                assert known[uri] == version
    assert not read_only.writes and read_only.requests > len(KEYS)
