from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.storage.clients import S3Settings
from pipelines.storage.roles import Role, declare
from pipelines.storage.settings import delta_storage_options, fsspec_filesystem, read_settings, settings_of

KEYS = {"AWS_ACCESS_KEY_ID": "the-id", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_SESSION_TOKEN": "the-token"}


def nowhere(tmp_path: Path) -> dict[str, str]:
    return {"AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/none", "AWS_CONFIG_FILE": f"{tmp_path}/none"}


def key_id(settings: S3Settings) -> str | None:
    return settings.keys.access_key_id if settings.keys else None


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """This process's environment without anything that the tests' machine says of S3."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "NIGHTREAD_S3_"))]:
        monkeypatch.delenv(name)
    for name, value in nowhere(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NIGHTREAD_S3_PLACES", "")
    return monkeypatch


def test_the_environment_reaches_all_three_clients_alike(tmp_path: Path) -> None:
    environment = KEYS | nowhere(tmp_path) | {"AWS_ENDPOINT_URL": "http://store:9000/", "AWS_REGION": "here"}
    settings = read_settings(environment)
    for_obstore, for_s3fs, for_delta = (
        settings.obstore_config("b"),
        settings.s3fs_options(),
        settings.delta_options("b"),
    )
    assert for_obstore["endpoint"] == for_s3fs["endpoint_url"] == for_delta["AWS_ENDPOINT_URL"] == "http://store:9000"
    assert for_obstore["region"] == for_s3fs["client_kwargs"]["region_name"] == for_delta["AWS_REGION"] == "here"
    signed = for_obstore["credential_provider"]()
    assert signed["access_key_id"] == for_s3fs["key"] == for_delta["AWS_ACCESS_KEY_ID"] == "the-id"
    assert signed["secret_access_key"] == for_s3fs["secret"] == for_delta["AWS_SECRET_ACCESS_KEY"] == "the-secret"
    assert signed["token"] == for_s3fs["token"] == for_delta["AWS_SESSION_TOKEN"] == "the-token"
    assert for_obstore["client_options"]["allow_http"] is True
    assert for_delta["AWS_ALLOW_HTTP"] == "true"
    assert all(isinstance(value, str) for value in for_delta.values())


def test_no_key_is_in_the_representation(tmp_path: Path) -> None:
    proxied = {"HTTPS_PROXY": "http://user:the-password@proxy:3128"}
    settings = read_settings(KEYS | nowhere(tmp_path) | proxied)
    assert settings.proxy is not None
    assert "the-" not in repr(settings) + repr(settings.keys) + repr(settings.proxy)


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
    settings = read_settings(variables | nowhere(tmp_path))
    assert settings.endpoint == endpoint
    assert settings.region == "us-east-1"
    assert settings.delta_options("b")["AWS_ALLOW_HTTP"] == "false"


@pytest.mark.parametrize("endpoint", ["store:9000", "ftp://store", "https://user:hunter2@store", "http://[half"])
def test_an_endpoint_that_cannot_be_one_is_refused_without_repeating_a_password(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings({"AWS_ENDPOINT_URL": endpoint} | nowhere(tmp_path))
    assert "hunter2" not in str(caught.value)


def test_profiles_are_read_from_the_files(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[night]\naws_access_key_id = i\naws_secret_access_key = s\n")
    (tmp_path / "config").write_text("[profile night]\nregion = there\nendpoint_url = https://store\n")
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials",
        "AWS_CONFIG_FILE": f"{tmp_path}/config",
        "AWS_PROFILE": "night",
    }
    settings = read_settings(files)
    assert (settings.region, settings.endpoint, key_id(settings)) == ("there", "https://store", "i")
    with pytest.raises(UsageError, match="day"):
        read_settings(files | {"AWS_PROFILE": "day"})


def test_local_places_need_no_settings() -> None:
    assert delta_storage_options("/results") == {}
    assert fsspec_filesystem("/results").protocol[0] == "file"
    with pytest.raises(UsageError, match="nosuch"):
        fsspec_filesystem("nosuch://x")


def test_a_role_without_settings_of_its_own_has_the_usual_ones(tmp_path: Path) -> None:
    usual = KEYS | nowhere(tmp_path) | {"AWS_ENDPOINT_URL": "https://store"}
    other = {"NIGHTREAD_S3_RESULTS_REGION": "far", "NIGHTREAD_S3_RESULTS_ACCESS_KEY_ID": ""}
    assert read_settings(usual | other, Role.ARCHIVE) == read_settings(usual)
    results = read_settings(usual | other, Role.RESULTS)
    assert (results.region, results.endpoint, key_id(results)) == ("far", "https://store", "the-id")


def test_a_role_with_an_endpoint_of_its_own_is_never_sent_the_usual_keys(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("[default]\naws_access_key_id = usual\naws_secret_access_key = s\n")
    usual = KEYS | nowhere(tmp_path) | {"AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/usual"}
    stranger = {"NIGHTREAD_S3_ARCHIVE_ENDPOINT_URL": "https://stranger"}
    with pytest.raises(UsageError, match=r"archive.*NIGHTREAD_S3_ARCHIVE_ACCESS_KEY_ID"):
        read_settings(usual | stranger, Role.ARCHIVE)
    assert read_settings(usual | stranger, Role.RESULTS) == read_settings(usual)
    own = {"NIGHTREAD_S3_ARCHIVE_ACCESS_KEY_ID": "own", "NIGHTREAD_S3_ARCHIVE_SECRET_ACCESS_KEY": "s"}
    settings = read_settings(usual | stranger | own, Role.ARCHIVE)
    assert (key_id(settings), settings.keys and settings.keys.session_token) == ("own", None)
    anonymous = read_settings(usual | stranger | {"NIGHTREAD_S3_ARCHIVE_SKIP_SIGNATURE": "true"}, Role.ARCHIVE)
    assert (anonymous.anonymous, anonymous.keys) == (True, None)
    named = read_settings(usual | stranger | {"NIGHTREAD_S3_ARCHIVE_PROFILE": "default"}, Role.ARCHIVE)
    assert (key_id(named), named.endpoint) == ("usual", "https://stranger")  # asked for by name


@pytest.mark.parametrize("missing", ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY"])
@pytest.mark.parametrize(("prefix", "role"), [("AWS_", None), ("NIGHTREAD_S3_MODELS_", Role.MODELS)])
def test_half_a_pair_of_keys_is_refused_with_the_name_of_the_other(
    missing: str, prefix: str, role: Role | None, tmp_path: Path
) -> None:
    pair = {f"{prefix}{name}": "x" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY") if name != missing}
    with pytest.raises(UsageError, match=f"{prefix}{missing} is missing"):
        read_settings(pair | nowhere(tmp_path), role)


def test_what_the_rust_clients_would_take_from_the_environment_is_always_given(
    environment: pytest.MonkeyPatch,
) -> None:
    stray = {
        "AWS_ENDPOINT_URL_S3": "https://usual",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_ALLOW_INVALID_CERTIFICATES": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_CONDITIONAL_PUT": "disabled",
    }
    own = {"ENDPOINT_URL": "https://stranger", "ACCESS_KEY_ID": "own", "SECRET_ACCESS_KEY": "s"}
    for name, value in stray.items():
        environment.setenv(name, value)
    for name, value in own.items():
        environment.setenv(f"NIGHTREAD_S3_RESULTS_{name}", value)
    declare(Role.RESULTS, "s3://b/results")
    options = delta_storage_options("s3://b/results/predictions")
    assert {name: options[name] for name in stray} == {
        "AWS_ENDPOINT_URL_S3": "https://stranger",
        "AWS_SKIP_SIGNATURE": "false",
        "AWS_ALLOW_INVALID_CERTIFICATES": "false",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "AWS_CONDITIONAL_PUT": "etag",
    }
    assert settings_of("s3://b/results").obstore_config("b")["client_options"]["allow_invalid_certificates"] is False
    environment.setenv("AWS_SESSION_TOKEN", "usual-token")
    with pytest.raises(UsageError, match="AWS_SESSION_TOKEN") as caught:
        delta_storage_options("s3://b/results/predictions")
    assert "usual-token" not in str(caught.value)


@pytest.mark.parametrize("role", [None, Role.ARCHIVE])
def test_styles_are_settings_of_all_or_of_one_role(role: Role | None, tmp_path: Path) -> None:
    prefix = "NIGHTREAD_S3_ARCHIVE_" if role else "NIGHTREAD_S3_"
    said = {f"{prefix}ADDRESSING_STYLE": "virtual", f"{prefix}CHECKSUMS": "none", "AWS_ENDPOINT_URL": "http://s:9/p"}
    settings = read_settings(said | nowhere(tmp_path), role)
    assert settings.obstore_config("b")["endpoint"] == "http://b.s:9/p"
    assert settings.obstore_config("b")["disable_bulk_delete"] is True
    assert settings.delta_options("b")["AWS_ENDPOINT_URL"] == "http://b.s:9/p"
    assert settings.s3fs_options()["config_kwargs"]["s3"] == {"addressing_style": "virtual"}
    usual = read_settings(said | nowhere(tmp_path), Role.MODELS)
    assert (usual.addressing, usual.checksums) == (("path", "required") if role else ("virtual", "none"))
    with pytest.raises(UsageError, match=f"{prefix}ADDRESSING_STYLE is 'maybe'"):
        read_settings(said | nowhere(tmp_path) | {f"{prefix}ADDRESSING_STYLE": "maybe"}, role)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_authorities_without_any_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(UsageError, match=r"NIGHTREAD_S3_CA_FILE names '.*ca.pem'"):
        read_settings({"NIGHTREAD_S3_CA_FILE": str(file)} | nowhere(tmp_path))


def test_the_answer_is_the_same_object_until_something_changes(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text("[default]\naws_access_key_id = first\naws_secret_access_key = s\n")
    before = settings_of("s3://b/a")
    assert settings_of("s3://b/c") is before
    environment.setenv("AWS_REGION", "there")
    assert settings_of("s3://b/a").region == "there"
    (tmp_path / "new").write_text("[default]\naws_access_key_id = other\naws_secret_access_key = s\n")
    (tmp_path / "new").replace(file)
    assert key_id(settings_of("s3://b/a")) == "other"


def test_a_file_that_is_half_written_leaves_the_keys_that_were_known(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    whole = "[default]\naws_access_key_id = third\naws_secret_access_key = s\n"
    file.write_text(whole.replace("third", "first"))
    assert key_id(settings_of("s3://b/a")) == "first"
    for end in range(0, len(whole) - 3, 6):
        file.write_text(whole[:end])
        assert key_id(settings_of("s3://b/a")) in ("first", "third"), end
    file.unlink()
    assert key_id(settings_of("s3://b/a")) in ("first", "third")
    file.write_text(whole)
    assert key_id(settings_of("s3://b/a")) == "third"


def test_keys_that_a_program_gives_are_renewed_before_they_end(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "keys.py"
    program.write_text(
        "import datetime as d, json, pathlib, sys\n"
        + "seen = pathlib.Path(sys.argv[1]); number = int(seen.read_text()) + 1 if seen.exists() else 1\n"
        + "seen.write_text(str(number))\n"
        + "end = d.datetime.now(d.UTC) + d.timedelta(seconds=5 if number == 1 else 3600)\n"
        + "print(json.dumps({'Version': 1, 'AccessKeyId': f'key-{number}', 'SecretAccessKey': 's',\n"
        + "    'SessionToken': 't', 'Expiration': end.isoformat()}))\n"
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {program} {tmp_path}/seen\n")
    environment.setenv("AWS_CONFIG_FILE", f"{tmp_path}/config")
    asked = [key_id(settings_of("s3://b/a")) for _ in range(3)]
    assert asked[-2:] == ["key-2", "key-2"]
