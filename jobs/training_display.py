"""What `train` shows: its phases, one line an epoch while it runs, and the figures at the end."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.console import Console, program
from jobs.drawing import plain_table
from jobs.score import ScoreDisplay

if TYPE_CHECKING:
    from pipelines.scoring.report import ScoreProgress
    from pipelines.training.report import TrainReport

PHASES = {
    "listing": "images found",
    "preparing": "preparing the backbone",
    "scoring": "images",
    "training": "epochs",
    "compiling": "compiling",
    "validating": "validation images",
}
"""What is counted in each phase of a training."""

LINES_OF_A_LOG = 50
"""About so many epochs are told where nobody watches; on a terminal every one."""
COLUMNS = {
    "loss": "loss",
    "accuracy": "acc",
    "roc_auc": "AUC",
    "val_loss": "val loss",
    "val_accuracy": "val acc",
    "val_roc_auc": "val AUC",
}
"""Column of the history: its heading on an epoch's line."""


class TrainDisplay(ScoreDisplay):
    """Shows the phases of a training and one line an epoch, on standard error.

    Args:
        console: Where.
        metric: What the recipe judges validation by: an epoch that is the best so far is marked with `*`.
    """

    def __init__(self, console: Console, metric: str) -> None:
        super().__init__(console, PHASES)
        self._out = console
        self._metric = metric
        self._best = math.nan
        self._begun = False

    def tell(self, progress: ScoreProgress) -> None:
        """Show where the command stands."""
        from pipelines.training.report import EpochProgress

        if isinstance(progress, EpochProgress):
            self._epoch(progress.row, progress.total or 0)
        super().tell(progress)

    def _epoch(self, row: Mapping[str, float], total: int) -> None:
        best = self._is_best(row)
        epoch = int(row["epoch"])
        step = 1 if self._out.watched else max(1, math.ceil(total / LINES_OF_A_LOG))
        if epoch % step and epoch not in (1, total):
            return
        if not self._begun:
            self._begun = True
            self._out.note(heading())
        self._out.note(epoch_line(row, total, best))

    def _is_best(self, row: Mapping[str, float]) -> bool:
        """Whether validation is better than after every epoch before."""
        from pipelines.training.history import VALIDATION_COLUMNS
        from pipelines.training.schedules import is_better

        value = row[VALIDATION_COLUMNS[self._metric]]
        if not is_better(self._metric, value, self._best):
            return False
        self._best = value
        return True


def heading() -> str:
    """What stands above the lines of the epochs."""
    return f"{'epoch':>9}{''.join(f'{title:>9}' for title in COLUMNS.values())}{'rate':>10}{'s':>8}"


def epoch_line(row: Mapping[str, float], total: int, best: bool) -> str:
    """One epoch: figures of training and validation, learning rate, seconds; `*` for the best so far.

    Args:
        row: Of the history.
        total: How many epochs there may be.
        best: Whether it is the best so far.
    """
    epoch = f"{int(row['epoch'])}/{total}"
    figures = "".join(f"{_figure(row[name]):>9}" for name in COLUMNS)
    line = f"{epoch:>9}{figures}{row['learning_rate']:>10.3g}{row['seconds']:>8.2f}"
    return f"{line} *" if best else line


def show(console: Console, report: TrainReport) -> None:
    """Print warnings, and the answer as a person or a program wants it."""
    warn(console, report)
    console.result(report.as_json(), summary(report))


def warn(console: Console, report: TrainReport) -> None:
    """Print what was left out and what a person should know."""
    for image in report.unreadable:
        console.warn(f"{image.image_uri} was left out: {image.error_code} ({image.error_message})")
    for text in report.warnings:
        console.warn(text)


def summary(report: TrainReport) -> str:
    """The figures of a training for a person."""
    lines = [
        *_data_lines(report),
        *_figure_lines(report),
        "",
        "Validation by the most probable class, whatever the threshold:",
        "",
        *_matrix(report),
        "",
        report.classification_report.rstrip(),
        "",
        f"  model       {report.path} ({report.seconds:.1f} s)",
        *_next_lines(report),
    ]
    return "\n".join(lines)


def _data_lines(report: TrainReport) -> Iterator[str]:
    yield "  images      " + "; ".join(f"{part} {_counts(counts)}" for part, counts in report.parts.items())
    left_out = {reason: count for reason, count in report.left_out.items() if count}
    if left_out:
        yield f"  left out    {_counts(left_out)}"
    if report.audit.get("origin") == "inherited":
        yield f"  split       that of {report.audit['predecessor']}, new images dealt out"
    elif report.audit.get("origin") == "given":
        yield "  split       as the data give it"
    copies, alike = report.audit.get("exact_copies", 0), report.audit.get("near_duplicate_pairs", 0)
    if copies or alike:
        yield f"  duplicates  {_count(copies, 'exact copy', 'exact copies')}, {_count(alike, 'near-duplicate pair')}"
    if report.without_patient:
        yield f"  patients    not known for {_count(report.without_patient, 'image')}: only copies were kept together"
        yield "              a patient's images may stand in two parts; name patients with --group-by or patient_id"
    yield f"  groups      {report.groups:,}"
    yield f"  positive    {', '.join(report.positive_classes)}"


def _figure_lines(report: TrainReport) -> Iterator[str]:
    figures = report.validation
    workers = f" on {report.workers} workers" if report.workers > 1 else ""
    start = f", from {report.started_from}" if report.started_from else ""
    yield f"  epochs      {report.epochs:,}{workers}{start}; the weights of epoch {report.best_epoch:,} were kept"
    yield (
        f"  validation  accuracy {figures['accuracy']:.4f}{_interval(report.intervals.get('accuracy'))}, "
        f"loss {figures['log_loss']:.4f}"
    )
    against = f"{' or '.join(report.positive_classes)} against the rest"
    yield f"              ROC AUC {_figure(report.roc_auc)}{_interval(report.roc_auc_interval)}, {against}"
    if len(report.classes) > 2:
        mean = _interval(report.intervals.get("roc_auc"))
        yield f"              ROC AUC {_figure(figures['roc_auc'])}{mean}, mean of each class against the rest"
    yield f"  threshold   {report.threshold:.6g} of p_positive, temperature {report.temperature:.3f}"
    yield (
        f"              on validation sensitivity {report.sensitivity:.3f} (asked for: {report.target_sensitivity:g}), "
        f"specificity {report.specificity:.3f}"
    )
    yield from band_lines(report.thresholds)
    yield f"  int8        {report.int8['sentence']}"
    if report.versus is not None:
        yield f"  compared    {report.versus.get('sentence') or report.versus['reason']}"


def band_lines(thresholds: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The refer bands of images and of patients, and what stands outside of them on validation.

    Args:
        thresholds: As in a bundle; units without a band are left out.
    """
    image, patient = thresholds.get("image", {}), thresholds.get("patient_max", {})
    if image.get("refer_low") is not None:
        yield f"  refer       {_referred(image, 'validation images')}"
        yield f"              outside of it {_outside(image)}"
    if patient.get("refer_low") is not None:
        yield f"  patients    by the highest p_positive of each one's images: threshold {patient['threshold']:.6g}"
        yield f"              refer {_referred(patient, 'patients of validation')}"
        yield f"              outside of it {_outside(patient)}"


def _referred(fitted: Mapping[str, Any], what: str) -> str:
    """The band, and how many cases lie within."""
    lacking = [kind for kind in ("positive", "negative") if not fitted["decided"].get(f"{kind}s", 1)]
    if not fitted["referred"] and lacking:
        return f"nobody of {fitted['cases']:,} {what}, of which none is {lacking[0]}: nothing is known of such"
    if not fitted["referred"]:
        return f"nobody of {fitted['cases']:,} {what}: the threshold alone reaches both targets"
    least = "any" if fitted["refer_low"] == 0 else f"from {fitted['refer_low']:.6g}"
    most = "" if fitted["refer_high"] > 1 else f" to below {fitted['refer_high']:.6g}"
    share = 100 * fitted["referred"] / fitted["cases"]
    return f"{least}{most}: {fitted['referred']:,} of {fitted['cases']:,} {what} ({share:.1f} %) go to a person"


def _outside(fitted: Mapping[str, Any]) -> str:
    decided = fitted["decided"]
    return (
        f"sensitivity {_rate(decided['sensitivity'])} (asked for: {fitted['target_sensitivity']:g}), "
        f"specificity {_rate(decided['specificity'])} (asked for: {fitted['target_specificity']:g})"
    )


def _rate(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _next_lines(report: TrainReport) -> Iterator[str]:
    if report.champion == report.version and not report.roc_auc_interval[0] > 0.5:
        yield f"  champion    {report.version}, for want of another; see the warnings before you score with it"
        return
    if report.champion == report.version:
        yield f"  champion    {report.version}; score an archive with it:"
        yield f"              {program()} score ARCHIVE --model {_model(report)} --results RESULTS"
        return
    yield f"  champion    still {report.champion}; to score with this one:"
    yield f"              {program()} models promote {_model(report)}@{report.version}"


def _model(report: TrainReport) -> str:
    """MODELS/NAME, quoted for a shell."""
    from pipelines.storage import paths

    return shlex.quote(paths.unescape_name(paths.parent(report.path)))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _count(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return ""
    return f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"


def _matrix(report: TrainReport) -> list[str]:
    """The confusion matrix on validation: a row for each true class, a column for each predicted one."""
    rows = [
        [name, *(str(count) for count in counts)]
        for name, counts in zip(report.classes, report.confusion_matrix, strict=True)
    ]
    right = [False] + [True] * len(report.classes)
    return plain_table(["true \\ predicted", *report.classes], rows, right).splitlines()
