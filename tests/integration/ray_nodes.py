"""A Ray of several nodes on this machine, each a real `ray start` in a session of its own, to be killed or drained.

And the night that scores on it while that is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
STORE_BYTES = 80_000_000
SECONDS_TO_START = 90
TRIES_TO_START = 3
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long skew(void) { const char *text = getenv("CLOCK_SKEW"); return text ? atol(text) : 0; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += skew();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec, now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *place) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (place) *place = exact.tv_sec;
    return exact.tv_sec;
}
"""
"""C of a library that, loaded before all others, puts the clock of a process CLOCK_SKEW seconds ahead."""


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One `ray start --block` and all that it started.

    Attributes:
        node_id: As Ray names it.
        pid: Of `ray start`; also the number of its session.
    """

    def __init__(self, node_id: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.node_id = node_id
        self.pid = process.pid
        self._process = process
        self._log = log

    def joins(self) -> bool:
        """Wait until the node has joined; False where it gave up, as Ray does after 30 s on a busy machine."""
        until = time.monotonic() + SECONDS_TO_START
        while "Ray runtime started" not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def processes(self, title: str = "") -> list[int]:
        """Its living processes, or those whose command line holds `title`."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, _, session = (place / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                if int(session) == self.pid and state != "Z" and title.encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
        return found

    def actors(self) -> list[int]:
        """Its actors that score."""
        return self.processes("MapWorker")

    def send(self, number: int, title: str = "") -> int:
        """Send a signal to its processes, or to those of a title; says to how many."""
        processes = self.processes(title)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(processes)

    def kill(self) -> None:
        """As a machine whose plug is pulled: all at once, without a word."""
        while self.send(signal.SIGKILL):
            time.sleep(0.02)
        self._process.wait()

    def terminate(self) -> None:
        """As a machine that is shut down in order: SIGTERM to `ray start`, and what is left after ten seconds goes."""
        self._process.terminate()
        until = time.monotonic() + 10
        while self.processes() and time.monotonic() < until:
            time.sleep(0.1)
        self.kill()


class Nodes:
    """A cluster with a token; made by `ray_nodes`.

    Attributes:
        environment: What a command needs to be let in.
        nodes: All that were started, in order.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self.nodes: list[Node] = []
        self.environment = {
            **environment,
            **QUIET,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self._port = free_port()

    @property
    def address(self) -> str:
        """What `--address` is given."""
        return f"127.0.0.1:{self._port}"

    def head(self, cpus: int = 0, env: Mapping[str, str] | None = None, dashboard: int | None = None) -> Node:
        """Start the head and return once it answers.

        Args:
            cpus: Its cores, as Ray shall see them.
            env: Further variables of this node alone.
            dashboard: Port of the dashboard, which takes jobs; None: there is none.
        """
        options = ["--head", f"--port={self._port}"]
        options += ["--include-dashboard=false"] if dashboard is None else [f"--dashboard-port={dashboard}"]
        return self._start(options, cpus, env or {}, ())

    def add(
        self, cpus: int = 1, env: Mapping[str, str] | None = None, within: Sequence[str] = (), temp: Path | None = None
    ) -> Node:
        """Start a node and return once it has joined.

        Args:
            cpus: Its cores, as Ray shall see them.
            env: Further variables of this node alone.
            within: Command that it is started by, such as `unshare`.
            temp: Its folder, where it has one of its own.
        """
        options = [f"--address={self.address}", *([f"--temp-dir={temp}"] if temp else [])]
        return self._start(options, cpus, env or {}, within)

    def drain(self, node: Node, seconds: int) -> None:
        """Give a node the notice that its machine is taken away in so many seconds."""
        options = [f"--address={self.address}", f"--node-id={node.node_id}", f"--deadline-remaining-seconds={seconds}"]
        options += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        done = subprocess.run(
            [*RAY, "drain-node", *options], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def _start(self, options: list[str], cpus: int, env: Mapping[str, str], within: Sequence[str]) -> Node:
        options += ["--block", f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}"]
        # Without a port of its own the agent of a node takes the one of all, or does without, and then takes no job.
        options += ["--include-log-monitor=false", f"--dashboard-agent-listen-port={free_port()}"]
        if not any(option.startswith("--temp-dir") for option in options):
            options.append(f"--temp-dir={self._folder}/ray")
        for _ in range(TRIES_TO_START):
            node_id = secrets.token_hex(28)
            log = self._folder / f"{node_id[:8]}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*within, *RAY, "start", *options],
                    env={**self.environment, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            node = Node(node_id, process, log)
            self.nodes.append(node)
            if node.joins():
                return node
            node.kill()
        raise AssertionError(log.read_text())

    def close(self) -> None:
        """End what is left."""
        for node in reversed(self.nodes):
            node.kill()


class Night:
    """A `score` that runs on a cluster.

    Args:
        arguments: What stands behind `nightread`, `score` among it.
        results: Its results, on a disk of this machine.
        environment: Of the command.
    """

    def __init__(self, arguments: Sequence[object], results: Path, environment: Mapping[str, str]) -> None:
        self.results = results
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *map(str, arguments), "--json"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finished(self) -> int:
        """How many parts lie in its results."""
        return len(list(self.results.glob("runs/*/parts/*.parquet")))

    def await_parts(self, count: int) -> None:
        """Return once so many shards are finished."""
        while self.finished() < count:
            assert self.process.poll() is None, f"ended before {count} parts: {self.process.communicate()}"
            time.sleep(0.02)

    def end(self, seconds: float = 280) -> tuple[int, dict[str, Any], str]:
        """Wait for its end: exit code, answer, standard error."""
        out, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, json.loads(out) if out.strip() else {}, errors

    def kill(self) -> None:
        """End it, if it still runs."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def ray_nodes(environment: Mapping[str, str]) -> Iterator[Nodes]:
    """A cluster without a node yet; ended with the block, with all that it started.

    Args:
        environment: Of its processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # a short name: Ray's sockets lie in it
    nodes = Nodes(folder, environment)
    try:
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)
