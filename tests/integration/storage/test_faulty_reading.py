"""Reading images from a store that fails, is slow, asks to be left alone, or changes what is read."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from fault_proxy import FaultProxy, mixed

from pipelines.errors import ImageFailure
from pipelines.storage.reading import ImageReader, lists_something
from pipelines.storage.throttle import Throttle

Proxied = Callable[[str], FaultProxy]


@pytest.fixture(scope="module")
def images(s3_server: str) -> dict[str, tuple[bytes, str]]:
    """URIs with content and ETag."""
    import s3fs

    filesystem = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=s3_server)
    filesystem.call_s3("create_bucket", Bucket="images-to-read")
    source = random.Random(3)
    found = {}
    for number in range(60):
        data = source.randbytes(source.randrange(1, 60_000))
        place = f"images-to-read/in/{number}.jpg"
        filesystem.pipe_file(place, data)
        found[f"s3://{place}"] = (data, hashlib.md5(data).hexdigest())
    return found


@pytest.fixture
def proxy(s3: Any, fault_proxy: Proxied, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    proxy = fault_proxy(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    return proxy


def read_all(images: dict[str, tuple[bytes, str]], reader: ImageReader, times: int = 1) -> None:
    """Read every image with eight threads; each has its bytes and their version."""
    with ThreadPoolExecutor(8) as pool:
        for uri, blob in zip([*images] * times, pool.map(reader.read, [*images] * times), strict=True):
            assert (blob.data, blob.version) == images[uri], uri


def test_one_call_in_five_fails_in_every_way_and_nothing_is_lost(
    images: dict[str, tuple[bytes, str]], proxy: FaultProxy
) -> None:
    proxy.rule = mixed(0.2, [503, 500, "reset", "cut", "slow", "lost"])
    read_all(images, ImageReader(100_000), times=3)
    assert proxy.faults > 0.15 * proxy.requests and proxy.requests >= 180


def test_connections_are_kept(images: dict[str, tuple[bytes, str]], proxy: FaultProxy) -> None:
    read_all(images, ImageReader(100_000), times=5)
    assert proxy.requests == 300
    assert proxy.connections <= 16


def test_the_size_is_known_before_the_body_comes(images: dict[str, tuple[bytes, str]], proxy: FaultProxy) -> None:
    proxy.rule = lambda _method, _path: "slow"
    proxy.slow_seconds = 3.0
    uri = max(images, key=lambda uri: len(images[uri][0]))
    began = time.monotonic()
    with pytest.raises(ImageFailure) as caught:
        ImageReader(100).read(uri)
    assert caught.value.code == "too_large"
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("first", ["cut", 503])
def test_an_image_that_is_replaced_between_two_tries_is_read_with_its_new_version(
    first: Any, s3: Any, proxy: FaultProxy
) -> None:
    old = random.Random(1).randbytes(40_000)
    s3.filesystem.pipe_file(f"{s3.bucket}/a.jpg", old)
    tries = Counter[str]()

    def replace_it(method: str, _path: str) -> Any:
        tries[method] += 1
        if tries["GET"] == 2:  # other bytes of the same length
            s3.filesystem.pipe_file(f"{s3.bucket}/a.jpg", old[::-1])
        return first if tries["GET"] == 1 else None

    proxy.rule = replace_it
    blob = ImageReader(100_000).read(f"{s3.uri}/a.jpg")
    assert blob.data == old[::-1] and tries["GET"] == 2
    assert blob.version == hashlib.md5(old[::-1]).hexdigest()


def test_all_threads_wait_as_long_as_the_server_asks_one_of_them_to(
    images: dict[str, tuple[bytes, str]], proxy: FaultProxy
) -> None:
    reader = ImageReader(100_000)
    # Each of eight threads is refused once, then some are refused again, through the client that hears for how long.
    refusals = iter([503] * 12)
    proxy.rule = lambda _method, _path: next(refusals, None)
    proxy.error_headers = {"Retry-After": "4"}
    read_all(images, reader)
    arrivals = sorted(proxy.arrivals)
    pauses = [later - earlier for earlier, later in pairwise(arrivals)]
    longest = max(range(len(pauses)), key=pauses.__getitem__)
    assert pauses[longest] > 2.5
    # Before it came what was refused and what was on its way by then; not one of the others.
    assert longest + 1 <= 12 + 8 and len(arrivals) == 60 + 12


def test_credentials_that_expire_are_tried_again(images: dict[str, tuple[bytes, str]], proxy: FaultProxy) -> None:
    proxy.error_body = b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"
    answers = iter([400, 403, 400])
    proxy.rule = lambda _method, _path: next(answers, None)
    uri = next(iter(images))
    blob = ImageReader(100_000).read(uri)
    assert (blob.data, blob.version) == images[uri] and proxy.requests == 4


def test_a_rate_holds_for_further_tries_too(images: dict[str, tuple[bytes, str]], proxy: FaultProxy) -> None:
    proxy.rule = mixed(0.3, [503, "reset"])
    throttle = Throttle(50.0)
    began = time.monotonic()
    read_all(images, ImageReader(100_000, throttle))
    assert throttle.requests == proxy.requests > 60
    for start in proxy.arrivals:
        assert sum(start <= at < start + 0.5 for at in proxy.arrivals) <= 25 + 8  # eight threads may be late at once
    assert time.monotonic() - began >= (proxy.requests - 1) / 50


def test_whether_a_bucket_still_lists_what_it_did(s3: Any, proxy: FaultProxy) -> None:
    s3.filesystem.pipe_file(f"{s3.bucket}/in/a.jpg", b"x")
    s3.filesystem.touch(f"{s3.bucket}/marker/")
    assert lists_something(f"{s3.uri}/in") is lists_something(s3.uri) is True
    assert lists_something(f"{s3.uri}/i") is lists_something(f"{s3.uri}/marker") is False
    assert lists_something("s3://no-such-bucket/in") is False
    proxy.rule = mixed(0.3, [503, "reset", "cut"])
    assert all(lists_something(f"{s3.uri}/in") for _ in range(10))
    proxy.rule = lambda _method, _path: 403
    assert lists_something(f"{s3.uri}/in") is None
