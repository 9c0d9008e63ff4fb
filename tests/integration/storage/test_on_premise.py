"""S3 as hospitals have it: several servers with keys of their own, a private authority, a web proxy, older servers.

Every fact is asked of each client by a call of its own: obstore, deltalake, s3fs (DuckDB's), botocore.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from hospital_network import (
    Renewal,
    Request,
    S3Gateway,
    WebProxy,
    all_of,
    make_authority,
    no_checksums,
    only_key,
    running,
)

from pipelines.errors import TryLater, UsageError
from pipelines.predictions.table import explained_errors, table_uri
from pipelines.storage import files
from pipelines.storage.faults import translated
from pipelines.storage.listing import check_root
from pipelines.storage.reading import ImageReader
from pipelines.storage.roles import Role, declare
from pipelines.storage.settings import delta_storage_options, fsspec_filesystem, settings_of

HOST = "store.hospital.test"
Client = Callable[[str], object]


def with_obstore(folder: str) -> None:
    files.write_atomic(f"{folder}/a", b"whole")
    assert files.read_bytes(f"{folder}/a") == b"whole"


def with_deltalake(folder: str) -> None:
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    uri = table_uri(folder)
    with explained_errors(uri):
        write_deltalake(uri, pa.table({"a": [1]}), mode="append", storage_options=delta_storage_options(uri))
        assert DeltaTable(uri, storage_options=delta_storage_options(uri)).version() >= 0


def with_s3fs(folder: str) -> None:
    try:
        fsspec_filesystem(folder).pipe_file(f"{folder}/b", b"whole")
        with fsspec_filesystem(folder).open(f"{folder}/b", "rb") as file:
            assert file.read() == b"whole"
    except Exception as error:
        raise translated(error, folder) from None


def with_botocore(folder: str) -> None:
    bucket, key = folder.removeprefix("s3://").split("/", 1)
    try:
        client = settings_of(folder).botocore_client(tries=1)
        client.put_object(Bucket=bucket, Key=f"{key}//c", Body=b"whole")
        assert client.get_object(Bucket=bucket, Key=f"{key}//c")["Body"].read() == b"whole"
        assert len(client.list_objects_v2(Bucket=bucket, Prefix=f"{key}//")["Contents"]) == 1
    except Exception as error:
        raise translated(error, folder) from None


CLIENTS: list[Client] = [with_obstore, with_deltalake, with_s3fs, with_botocore]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The hospital's own authority, and the certificate with key that it gave its servers."""
    return make_authority(tmp_path_factory.mktemp("authority"), HOST, f"*.{HOST}")


@pytest.fixture
def gateway() -> Iterator[Callable[..., S3Gateway]]:
    """Start a gateway in front of an address."""
    with contextlib.ExitStack() as stack:

        def start(target: str, certificate: Path | None = None) -> S3Gateway:
            started = S3Gateway(target, certificate)
            stack.enter_context(running(started))
            return started

        yield start


@pytest.fixture
def proxy() -> Iterator[WebProxy]:
    """A web proxy."""
    started = WebProxy()
    with running(started):
        yield started


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Set what the environment says of S3, and give a folder in a new bucket of a server: `place(server, X="…")`."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "NIGHTREAD_S3_")) or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("NIGHTREAD_S3_PLACES", "")

    def prepare(server: str, **variables: str) -> str:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return f"s3://{new_bucket(server)}/folder"

    return prepare


def new_bucket(server: str) -> str:
    import botocore.session
    from botocore.config import Config

    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    options = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    config = Config(proxies={})
    client = botocore.session.get_session().create_client("s3", endpoint_url=server, config=config, **options)
    client.create_bucket(Bucket=bucket)
    return bucket


def keys(name: str, prefix: str = "AWS_") -> dict[str, str]:
    return {f"{prefix}ACCESS_KEY_ID": f"{name}-key", f"{prefix}SECRET_ACCESS_KEY": f"{name}-secret"}


def test_archive_and_results_on_two_servers_with_keys_of_their_own_and_one_authority(
    s3_server: str, second_s3_server: str, gateway: Callable, place: Callable, authority: tuple[Path, Path]
) -> None:
    ca, certificate = authority
    stranger, first = gateway(s3_server), gateway(s3_server)
    second = gateway(second_s3_server, certificate)
    first.rule, second.rule = only_key("archive-key"), only_key("results-key")
    archive = place(
        s3_server,
        AWS_ENDPOINT_URL_S3=stranger.endpoint,
        AWS_ALLOW_INVALID_CERTIFICATES="true",
        NIGHTREAD_S3_CA_FILE=str(ca),
        NIGHTREAD_S3_ARCHIVE_ENDPOINT_URL=first.endpoint,
        NIGHTREAD_S3_RESULTS_ENDPOINT_URL=second.endpoint,
        **keys("usual"),
        **keys("archive", "NIGHTREAD_S3_ARCHIVE_"),
        **keys("results", "NIGHTREAD_S3_RESULTS_"),
    )
    results = place(second_s3_server)
    declare(Role.ARCHIVE, archive)
    declare(Role.RESULTS, results)
    for client in CLIENTS:
        client(archive)
        client(results)
    assert set(first.signers()) == {"archive-key"}
    assert set(second.signers()) == {"results-key"}
    assert not stranger.seen
    with_obstore(place(s3_server))
    assert set(stranger.signers()) == {"usual-key"}


@pytest.mark.parametrize(
    ("client", "known"), [*((client, False) for client in CLIENTS), (with_obstore, True), (with_botocore, True)]
)
def test_a_certificate_of_another_authority_is_refused_and_nothing_switches_that_off(
    client: Client,
    known: bool,
    s3_server: str,
    gateway: Callable,
    place: Callable,
    authority: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    server = gateway(s3_server, authority[1])
    other = {"NIGHTREAD_S3_CA_FILE": str(make_authority(tmp_path)[0])} if known else {}
    folder = place(
        s3_server, AWS_ENDPOINT_URL=server.endpoint, AWS_ALLOW_INVALID_CERTIFICATES="true", **keys("a"), **other
    )
    with pytest.raises(UsageError, match="not trusted") as caught:
        client(folder)
    assert "NIGHTREAD_S3_CA_FILE" in caught.value.cure
    assert not server.seen


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("style", ["path", "virtual"])
def test_every_client_goes_through_the_web_proxy_and_spells_the_bucket_as_told(
    style: str,
    encrypted: bool,
    s3_server: str,
    gateway: Callable,
    proxy: WebProxy,
    place: Callable,
    authority: tuple[Path, Path],
) -> None:
    server = gateway(s3_server, authority[1] if encrypted else None)
    server.bucket_domain = f"{HOST}:9000"
    proxy.names[HOST] = server.endpoint.split("://")[1]
    folder = place(
        s3_server,
        AWS_ENDPOINT_URL=f"{'https' if encrypted else 'http'}://{HOST}:9000",
        AWS_REGION="klinikum-1",
        HTTP_PROXY=proxy.address,
        HTTPS_PROXY=proxy.address,
        NIGHTREAD_S3_CA_FILE=str(authority[0]),
        NIGHTREAD_S3_ADDRESSING_STYLE=style,
        **keys("a"),
    )
    bucket = folder.split("/")[2]
    for client in CLIENTS:
        before = len(proxy.asked), len(server.seen)
        client(folder)
        assert (len(proxy.asked) > before[0], len(server.seen) > before[1]) == (True, True), client
    assert {request.host for request in server.seen} == {
        f"{bucket}.{HOST}:9000" if style == "virtual" else f"{HOST}:9000"
    }
    assert {request.region for request in server.seen} == {"klinikum-1"}


@pytest.mark.parametrize("exceptions", ["localhost,127.0.0.0/8", "*"])
def test_every_client_leaves_the_proxy_out_where_told(
    exceptions: str, s3_server: str, gateway: Callable, place: Callable
) -> None:
    server = gateway(s3_server)
    nobody = "http://user:the-password@127.0.0.1:1"
    folder = place(
        s3_server,
        AWS_ENDPOINT_URL=server.endpoint,
        HTTP_PROXY=nobody,
        ALL_PROXY=nobody,
        NO_PROXY=exceptions,
        **keys("a"),
    )
    for client in CLIENTS:
        client(folder)


def test_a_proxy_that_does_not_answer_is_try_later_without_its_password(
    s3_server: str, place: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.storage.faults.TRY_SECONDS", 0.5)
    folder = place(
        s3_server, AWS_ENDPOINT_URL=s3_server, HTTP_PROXY="http://user:the-password@127.0.0.1:1", **keys("a")
    )
    with pytest.raises(TryLater) as caught:
        files.read_bytes(f"{folder}/a")
    assert "the-password" not in repr(caught.value)


def test_a_server_that_refuses_checksums_is_served_without(s3_server: str, gateway: Callable, place: Callable) -> None:
    server = gateway(s3_server)
    server.rule = no_checksums
    folder = place(s3_server, AWS_ENDPOINT_URL=server.endpoint, **keys("a"))
    for client in CLIENTS:
        client(folder)  # nothing is sent that S3 itself does not require
    for number in range(20):
        files.write_atomic(f"{folder}/many/{number}", b"x")
    with pytest.raises(UsageError) as caught:
        files.delete(f"{folder}/many/0")
    assert "NIGHTREAD_S3_CHECKSUMS=none" in caught.value.cure
    place(s3_server, NIGHTREAD_S3_CHECKSUMS="none")
    for client in CLIENTS:
        client(folder)
    files.delete(f"{folder}/many/0")
    files.delete_tree(f"{folder}/many")
    assert files.list_names(f"{folder}/many") == []


@pytest.mark.parametrize("client", [*CLIENTS, None])
def test_keys_that_end_and_are_renewed_in_their_file_fail_nothing(
    client: Client | None, s3_server: str, gateway: Callable, place: Callable, tmp_path: Path
) -> None:
    server = gateway(s3_server)
    folder = place(
        s3_server, AWS_ENDPOINT_URL=server.endpoint, AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials")
    )
    Renewal(tmp_path / "credentials", 0, 0.5)
    for number in range(40):
        files.write_atomic(f"{folder}/{number}", str(number).encode())
    server.rule = renewal = Renewal(tmp_path / "credentials", 20, 0.5)
    if client is None:
        reader = ImageReader(max_bytes=100)
        with ThreadPoolExecutor(4) as threads:
            read = list(threads.map(reader.read, [f"{folder}/{number}" for number in range(40)]))
        assert [blob.data for blob in read] == [str(number).encode() for number in range(40)]
        assert server.signers()["new-key"] >= 20
    else:
        while not renewal.refused:
            with contextlib.suppress(TryLater):  # some repeat such a request, the others end the command with 75
                client(folder)
        wait_for(lambda: "new" in renewal.file.read_text())
        client(folder)
        assert server.signers()["new-key"] > 0
    assert renewal.refused


def wait_for(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(200):
        if condition():
            return
        waiting.wait(0.05)
    raise AssertionError("it did not come to pass")


@pytest.mark.parametrize(
    ("refusal", "said", "cure"),
    [
        ((400, "AuthorizationHeaderMalformed"), "in another region", "AWS_REGION"),
        ((403, "InvalidAccessKeyId"), "refused", "AWS_ACCESS_KEY_ID"),
    ],
)
@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_server_refuses_is_one_sentence_with_a_cure_and_without_a_secret(
    client: Client, refusal: tuple[int, str], said: str, cure: str, s3_server: str, gateway: Callable, place: Callable
) -> None:
    server = gateway(s3_server)
    folder = place(s3_server, AWS_ENDPOINT_URL=server.endpoint, **keys("private"), AWS_SESSION_TOKEN="private-token")
    server.rule = lambda _request: refusal
    with pytest.raises(UsageError, match=said) as caught:
        client(folder)
    assert cure in caught.value.cure
    assert "private" not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize("trusted", [True, False])
def test_doctor_tries_a_place_for_results_with_the_keys_of_its_role(
    trusted: bool, s3_server: str, gateway: Callable, place: Callable, authority: tuple[Path, Path]
) -> None:
    from jobs.doctor import examine

    server = gateway(s3_server, authority[1])
    server.rule = only_key("results-key")
    place(s3_server, NIGHTREAD_S3_RESULTS_ENDPOINT_URL=server.endpoint, **keys("results", "NIGHTREAD_S3_RESULTS_"))
    folder = place(s3_server, **({"NIGHTREAD_S3_CA_FILE": str(authority[0])} if trusted else {}))
    declare(Role.RESULTS, folder)
    check = next(check for check in examine(folder, "local") if check.name == "results")
    assert check.good is trusted
    assert trusted or "NIGHTREAD_S3_CA_FILE" in check.cure


def test_a_bucket_that_may_be_read_but_not_listed_is_told_apart(
    s3_server: str, gateway: Callable, place: Callable
) -> None:
    server = gateway(s3_server)
    folder = place(s3_server, NIGHTREAD_S3_ARCHIVE_ENDPOINT_URL=server.endpoint, **keys("a", "NIGHTREAD_S3_ARCHIVE_"))
    declare(Role.ARCHIVE, folder)
    files.write_atomic(f"{folder}/a", b"x")
    listing: Callable[[Request], Any] = lambda r: (403, "AccessDenied") if "list-type" in r.path else None  # noqa: E731
    server.rule = all_of(only_key("a-key"), listing)
    assert ImageReader(max_bytes=9).read(f"{folder}/a").data == b"x"
    with pytest.raises(UsageError, match="may not be listed") as caught:
        check_root(folder)
    assert "s3:ListBucket" in caught.value.cure


def test_a_store_that_is_not_there_names_the_setting_of_its_role(
    s3_server: str, place: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.storage.faults.TRY_SECONDS", 0.5)
    folder = place(
        s3_server, NIGHTREAD_S3_RESULTS_ENDPOINT_URL="http://127.0.0.1:1", **keys("a", "NIGHTREAD_S3_RESULTS_")
    )
    declare(Role.RESULTS, folder)
    with pytest.raises(TryLater) as caught:
        files.read_bytes(f"{folder}/a")
    assert "NIGHTREAD_S3_RESULTS_ENDPOINT_URL" in caught.value.cure
