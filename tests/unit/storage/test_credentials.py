"""Programs that give keys (`credential_process`), and do not do so as they should."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import pytest

from pipelines.errors import NightreadError, TryLater, UsageError
from pipelines.storage import files
from pipelines.storage.listing import check_root
from pipelines.storage.settings import settings_of

SECRET = "hunter2"
GIVEN = {"Version": 1, "AccessKeyId": "key", "SecretAccessKey": SECRET, "SessionToken": SECRET}
NO_KEYS = [
    SECRET, f'{{"{SECRET}', "[]", "null", '"hunter2"', "{}", f'{{"Version": 2, "AccessKeyId": "{SECRET}"}}',
    json.dumps(GIVEN | {"Expiration": 5}), json.dumps(GIVEN | {"Expiration": SECRET}),
]  # fmt: skip


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program that does not exist yet, and which this process's usual profile has its keys from."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "NIGHTREAD_S3_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {tmp_path}/give-keys\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    return tmp_path / "give-keys"


def install(program: Path, output: str, mode: int = 0o700) -> None:
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    program.chmod(mode)


def ending_in(seconds: float) -> str:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return json.dumps(GIVEN | {"Expiration": end.isoformat()})


def check_told(error: NightreadError, program: Path) -> None:
    """One sentence and one cure, which names the file, and nothing of what the program said."""
    assert SECRET not in f"{error} {error.__cause__}"
    assert "profile 'default'" in error.message and "credential_process" in error.cure
    assert str(program.parent / "config") in error.cure
    assert "\n" not in str(error)


@pytest.mark.parametrize("output", [None, "not to be run", *NO_KEYS])
def test_a_program_that_gives_no_keys_is_told_as_such_and_never_as_a_missing_object(
    program: Path, output: str | None
) -> None:
    if output is not None:
        install(program, output, 0o600 if output == "not to be run" else 0o700)
    for ask in (files.list_names, files.exists, files.read_bytes, check_root):
        with pytest.raises(UsageError) as caught:
            ask("s3://bucket/place")
        check_told(caught.value, program)


def test_a_line_that_is_no_command_is_told_as_such(program: Path) -> None:
    config = program.parent / "config"
    config.write_text(config.read_text().replace("= ", "= 'unbalanced "))
    with pytest.raises(UsageError) as caught:
        files.list_names("s3://bucket/place")
    check_told(caught.value, program)


@pytest.mark.parametrize("output", [None, *NO_KEYS])
def test_keys_that_a_program_does_not_renew_can_be_had_later(program: Path, output: str | None) -> None:
    install(program, ending_in(5).replace('"key"', '"first"'))
    keys = settings_of("s3://bucket/place").keys
    assert keys is not None and keys.access_key_id == "first"
    if output is None:
        program.unlink()
    else:
        install(program, output)
    for ask in (files.list_names, files.exists, files.read_bytes, check_root):
        with pytest.raises(TryLater) as caught:
            ask("s3://bucket/place")
        check_told(caught.value, program)
    install(program, ending_in(3600))
    keys = settings_of("s3://bucket/place").keys
    assert keys is not None and keys.access_key_id == "key"
