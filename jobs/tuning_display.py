"""What `tune` shows: the plan, a table that changes while trainings run, and what came of it."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.console import Board, Console, duration, program, progress_text
from jobs.evaluate import PHASES as EVALUATION_PHASES
from jobs.score import ScoreDisplay
from jobs.training_display import PHASES as TRAINING_PHASES

if TYPE_CHECKING:
    from pipelines.scoring.report import ScoreProgress
    from pipelines.tuning.plan import Pass, Plan
    from pipelines.tuning.progress import PlanReport, Running, SearchProgress, TuneReport

PHASES = {**EVALUATION_PHASES, **TRAINING_PHASES, "searching": "points", "ranking": "how sure"}
"""What is counted in each phase: those of a training, of the search, and of the evaluation of `--test`."""

WIDTH = 120
SHOWN_TRAININGS = 16
"""Of those that run, so many stand in the table."""


class TuneDisplay(ScoreDisplay):
    """Shows the phases of a search on standard error: on a terminal a table that changes, elsewhere lines.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, PHASES)
        self._out = console
        self._board: Board | None = None
        self._best: Mapping[str, str] = {}

    def tell(self, progress: ScoreProgress) -> None:
        """Show where the command stands."""
        from pipelines.tuning.progress import SearchProgress

        if not isinstance(progress, SearchProgress):
            self._board = None
            super().tell(progress)
        elif self._out.watched:
            self._draw(progress)
        else:
            super().tell(progress)
            self._note_best(progress)

    def _draw(self, progress: SearchProgress) -> None:
        if self._board is None:
            self._stack.close()
            self._bar = None
            self._board = self._stack.enter_context(self._out.board())
        shown, hidden = progress.running[:SHOWN_TRAININGS], len(progress.running) - SHOWN_TRAININGS
        columns, rows = running_table(shown, progress.metric)
        below = [f"and {hidden:,} more trainings"] if hidden > 0 else []
        self._board.draw([best_line(progress)], columns, rows, [*below, standing_line(progress)])

    def _note_best(self, progress: SearchProgress) -> None:
        """One line for each best point that is new."""
        if progress.best and progress.best != self._best:
            self._best = progress.best
            self._out.note(best_line(progress))


def best_line(progress: SearchProgress) -> str:
    """The best point so far."""
    if not progress.best:
        return "no point is finished yet"
    return f"best so far: {progress.metric} {_figure(progress.best_value)} at {_settings(progress.best)}"


def standing_line(progress: SearchProgress) -> str:
    """How many points are done, and the time left."""
    told = progress_text(progress.done, progress.total, progress.failed, None, progress.seconds_left)
    return f"points: {told}"


def running_table(running: Sequence[Running], metric: str) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the trainings under way: settings, epoch, the metric after it."""
    keys = list(dict.fromkeys(key for one in running for key in one.settings))
    rows: list[list[object]] = [
        [*(one.settings.get(key, "") for key in keys), f"{one.epoch:,}/{one.epochs:,}", _figure(one.value)]
        for one in running
    ]
    return [*keys, "epoch", metric], rows


def show_plan(console: Console, report: PlanReport) -> None:
    """Print what `--dry-run` found."""
    console.result(plan_json(report), "\n".join(plan_lines(report)))


def plan_json(report: PlanReport) -> dict[str, Any]:
    """The plan as `--json` prints it."""
    plan, left = report.plan, report.remaining
    return {
        "dry_run": True,
        "search": report.search,
        "images": report.images,
        "trials": len(plan.points),
        "trainings": len(plan.trainings),
        "passes": [_pass_json(one) for one in plan.passes],
        "epochs": plan.epochs,
        "epochs_apart": plan.epochs_apart,
        "separate": list(plan.separate),
        "answered": len(plan.points) - len(left.points),
        "remaining": {
            "trials": len(left.points),
            "trainings": len(left.trainings),
            "passes": len(left.passes),
            "epochs": left.epochs,
        },
        "seconds_estimated": report.seconds,
    }


def _pass_json(one: Pass) -> dict[str, Any]:
    recipe = one.recipe
    return {
        "backbone": recipe.backbone,
        "input_size": recipe.input_size,
        "trainable_layers": recipe.trainable_layers,
        "kind": one.kind,
        "copies": one.copies,
        "trainings": len(one.trainings),
    }


def plan_lines(report: PlanReport) -> Iterator[str]:
    """The plan for a person."""
    plan, left = report.plan, report.remaining
    yield "Dry run: nothing was written."
    yield f"  images      {report.images:,}"
    yield f"  points      {len(plan.points):,}"
    yield f"  trainings   {_trainings(plan)}"
    for number, one in enumerate(plan.passes):
        yield f"  {'passes' if number == 0 else '':<11} {_pass_text(one)}"
    for sentence in plan.separate:
        yield f"  apart       {sentence}"
    answered = len(plan.points) - len(left.points)
    if report.search is not None:
        yield f"  search      {report.search} goes on; {_count(answered, 'point')} of these are answered already"
        if answered and left.points:
            yield f"  left        {_count(len(left.points), 'point')}: {_trainings(left)}"
    if left.points:
        yield f"  time        about {duration(report.seconds)} on this machine; take it as a rough estimate"
    else:
        yield "  time        nothing is left to train"


def _trainings(plan: Plan) -> str:
    """What is run, against a training of its own for each point."""
    text = f"{len(plan.trainings):,} of {plan.epochs:,} epochs at most"
    if plan.epochs < plan.epochs_apart:
        text += f", where {len(plan.points):,} apart would be of {plan.epochs_apart:,}"
    return text


def _pass_text(one: Pass) -> str:
    recipe = one.recipe
    kept = {"features": "its features", "cut": "what enters the trained layers", "pixels": "pixels"}[one.kind]
    layers = f", last {recipe.trainable_layers} layers trained" if recipe.trainable_layers else ""
    copies = f" and of {_count(one.copies, 'changed copy', 'changed copies')} of it" if one.copies else ""
    trainings = _count(len(one.trainings), "training")
    return f"{recipe.backbone} at {recipe.input_size} px{layers}: {kept} of each image{copies}, for {trainings}"


def show(console: Console, report: TuneReport, tested: Mapping[str, Any] | None) -> None:
    """Print warnings, and the answer as a person or a program wants it.

    Args:
        console: Where.
        report: What the search told.
        tested: As test.json; None without `--test`.
    """
    for text in report.warnings:
        console.warn(text)
    console.result({**report.as_json(), "test": tested}, "\n".join(summary(report, tested)))


def summary(report: TuneReport, tested: Mapping[str, Any] | None) -> Iterator[str]:
    """What came of the search, for a person."""
    points, trainings = _count(report.trials, "point"), _count(report.trainings, "training")
    ran = f"{report.run:,} of them" if report.run else "none of them"
    yield f"Search {report.search}: {points}, answered by {trainings}, {ran} trained now ({report.seconds:.1f} s)"
    if report.stopped:
        yield f"  ended early {_count(report.stopped, 'point')}, by the scheduler"
    if report.failed:
        yield f"  failed      {_count(report.failed, 'point')}; the leaderboard says why"
    yield from _best_lines(report)
    for number, (backbone, folder) in enumerate(report.backbones.items()):
        yield f"  {'backbones' if number == 0 else '':<11} {backbone}: {folder}"
    yield f"  leaderboard {report.leaderboard}"
    yield f"  page        {report.page}"
    if tested is not None:
        yield from test_lines(tested)
    yield from _next_lines(report, tested is not None)


def _best_lines(report: TuneReport) -> Iterator[str]:
    best, figures = report.best, report.best["figures"]
    yield f"  best        {_settings(best['settings'])}"
    value, kept = _figure(best["value"]), best["kept_epoch"]
    yield f"              {report.metric} {value} on validation, with the weights of epoch {kept:,}"
    others = [name for name in ("accuracy", "roc_auc", "log_loss") if name != report.metric and name in figures]
    yield f"              {', '.join(f'{name} {_figure(figures[name])}' for name in others)}"
    yield from textwrap.wrap(
        report.sureness, WIDTH, initial_indent="  how sure    ", subsequent_indent=" " * 14, break_on_hyphens=False
    )


def test_lines(tested: Mapping[str, Any]) -> Iterator[str]:
    """What the best of each backbone did on the test part."""
    heading = "test part"
    for backbone, one in tested["backbones"].items():
        accuracy, area = (_with_interval(one["overall"][name]) for name in ("accuracy", "roc_auc"))
        yield f"  {heading:<11} {backbone}: accuracy {accuracy}, roc_auc {area}"
        heading = ""
    if tested["again"]:
        yield "              as it was found before; nothing was evaluated again"
    yield f"              {tested['page']}"


def _next_lines(report: TuneReport, tested: bool) -> Iterator[str]:
    """The commands that come next."""
    if report.model is None or report.path is None:
        return
    model, version = _place(report.path)
    if report.champion == version:
        yield f"  model       {report.model}, the champion; score an archive with it:"
        yield f"              {program()} score ARCHIVE --model {model} --results RESULTS"
    else:
        yield f"  model       {report.model}; the champion is still {report.champion}. To score with this one:"
        yield f"              {program()} models promote {model}@{version}"
    if not tested:
        yield "  next        what it is worth on images that chose nothing: the same command with --test, once"


def _place(path: str) -> tuple[str, str]:
    """MODELS/NAME, quoted for a shell, and the version of a bundle's folder."""
    from pipelines.storage import paths

    return shlex.quote(paths.unescape_name(paths.parent(path))), paths.name(path)


def _settings(settings: Mapping[str, Any]) -> str:
    told = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in settings.items()}
    return ", ".join(f"{key}={value}" for key, value in told.items())


def _count(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _figure(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"


def _with_interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None or figure["low"] is None:
        return _figure(figure["value"])
    return f"{figure['value']:.4f} (95 % interval {figure['low']:.3f} to {figure['high']:.3f})"
