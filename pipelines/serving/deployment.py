"""The same endpoint as a Ray Serve deployment: replicas on a cluster, as many as are asked for images.

A replica is the app and one answering process of its own, as on one machine: a decoder that dies or hangs costs its
image, and neither the replica nor what waits in it. Every replica follows the champion. Ray's proxies speak HTTP.

The token never goes through Ray, which keeps what a deployment is given: each node has NIGHTREAD_SERVE_TOKEN itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from ray import serve
from ray.exceptions import RayError
from ray.serve import context
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from pipelines.errors import ModelRefused, NightreadError, TryLater, UsageError
from pipelines.models.golden import compare_golden
from pipelines.models.runtime import Scorer
from pipelines.serving.answering import ServiceState
from pipelines.serving.app import make_app
from pipelines.serving.door import App, Message, Send
from pipelines.serving.following import Following
from pipelines.serving.listening import check_certificate, url_of
from pipelines.serving.pool import Pool
from pipelines.serving.reading import Receive
from pipelines.serving.served_model import load_model
from pipelines.serving.server import DRAIN_SECONDS, Ready
from pipelines.serving.settings import TOKEN, ServeSettings

APPLICATION, DEPLOYMENT = "nightread", "endpoint"
# Two, so that the loss of a node costs no answer.
LEAST_REPLICAS = 2
LEAVE_SECONDS, CALLS_EACH = 0.05, 4
"""How long a replica is called to tell that it shall leave, and how many such calls there are for each at once."""

_LOG = logging.getLogger("nightread.serve")


class Cluster(Protocol):
    """What is known of the cluster that was joined."""

    @property
    def cpus(self) -> int:
        """Processor cores, all nodes together."""


@dataclass(frozen=True)
class Replicas:
    """What every replica is made of.

    Attributes:
        ref: A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION, as the nodes reach it.
        precision: `float32` or `int8`.
        settings: Fields of `ServeSettings` but the token.
    """

    ref: str
    precision: str
    settings: Mapping[str, Any]


class _LeavingPool(Pool):
    """A pool that can refuse further images while it answers those that it has."""

    leaving = False

    def state(self) -> ServiceState:
        """As `Service.state`."""
        state = super().state()
        return replace(state, ready=False, why_not="The endpoint is being ended.") if self.leaving else state


class _Counted:
    """An application, and how many requests are in it, but for those that came when its pool was leaving already.

    Args:
        app: The application.
        pool: Its pool.
    """

    def __init__(self, app: App, pool: _LeavingPool) -> None:
        self._app = app
        self._pool = pool
        self.open = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request, or the one lifespan of the application."""
        counts = scope["type"] == "http" and not self._pool.leaving
        self.open += counts
        try:
            await self._app(scope, receive, send)
        finally:
            self.open -= counts


class Replica:
    """One replica: an app and its answering process.

    Args:
        made_of: The model and the settings.
    """

    async def __init__(self, made_of: Replicas) -> None:  # type: ignore[misc]  # Ray awaits it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold patients' pictures
        self._settings = ServeSettings(**{**made_of.settings, "token": os.environ.get(TOKEN) or None})
        self._pool = _LeavingPool(1, self._settings.queue_per_worker, _LOG.warning)
        self._following = Following(made_of.ref, made_of.precision, self._pool, _LOG.warning)
        try:
            await self._following.load_first()
        except BaseException:
            await self._pool.close()
            raise
        self._follow = asyncio.get_running_loop().create_task(self._following.follow())

    def __serve_build_asgi_app__(self) -> App:
        """Ray's call: the application, made where it runs."""
        self._name = serve.get_replica_context().replica_tag
        self._counted = _Counted(make_app(self._pool, self._settings, self._name), self._pool)
        return self._counted

    async def leave(self) -> tuple[str, int]:
        """Refuse further images.

        Returns:
            This replica's name, and how many requests it still has of those that came before.
        """
        self._pool.leaving = True
        await asyncio.sleep(LEAVE_SECONDS)
        return self._name, self._counted.open

    async def check_health(self) -> None:
        """Ray's call, again and again.

        Raises:
            TryLater: If this replica answers no images; Ray then starts another in its place.
        """
        reason = self._pool.state().why_not
        if reason is not None and not self._pool.leaving:
            raise TryLater(reason)

    async def __del__(self) -> None:
        self._follow.cancel()
        await self._pool.close()


def build(arguments: Mapping[str, str]) -> serve.Application:
    """The application that a Serve config file names: `import_path: pipelines.serving.deployment:build`.

    Args:
        arguments: `model`; and where they are to be others, `precision` and `replicas` (at most so many, 8 by default).
            The nodes have NIGHTREAD_SERVE_TOKEN, and what stands before the cluster encrypts.

    Raises:
        UsageError: If `model` is missing, another argument is given or one is wrong.
    """
    known = {"precision": "float32", "replicas": "8"}
    if "model" not in arguments or not set(arguments) <= {"model", *known}:
        raise UsageError(f"The arguments are {', '.join(arguments) or 'none'}.", "Give model, precision and replicas.")
    chosen = {**known, **arguments}
    if not chosen["replicas"].isdecimal():
        raise UsageError(f"replicas is {chosen['replicas']!r}.", "Give a whole number.")
    settings = {"host": "0.0.0.0", "behind_proxy": True}
    return _application(Replicas(chosen["model"], chosen["precision"], settings), int(chosen["replicas"]))


def serve_on_cluster(
    ref: str,
    precision: str,
    settings: ServeSettings,
    replicas: int | None,
    connect: Callable[[], AbstractContextManager[Cluster]],
    on_ready: Callable[[Ready], None],
) -> None:
    """Deploy on a cluster, and take the deployment away again at SIGTERM or SIGINT.

    Args:
        ref: As `server.serve`; the nodes read it too.
        precision: `float32` or `int8`.
        settings: Where Ray's proxies listen, and whom to let in.
        replicas: At most so many; None: as many as the cluster has cores.
        connect: Joins the cluster.
        on_ready: Called once, when images are answered.

    Raises:
        ModelRefused, UsageError: As `server.serve`.
        TryLater: If the replicas do not start.
    """
    if settings.port == 0:
        raise UsageError("Ray's proxies listen on a port that is named.", "Say one: --port 8460.")
    check_certificate(settings)
    model = load_model(ref, precision)
    if model.golden is not None:
        # Here first: replicas would try again and again before they give up.
        compare_golden(model.golden, model.uri, Scorer(model.scorer, model.io), precision)
    told = {name: value for name, value in asdict(settings).items() if name != "token"}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with connect() as cluster:
        most = replicas or cluster.cpus
        _listen(settings)
        try:
            _deploy(_application(Replicas(ref, precision, told), most))
            with _until_stopped() as stopped:
                on_ready(Ready(url_of(settings.port, settings), model.served, most))
                stopped.wait()
                stopped.clear()
                _drain(stopped)
        finally:
            if set(serve.status().applications) - {APPLICATION}:
                serve.delete(APPLICATION)
            else:
                # Deleted first, it would leave proxies that go on listening and answer 404 for want of a route.
                serve.shutdown()  # type: ignore[no-untyped-call]


def _drain(stopped: threading.Event) -> None:
    """Let every replica refuse further images, and wait until those that they have are answered.

    Args:
        stopped: Set by who does not want to wait.
    """
    requests: dict[str, int] = {}
    deadline = time.monotonic() + DRAIN_SECONDS
    while (running := _running()) and time.monotonic() < deadline and not stopped.is_set():
        handle = serve.get_app_handle(APPLICATION)
        # Ray calls the replica that has least to do: of several calls at once each gets some.
        for call in [handle.leave.remote() for _ in range(CALLS_EACH * running)]:
            with contextlib.suppress(RayError, RayServeException, TimeoutError):
                name, still = call.result(timeout_s=1)
                requests[name] = still
        if len(requests) >= running and not any(requests.values()):
            return


def _running() -> int:
    """How many replicas there are now."""
    told = serve.status().applications.get(APPLICATION)
    states = {} if told is None or DEPLOYMENT not in told.deployments else told.deployments[DEPLOYMENT].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def _listen(settings: ServeSettings) -> None:
    """Start Ray's proxies, or find those that another application of the cluster has started at the same place.

    Raises:
        UsageError: If they listen elsewhere, and so would not be found.
    """
    serve.start(
        proxy_location="EveryNode",
        http_options={
            "host": settings.host,
            "port": settings.port,
            "ssl_certfile": None if settings.tls_cert is None else str(settings.tls_cert),
            "ssl_keyfile": None if settings.tls_key is None else str(settings.tls_key),
        },
        logging_config=_quiet_log(),
    )
    client: Any = context._get_global_client()
    found = client.http_config
    if (found.host, found.port) != (settings.host, settings.port):
        raise UsageError(
            f"Ray Serve runs on this cluster already, and listens at {found.host}:{found.port}.",
            f"Say --host {found.host} --port {found.port}, or end what runs there.",
        )


def _deploy(application: serve.Application) -> None:
    try:
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config=_quiet_log())
    except (RuntimeError, TimeoutError) as error:
        told = serve.status().applications[APPLICATION].deployments
        raise _refusal("\n".join(deployment.message for deployment in told.values())) from error


def _refusal(message: str) -> NightreadError:
    """Why replicas do not start, by the traceback that Ray keeps of one."""
    for kind, sentence in re.findall(r"pipelines\.errors\.(\w+): (.+)", message):
        if refused := {"ModelRefused": ModelRefused, "UsageError": UsageError}.get(kind):
            return refused(f"No replica starts on the cluster: {sentence}")
    return TryLater(
        "No replica starts on the cluster.",
        "See why with `serve status` there: the nodes need this nightread and the place of the model.",
    )


def _application(made_of: Replicas, most: int) -> serve.Application:
    """The deployment of at most so many replicas."""
    queue = ServeSettings().queue_per_worker
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": 1},
        # What is beyond a replica's own queue is answered there, with 429 and when to come again.
        max_ongoing_requests=2 * queue,
        autoscaling_config={
            "min_replicas": min(LEAST_REPLICAS, most),
            "max_replicas": most,
            "target_ongoing_requests": 2,
        },
    )
    application: serve.Application = deployment.bind(made_of)
    return application


def _quiet_log() -> LoggingConfig:
    """Ray's own log of requests would keep who asked for what."""
    return LoggingConfig(enable_access_log=False, log_level="WARNING")


@contextlib.contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stopped = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
