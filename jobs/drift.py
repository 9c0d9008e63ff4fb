"""After the commit of `score`: is the night still like the nights before, and like what the model was validated on?

Nothing here may cost a night its rows or its exit code: what cannot be compared is told as `unknown`.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pipelines.errors import NightreadError

if TYPE_CHECKING:
    from pipelines.evaluation.drift import DriftReport
    from pipelines.evaluation.drift_profile import Profile
    from pipelines.predictions.runs import RunFolder, RunRecord
    from pipelines.scoring.report import ScoreReport

DRIFT_EXIT = 5


def compare_night(report: ScoreReport, model: str) -> dict[str, Any] | None:
    """Compare what a command committed, and keep the answer beside its last run.

    Args:
        report: Of the command.
        model: The REF that it was given.

    Returns:
        What `drift.json` holds; None where nothing was committed.
    """
    if report.run_id is None:
        return None
    from pipelines.predictions.runs import RunFolder

    began = time.monotonic()
    folder = RunFolder(report.results, report.run_id)
    record: RunRecord | None = None
    notes: list[str] = []
    try:
        record = folder.read_record()
        found = _compared(report, record, model, notes)
    except Exception as error:  # the rows are committed: not even a defect of ours may change how the night ends
        found = _not_compared(report, error)
    configuration = {} if record is None else record.configuration
    document = {
        **found.as_json(),
        "run_id": report.run_id,
        "runs": list(report.runs),
        **{name: configuration.get(name) for name in ("model_name", "model_id", "precision")},
        "notes": notes,
        "seconds": round(time.monotonic() - began, 3),
    }
    _keep(folder, document)
    return document


def exit_code(code: int, drift: dict[str, Any] | None, gate: bool) -> int:
    """The exit code of the whole command: a night that failed otherwise says that first.

    Args:
        code: Without drift.
        drift: From `compare_night`.
        gate: Whether drift was to make a difference (`--fail-on-drift`).
    """
    drifted = drift is not None and drift["verdict"] == "drift"
    return DRIFT_EXIT if gate and drifted and code == 0 else code


def summary_lines(drift: dict[str, Any] | None, code: int) -> list[str]:
    """What a person reads of it, below the counts of the night.

    Args:
        drift: From `compare_night`.
        code: The exit code of the command.
    """
    if drift is None:
        return []
    lines = [f"  drift       {drift['verdict']}: {drift['sentence']}"]
    lines += [f"              {note}" for note in drift["notes"]]
    if code == DRIFT_EXIT:
        lines.append("  exit code 5: the images or their scores have changed (--fail-on-drift); all is committed")
    return lines


def _compared(report: ScoreReport, record: RunRecord, model: str, notes: list[str]) -> DriftReport:
    from pipelines.evaluation.drift import compare, too_few_images
    from pipelines.evaluation.drift_figures import LEAST_IMAGES
    from pipelines.evaluation.drift_profile import added, profiles_of
    from pipelines.predictions.night_counts import count_nights

    if report.counts.images < LEAST_IMAGES:
        return too_few_images(report.counts.images)
    model_id, precision = str(record.configuration["model_id"]), str(record.configuration["precision"])
    profiles = profiles_of(count_nights(report.results, report.runs, model_id, precision))
    tonight = added([profiles[run] for run in report.runs if run in profiles])
    trailing = [profile for run, profile in profiles.items() if run not in report.runs]
    return compare(tonight, trailing, _validation(model, model_id, precision, notes))


def _validation(model: str, model_id: str, precision: str, notes: list[str]) -> Profile | None:
    """The model's validation set; where it is not to be had a note says why, and the nights alone decide."""
    from pipelines.evaluation.drift_validation import validation_profile
    from pipelines.models.bundle import peek
    from pipelines.models.registry import locate

    try:
        bundle = peek(locate(model))
        if bundle.model_id == model_id:
            return validation_profile(bundle, precision)
        notes.append("Another version was promoted while the night ran; its validation set was not looked at.")
    except NightreadError as error:
        notes.append(f"The model's validation set could not be read: {error.message}")
    return None


def _not_compared(report: ScoreReport, error: Exception) -> DriftReport:
    from pipelines.evaluation.drift import UNKNOWN, DriftReport

    # What a library says may hold the name of an image.
    why = error.message if isinstance(error, NightreadError) else f"{type(error).__name__}, a defect of nightread."
    return DriftReport(
        UNKNOWN, None, f"The night could not be compared: {why}", images=report.counts.images,
        scored=report.counts.scored,
    )  # fmt: skip


def _keep(folder: RunFolder, document: dict[str, Any]) -> None:
    from pipelines.storage import files

    try:
        files.write_atomic(folder.drift, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    except NightreadError as error:
        document["notes"].append(f"This comparison is not kept beside the run: {error.message}")
