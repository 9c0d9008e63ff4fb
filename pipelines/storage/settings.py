"""One place from which every S3 client gets its endpoint, region, credentials, authorities and proxy.

Archive, results and models may each have settings of their own (`NIGHTREAD_S3_ARCHIVE_…`, see `roles`); without them
the usual environment holds, read as the vendor's own tools do: environment variables, then the profile's credential
and configuration files. What neither knows (roles of machines and containers) is left to each client's own chain.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.errors import UsageError
from pipelines.storage import authorities, paths
from pipelines.storage.clients import S3Settings as S3Settings
from pipelines.storage.credentials import FILES, Profile, ProfileReader, keys_of
from pipelines.storage.proxies import proxy_to
from pipelines.storage.roles import Role, role_of, variable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from obstore.store import S3Store

# Who signs is decided by these as a whole, and never mixed from two environments.
_IDENTITY = (
    "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "SHARED_CREDENTIALS_FILE", "CONFIG_FILE",
    "SKIP_SIGNATURE",
)  # fmt: skip
_STYLE = ("ADDRESSING_STYLE", "CHECKSUMS")
_NAMES = ("ENDPOINT_URL", "REGION", *_IDENTITY, *_STYLE)
# How the names begin of all variables that matter here: cut short, since they are looked at for every object.
_READ = frozenset(("AWS_", "NIGH", "HTTP", "http", "ALL_", "all_", "NO_P", "no_p", "HOME"))


def read_settings(environment: Mapping[str, str], role: Role | None = None) -> S3Settings:
    """Read the settings out of an environment.

    Args:
        environment: Variables.
        role: What the place is for; None for a place of no role.

    Raises:
        UsageError: If they cannot be right: an endpoint that is no http(s) URL or has a password in it, half a pair of
            keys, a profile or an authority's file that is not there, a role with an endpoint of its own and no keys.
        TryLater: If keys that came to their end could not be renewed.
    """
    return _Source(environment, role).settings()


def settings_of(uri: str) -> S3Settings:
    """Return how to reach the store that a place lies on, by its role; cheap enough to be asked for every object.

    Keys that were renewed in their file are in the next answer.

    Raises:
        UsageError: If the settings cannot be right; see `read_settings`.
        TryLater: If keys that came to their end could not be renewed.
    """
    said = tuple([(name, os.environ.get(name, "")) for name in os.environ if name[:4] in _READ])
    return _source(said, role_of(uri)).settings()


@lru_cache(maxsize=16)
def _source(said: tuple[tuple[str, str], ...], role: Role | None) -> _Source:
    return _Source(dict(said), role)


class _Source:
    """Where the settings of one role stand; asked again and again, it reads files anew that have changed.

    Args:
        known: The environment.
        role: What the place is for.
    """

    def __init__(self, known: Mapping[str, str], role: Role | None) -> None:
        usual = {name: known.get(f"NIGHTREAD_S3_{name}" if name in _STYLE else f"AWS_{name}", "") for name in _NAMES}
        usual["ENDPOINT_URL"] = known.get("AWS_ENDPOINT_URL_S3") or usual["ENDPOINT_URL"]
        usual["REGION"] = usual["REGION"] or known.get("AWS_DEFAULT_REGION", "")
        own = {name: known.get(variable(role, name), "") for name in _NAMES} if role else {}
        self._known = known
        self._usual = {name: value for name, value in usual.items() if value}
        self._own = {name: value for name, value in own.items() if value}
        self._role = role
        # With an endpoint or keys of its own it is another server or another person: what signs for the usual one
        # is not sent there.
        self._separate = any(name in self._own for name in ("ENDPOINT_URL", *_IDENTITY))
        signing = self._own if self._separate else self._usual
        self._prefix = variable(role, "") if role and self._separate else "AWS_"
        self._anonymous = signing.get("SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
        self._keys = None if self._anonymous else keys_of(signing, self._prefix)
        self._reader = self._profile_reader(signing)
        self._ca_file = self._authority()
        self._latest: tuple[Profile, S3Settings] | None = None

    def settings(self) -> S3Settings:
        """The settings as they are now."""
        profile = self._reader.profile() if self._reader else Profile()
        latest = self._latest
        if latest is None or latest[0] != profile:
            latest = self._latest = (profile, self._settings_with(profile))
        return latest[1]

    def _settings_with(self, profile: Profile) -> S3Settings:
        keys = None if self._anonymous else self._keys or profile.keys
        if self._separate and not keys and not self._anonymous:
            raise UsageError(
                f"The {self._what()} has S3 settings of its own, and no keys among them.",
                f"Set {self._prefix}ACCESS_KEY_ID and {self._prefix}SECRET_ACCESS_KEY, or {self._prefix}PROFILE.",
            )
        endpoint = self._checked_endpoint(self._first("ENDPOINT_URL", profile.endpoint))
        region = self._first("REGION", profile.region) or "us-east-1"
        return S3Settings(
            endpoint=endpoint,
            region=region,
            keys=keys,
            anonymous=self._anonymous,
            addressing="virtual" if self._choice("ADDRESSING_STYLE", ("path", "virtual")) == "virtual" else "path",
            checksums="none" if self._choice("CHECKSUMS", ("required", "none")) == "none" else "required",
            ca_file=self._ca_file,
            proxy=proxy_to(endpoint or f"https://s3.{region}.amazonaws.com", self._known),
        )

    def _first(self, name: str, of_profile: str | None) -> str | None:
        """A value by who says it: the role, its own profile, the usual environment, the usual profile."""
        between = of_profile if self._separate else None
        return self._own.get(name) or between or self._usual.get(name) or of_profile

    def _profile_reader(self, signing: Mapping[str, str]) -> ProfileReader | None:
        if self._anonymous:
            return None
        named = any(name in signing for name in ("PROFILE", "SHARED_CREDENTIALS_FILE", "CONFIG_FILE"))
        if self._separate and not named:
            return None
        files = self._usual | self._own
        return ProfileReader(
            signing.get("PROFILE") or ("default" if self._separate else None),
            (files.get("SHARED_CREDENTIALS_FILE", FILES[0]), files.get("CONFIG_FILE", FILES[1])),
            f"{self._prefix}PROFILE",
            with_keys=self._keys is None,
        )

    def _choice(self, name: str, allowed: tuple[str, str]) -> str:
        value = self._own.get(name) or self._usual.get(name) or allowed[0]
        if value.lower() not in allowed:
            said = variable(self._role, name) if self._role and name in self._own else f"NIGHTREAD_S3_{name}"
            raise UsageError(f"{said} is {value!r}.", f"Set it to {' or '.join(allowed)}.")
        return value.lower()

    def _authority(self) -> str | None:
        for name in (authorities.VARIABLE, "AWS_CA_BUNDLE"):
            path = self._known.get(name)
            if path:
                authorities.check_authority(os.path.expanduser(path), name)
                return os.path.expanduser(path)
        return None

    def _what(self) -> str:
        return {Role.ARCHIVE: "archive", Role.RESULTS: "results folder"}.get(self._role or Role.MODELS, "models folder")

    def _checked_endpoint(self, endpoint: str | None) -> str | None:
        if not endpoint:
            return None
        prefix = self._prefix if "ENDPOINT_URL" in self._own else "AWS_"
        cure = f"Set {prefix}ENDPOINT_URL to http(s)://host[:port]."
        try:
            parts = urlsplit(endpoint)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
            has_password = "@" in parts.netloc
        except ValueError:
            valid, has_password = False, "@" in endpoint
        if has_password:
            raise UsageError("The S3 endpoint has a user or password in it.", cure)
        if not valid:
            raise UsageError(f"The S3 endpoint {endpoint!r} is not a web address.", cure)
        return endpoint.rstrip("/")


@lru_cache(maxsize=64)
def open_store(bucket: str, settings: S3Settings, own_retries: bool = False) -> S3Store:
    """Return obstore's client of one bucket; kept, because it holds the connections.

    Args:
        bucket: The bucket.
        settings: How to reach it.
        own_retries: The caller repeats failed requests itself and wants to hear of each.

    Raises:
        UsageError: If the bucket's name cannot be one.
    """
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    config = settings.obstore_config(bucket)
    if own_retries:
        config["retry_config"] = {"max_retries": 0}
    try:
        return S3Store(bucket, **config)
    except (BaseError, ValueError):
        raise UsageError(f"{bucket!r} cannot be reached as a bucket.", "Check the name and AWS_ENDPOINT_URL.") from None


def fsspec_filesystem(uri: str) -> AbstractFileSystem:
    """Return the fsspec file system that a URI lies on (DuckDB registers it).

    Raises:
        UsageError: If no installed file system knows the scheme.
    """
    import fsspec

    kind = paths.scheme(uri)
    try:
        if not paths.is_bucket(uri):
            return fsspec.filesystem(kind)
        file_system = fsspec.filesystem("s3", **settings_of(uri).s3fs_options())
    except (ValueError, ImportError):
        raise UsageError(
            f"{kind}:// is not a kind of storage that is installed here.", "Use a local path or s3://bucket/prefix."
        ) from None
    # Its own repeats would multiply with those of the client below it: an unreachable store took minutes.
    file_system.retries = 2
    return file_system


def delta_storage_options(uri: str) -> dict[str, str]:
    """Return deltalake's storage options for a place; empty for local paths and other schemes."""
    return settings_of(uri).delta_options(paths.split_bucket(uri)[0]) if paths.is_bucket(uri) else {}
