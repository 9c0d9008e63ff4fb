"""Figures for Prometheus: counted here, written as text; no label comes from a client."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.serving.answering import ServedModel, ServiceState

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ROUTES = frozenset(
    {
        "/",
        "/predict",
        "/predict/batch",
        "/preview",
        "/model",
        "/metrics",
        "/healthz",
        "/readyz",
        "/docs",
        "/openapi.json",
    }
)
OTHER = "other"
BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds."""

Sample = tuple[str, Mapping[str, str], float]


class Metrics:
    """Counters of one HTTP process; all of them only grow.

    Args:
        labels: What every sample carries: where several processes answer at one address, which of them counted.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = labels or {}
        self._requests: Counter[tuple[str, int]] = Counter()
        self._images: Counter[str] = Counter()
        self._decisions: Counter[str] = Counter()
        self._turned_away: Counter[str] = Counter()
        self._durations: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request; a path that is no route counts as `other`."""
        route = path if path in ROUTES else OTHER
        self._requests[route, status] += 1
        buckets = self._durations.setdefault(route, [0] * (len(BUCKETS) + 1))
        buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]

    def count_image(self, outcome: str, decision: str | None = None) -> None:
        """Count an image: `answered` with its decision, or the code of why not."""
        self._images[outcome] += 1
        if outcome == "answered":
            self._decisions[decision or "none"] += 1

    def count_turned_away(self, reason: str) -> None:
        """Count a connection that ended before there was a request to answer, by a reason of ours."""
        self._turned_away[reason] += 1

    def text(self, model: ServedModel | None, state: ServiceState, held_bytes: int) -> str:
        """All figures in Prometheus' text format.

        Args:
            model: What answers; None while it starts.
            state: How the service does.
            held_bytes: What bodies take of memory now.
        """
        lines: list[str] = []
        for name, kind, meaning, samples in self._families(model, state, held_bytes):
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [_line(name + suffix, {**self._labels, **labels}, value) for suffix, labels, value in samples]
        return "\n".join(lines) + "\n"

    def _families(
        self, model: ServedModel | None, state: ServiceState, held_bytes: int
    ) -> Iterator[tuple[str, str, str, list[Sample]]]:
        yield (
            "nightread_serve_requests_total",
            "counter",
            "Answered requests; 499 is a client that left before.",
            [("", {"route": route, "status": str(status)}, n) for (route, status), n in sorted(self._requests.items())],
        )
        yield (
            "nightread_serve_request_seconds",
            "histogram",
            "From the head of a request to the end of its answer.",
            [sample for route in sorted(self._durations) for sample in self._histogram(route)],
        )
        yield (
            "nightread_serve_images_total",
            "counter",
            "Images answered, and those without answer by the code of why.",
            [("", {"outcome": outcome}, n) for outcome, n in sorted(self._images.items())],
        )
        yield (
            "nightread_serve_decisions_total",
            "counter",
            "Images answered, by decision; none where the model has no thresholds.",
            [("", {"decision": decision}, n) for decision, n in sorted(self._decisions.items())],
        )
        yield (
            "nightread_serve_turned_away_total",
            "counter",
            "Connections ended before there was a request, by reason.",
            [("", {"reason": reason}, n) for reason, n in sorted(self._turned_away.items())],
        )
        for name, kind, meaning, value in _gauges(state, held_bytes):
            yield name, kind, meaning, [("", {}, value)]
        yield (
            "nightread_serve_memory_bytes",
            "gauge",
            "Resident memory of the HTTP process and of its children together.",
            [("", {"processes": processes}, value) for processes, value in _memory().items()],
        )
        identity = {} if model is None else {**model.identity, "preprocessing_id": model.preprocessing_id}
        yield (
            "nightread_serve_model_info",
            "gauge",
            "The model that answers; always 1.",
            [] if model is None else [("", {**identity, "precision": model.precision}, 1)],
        )

    def _histogram(self, route: str) -> Iterator[Sample]:
        total = 0
        bounds = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]
        for bound, count in zip(bounds, self._durations[route], strict=True):
            total += count
            yield "_bucket", {"route": route, "le": bound}, total
        yield "_sum", {"route": route}, self._seconds[route]
        yield "_count", {"route": route}, total


def _gauges(state: ServiceState, held_bytes: int) -> Iterator[tuple[str, str, str, float]]:
    yield "nightread_serve_ready", "gauge", "1 where images are answered.", state.ready
    yield "nightread_serve_queued_images", "gauge", "Images that wait for a process.", state.queued
    yield "nightread_serve_queue_limit", "gauge", "How many may wait.", state.queue_limit
    yield "nightread_serve_workers", "gauge", "Processes that shall answer.", state.workers
    yield "nightread_serve_workers_alive", "gauge", "Processes that can answer now.", state.workers_alive
    yield "nightread_serve_worker_restarts_total", "counter", "Processes replaced.", state.worker_restarts
    failed = state.promotion_failed is not None
    yield (
        "nightread_serve_promotion_failed",
        "gauge",
        "1 where a promoted model was refused; the one before answers.",
        failed,
    )
    loaded = 0.0 if state.loaded_at is None else state.loaded_at.timestamp()
    yield "nightread_serve_model_loaded_timestamp_seconds", "gauge", "When the model took over.", loaded
    yield "nightread_serve_held_bytes", "gauge", "Memory that bodies of requests take.", held_bytes


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    number = repr(float(value))
    return f"{name}{{{inside}}} {number}" if inside else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _memory() -> dict[str, int]:
    """Resident bytes of this process and of its children, by who; those that end meanwhile count nothing."""
    children: set[str] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        children.update(_read(listed).split())
    return {"http": _resident("self"), "children": sum(map(_resident, children))}


def _resident(process: str) -> int:
    fields = _read(Path("/proc") / process / "statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
