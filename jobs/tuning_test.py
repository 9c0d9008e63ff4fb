"""What `tune --test` composes: the best point of each backbone on the test part, once, and a page of them all."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.evaluation import EvaluateConfig, evaluate
from jobs.evaluation_sources import ModelOnImages
from pipelines.errors import UsageError
from pipelines.evaluation.writing import METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from pipelines.models.record import plain
from pipelines.models.registry import resolve
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import files, paths
from pipelines.storage.leases import Lease
from pipelines.training.inherit import read_split
from pipelines.training.labelled_parts import Selection
from pipelines.tuning.answers import load_answers
from pipelines.tuning.folder import RECORD_FILE, Search, earlier_openings, find_search, save_search
from pipelines.tuning.points import plain_settings

if TYPE_CHECKING:
    from pipelines.tuning.config import TuneConfig
    from pipelines.tuning.page_content import TestContent
    from pipelines.tuning.progress import TuneReport

FORMAT = 1
TEST_FOLDER, PAGE_FILE, TEST_FILE = "test", "test.html", "test.json"
_FIGURES = ("n", "classes", "positive_classes", "overall", "operating_point", "confusion_matrix")
"""Of a backbone's metrics.json, what test.json repeats."""

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]


def run_test(config: TuneConfig, report: TuneReport, connect: Connect, tell: Tell) -> dict[str, Any]:
    """Evaluate the best point of each backbone on the test part, or say what an earlier command found there.

    The search is closed before the first image of the test part is answered, so that whatever dies afterwards, nobody
    who has seen a figure of it can search on. The same command then evaluates what is left.

    Args:
        config: The search.
        report: What it came to.
        connect: Starts or joins Ray; not called where all was evaluated before.
        tell: Called with progress; phases as of `evaluate`.

    Returns:
        As test.json, with `page`, where the page lies, and `again`, True where nothing was evaluated.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure; `UsageError` too where there is no test part, and then
            the search stays open.
    """
    with Lease.acquire(report.folder) as lease:
        lease.start_renewing()
        search = _record(config, report)
        earlier = _found_before(search.folder)
        if earlier is not None:
            return {**earlier, "page": paths.join(search.folder, PAGE_FILE), "again": True}
        _refuse_without_test_part(report)
        _refuse_unfinished(config, search)
        lease.check()
        search = _closed(search)
        backbones = _backbones(config, search)
        tested = {backbone: _metrics(config, search, backbone, connect, tell) for backbone in backbones}
        lease.check()
        return _write(config, search, tested)


def _record(config: TuneConfig, report: TuneReport) -> Search:
    """search.json, as the search left it."""
    said = json.loads(files.read_bytes(paths.join(report.folder, RECORD_FILE)))
    found = find_search(config.train.models, config.train.name, said["fingerprint"], report.search)
    if found is None:
        raise FileNotFoundError(report.folder)
    return found


def _found_before(folder: str) -> dict[str, Any] | None:
    """test.json of an earlier command; None where there is none.

    Raises:
        UsageError: If a newer release wrote it, or it is damaged.
    """
    place = paths.join(folder, TEST_FILE)
    try:
        said = json.loads(files.read_bytes(place))
        if int(said["format"]) <= FORMAT:
            return dict(said)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{place} is damaged.", "Restore it from a backup.") from error
    raise UsageError(
        f"{place} has format {said['format']}; this nightread reads up to {FORMAT}.",
        "A newer release wrote it: upgrade.",
    )


def _closed(search: Search) -> Search:
    if search.tested is not None:
        return search
    closed = replace(search, tested=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    save_search(closed)
    return closed


def _refuse_without_test_part(report: TuneReport) -> None:
    """The search stays open where nothing could be tested."""
    bundle = resolve(next(iter(report.backbones.values())))
    if "test" not in read_split(bundle).part_of.values():
        raise UsageError(
            f"The search {report.search} has no test part: all its images train and validate.",
            "Search with --set test_share=0.2, or on data that name a test part.",
        )


def _refuse_unfinished(config: TuneConfig, search: Search) -> None:
    """A tested search takes no points, and so none of which a process died either.

    Raises:
        UsageError: If a point has no answer yet.
    """
    keys = [point.key for point in config.points]
    waiting = len(keys) - sum(1 for _ in load_answers(search.folder, keys))
    if search.tested is None and waiting:
        raise UsageError(
            f"{waiting:,} of {len(keys):,} points have no answer, and a search that was tested takes none.",
            "Run the same command without --test once more, or leave these points out of the grid.",
        )


def _backbones(config: TuneConfig, search: Search) -> list[str]:
    """Those of the grid, in its order, whose best point is one of it."""
    points = {point.key for point in config.points}
    return [name for name in config.weights if search.best_of.get(name, {}).get("point") in points]


def _metrics(config: TuneConfig, search: Search, backbone: str, connect: Connect, tell: Tell) -> dict[str, Any]:
    """metrics.json of a backbone's best point, made now unless an interrupted command has made it."""
    best, folder = search.best_of[backbone], paths.join(search.folder, TEST_FOLDER, backbone)
    if files.exists(paths.join(folder, REPORT_FILE)):
        there: dict[str, Any] = json.loads(files.read_bytes(paths.join(folder, METRICS_FILE)))
        if there["model"]["model_id"] == best["model_id"]:
            return there
    asked = EvaluateConfig(
        report=folder,
        source=ModelOnImages(paths.join(search.folder, best["bundle"]), config.train.data, Selection("test")),
        pictures=False,  # a folder of models travels further than images of patients should
        overwrite=True,
        who=config.train.who,
    )
    return dict(evaluate(asked, connect, tell).metrics)


def _write(config: TuneConfig, search: Search, tested: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The page, then test.json: where that stands, all was evaluated and is shown."""
    from pipelines.tuning.report import test_page

    page, before = paths.join(search.folder, PAGE_FILE), _opened_before(config, search)
    files.write_atomic(page, test_page(_content(config, search, tested, before)).encode())
    said = {
        "format": FORMAT,
        "search": search.id,
        "tested": search.tested,
        "metric": search.metric,
        "points": search.counts["points"],
        "opened_before": before,
        "refitted": bool((search.registered or {}).get("refit")),
        "backbones": {
            backbone: {
                "point": search.best_of[backbone]["point"],
                "settings": _settings(config, search, backbone),
                "model_id": search.best_of[backbone]["model_id"],
                "report": f"{TEST_FOLDER}/{backbone}/{REPORT_FILE}",
                **{name: metrics[name] for name in _FIGURES},
            }
            for backbone, metrics in tested.items()
        },
    }
    text = json.dumps(plain(said), indent=1, ensure_ascii=False, allow_nan=False)
    files.write_atomic(paths.join(search.folder, TEST_FILE), f"{text}\n".encode())
    return {**said, "page": page, "again": False}


def _content(
    config: TuneConfig, search: Search, tested: Mapping[str, Mapping[str, Any]], before: Sequence[str]
) -> TestContent:
    from pipelines.training.published import paper_behind
    from pipelines.tuning.page_content import TestContent

    recipe = config.train.recipe.name
    return TestContent(
        name=config.train.name,
        search=search.id,
        data=search.settings["data"],
        recipe=recipe,
        metric=search.metric,
        points=search.counts["points"],
        tested={backbone: _shown(config, search, backbone, metrics) for backbone, metrics in tested.items()},
        published=paper_behind(recipe),
        concerns=_careful(search, before),
        provenance=_provenance(search, tested),
    )


def _shown(config: TuneConfig, search: Search, backbone: str, metrics: Mapping[str, Any]) -> Any:
    import pyarrow.parquet as pq

    from pipelines.tuning.page_content import TestedBackbone

    table = files.read_bytes(paths.join(search.folder, TEST_FOLDER, backbone, PREDICTIONS_FILE))
    return TestedBackbone(
        settings=_settings(config, search, backbone),
        metrics=metrics,
        predictions=pq.read_table(io.BytesIO(table)),
        report=f"{TEST_FOLDER}/{backbone}/{REPORT_FILE}",
    )


def _opened_before(config: TuneConfig, search: Search) -> list[str]:
    """Other searches that have looked at this test part, with the day on which they did."""
    found = earlier_openings(config.train.models, config.train.name, search)
    return [f"{one.id} on {str(one.tested)[:10]}" for one in found]


def _careful(search: Search, before: Sequence[str]) -> tuple[str, ...]:
    told = []
    if before:
        told.append(
            f"This test part was opened before, by {', '.join(before)}: these figures are no longer of unseen images."
        )
    if (search.registered or {}).get("refit"):
        told.append(
            "The version that holds the best point was trained again on training and validation images (--refit); "
            "these figures are of the model before that."
        )
    return tuple(told)


def _settings(config: TuneConfig, search: Search, backbone: str) -> dict[str, Any]:
    """What the grid set at the backbone's best point."""
    key = search.best_of[backbone]["point"]
    return next(plain_settings(point.settings) for point in config.points if point.key == key)


def _provenance(search: Search, tested: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    import shlex

    versions = search.who.get("versions", {})
    first = next(iter(tested.values()))["provenance"]
    return (
        ("Command", shlex.join(["nightread", *list(search.who.get("command_line", ()))[1:]])),
        ("Tested", str(search.tested)),
        ("SHA-256 of image contents and labels", str(first["images_and_labels_sha256"])),
        ("Draws of the intervals", str(first["bootstrap_draws"])),
        *((f"Model id of {backbone}", str(one["model"]["model_id"])) for backbone, one in tested.items()),
        ("Versions", ", ".join(f"{name} {text}" for name, text in versions.items())),
    )
