"""A whole night where archive, models and results lie on servers of their own; `test_on_premise` tries them singly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from hospital_network import Renewal, S3Gateway, WebProxy, make_authority, only_key, running

IMAGES = 60


def client_of(server: str) -> Any:
    import botocore.session

    return botocore.session.get_session().create_client(
        "s3", endpoint_url=server, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )


def put_all(client: Any, bucket: str, folder: Path) -> None:
    client.create_bucket(Bucket=bucket)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket=bucket, Key=str(path.relative_to(folder)), Body=path.read_bytes())


def everything_in(client: Any, bucket: str) -> dict[str, bytes]:
    found = client.list_objects_v2(Bucket=bucket)["Contents"]
    return {item["Key"]: client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read() for item in found}


def test_a_night_over_three_accounts_with_keys_that_end_in_it(
    s3_server: str, second_s3_server: str, tiny_models: Path, nightread: Callable, draw: Callable, tmp_path: Path
) -> None:
    draw(tmp_path / "images", IMAGES)
    put_all(client_of(s3_server), "pacs", tmp_path / "images")
    put_all(client_of(second_s3_server), "bundles", tiny_models)
    client_of(second_s3_server).create_bucket(Bucket="night")
    authority, certificate = make_authority(tmp_path, "pacs.hospital.test")
    with ExitStack() as stack:
        proxy = WebProxy()
        archive = S3Gateway(s3_server, certificate)
        models, results = (S3Gateway(second_s3_server, certificate) for _ in range(2))
        for server in (proxy, archive, models, results):
            stack.enter_context(running(server))
        proxy.names["pacs.hospital.test"] = archive.endpoint.removeprefix("https://")
        archive.rule = renewal = Renewal(tmp_path / "credentials", IMAGES // 3, 1.0)
        models.rule, results.rule = only_key("models-key"), only_key("results-key")
        environment = {
            "HTTPS_PROXY": proxy.address,
            "NO_PROXY": "localhost,127.0.0.0/8",
            "NIGHTREAD_S3_CA_FILE": str(authority),
            "NIGHTREAD_S3_ARCHIVE_ENDPOINT_URL": "https://pacs.hospital.test:9000",
            "NIGHTREAD_S3_ARCHIVE_SHARED_CREDENTIALS_FILE": str(renewal.file),
            "NIGHTREAD_S3_ARCHIVE_REGION": "klinikum-1",
            "NIGHTREAD_S3_MODELS_ENDPOINT_URL": models.endpoint,
            "NIGHTREAD_S3_MODELS_ACCESS_KEY_ID": "models-key",
            "NIGHTREAD_S3_MODELS_SECRET_ACCESS_KEY": "models-secret",
            "NIGHTREAD_S3_RESULTS_ENDPOINT_URL": results.endpoint,
            "NIGHTREAD_S3_RESULTS_ACCESS_KEY_ID": "results-key",
            "NIGHTREAD_S3_RESULTS_SECRET_ACCESS_KEY": "results-secret",
            "AWS_ACCESS_KEY_ID": "usual-key",
            "AWS_SECRET_ACCESS_KEY": "usual-secret",
        }
        night = ["s3://pacs", "--model", "s3://bundles/cells", "--results", "s3://night/2026", "--shard-size", 8]
        done = nightread("score", *night, "--json", env=environment)
        assert done.code == 0, done.err  # the workers too trust the authority and go through the proxy
        assert (done.answer["scored"], done.answer["failed"]) == (IMAGES, 0)
        assert renewal.refused
        assert set(archive.signers()) == {"old-key", "new-key"}
        assert set(models.signers()) == {"models-key"}
        assert set(results.signers()) == {"results-key"}
        through_proxy = {place.partition(":")[0] for place in proxy.asked}
        assert ("pacs.hospital.test" in through_proxy, "127.0.0.1" in through_proxy) == (True, False)

        sql = "SELECT count(*) AS n, count(DISTINCT image_uri) AS images FROM latest WHERE status = 'scored'"
        asked = nightread("query", "s3://night/2026", sql, "--json", env=environment)
        assert asked.answer == [{"n": IMAGES, "images": IMAGES}]
        listed = nightread("runs", "list", "s3://night/2026", "--json", env=environment)
        assert [run["run_id"] for run in listed.answer] == [done.answer["run_id"]]
        unknown = nightread("runs", "list", "s3://night/2026", env=environment | {"NIGHTREAD_S3_CA_FILE": ""})
        assert (unknown.code, "NIGHTREAD_S3_CA_FILE" in unknown.err) == (2, True)

        written = everything_in(client_of(second_s3_server), "night")
        assert "2026/runs/" + done.answer["run_id"] + "/run.json" in written
        for secret in ("-secret", "-token"):
            assert not any(secret in told.out + told.err for told in (done, asked, listed, unknown))
            assert not [key for key, content in written.items() if secret.encode() in content]
