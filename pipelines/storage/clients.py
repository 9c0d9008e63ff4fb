"""What each S3 client is told so that all reach a store alike: with the same keys, authorities, proxy and limits.

The Rust clients read `AWS_…` variables by themselves and would mix them with what they are given. So everything that
could lead a request, or a key, to the wrong server is always given.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pipelines.errors import UsageError
from pipelines.storage import authorities
from pipelines.storage.credentials import Keys
from pipelines.storage.proxies import Proxy

if TYPE_CHECKING:
    import botocore.client
    from obstore.store import S3Credential

CONNECT_SECONDS = 4
# With `faults.TRY_SECONDS` at most two silences: an endpoint that never answers is given up after 20 seconds.
SILENCE_SECONDS = 9
REQUEST_SECONDS = 600
RETRIES = 10
RETRY_SECONDS = 12

AddressingStyle = Literal["path", "virtual"]
Checksums = Literal["required", "none"]


@dataclass(frozen=True)
class S3Settings:
    """How to reach one store. Keys are left out of the representation, so that no log can hold them.

    Attributes:
        endpoint: `http(s)://host[:port]` of a store of one's own; None for the vendor's.
        region: Region name.
        keys: Credentials, or None to leave them to each client's own chain.
        anonymous: Requests are not signed (`AWS_SKIP_SIGNATURE=true`).
        addressing: Where the bucket stands: in the path, or before the host (`virtual`).
        checksums: Headers with checksums are sent where S3 requires them (to delete many keys in one request), or
            never, for servers that refuse them.
        ca_file: PEM file of authorities that are trusted beside the common ones; None for none.
        proxy: The web proxy on the way; None for none.
    """

    endpoint: str | None
    region: str
    keys: Keys | None = field(default=None, repr=False)
    anonymous: bool = False
    addressing: AddressingStyle = "path"
    checksums: Checksums = "required"
    ca_file: str | None = None
    proxy: Proxy | None = None

    @property
    def plain_http(self) -> bool:
        """Whether the endpoint speaks HTTP without encryption."""
        return bool(self.endpoint and self.endpoint.startswith("http://"))

    def obstore_config(self, bucket: str) -> dict[str, Any]:
        """Return the keyword arguments of obstore's `S3Store`, time limits and retries included."""
        config: dict[str, Any] = {
            "region": self.region,
            "virtual_hosted_style_request": self.addressing == "virtual",
            "skip_signature": self.anonymous,
            "conditional_put": "etag",
            "disable_bulk_delete": self.checksums == "none",
        }
        if self.endpoint:
            config["endpoint"] = config["aws_endpoint_url_s3"] = self._endpoint_of(bucket, self.endpoint)
        if self.keys:
            # Given as such, a missing session token would be filled in from the environment.
            config["credential_provider"] = _always(self.keys)
        config["client_options"] = {
            "allow_http": self.plain_http,
            "allow_invalid_certificates": False,
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=SILENCE_SECONDS),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
            **self._proxy_options(),
        }
        if self.ca_file:
            config["client_options"]["root_certificate"] = Path(self.ca_file).read_bytes()
        config["retry_config"] = {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
        }
        return config

    def s3fs_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `s3fs.S3FileSystem`; listings are never cached."""
        options: dict[str, Any] = {
            "client_kwargs": {"region_name": self.region, "verify": self._verified_by()},
            "config_kwargs": self._botocore_config(),
            "use_listings_cache": False,
            "anon": self.anonymous,
        }
        if self.endpoint:
            options["endpoint_url"] = self.endpoint
        if self.keys:
            options |= {"key": self.keys.access_key_id, "secret": self.keys.secret_access_key}
            if self.keys.session_token:
                options["token"] = self.keys.session_token
        return options

    def delta_options(self, bucket: str) -> dict[str, str]:
        """Return deltalake's storage options: names and values as its Rust client wants them.

        Raises:
            UsageError: If the environment holds a session token that belongs to other keys: the client would send it.
        """
        options = {
            "AWS_REGION": self.region,
            "AWS_CONDITIONAL_PUT": "etag",
            "AWS_ALLOW_HTTP": str(self.plain_http).lower(),
            "AWS_ALLOW_INVALID_CERTIFICATES": "false",
            "AWS_SKIP_SIGNATURE": str(self.anonymous).lower(),
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": str(self.addressing == "virtual").lower(),
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "timeout": "120s",
            "max_retries": str(RETRIES),
            "retry_timeout": f"{RETRY_SECONDS}s",
            **self._proxy_options(),
        }
        if self.ca_file:
            options["certificate_path"] = self.ca_file
        if self.endpoint:
            options["AWS_ENDPOINT_URL"] = options["AWS_ENDPOINT_URL_S3"] = self._endpoint_of(bucket, self.endpoint)
        if self.keys:
            options |= {
                "AWS_ACCESS_KEY_ID": self.keys.access_key_id,
                "AWS_SECRET_ACCESS_KEY": self.keys.secret_access_key,
            }
            if self.keys.session_token:
                options["AWS_SESSION_TOKEN"] = self.keys.session_token
            elif os.environ.get("AWS_SESSION_TOKEN"):
                raise UsageError(
                    "AWS_SESSION_TOKEN is set, and the results have keys that it does not belong to.",
                    "Unset it, and give the keys that it belongs to in a profile or for the role that they are for "
                    "(NIGHTREAD_S3_ARCHIVE_SESSION_TOKEN with its two keys).",
                )
        return options

    def botocore_client(self, tries: int = 4) -> botocore.client.BaseClient:
        """Return a plain client, for the few keys that obstore's paths cannot express (see `listing`).

        Args:
            tries: How often it sends a request by itself until one is answered; 1 for callers that repeat themselves.
        """
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        config = self._botocore_config() | {"retries": {"mode": "standard", "total_max_attempts": tries}}
        if self.anonymous:
            config["signature_version"] = UNSIGNED
        return botocore.session.get_session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.keys.access_key_id if self.keys else None,
            aws_secret_access_key=self.keys.secret_access_key if self.keys else None,
            aws_session_token=self.keys.session_token if self.keys else None,
            verify=self._verified_by(),
            config=Config(**config),
        )

    def _endpoint_of(self, bucket: str, endpoint: str) -> str:
        """A bucket's address as the Rust clients want it: with the bucket before the host where that is its place."""
        if self.addressing == "path":
            return endpoint
        parts = urlsplit(endpoint)
        return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))

    def _verified_by(self) -> str | bool:
        return authorities.with_common_authorities(self.ca_file) if self.ca_file else True

    def _proxy_options(self) -> dict[str, str]:
        if not self.proxy:
            return {}
        spared = {"proxy_excludes": self.proxy.spared} if self.proxy.spared else {}
        return {"proxy_url": self.proxy.url, **spared}

    def _botocore_config(self) -> dict[str, Any]:
        config = {
            "connect_timeout": 3,
            "read_timeout": SILENCE_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": 4},
            "s3": {"addressing_style": self.addressing},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        if self.proxy:
            scheme = "http" if self.plain_http else "https"
            config["proxies"] = {} if self.proxy.spared else {scheme: self.proxy.url}
        return config


def _always(keys: Keys) -> Callable[[], S3Credential]:
    """A provider of keys that stay: other keys make another client."""
    credential: S3Credential = {
        "access_key_id": keys.access_key_id,
        "secret_access_key": keys.secret_access_key,
        "token": keys.session_token,
        "expires_at": None,
    }
    return lambda: credential
