"""How a Ray that does not start is told."""

from __future__ import annotations

import pytest

from cluster import session
from pipelines.errors import TryLater


def test_a_machine_too_busy_for_ray_is_no_defect_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(ray: object, **arguments: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(session, "_quiet_ray", object)
    monkeypatch.setattr(session, "_reread_environment", lambda: None)
    monkeypatch.setattr(session, "_init", too_slow)
    with (
        pytest.raises(TryLater, match="Ray did not start on this machine: The current node timed out"),
        session.start_or_join("local"),
    ):
        pass


def test_workers_are_told_how_to_reach_storage_and_no_secret() -> None:
    secret = "hunter2"
    told = {
        "NIGHTREAD_S3_CA_FILE": "/etc/ssl/hospital.pem",
        "NIGHTREAD_S3_PLACES": '{"s3://b/a@b": "ARCHIVE"}',
        "NIGHTREAD_S3_ARCHIVE_ENDPOINT_URL": "https://store:9000",
        "NIGHTREAD_S3_ARCHIVE_PROFILE": "night",
        "AWS_ENDPOINT_URL_S3": "https://usual",
        "AWS_REGION": "muc",
        "AWS_PROFILE": "night",
        "AWS_SHARED_CREDENTIALS_FILE": "/etc/nightread/a@b",
        "AWS_CONFIG_FILE": "/etc/nightread/config",
        "AWS_CA_BUNDLE": "/etc/ssl/hospital.pem",
        "HTTPS_PROXY": "http://proxy:3128",
        "no_proxy": "10.0.0.0/8",
    }
    withheld = {
        "NIGHTREAD_S3_ARCHIVE_ACCESS_KEY_ID": secret,
        "NIGHTREAD_S3_ARCHIVE_SECRET_ACCESS_KEY": secret,
        "NIGHTREAD_S3_RESULTS_SESSION_TOKEN": secret,
        "AWS_ACCESS_KEY_ID": secret,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": secret,
        "HTTP_PROXY": f"http://user:{secret}@proxy:3128",
        "all_proxy": f"user:{secret}@proxy:3128",
        "AWS_ENDPOINT_URL": f"https://user:{secret}@store",
        "PATH": "/bin",
    }
    assert session.for_workers(told | withheld) == told
