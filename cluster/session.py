"""Connect to a Ray cluster, or start Ray on this machine for as long as one command runs."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.door import Head, knock, uses_tls
from pipelines.errors import TryLater, UsageError, first_line
from pipelines.storage.scratch import NAME_LENGTH, Scratch

# Ray opens its folder to everyone, so that it lies in one that only this user can enter.
RAYS_FOLDER = "r"
# 107 bytes is the longest name of a Unix socket. Ray's longest is, below a folder of ours,
# `/session_2026-11-21_23-06-13_635678_4194304/sockets/plasma_store`.
LONGEST_TEMPORARY_FOLDER = 107 - 1 - NAME_LENGTH - len(f"/{RAYS_FOLDER}") - 64


@dataclass(frozen=True)
class ClusterSize:
    """What the cluster offers.

    Attributes:
        cpus: Processor cores that Ray schedules on, all nodes together; at least 1.
        nodes: Nodes alive.
        local: True where Ray runs on this machine for this command only.
        node_cpus: Processor cores of each node.
        node_gpus: GPUs of each node, in the same order.
        may_carry_pixels: Whether images may travel from node to node: there is one only, Ray encrypts what they say to
            each other, or the user accepts that it does not.
    """

    cpus: int
    nodes: int
    local: bool
    node_cpus: tuple[int, ...]
    node_gpus: tuple[int, ...]
    may_carry_pixels: bool = True


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by the container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return max(1, cores)


@contextlib.contextmanager
def start_or_join(address: str, insecure: bool = False) -> Iterator[ClusterSize]:
    """Hold a connection to Ray for the length of a `with` block.

    Args:
        address: `local` starts Ray on this machine with a token of its own, without dashboard, in a folder that is
            removed at the end; `auto` joins the cluster that this machine belongs to; `HOST:PORT` joins that one.
        insecure: Join a cluster even if it takes anybody without a token.

    Yields:
        The size of the cluster.

    Raises:
        UsageError: If the address is malformed or not Ray's, or this machine is no node of that cluster; if the cluster
            is open and that was not accepted, runs another Ray, or refuses the token or the certificates.
        TryLater: If no cluster answers there, or Ray does not start.
    """
    if address == "local":
        with _local_ray() as size:
            yield size
    else:
        with _joined_ray(address, insecure) as size:
            yield size


def _size(ray: Any, local: bool, protected: bool = True) -> ClusterSize:
    """Ask Ray what it has."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = tuple(int(resources.get("CPU", 0)) for resources in alive)
    gpus = tuple(int(resources.get("GPU", 0)) for resources in alive)
    return ClusterSize(max(1, sum(cpus)), len(alive), local, cpus, gpus, protected or len(alive) == 1)


@contextlib.contextmanager
def shared_session(address: str, insecure: bool = False) -> Iterator[Callable[[], AbstractContextManager[ClusterSize]]]:
    """Yield what several jobs call to connect: one Ray, started or joined at the first call, left with the block.

    Args:
        address: As `start_or_join`.
        insecure: As `start_or_join`.
    """
    with contextlib.ExitStack() as stack:
        started: list[ClusterSize] = []

        @contextlib.contextmanager
        def connect() -> Iterator[ClusterSize]:
            if not started:
                started.append(stack.enter_context(start_or_join(address, insecure)))
            yield started[0]

        yield connect


@contextlib.contextmanager
def _local_ray() -> Iterator[ClusterSize]:
    cores = usable_cores()
    _check_temporary_folder()
    scratch = Scratch()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # A local Ray must not inherit the address of a cluster that the shell happens to name, nor its certificates: it
    # has one node, and no wire to another.
    with _environment({**token, **_QUIET}, removed=("RAY_ADDRESS", "RAY_USE_TLS")):
        try:
            ray = _quiet_ray()
            _reread_environment()
            try:
                _init(
                    ray,
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    _temp_dir=str(scratch.path / RAYS_FOLDER),
                )
            except Exception as error:  # Ray raises the bare one where a busy machine is too slow for it
                raise TryLater(
                    f"Ray did not start on this machine: {first_line(error)}.",
                    "Run `nightread doctor` to see what it lacks (memory, disk, free ports).",
                ) from error
            try:
                yield _size(ray, local=True)
            finally:
                ray.shutdown()
        finally:
            scratch.close()
    _reread_environment()


@contextlib.contextmanager
def _joined_ray(address: str, insecure: bool) -> Iterator[ClusterSize]:
    with _environment({**_QUIET, **_JOINING}):
        place = _head_of_this_machine() if address == "auto" else address
        head = knock(place, insecure)
        _refuse_outside(place)
        with _environment({"RAY_AUTH_MODE": _auth_mode(head)}):
            ray = _quiet_ray()
            _reread_environment()
            chosen = for_workers(os.environ)
            try:
                # Workers that wait already serve only where nothing is to be set in them.
                _init(ray, address=place, **({"runtime_env": {"env_vars": chosen}} if chosen else {}))
            except (RuntimeError, ConnectionError, TimeoutError, OSError, ValueError, ray.exceptions.RayError) as error:
                if "No node info found matching" in str(error):
                    raise _outside(place) from error
                raise TryLater(
                    f"The Ray cluster at {place} cannot be joined: {first_line(error)}.",
                    "See with `ray status` on its head how it does.",
                ) from error
            try:
                yield _size(ray, local=False, protected=insecure or uses_tls())
            finally:
                ray.shutdown()
    _reread_environment()


def _head_of_this_machine() -> str:
    """Where the head is of the cluster that this machine belongs to: what RAY_ADDRESS says, else what runs here.

    Raises:
        UsageError: If RAY_ADDRESS is not the address of a head.
        TryLater: If no Ray runs here, or more than one.
    """
    from ray._private import services

    try:
        found: str = services.canonicalize_bootstrap_address_or_die("auto")
    except ValueError as error:
        raise UsageError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')!r} is not the address of a head.", "Set it to HOST:PORT."
        ) from error
    except (ConnectionError, OSError) as error:
        raise TryLater(
            "--address auto finds no Ray, or more than one, on this machine.",
            "Start one with `ray start`, or say HOST:PORT.",
        ) from error
    return found


def _refuse_outside(address: str) -> None:
    """Refuse a machine on which no node of Ray runs: a program joins a cluster through the node of its own machine.

    Raises:
        UsageError: If that is so.
    """
    from ray._private import services

    finding: Any = services
    if not finding.find_node_ids():
        raise _outside(address)


def _outside(address: str) -> UsageError:
    return UsageError(
        f"This machine is no node of the cluster at {address}.",
        "Run the command on one of its nodes, or send it there: `nightread submit -- …`.",
    )


def _auth_mode(head: Head) -> str:
    """What Ray is to send: a token to those that ask for one, and to nobody else."""
    if not head.asks_for_token:
        return "disabled"
    return "k8s" if os.environ.get("RAY_AUTH_MODE", "").lower() == "k8s" else "token"


_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # how soon the end, or a death, is seen; 2 s otherwise
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process a training; ours goes on after a loss without a notice
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray ends a driver whose daemon it takes for dead, without a word; its own processes are told their true one.
    "RAY_RAYLET_PID": str(os.getpid()),
}


# How the names begin, or are, of variables that say how to reach storage.
_STORAGE = (
    "NIGHTREAD_S3_", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SKIP_SIGNATURE", "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE",
)  # fmt: skip
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_SECRETS = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
_ADDRESSES = ("_URL", "_URL_S3", "_PROXY")


def for_workers(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose the variables that the workers of a cluster need to reach the same storage: none that is a secret.

    Ray keeps them with the job, where everyone who sees the cluster can read them. So keys, and addresses with a
    password in them, are not among them: these must be set, or stand in files, on the nodes themselves.

    Args:
        environment: Of this process.
    """
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(_STORAGE) or name.upper() in _PROXIES)
        and not name.endswith(_SECRETS)
        and not ("@" in value and name.upper().endswith(_ADDRESSES))
    }


_WATCHERS = ("start_monitor", "start_log_monitor", "start_api_server")
# Where Ray finds them, the agent of each node serves the web too, on one port for the whole machine: a cluster's own.
_WEB_LIBRARIES = "get_dashboard_dependency_error"

_JOINING = {
    # Ray itself tries a head that does not answer for a quarter of an hour.
    "RAY_NUM_REDIS_GET_RETRIES": "1",
    # After a minute without the head Ray would end this process, without a word: what scores asks the head itself. Not
    # for a Ray of our own: its processes would ask for a head that was killed with us, and outlive us by minutes.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # What was submitted to a cluster comes with variables for its workers, and may say them again.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
}


@contextlib.contextmanager
def _environment(values: dict[str, str], removed: tuple[str, ...] = ()) -> Iterator[None]:
    """Set variables that Ray reads at its start and hands on to its processes; put the old ones back afterwards."""
    before = {name: os.environ.get(name) for name in (*values, *removed)}
    os.environ.update(values)
    for name in removed:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _quiet_ray() -> Any:
    import ray

    for name in ("ray", "ray.data", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from ray._private import utils, worker

    printing: Any = worker
    printing._worker_logs_enabled = False  # a worker's death would be told on standard output, into the JSON
    naming: Any = utils
    naming.get_entrypoint_name = _entrypoint
    return ray


def _entrypoint() -> str:
    """Ray would name a job by its command line, and cannot start where a folder in it has a name that is no UTF-8."""
    return "nightread"


def _reread_environment() -> None:
    """Ray reads its token once a process; a second session, or an earlier import, must not keep another's."""
    from ray import _raylet

    compiled: Any = _raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _without_watchers() -> Iterator[None]:
    """Start a Ray of one command without what it never asks: it starts and ends in half of the time.

    These are the monitor of an autoscaler that has nothing to scale, the web server, which runs even where no dashboard
    is asked for, and the process that copies workers' output to a driver that does not show it. Ray has no setting for
    them; where a later one names them otherwise, they are started as before.
    """
    from ray._private import node, utils

    kind: Any = node.Node
    kept = [(kind, name, getattr(kind, name)) for name in _WATCHERS if hasattr(kind, name)]
    for place, name, _ in kept:
        setattr(place, name, _start_nothing)
    if hasattr(utils, _WEB_LIBRARIES):
        kept.append((utils, _WEB_LIBRARIES, getattr(utils, _WEB_LIBRARIES)))
        setattr(utils, _WEB_LIBRARIES, _missing)
    try:
        yield
    finally:
        for place, name, method in kept:
            setattr(place, name, method)


def _missing() -> ImportError:
    """Stands for the reason why Ray cannot load its web server's libraries."""
    return ImportError("not needed")


def _start_nothing(_node: object, **_options: object) -> None:
    """Stands for the start of a process that is not needed."""


def _init(ray: Any, **arguments: object) -> None:
    """Start or join, then give SIGTERM back to its owner: Ray takes it over to end the process at once."""
    handler = signal.getsignal(signal.SIGTERM)
    with _silent_descriptor(), _without_watchers():
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False, **arguments)
    with contextlib.suppress(ValueError):  # not the main thread: Ray could not take it over either
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _silent_descriptor() -> Iterator[None]:
    """Ray's native code greets, and complains of a cluster that does not answer, past Python's standard error."""
    standard_error = 2
    kept, nowhere = os.dup(standard_error), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, standard_error)
        yield
    finally:
        os.dup2(kept, standard_error)
        os.close(kept)
        os.close(nowhere)


def _check_temporary_folder() -> None:
    root = tempfile.gettempdir()
    if len(root) > LONGEST_TEMPORARY_FOLDER:
        raise UsageError(
            f"The temporary folder's name is too long for Ray's sockets ({len(root)} characters).",
            f"Set TMPDIR to a folder of at most {LONGEST_TEMPORARY_FOLDER} characters.",
        )
