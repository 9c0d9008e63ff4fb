"""The few requests to Ray's job server that submitting needs, each with an end and an honest error.

Ray's own client waits for ever for a server that does not answer, and follows a redirection with the token in its
hand. This one asks first whether a token is wanted, so that none is sent to what is not Ray.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from cluster.door import refuse_open, refuse_other_version
from cluster.tokens import CURE as TOKEN_CURE
from cluster.tokens import ray_token
from pipelines.errors import NightreadError, TryLater, UsageError, first_line

SECONDS_TO_ANSWER = 30.0
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """What the job server says of a job.

    Attributes:
        id: Its submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: Of its command; None where that has not ended, or Ray ended the job.
        message: Ray's own words.
        started_ms: Milliseconds since 1970 on the cluster's clock; None before.
        ended_ms: The same of its end.
    """

    id: str
    status: str
    exit_code: int | None
    message: str
    started_ms: int | None
    ended_ms: int | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in OVER


class IdTaken(Exception):
    """Another submission of this id came first."""


class JobsApi:
    """A job server that has been found to be Ray's, of this version, and to let us in; made by `open_jobs_api`.

    Args:
        address: `http(s)://host[:port][/path]` without a slash at its end.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._headers: dict[str, str] = {}
        self._opener = urllib.request.build_opener(_NoRedirection)

    def admit(self, insecure: bool) -> None:
        """Find out who answers, and whether it lets us in; see `open_jobs_api`."""
        status, body = self._call("GET", "/api/authentication_mode")
        if status >= 500:  # what stands before a head that starts says so
            self._checked(status, body)
        mode = _json(body).get("authentication_mode") if status == 200 else None
        if not isinstance(mode, str):
            raise _not_ray(self.address)
        if mode == "disabled":
            refuse_open(self.address, insecure)
        else:
            token = ray_token()
            if token is None:
                raise UsageError(f"The cluster at {self.address} asks for a token, and there is none here.", TOKEN_CURE)
            self._headers["Authorization"] = f"Bearer {token}"
        version = _json(self._expect("GET", "/api/version")).get("ray_version")
        if not isinstance(version, str):
            raise _not_ray(self.address)
        refuse_other_version(self.address, version)

    def job(self, name: str) -> Job | None:
        """What is known of a job; None where it is not known."""
        status, body = self._call("GET", f"/api/jobs/{quote(name)}")
        if status == 404:
            return None
        told = _json(self._checked(status, body))
        return Job(
            name,
            str(told.get("status")),
            told.get("driver_exit_code"),
            str(told.get("message") or ""),
            told.get("start_time"),
            told.get("end_time"),
        )

    def has_package(self, name: str) -> bool:
        """Whether a file has been sent before; it is kept a while longer then."""
        status, body = self._call("GET", f"/api/packages/gcs/{quote(name)}")
        if status == 404:
            return False
        self._checked(status, body)
        return True

    def send_package(self, name: str, data: bytes) -> None:
        """Send a file that jobs can be run from."""
        self._expect("PUT", f"/api/packages/gcs/{quote(name)}", data)

    def submit(self, name: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Start a job.

        Raises:
            IdTaken: If there is one of that name.
        """
        request = {
            "submission_id": name,
            "entrypoint": entrypoint,
            "runtime_env": runtime_env,
            "metadata": metadata,
        }
        status, body = self._call("POST", "/api/jobs/", json.dumps(request).encode())
        if status != 200 and b"already exists" in body:
            raise IdTaken(name)
        self._checked(status, body)

    def stop(self, name: str) -> None:
        """Ask a job to end."""
        self._expect("POST", f"/api/jobs/{quote(name)}/stop", b"")

    def log(self, name: str) -> str:
        """All that a job has written so far, what went to standard output and standard error alike."""
        return str(_json(self._expect("GET", f"/api/jobs/{quote(name)}/logs")).get("logs") or "")

    async def tail(self, name: str) -> AsyncIterator[str]:
        """What a job writes, from its beginning, for as long as it runs.

        Raises:
            OSError: If the connection breaks.
        """
        import aiohttp

        place = f"{self.address}/api/jobs/{quote(name)}/logs/tail"
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, trust_env=True) as session,
                session.ws_connect(place, max_msg_size=0, heartbeat=SECONDS_TO_ANSWER) as socket,
            ):
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        yield message.data
        except (aiohttp.ClientError, ssl.SSLError, TimeoutError) as error:
            raise OSError(str(error)) from error

    def _expect(self, method: str, path: str, data: bytes | None = None) -> bytes:
        return self._checked(*self._call(method, path, data))

    def _checked(self, status: int, body: bytes) -> bytes:
        if status == 200:
            return body
        if status in (401, 403):
            raise UsageError(f"The cluster at {self.address} refuses the token.", TOKEN_CURE)
        said = (body.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        kind: type[NightreadError] = TryLater if status >= 500 else UsageError
        raise kind(
            f"The job server at {self.address} refuses ({status}): {said[:300]}",
            "See how its head does." if kind is TryLater else "Check --address and the options.",
        )

    def _call(self, method: str, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        """Status and content of an answer, whatever the status."""
        headers = {**self._headers, "Content-Type": "application/json"} if data is not None else self._headers
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=SECONDS_TO_ANSWER) as answer:
                return int(answer.status), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except ssl.SSLError as error:
            raise self._no_certificate(error) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                raise self._no_certificate(error.reason) from error
            raise self._no_answer(error.reason) from error
        except http.client.HTTPException as error:
            raise _not_ray(self.address) from error
        except OSError as error:
            raise self._no_answer(error) from error

    def _no_answer(self, reason: object) -> TryLater:
        return TryLater(
            f"No job server answers at {self.address}: {first_line(reason)}.",
            "Check --address, and that the head was started with its dashboard (--include-dashboard=true).",
        )

    def _no_certificate(self, error: ssl.SSLError) -> UsageError:
        return UsageError(
            f"No safe connection to {self.address}: {error.reason or error}.",
            "Name the authority's file in SSL_CERT_FILE, or say http:// where the server speaks no TLS.",
        )


def open_jobs_api(address: str, insecure: bool) -> JobsApi:
    """Find the job server of a cluster.

    Args:
        address: `http(s)://HOST:PORT`; without a scheme http is meant.
        insecure: True where the user accepts a cluster that takes anybody.

    Raises:
        UsageError: If the address is malformed or not a Ray dashboard's, the cluster is open and that was not accepted,
            the token is missing or refused, or Ray's version is another one.
        TryLater: If nothing answers.
    """
    place = address if "://" in address else f"http://{address}"
    parts = urlsplit(place)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        shown = address.rpartition("@")[2]
        raise UsageError(
            f"--address {shown!r} is not an address of Ray's dashboard.", "Write it as http://HOST:8265, no password."
        )
    api = JobsApi(place.rstrip("/"))
    api.admit(insecure)
    return api


def _not_ray(address: str) -> UsageError:
    return UsageError(
        f"What answers at {address} is not the dashboard of a Ray that this release knows.",
        "Give the port of the dashboard (8265 unless set), not that of the head (6379).",
    )


def _json(body: bytes) -> dict[str, Any]:
    """An object that an answer holds; empty where it holds none."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A redirection is an answer like any other: the token is for nobody else."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        """Follow nothing."""
