"""A night as Prometheus reads it: one file of gauges for the textfile collector of node_exporter.

Names are a promise: rules and dashboards are made from them. None is taken away, and what a night did not come to is
left out, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pipelines.errors import IMAGE_ERRORS, NightreadError, UsageError
from pipelines.predictions.nights import NightRecord, newest_nights
from pipelines.storage import files, paths

SUCCESS: Final = "nightread_last_success_timestamp_seconds"
DRIFT_VERDICTS: Final = {"none": 0, "watch": 1, "drift": 2}
_UNKNOWN_DRIFT: Final = -1
_NIGHTS: Final = 50

HELP: Final = {
    SUCCESS: "Unix time when a night last finished and was committed (exit codes 0, 3 and 5).",
    "nightread_last_end_timestamp_seconds": "Unix time when the last night ended, whatever its end.",
    "nightread_last_exit_code": "Exit code of the last night.",
    "nightread_last_duration_seconds": "How long the last night took.",
    "nightread_last_found_images": "Images that the last night found in the archive.",
    "nightread_last_new_images": "Images that were new to the last night.",
    "nightread_last_changed_images": "Images that had changed for the last night.",
    "nightread_last_scored_images": "Images that the last night scored.",
    "nightread_last_failed_images": "Images that failed in the last night.",
    "nightread_last_remaining_images": "Images that the last night left to the next one, because its time was over.",
    "nightread_last_failed_ratio": "Share of the last night's images that failed, from 0 to 1.",
    "nightread_last_failures": "Images that failed in the last night, by error code.",
    "nightread_last_images_per_second": "Steady rate of the last night.",
    "nightread_table_version": "Version of the table of predictions after the last night.",
    "nightread_drift_verdict": "Drift of the last night: 0 none, 1 certain but small, 2 drift, -1 not known.",
    "nightread_drift_psi": "Population stability index of a figure of the last night.",
    "nightread_drift_p_value": "Corrected p value of a figure of the last night.",
    "nightread_drift_effect": "Shift of a figure of the last night, in standard deviations.",
    "nightread_drift_value": "A figure of the last night.",
    "nightread_drift_expected_value": "What that figure was expected to be.",
    "nightread_build_info": "Version of nightread that ran the last night.",
}
"""Every metric, in the order of the file; all are gauges."""

Sample = tuple[str, Mapping[str, str], float | int]


def check_metrics_file(path: str) -> None:
    """Refuse a place that cannot become a metrics file, before the night.

    Raises:
        UsageError: If it is no local path, or its folder is not there.
    """
    place = paths.canonical(path)
    if not paths.is_local(place):
        raise UsageError(f"--metrics-file {path!r} is no local file.", "Name a file that node_exporter can read.")
    if not Path(place).parent.is_dir() or Path(place).is_dir():
        raise UsageError(
            f"--metrics-file {path!r} cannot be written: its folder is not there, or it is a folder itself.",
            "Name a file in the folder of node_exporter's textfile collector, ending in .prom.",
        )


def write_metrics(path: str, results: str, night: NightRecord, *, ask_results: bool) -> None:
    """Write the metrics of a night, whole or not at all.

    The time of the last success outlives nights that fail: it comes from the earlier file and the results.

    Args:
        path: A local file.
        results: The results folder.
        night: The night that has just ended.
        ask_results: Whether to look for earlier nights there; False where they do not answer.

    Raises:
        UsageError: If the place may not be written.
        TryLater: If the disk is full.
    """
    place = paths.escape_name(paths.canonical(results))
    success = _last_success(path, results, place, night, ask_results)
    files.write_atomic(path, render(night, place, success).encode())


def render(night: NightRecord, results: str, success: float | None) -> str:
    """Write a night in Prometheus' text format.

    Args:
        night: The night that ended last.
        results: What the label `results` says; it tells several files of one machine apart.
        success: Unix time of the last night that finished; None where none has.
    """
    samples: dict[str, list[str]] = {name: [] for name in HELP}
    for name, labels, value in _samples(night, success):
        told = ",".join(f'{key}="{_escaped(text)}"' for key, text in {"results": results, **labels}.items())
        samples[name].append(f"{name}{{{told}}} {_number(value)}\n")
    return "".join(
        f"# HELP {name} {HELP[name]}\n# TYPE {name} gauge\n{''.join(lines)}" for name, lines in samples.items() if lines
    )


def _samples(night: NightRecord, success: float | None) -> Iterator[Sample]:
    if success is not None:
        yield SUCCESS, {}, success
    yield "nightread_last_end_timestamp_seconds", {}, night.ended_at.timestamp()
    yield "nightread_last_exit_code", {}, night.exit_code
    yield "nightread_last_duration_seconds", {}, night.seconds
    counts = night.counts
    for name in ("found", "new", "changed", "scored", "failed", "remaining"):
        if counts.get(name) is not None:
            yield f"nightread_last_{name}_images", {}, counts[name]
    if "failed" in counts:
        yield "nightread_last_failed_ratio", {}, counts["failed"] / max(1, counts["scored"] + counts["failed"])
        by_code = counts.get("failed_by_code", {})
        for code in IMAGE_ERRORS:
            yield "nightread_last_failures", {"code": code}, by_code.get(code, 0)
    if night.images_per_second is not None:
        yield "nightread_last_images_per_second", {}, night.images_per_second
    if night.table_version is not None:
        yield "nightread_table_version", {}, night.table_version
    if night.drift is not None:
        yield from _drift_samples(night.drift)
    if version := night.who.get("versions", {}).get("nightread"):
        yield "nightread_build_info", {"version": version}, 1


def _drift_samples(drift: Mapping[str, Any]) -> Iterator[Sample]:
    yield "nightread_drift_verdict", {}, drift_number(drift)
    names = {"psi": "psi", "p": "p_value", "effect": "effect", "value": "value", "expected": "expected_value"}
    for figure in drift.get("figures", ()):
        for key, name in names.items():
            if figure.get(key) is not None:
                yield f"nightread_drift_{name}", {"figure": figure["figure"]}, figure[key]


def drift_number(drift: Mapping[str, Any]) -> int:
    """The verdict on drift as a number: 0 none, 1 watch, 2 drift, -1 not known."""
    return DRIFT_VERDICTS.get(str(drift.get("verdict")), _UNKNOWN_DRIFT)


def _last_success(path: str, results: str, label: str, night: NightRecord, ask_results: bool) -> float | None:
    if night.finished:
        return night.ended_at.timestamp()
    known = _told_before(path, label)
    try:
        nights = newest_nights(results, _NIGHTS) if ask_results else []
    except NightreadError:
        nights = []
    known += [earlier.ended_at.timestamp() for earlier in nights if earlier.finished]
    return max(known, default=None)


def _told_before(path: str, label: str) -> list[float]:
    """The time of the last success in the file as it is; none where there is no such file, or it is not ours."""
    line = re.compile(rf'^{SUCCESS}\{{results="{re.escape(_escaped(label))}"\}} ([0-9.]+)$', re.M)
    try:
        found = line.search(files.read_bytes(path).decode(errors="replace"))
    except (FileNotFoundError, NightreadError):
        return []
    return [float(found[1])] if found else []


def _number(value: float | int) -> str:
    return repr(value) if isinstance(value, int) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
