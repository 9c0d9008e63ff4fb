"""A night over buckets asks for nothing that the policies of cluster/deploy do not grant, and needs each grant."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

POLICIES = Path(__file__).resolve().parents[3] / "cluster" / "deploy" / "s3"
LOG_LINE = re.compile(r'"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\S*" (\d{3})')
PLACES = {"archive": ("pacs", "images"), "models": ("nightread", "models"), "results": ("nightread", "results")}

# Of one request that deletes many: their names stand in its body, which the server's log does not show.
UNKNOWN_KEYS = "?"

# Needed only where an upload in parts fails: the parts must not stay.
NOT_NEEDED_BY_A_GOOD_NIGHT = {("results", "s3:AbortMultipartUpload")}


@dataclass(frozen=True)
class Wish:
    """What one request asks for.

    Attributes:
        action: The action of S3 that has to be allowed.
        resource: On which resource.
        prefix: Of a listing; None where the request has none.
    """

    action: str
    resource: str
    prefix: str | None = None


def wishes(method: str, target: str, status: int) -> Iterator[Wish]:
    """The permissions that S3 asks for to answer a request as it was answered."""
    parts = urlsplit(target)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket_resource, resource = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    if not key and method == "POST":
        assert "delete" in query, target
        yield Wish("s3:DeleteObject", f"{bucket_resource}/{UNKNOWN_KEYS}")
    elif not key:
        assert "list-type" in query or method == "HEAD", target
        yield Wish("s3:ListBucket", bucket_resource, query.get("prefix", [None])[0])
    elif method in ("GET", "HEAD"):
        yield Wish("s3:GetObject", resource)
        if status == 404:  # who may not list is told 403 of what is not there
            yield Wish("s3:ListBucket", bucket_resource)
    elif method == "DELETE":
        yield Wish("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", resource)
    else:
        yield Wish("s3:PutObject", resource)


def grants(policy: dict[str, Any]) -> Iterator[tuple[str, str, list[str] | None]]:
    """Each action of a policy with its resource and the prefixes that a listing is held to."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        condition = statement.get("Condition")
        prefixes = condition["StringLikeIfExists"]["s3:prefix"] if condition else None
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        for action in actions:
            yield action, statement["Resource"], prefixes


def granted(wish: Wish, policy: dict[str, Any]) -> set[str]:
    """The actions of a policy that grant a wish."""
    found = set()
    for action, resource, prefixes in grants(policy):
        held = prefixes is None or wish.prefix is None or any(fnmatch.fnmatchcase(wish.prefix, p) for p in prefixes)
        if wish.resource.endswith(f"/{UNKNOWN_KEYS}"):
            covers = resource.startswith(wish.resource.removesuffix(UNKNOWN_KEYS))
        else:
            covers = fnmatch.fnmatchcase(wish.resource, resource)
        if action == wish.action and covers and held:
            found.add(action)
    return found


@contextlib.contextmanager
def logging_s3(log: Path) -> Iterator[str]:
    """A moto server that writes each request to a file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        try:
            for _ in range(600):
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                    break
                assert process.poll() is None
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def requests(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: Path, nightread: Callable, draw: Callable
) -> list[tuple[str, str, int]]:
    """Method, target and status of each request of a night whose places are all in buckets."""
    import s3fs

    home = tmp_path_factory.mktemp("policies")
    with logging_s3(home / "log") as endpoint:
        account = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": endpoint}
        filesystem = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=endpoint)
        for bucket in ("pacs", "nightread"):
            filesystem.mkdir(bucket)
        for path in draw(home / "images", 2):
            filesystem.put(str(path), f"pacs/images/{path.name}")
        filesystem.put(str(tiny_models / "cells") + "/", "nightread/models/cells/", recursive=True)
        before = len((home / "log").read_text().splitlines())
        done = nightread("score", "s3://pacs/images", "--model", "s3://nightread/models/cells",
                         "--results", "s3://nightread/results", "--json", env=account)  # fmt: skip
        assert done.code == 0, done.err
        lines = (home / "log").read_text().splitlines()[before:]
    found = [LOG_LINE.search(line) for line in lines]
    return [(match[1], match[2], int(match[3])) for match in found if match]


def test_the_policies_grant_all_that_a_night_asks_for_and_nothing_else(requests: list[tuple[str, str, int]]) -> None:
    policies = {name: json.loads((POLICIES / f"{name}.json").read_text()) for name in PLACES}
    used: set[tuple[str, str]] = set()
    for method, target, status in requests:
        for wish in wishes(method, target, status):
            by = {(name, action) for name, policy in policies.items() for action in granted(wish, policy)}
            assert by, f"{method} {target} {status} is not granted"
            used |= by
    all_grants = {(name, action) for name, policy in policies.items() for action, _, _ in grants(policy)}
    assert all_grants - used == NOT_NEEDED_BY_A_GOOD_NIGHT


def test_what_is_not_granted_is_noticed() -> None:
    policies = {name: json.loads((POLICIES / f"{name}.json").read_text()) for name in PLACES}
    for method, target in (
        ("PUT", "/pacs/images/a.jpg"),
        ("DELETE", "/nightread/models/chest/champion.json"),
        ("GET", "/nightread/other/key"),
        ("GET", "/pacs?list-type=2&prefix=other/"),
        ("PUT", "/other/results/x"),
    ):
        for wish in wishes(method, target, 200):
            assert not any(granted(wish, policy) for policy in policies.values()), target
