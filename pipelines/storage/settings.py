"""One place from which every S3 client gets its endpoint, region and credentials: the usual environment.

Read in this order, as the vendor's own tools do: environment variables, then the profile's credential and
configuration files. What neither knows (roles of machines and containers) is left to each client's own chain.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.errors import UsageError
from pipelines.storage import paths

if TYPE_CHECKING:
    import botocore.client
    from fsspec import AbstractFileSystem
    from obstore.store import S3Store

CONNECT_SECONDS = 4
# With `faults.TRY_SECONDS` at most two silences: an endpoint that never answers is given up after 20 seconds.
SILENCE_SECONDS = 9
REQUEST_SECONDS = 600
RETRIES = 10
RETRY_SECONDS = 12


@dataclass(frozen=True)
class S3Settings:
    """How to reach S3. Keys are left out of the representation, so that no log can hold them.

    Attributes:
        endpoint: `http(s)://host[:port]` of a store of one's own; None for the vendor's.
        region: Region name.
        access_key_id: With the next two: static credentials, or None to leave them to the client's own chain.
        secret_access_key: See above.
        session_token: See above; None for long-lived keys.
        anonymous: Requests are not signed (`AWS_SKIP_SIGNATURE=true`).
    """

    endpoint: str | None
    region: str
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    anonymous: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> S3Settings:
        """Read the settings.

        Args:
            environment: Instead of this process's own.

        Raises:
            UsageError: If the endpoint is no http(s) URL or has a password in it, or a profile is not there.
        """
        known = os.environ if environment is None else environment
        anonymous = known.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
        profile = _Profile() if anonymous else _read_profile(known)
        static = known.get("AWS_ACCESS_KEY_ID") and known.get("AWS_SECRET_ACCESS_KEY") and not anonymous
        return cls(
            endpoint=_checked_endpoint(
                known.get("AWS_ENDPOINT_URL_S3") or known.get("AWS_ENDPOINT_URL") or profile.endpoint
            ),
            region=known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or profile.region or "us-east-1",
            access_key_id=known["AWS_ACCESS_KEY_ID"] if static else profile.access_key_id,
            secret_access_key=known["AWS_SECRET_ACCESS_KEY"] if static else profile.secret_access_key,
            session_token=(known.get("AWS_SESSION_TOKEN") or None) if static else profile.session_token,
            anonymous=anonymous,
        )

    @property
    def plain_http(self) -> bool:
        """Whether the endpoint speaks HTTP without encryption."""
        return bool(self.endpoint and self.endpoint.startswith("http://"))

    def obstore_config(self) -> dict[str, Any]:
        """Return the keyword arguments of obstore's `S3Store`, time limits and retries included."""
        config: dict[str, Any] = {"region": self.region, "virtual_hosted_style_request": False}
        if self.endpoint:
            config["endpoint"] = self.endpoint
        if self.anonymous:
            config["skip_signature"] = True
        if self.access_key_id and self.secret_access_key:
            config |= {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}
            if self.session_token:
                config["session_token"] = self.session_token
        config["client_options"] = {
            "allow_http": self.plain_http,
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=SILENCE_SECONDS),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        }
        config["retry_config"] = {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
        }
        return config

    def s3fs_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `s3fs.S3FileSystem`; listings are never cached."""
        options: dict[str, Any] = {
            "client_kwargs": {"region_name": self.region},
            "config_kwargs": self._botocore_limits(),
            "use_listings_cache": False,
            "anon": self.anonymous,
        }
        if self.endpoint:
            options["endpoint_url"] = self.endpoint
        if self.access_key_id and self.secret_access_key:
            options |= {"key": self.access_key_id, "secret": self.secret_access_key}
            if self.session_token:
                options["token"] = self.session_token
        return options

    def delta_options(self) -> dict[str, str]:
        """Return deltalake's storage options: names and values as its Rust client wants them."""
        options = {
            "AWS_REGION": self.region,
            "AWS_CONDITIONAL_PUT": "etag",
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "timeout": "120s",
            "max_retries": str(RETRIES),
            "retry_timeout": f"{RETRY_SECONDS}s",
        }
        if self.endpoint:
            options["AWS_ENDPOINT_URL"] = self.endpoint
        if self.plain_http:
            options["AWS_ALLOW_HTTP"] = "true"
        if self.anonymous:
            options["AWS_SKIP_SIGNATURE"] = "true"
        if self.access_key_id and self.secret_access_key:
            options |= {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}
            if self.session_token:
                options["AWS_SESSION_TOKEN"] = self.session_token
        return options

    def botocore_client(self, tries: int = 4) -> botocore.client.BaseClient:
        """Return a plain client, for the few keys that obstore's paths cannot express (see `listing`).

        Args:
            tries: How often it sends a request by itself until one is answered; 1 for callers that repeat themselves.
        """
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        limits = self._botocore_limits()
        limits["retries"]["total_max_attempts"] = tries
        if self.anonymous:
            limits["signature_version"] = UNSIGNED
        if self.endpoint:
            limits["s3"] = {"addressing_style": "path"}
        return botocore.session.get_session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            aws_session_token=self.session_token,
            config=Config(**limits),
        )

    @staticmethod
    def _botocore_limits() -> dict[str, Any]:
        return {
            "connect_timeout": 3,
            "read_timeout": SILENCE_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": 4},
        }


@dataclass(frozen=True)
class _Profile:
    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None


def _read_profile(known: Mapping[str, str]) -> _Profile:
    """Read what the credential and configuration files say; nothing where there are none."""
    files = (
        known.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        known.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    if not known.get("AWS_PROFILE") and not any(os.path.exists(os.path.expanduser(file)) for file in files):
        return _Profile()
    import botocore.exceptions
    import botocore.session

    session = botocore.session.Session(profile=known.get("AWS_PROFILE") or None)
    session.set_config_variable("credentials_file", files[0])
    session.set_config_variable("config_file", files[1])
    try:
        resolver = session.get_component("credential_provider")
        for network_lookup in ("container-role", "iam-role"):
            resolver.remove(network_lookup)
        section = session.get_scoped_config()
        credentials = session.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None
    except botocore.exceptions.ProfileNotFound:
        raise UsageError(
            f"The profile {known.get('AWS_PROFILE')!r} is in none of the credential files.", "Correct AWS_PROFILE."
        ) from None
    except botocore.exceptions.BotoCoreError as error:
        raise UsageError(f"The S3 profile cannot be used ({type(error).__name__}).", "Check ~/.aws/config.") from None
    return _Profile(
        endpoint=section.get("endpoint_url"),
        region=section.get("region"),
        access_key_id=frozen.access_key if frozen else None,
        secret_access_key=frozen.secret_key if frozen else None,
        session_token=frozen.token if frozen else None,
    )


def _checked_endpoint(endpoint: str | None) -> str | None:
    if not endpoint:
        return None
    cure = "Set AWS_ENDPOINT_URL to http(s)://host[:port]."
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


def settings_of(uri: str) -> S3Settings:
    """Return how to reach the store that a place lies on; cheap enough to be asked for every object.

    Raises:
        UsageError: If the settings cannot be right.
    """
    return _read_once(frozenset(os.environ.items()))


@lru_cache(maxsize=4)
def _read_once(environment: frozenset[tuple[str, str]]) -> S3Settings:
    return S3Settings.from_environment(dict(environment))


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

    config = settings.obstore_config()
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
    return settings_of(uri).delta_options() if paths.is_bucket(uri) else {}
