"""Names, small files, reading and listing on a real S3 server, well and failing."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy, one_in

from pipelines.archive.listing import ListingFilter, list_archive
from pipelines.errors import ImageFailure, TryLater, UsageError
from pipelines.storage import bucket_pages, files, listing, paths
from pipelines.storage.reading import ImageReader
from pipelines.storage.settings import fsspec_filesystem

ODD_KEYS = [
    "with space.jpg",
    "hash#1.jpg",
    "per%cent.jpg",
    "%41.jpg",
    "q?x=1&y.jpg",
    "plus+.jpg",
    "é ü 漢.jpg",
    "back\\slash.jpg",
    "\\x41.jpg",
    "quote'\".jpg",
    "[x]{y}|<>^`.jpg",
]
# Keys that obstore's paths cannot express.
INEXPRESSIBLE_KEYS = ["two//slashes.jpg", "tab\t.jpg", "a/./dot.jpg"]


PLAIN_KEYS = [f"folder{number % 7}/{number:05d}.jpg" for number in range(1200)]


def fill(s3: Any, prefix: str, keys: list[str], content: Callable[[str], bytes] = str.encode) -> None:
    from botocore.session import get_session

    client = get_session().create_client(
        "s3", endpoint_url=s3.endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda key: client.put_object(Bucket=s3.bucket, Key=prefix + key, Body=content(prefix + key)), keys
            )
        )


def content_of(key: str) -> bytes:
    """Every tenth plain object is empty, as markers are."""
    return b"" if key.endswith("0.jpg") else key.encode()


@pytest.fixture(scope="module")
def archive(s3_server: str) -> tuple[str, set[str]]:
    """A root with more than a page of keys of all sorts, and the URIs of its images."""
    import s3fs

    bucket = "archive-of-all-sorts"
    filesystem = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=s3_server)
    filesystem.call_s3("create_bucket", Bucket=bucket)
    place = SimpleNamespace(endpoint=s3_server, bucket=bucket)
    fill(place, "in/", [*PLAIN_KEYS, *ODD_KEYS, *INEXPRESSIBLE_KEYS], content_of)
    fill(place, "in/", ["", "empty/", "folder3/z/"], lambda _: b"")
    fill(place, "", ["in.jpg", "in2/x.jpg", "in-side/x.jpg"])
    keys = [*PLAIN_KEYS, *ODD_KEYS, *INEXPRESSIBLE_KEYS]
    return f"s3://{bucket}/in", {f"s3://{bucket}/in/{paths.escape_name(key)}" for key in keys}


def images_in(root: str) -> dict[str, str]:
    """What is listed, without the markers of folders."""
    return {uri: version for uri, version in listed(root).items() if uri.endswith(".jpg")}


def listed(root: str) -> dict[str, str]:
    found: dict[str, str] = {}
    rows = 0
    for batch in listing.list_files(root, lambda *error: pytest.fail(str(error))):
        found |= dict(zip(batch.uris.to_pylist(), batch.versions.to_pylist(), strict=True))
        rows += len(batch.uris)
    assert rows == len(found), "a key was listed twice"
    return found


def test_small_files(s3: Any, tmp_path: Path) -> None:
    base = f"{s3.uri}/results"
    assert files.list_names(base) == []
    assert not files.exists(base)
    files.write_atomic(f"{base}/runs/1/run.json", b"1")
    files.write_atomic(f"{base}/runs/1/run.json", b"22")
    files.write_atomic(f"{base}/runs/10/run.json", b"333")
    assert files.read_bytes(f"{base}/runs/1/run.json") == b"22"
    assert files.size(f"{base}/runs/10/run.json") == 3
    assert files.exists(base)
    assert files.exists(f"{base}/runs/1/run.json")
    assert files.list_names(f"{base}/runs/") == ["1", "10"]
    files.delete_tree(f"{base}/runs/1")
    files.delete_tree(f"{base}/runs/1")
    assert files.list_names(f"{base}/runs") == ["10"]
    files.delete(f"{base}/runs/10/run.json")
    files.delete(f"{base}/runs/10/run.json")
    for missing in (files.read_bytes, files.size):
        with pytest.raises(FileNotFoundError):
            missing(f"{base}/runs/10/run.json")
    (tmp_path / "up").write_bytes(random.randbytes(12_000_000))
    files.put(str(tmp_path / "up"), f"{base}/plan.parquet")
    files.fetch(f"{base}/plan.parquet", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
    with files.open_input(f"{base}/plan.parquet") as handle:
        handle.seek(11_000_000)
        assert handle.read() == (tmp_path / "up").read_bytes()[11_000_000:]


def test_a_trees_keys_go_in_thousands_and_neighbours_stay(s3: Any) -> None:
    fill(s3, "parts/", [f"{number}.parquet" for number in range(1005)])
    fill(s3, "parts2/", ["x"])
    assert len(files.list_names(f"{s3.uri}/parts")) == 1005
    files.delete_tree(f"{s3.uri}/parts")
    assert files.list_names(s3.uri) == ["parts2"]


def test_creation_is_exclusive_among_many(s3: Any) -> None:
    contents = [f"writer {number}".encode() for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda content: files.create_exclusive(f"{s3.uri}/lease", content), contents))
    assert won.count(True) == 1
    assert files.read_bytes(f"{s3.uri}/lease") == contents[won.index(True)]


def test_every_key_is_listed_once_and_read_with_the_same_version(s3: Any, archive: tuple[str, set[str]]) -> None:
    root, uris = archive
    found = images_in(f"{root}/")
    assert set(found) == uris
    assert len(listed(root)) == len(uris) + 2
    reader = ImageReader(1000)
    for key in (*ODD_KEYS, *INEXPRESSIBLE_KEYS, *PLAIN_KEYS[:20]):
        blob = reader.read(f"{root}/{paths.escape_name(key)}")
        assert blob.data == content_of(f"in/{key}")
        assert blob.version == found[f"{root}/{paths.escape_name(key)}"]


def test_an_archive_in_a_bucket_is_sifted_by_the_same_rules(s3: Any, tmp_path: Path) -> None:
    fill(
        s3, "a/", ["1.jpg", "x/2.PNG", "3.dcm", ".h/4.jpg", "@eaDir/5.jpg", "no\\6.jpg", "x/", "._7.jpg"], lambda _: b""
    )
    found = list_archive(f"{s3.uri}/a", ListingFilter(exclude=("no*",)), tmp_path / "o.parquet")
    assert pq.read_table(found.path)["image_uri"].to_pylist() == [f"{s3.uri}/a/1.jpg", f"{s3.uri}/a/x/2.PNG"]
    assert found.left_out == {"suffix": 1, "hidden": 1, "share_litter": 2, "excluded": 1, "folder_marker": 1}
    assert found.suffixes_left_out == {"dcm": 1}
    empty = list_archive(f"{s3.uri}/nothing/here", ListingFilter(), tmp_path / "o.parquet")
    assert (empty.found, empty.left_out) == (0, {})


def test_failures_of_single_images(s3: Any) -> None:
    fill(s3, "", ["a.jpg"], lambda _: b"x" * 100)
    for reader, key, code in ((ImageReader(100), "none.jpg", "not_found"), (ImageReader(99), "a.jpg", "too_large")):
        with pytest.raises(ImageFailure) as caught:
            reader.read(f"{s3.uri}/{key}")
        assert caught.value.code == code
    before = ImageReader(100).read(f"{s3.uri}/a.jpg").version
    fill(s3, "", ["a.jpg"], lambda _: b"other")
    assert ImageReader(100).read(f"{s3.uri}/a.jpg").version != before


def test_a_bucket_that_does_not_exist_is_a_usage_error(s3: Any) -> None:
    for action in (files.read_bytes, files.list_names, listing.check_root, files.delete_tree, listed):
        with pytest.raises(UsageError, match=r"nosuchbucket.*does not exist"):
            action("s3://nosuchbucket/x")
    with pytest.raises(UsageError, match="does not exist"):
        files.create_exclusive("s3://nosuchbucket/x", b"")


@pytest.mark.parametrize("fault", [503, 500, 429, "reset", "cut"])
def test_a_store_that_fails_one_request_in_five_loses_nothing(
    s3: Any,
    archive: tuple[str, set[str]],
    fault: Any,
    fault_proxy: Callable[[str], FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, uris = archive
    proxy = fault_proxy(s3.endpoint)
    proxy.rule = one_in(5, fault)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    assert set(images_in(root)) == uris
    reader = ImageReader(1000)
    keys = [*INEXPRESSIBLE_KEYS, *ODD_KEYS, *PLAIN_KEYS[:80]]
    with ThreadPoolExecutor(8) as pool:
        blobs = list(pool.map(lambda key: reader.read(f"{root}/{paths.escape_name(key)}"), keys))
    assert [blob.data for blob in blobs] == [content_of(f"in/{key}") for key in keys]
    for number in range(8):
        files.write_atomic(f"{s3.uri}/out/{number}", b"%d" % number)
        assert files.create_exclusive(f"{s3.uri}/made/{number}", b"mine %d" % number)
        assert not files.create_exclusive(f"{s3.uri}/made/{number}", b"yours %d" % number)
    assert len(files.list_names(f"{s3.uri}/out")) == 8
    files.delete_tree(f"{s3.uri}/out")
    assert files.list_names(f"{s3.uri}/out") == []
    assert proxy.faults > proxy.requests / 10


def test_a_creation_whose_answer_was_lost_is_still_told_to_its_creator(
    s3: Any, fault_proxy: Callable[[str], FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    for number in range(5):
        puts = iter(["lost"])
        proxy.rule = lambda method, _path, puts=puts: next(puts, None) if method == "PUT" else None  # type: ignore[misc]
        assert files.create_exclusive(f"{s3.uri}/{number}", b"mine %d" % number) is True
        assert files.create_exclusive(f"{s3.uri}/{number}", b"yours") is False


def test_a_listing_that_breaks_off_goes_on_where_it_was(
    s3: Any, archive: tuple[str, set[str]], fault_proxy: Callable[[str], FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, uris = archive
    proxy = fault_proxy(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    for page, broken in ((333, (2,)), (1000, (1, 3)), (90, (2, 3, 5))):
        monkeypatch.setattr(bucket_pages, "PAGE", page)
        asked = count()
        # A body that ends early is not repeated by the client itself, so that its stream ends.
        proxy.rule = lambda _method, _path, asked=asked, broken=broken: "cut" if next(asked) in broken else None  # type: ignore[misc]
        assert set(images_in(root)) == uris


def test_refused_access_is_a_usage_error_that_repeats_no_secret(
    s3: Any, fault_proxy: Callable[[str], FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(s3.endpoint)
    proxy.rule = lambda _method, _path: 403
    proxy.error_body = b"<Error><Code>InvalidToken</Code><Token-0>my-session-token</Token-0></Error>"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "my-session-token")
    for action in (files.read_bytes, files.list_names, files.size, listing.check_root, files.delete):
        with pytest.raises(UsageError, match=r"refused|may not be listed") as caught:
            action(f"{s3.uri}/x")
        chain = [caught.value, caught.value.__cause__]
        assert caught.value.__suppress_context__
        assert not any(secret in repr(error) for error in chain for secret in ("my-session-token", "test-secret"))
    with pytest.raises(ImageFailure) as failed:
        ImageReader(10).read(f"{s3.uri}/x")
    assert failed.value.code == "permission"


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_an_endpoint_that_does_not_answer_is_try_later_in_seconds(
    s3: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":
            server.listen(50)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")

        def timed(action: Callable[[], object]) -> float:
            began = time.monotonic()
            with pytest.raises((TryLater, ImageFailure)) as caught:
                action()
            assert getattr(caught.value, "code", "") in ("try_later", "storage")
            return time.monotonic() - began

        actions: list[Callable[[], object]] = [
            lambda: files.list_names(f"{s3.uri}/x"),
            lambda: files.create_exclusive(f"{s3.uri}/x", b""),
            lambda: listing.check_root(s3.uri),
            lambda: ImageReader(5).read(f"{s3.uri}/x"),
        ]
        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(timed, actions)) < 22


def test_duckdbs_file_system_sees_the_same_files(s3: Any) -> None:
    files.write_atomic(f"{s3.uri}/a/b c.bin", b"content")
    assert fsspec_filesystem(s3.uri).cat_file(f"{s3.uri}/a/b c.bin") == b"content"
