from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.storage.settings import S3Settings, delta_storage_options, fsspec_filesystem

KEYS = {"AWS_ACCESS_KEY_ID": "the-id", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_SESSION_TOKEN": "the-token"}


def nowhere(tmp_path: Path) -> dict[str, str]:
    return {"AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/none", "AWS_CONFIG_FILE": f"{tmp_path}/none"}


def test_the_environment_reaches_all_three_clients_alike(tmp_path: Path) -> None:
    environment = KEYS | nowhere(tmp_path) | {"AWS_ENDPOINT_URL": "http://store:9000/", "AWS_REGION": "here"}
    settings = S3Settings.from_environment(environment)
    for_obstore, for_s3fs, for_delta = settings.obstore_config(), settings.s3fs_options(), settings.delta_options()
    assert for_obstore["endpoint"] == for_s3fs["endpoint_url"] == for_delta["AWS_ENDPOINT_URL"] == "http://store:9000"
    assert for_obstore["region"] == for_s3fs["client_kwargs"]["region_name"] == for_delta["AWS_REGION"] == "here"
    assert for_obstore["access_key_id"] == for_s3fs["key"] == for_delta["AWS_ACCESS_KEY_ID"] == "the-id"
    assert for_obstore["secret_access_key"] == for_s3fs["secret"] == for_delta["AWS_SECRET_ACCESS_KEY"] == "the-secret"
    assert for_obstore["session_token"] == for_s3fs["token"] == for_delta["AWS_SESSION_TOKEN"] == "the-token"
    assert for_obstore["client_options"]["allow_http"] is True
    assert for_delta["AWS_ALLOW_HTTP"] == "true"
    assert all(isinstance(value, str) for value in for_delta.values())


def test_no_key_is_in_the_representation(tmp_path: Path) -> None:
    text = repr(S3Settings.from_environment(KEYS | nowhere(tmp_path)))
    assert not any(secret in text for secret in KEYS.values())


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({"AWS_ENDPOINT_URL": "https://a", "AWS_ENDPOINT_URL_S3": "https://b"}, "https://b"),
        ({"AWS_ENDPOINT_URL": ""}, None),
        ({}, None),
    ],
)
def test_the_special_endpoint_goes_before_the_general_one(
    variables: dict[str, str], endpoint: str | None, tmp_path: Path
) -> None:
    settings = S3Settings.from_environment(variables | nowhere(tmp_path))
    assert settings.endpoint == endpoint
    assert settings.region == "us-east-1"
    assert "AWS_ALLOW_HTTP" not in settings.delta_options()


@pytest.mark.parametrize("endpoint", ["store:9000", "ftp://store", "https://user:hunter2@store", "http://[half"])
def test_an_endpoint_that_cannot_be_one_is_refused_without_repeating_a_password(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        S3Settings.from_environment({"AWS_ENDPOINT_URL": endpoint} | nowhere(tmp_path))
    assert "hunter2" not in str(caught.value)


def test_profiles_are_read_from_the_files(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[night]\naws_access_key_id = i\naws_secret_access_key = s\n")
    (tmp_path / "config").write_text("[profile night]\nregion = there\nendpoint_url = https://store\n")
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials",
        "AWS_CONFIG_FILE": f"{tmp_path}/config",
        "AWS_PROFILE": "night",
    }
    settings = S3Settings.from_environment(files)
    assert (settings.region, settings.endpoint) == ("there", "https://store")
    assert (settings.access_key_id, settings.secret_access_key) == ("i", "s")
    with pytest.raises(UsageError, match="day"):
        S3Settings.from_environment(files | {"AWS_PROFILE": "day"})


def test_local_places_need_no_settings() -> None:
    assert delta_storage_options("/results") == {}
    assert fsspec_filesystem("/results").protocol[0] == "file"
    with pytest.raises(UsageError, match="nosuch"):
        fsspec_filesystem("nosuch://x")
