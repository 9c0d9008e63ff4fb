"""Who answers at an address, asked before Ray is: Ray itself tries a wrong one for minutes and says little.

One question is put to the head without a token. A cluster that answers it takes anybody, and who can reach such a
cluster can run code on it and read what it scores; so it is refused unless the user insists.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.tokens import CURE as TOKEN_CURE
from cluster.tokens import ray_token
from pipelines.errors import TryLater, UsageError, first_line

SECONDS_TO_ANSWER = 10.0
TLS_FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
OPEN_CURE = "Turn on its tokens (RAY_AUTH_MODE=token on every node), or say --insecure if nobody else can reach it."
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True)
class Head:
    """What answered.

    Attributes:
        version: Ray's version there.
        asks_for_token: False where anybody is let in.
    """

    version: str
    asks_for_token: bool


def knock(address: str, insecure: bool) -> Head:
    """Ask the head of a cluster who it is and whether it would let us in.

    Args:
        address: `HOST:PORT` of the head.
        insecure: True where the user accepts a cluster that takes anybody.

    Raises:
        UsageError: If the address is malformed or not Ray's, Ray's version is another one, the cluster is open and
            that was not accepted, the token is missing or refused, or a certificate is.
        TryLater: If nothing answers.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not (host and port.isdigit()):
        raise UsageError(f"--address {address!r} is not an address of Ray.", "Use local, auto or HOST:PORT.")
    _connect(address, host.strip("[]"), int(port))
    version = _ask(address, None)
    if version is not None:
        refuse_open(address, insecure)
        refuse_other_version(address, version)
        return Head(version, asks_for_token=False)
    token = ray_token()
    if token is None:
        raise UsageError(f"The cluster at {address} asks for a token, and there is none here.", TOKEN_CURE)
    version = _ask(address, token)
    if version is None:
        raise UsageError(f"The cluster at {address} refuses the token.", TOKEN_CURE)
    refuse_other_version(address, version)
    return Head(version, asks_for_token=True)


def refuse_open(address: str, insecure: bool) -> None:
    """Refuse a cluster that takes anybody.

    Raises:
        UsageError: Unless `insecure`.
    """
    if not insecure:
        raise UsageError(f"The cluster at {address} takes anybody: it asks for no token.", OPEN_CURE)


def refuse_other_version(address: str, version: str) -> None:
    """Refuse a cluster of another Ray.

    Raises:
        UsageError: If its version is not the one that is installed here.
    """
    here = metadata.version("ray")
    if version != here:
        raise UsageError(
            f"The cluster at {address} runs Ray {version}, and this machine has {here}.",
            "Install the same version on all machines: that of requirements.lock.",
        )


def uses_tls(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether RAY_USE_TLS asks for encryption between nodes.

    Raises:
        UsageError: If it does and one of the three files that it needs is not named, or cannot be read.
    """
    if environment.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return False
    for name in TLS_FILES:
        place = environment.get(name)
        if not place:
            raise UsageError(f"RAY_USE_TLS is set, and {name} is not.", f"Set {', '.join(TLS_FILES)} to PEM files.")
        try:
            Path(place).read_bytes()
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise UsageError(
                f"{name} names {place}, which cannot be read: {reason}.",
                "Each node needs its own certificate, its key and the authority's certificate.",
            ) from error
    return True


def _connect(address: str, host: str, port: int) -> None:
    """See whether anything listens there, so that a wrong address is known within seconds."""
    try:
        socket.create_connection((host, port), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise TryLater(
            f"No Ray cluster answers at {address}: {first_line(error)}.", "Check the address and that its head runs."
        ) from error


def _ask(address: str, token: str | None) -> str | None:
    """Ray's version there; None where it wants a token, or another one."""
    import grpc  # type: ignore[import-untyped]
    from ray.core.generated import gcs_service_pb2

    reply: Any = gcs_service_pb2
    sent = () if token is None else (("authorization", f"Bearer {token}"),)
    with _channel(grpc, address) as channel:
        try:
            answer = channel.unary_unary(_QUESTION)(b"", timeout=SECONDS_TO_ANSWER, metadata=sent)
            return str(reply.CheckAliveReply.FromString(answer).ray_version)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return None
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TryLater(
                    f"What listens at {address} does not answer within {SECONDS_TO_ANSWER:g} s.", "See how it does."
                ) from None
            raise _not_ray(address) from None
        except ValueError:  # an answer that is not Ray's
            raise _not_ray(address) from None


def _channel(grpc: Any, address: str) -> Any:
    options = [("grpc.enable_http_proxy", 0)]
    if not uses_tls():
        return grpc.insecure_channel(address, options=options)
    certificate, key, authority = (Path(os.environ[name]).read_bytes() for name in TLS_FILES)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(address, credentials, options=options)


def _not_ray(address: str) -> UsageError:
    if uses_tls():
        return UsageError(
            f"What listens at {address} does not answer as Ray with TLS does.",
            "Check the port (6379 unless set), and that each certificate names its host and is of this authority.",
        )
    return UsageError(
        f"What listens at {address} does not answer as Ray does.",
        "Give the port of Ray's head (6379 unless set); a cluster with TLS needs RAY_USE_TLS=1 here too.",
    )
