"""`nightread demo`: draw an archive, train on a part of it, score the rest, and show what a night looks like."""

from __future__ import annotations

import csv
import os
import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import score as score_command
from jobs.console import Console, JsonOption, program
from jobs.training_display import TrainDisplay
from jobs.training_display import summary as training_summary

if TYPE_CHECKING:
    from pipelines.demo.archive import DemoArchive
    from pipelines.scoring.report import ScoreReport

MODEL = "tissue"
POSITIVE = "malignant"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("demo")(demo)


def demo(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="Where everything is put.")] = "nightread-demo",
    json: JsonOption = False,
) -> int:
    """Draw an archive, train a model on a part of it, score the rest; nothing is downloaded."""
    from cluster.session import shared_session, start_or_join
    from pipelines.demo.archive import draw_archive

    began = time.monotonic()
    console = Console(json)
    places = Places(folder)
    console.say(f"Drawing images of stained tissue, benign and malignant, into {folder}")
    with console.progress(None, "images drawn") as bar:
        drawn = draw_archive(folder, on_count=lambda done, _total: bar.update(done))
    with shared_session("local") as connect:
        console.say(
            f"\nTraining on {places.labelled}, with --weights none: nothing is downloaded, so the result does not "
            "depend on the internet"
        )
        _train(console, places, connect)
        console.say(f"\nScoring {places.archive}")
        first = _score(console, places, connect)
    console.say(score_command.summary(first))
    area, known = roc_auc_of(places.results, drawn)
    console.say(f"  ROC AUC     {area:.3f} on {known:,} images of known label that the model was not trained on")
    console.say("\nScoring it again, as the next night does")
    second = _score(console, places, lambda: start_or_join("local"))
    console.say(score_command.summary(second))
    seconds = time.monotonic() - began
    console.result(_answer(places, first, second, area, known, seconds), _closing(places, seconds))
    return first.exit_code


def _closing(places: Places, seconds: float) -> str:
    lines = [f"\nAll in {seconds:.0f} s. The table lies in {places.results}, the model in {places.model}.", "Try next:"]
    for what, command in next_commands(places):
        lines += [f"  {what}", f"    {command}"]
    return "\n".join(lines)


def _answer(
    places: Places, first: ScoreReport, second: ScoreReport, area: float, known: int, seconds: float
) -> dict[str, Any]:
    return {
        "folder": places.folder,
        "model": places.model,
        "results": places.results,
        "score": first.as_json(),
        "roc_auc": area,
        "roc_auc_images": known,
        "second_score": second.as_json(),
        "next": [command for _, command in next_commands(places)],
        "seconds": seconds,
        "exit_code": first.exit_code,
    }


class Places:
    """Where a demo keeps what; as the user named the folder, so that printed commands work where they stand."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.labelled = os.path.join(folder, "labelled")
        self.archive = os.path.join(folder, "archive")
        self.models = os.path.join(folder, "models")
        self.results = os.path.join(folder, "results")
        self.model = os.path.join(self.models, MODEL)
        self.labels = os.path.join(folder, "labels.csv")
        self.report = os.path.join(folder, "report")


def _train(console: Console, places: Places, connect: Any) -> None:
    """Train, unless an earlier demo in this folder did."""
    from pipelines.models import registry
    from pipelines.predictions.runs import who_and_where
    from pipelines.training.config import TrainConfig
    from pipelines.training.labelled import DataConfig
    from pipelines.training.recipes import load_recipe

    crowned = registry.champion(places.models, MODEL)
    if crowned is not None:
        console.say(f"   {places.model} {crowned.version} is there already")
        return
    config = TrainConfig(
        data=DataConfig(places.labelled),
        models=places.models,
        name=MODEL,
        recipe=load_recipe("frozen"),
        weights="none",
        positive=(POSITIVE,),
        who=who_and_where(),
    )
    from pipelines.training.run import train as run_train

    with TrainDisplay(console, config.recipe.metric) as display:
        report = run_train(config, connect, display.tell)
    for text in report.warnings:
        console.warn(text)
    console.say(training_summary(report))


def _score(console: Console, places: Places, connect: Any) -> ScoreReport:
    from pipelines.predictions.runs import who_and_where
    from pipelines.scoring.config import ScoreConfig
    from pipelines.scoring.run import score as run_score

    config = ScoreConfig(archive=places.archive, model=places.model, results=places.results, who=who_and_where())
    with score_command.ScoreDisplay(console) as display:
        return run_score(config, connect, display.tell)


def roc_auc_of(results: str, drawn: DemoArchive) -> tuple[float, int]:
    """ROC AUC of the committed predictions on the archive's known labels, without images that trained the model.

    Returns:
        The area, and on how many images.
    """
    from pipelines.evaluation.metrics import roc_auc
    from pipelines.predictions.query import run_query
    from pipelines.storage import paths

    with drawn.labels.open(encoding="utf-8", newline="") as lines:
        labels = {paths.canonical(str(drawn.folder / row["uri"])): row["label"] for row in csv.DictReader(lines)}
    rows = run_query(results, "SELECT image_uri, p_positive FROM latest WHERE NOT in_training_set").to_pylist()
    known = [row for row in rows if row["image_uri"] in labels]
    truth = [labels[row["image_uri"]] == POSITIVE for row in known]
    return roc_auc([row["p_positive"] for row in known], truth), len(known)


def next_commands(places: Places) -> list[tuple[str, str]]:
    """What to try next: what it does, and the command, quoted for a shell."""
    results = shlex.quote(places.results)
    likely = "SELECT image_uri, p_positive, decision FROM referrals LIMIT 10"
    return [
        ("the images to look at first", f'{program()} query {results} "{likely}"'),
        ("what failed, and why", score_command.failures_command(places.results)),
        (
            "what the model is worth on these images, on one page",
            f"{program()} evaluate --results {results} --labels {shlex.quote(places.labels)} "
            f"--bundle {shlex.quote(places.model)} --report {shlex.quote(places.report)}",
        ),
        (
            "a night of its own: put images into the archive, then",
            f"{program()} score {shlex.quote(places.archive)} --model {shlex.quote(places.model)} --results {results}",
        ),
    ]
