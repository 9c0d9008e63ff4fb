"""Keys that stand in credential files: read again when a file changes, and renewed where they end by themselves."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.errors import TryLater, UsageError

if TYPE_CHECKING:
    import botocore.credentials

FILES = ("~/.aws/credentials", "~/.aws/config")
# These two ask the network, and each client does so by itself; the environment is read by `settings`.
_LEFT_OUT = ("env", "container-role", "iam-role")
# What botocore lets through where a program (`credential_process`) is not there, or answers something else than keys.
# None of it may go further: a program that is not there would pass for an object that is not there.
_OF_A_PROGRAM = (OSError, ValueError, TypeError, AttributeError)

Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class Keys:
    """What requests are signed with. Never shown: the representation is empty.

    Attributes:
        access_key_id: Its name.
        secret_access_key: The key itself.
        session_token: Of keys that end by themselves; else None.
    """

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Profile:
    """What a profile says.

    Attributes:
        endpoint: Address of the store, as written there, or None.
        region: Region, or None.
        keys: As they are now; None where it names none.
    """

    endpoint: str | None = None
    region: str | None = None
    keys: Keys | None = None


@dataclass(frozen=True)
class _Read:
    profile: Profile
    credentials: botocore.credentials.Credentials | None


class ProfileReader:
    """Reads one profile, as often as it is asked; shared by threads.

    Args:
        name: The profile; None for the default one, which need not be there.
        files: The credential file and the configuration file.
        variable: Which variable names the profile, for messages.
        with_keys: False where keys are known from elsewhere, so that none are asked for.
    """

    def __init__(self, name: str | None, files: tuple[str, str], variable: str, with_keys: bool) -> None:
        self._name = name
        self._files = tuple(os.path.expanduser(file) for file in files)
        self._variable = variable
        self._with_keys = with_keys
        self._lock = threading.Lock()
        self._stamps: Stamps | None = None
        self._read: _Read | None = None

    def profile(self) -> Profile:
        """What the profile says now.

        Raises:
            UsageError: If there is no such profile, or it cannot be used.
            TryLater: If keys that came to their end could not be renewed.
        """
        with self._lock:
            stamps = tuple(_stamp(file) for file in self._files)
            if self._read is None or stamps != self._stamps:
                self._look(stamps)
            assert self._read is not None
            if self._read.credentials is None:
                return self._read.profile
            keys = self._current(self._read.credentials)
            return Profile(self._read.profile.endpoint, self._read.profile.region, keys)

    def _look(self, stamps: Stamps) -> None:
        """Read the files. What was known stays while a file is half written: it will change once more."""
        try:
            read = self._open()
        except UsageError:
            if self._read is None:
                raise
            return
        if self._read is not None and self._read.credentials is not None and read.credentials is None:
            return
        self._read, self._stamps = read, stamps

    def _open(self) -> _Read:
        if not self._name and not any(os.path.exists(file) for file in self._files):
            return _Read(Profile(), None)
        import botocore.exceptions
        import botocore.session

        session = botocore.session.Session(profile=self._name)
        session.set_config_variable("credentials_file", self._files[0])
        session.set_config_variable("config_file", self._files[1])
        try:
            resolver = session.get_component("credential_provider")
            for provider in _LEFT_OUT:
                resolver.remove(provider)
            section = session.get_scoped_config()
            credentials = session.get_credentials() if self._with_keys else None
        except botocore.exceptions.ProfileNotFound:
            raise UsageError(
                f"The profile {self._name!r} is in none of the credential files.", f"Correct {self._variable}."
            ) from None
        except (botocore.exceptions.BotoCoreError, *_OF_A_PROGRAM) as error:
            raise UsageError(
                f"The S3 profile {self._name or 'default'!r} cannot be used ({type(error).__name__}).",
                f"Check {' and '.join(self._files)}; a program that they name (credential_process) has to be there, "
                "and to print keys as JSON.",
            ) from None
        return _Read(Profile(section.get("endpoint_url"), section.get("region")), credentials)

    def _current(self, credentials: botocore.credentials.Credentials) -> Keys:
        """The keys; those that end soon are fetched anew by whatever the profile says that fetches them."""
        import botocore.exceptions

        try:
            frozen = credentials.get_frozen_credentials()
        except (
            botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, RuntimeError, *_OF_A_PROGRAM,
        ) as error:  # fmt: skip
            raise TryLater(
                f"The S3 keys of the profile {self._name or 'default'!r} could not be renewed "
                f"({type(error).__name__}).",
                f"Renew them, or see why the program that {' or '.join(self._files)} names (credential_process) does "
                "not give new ones; then start the same command again.",
            ) from None
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or None)


def keys_of(values: Mapping[str, str], prefix: str) -> Keys | None:
    """Take keys from variables.

    Args:
        values: `ACCESS_KEY_ID`, `SECRET_ACCESS_KEY` and `SESSION_TOKEN`, as far as they are set.
        prefix: What the variables' names begin with, for messages.

    Returns:
        The keys; None where none are set.

    Raises:
        UsageError: If one of the first two is missing.
    """
    key_id, secret = values.get("ACCESS_KEY_ID"), values.get("SECRET_ACCESS_KEY")
    if key_id and secret:
        return Keys(key_id, secret, values.get("SESSION_TOKEN"))
    if key_id or secret:
        missing = "SECRET_ACCESS_KEY" if key_id else "ACCESS_KEY_ID"
        raise UsageError(
            f"Of a pair of S3 keys only one is set: {prefix}{missing} is missing.", "Set both, or name a profile."
        )
    return None


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
