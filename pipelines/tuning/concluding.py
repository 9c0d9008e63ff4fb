"""The end of a search: how sure the ranking is, the best points as bundles, the page and the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipelines.errors import ModelRefused, NightreadError, UsageError
from pipelines.models import registry
from pipelines.models.bundle import BUNDLE_FILE, SPLIT_FILE, peek
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import files, paths
from pipelines.training.history import VALIDATION_COLUMNS, Row
from pipelines.training.inherit import read_split
from pipelines.training.preparation import Connect, Tell
from pipelines.training.published import paper_behind
from pipelines.tuning.answers import load_answer
from pipelines.tuning.board import Board
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.folder import Search, save_search
from pipelines.tuning.page_content import BackboneRow, SearchContent, Sureness
from pipelines.tuning.passes import Ground
from pipelines.tuning.plan import Plan
from pipelines.tuning.points import DONE, FAILED, STOPPED, Point, plain_settings
from pipelines.tuning.progress import TuneReport
from pipelines.tuning.ranking import how_sure
from pipelines.tuning.registering import BEST, BYTES_A_PARAMETER, Registered, make, register, register_backbone
from pipelines.tuning.report import SEARCH_FILE, figure_1, search_page

FIGURE = "figure-1.svg"
MOST_HISTORIES = 200
"""Of a larger search the page shows the course of the best ones alone."""


def conclude(
    config: TuneConfig,
    ground: Ground,
    plan: Plan,
    search: Search,
    board: Board,
    ran: tuple[int, float],
    check: Callable[[], None],
    connect: Connect,
    tell: Tell,
) -> TuneReport:
    """Write what came of a search.

    Args:
        config: The search.
        ground: What it stands on.
        plan: All of its points.
        search: Its record.
        board: With every answer.
        ran: Trainings that this command ran, and when it began by `time.monotonic`.
        check: Raises where somebody else owns the search by now; called before what cannot be taken back.
        connect: Starts or joins Ray.
        tell: Called with progress.

    Raises:
        UsageError: If no point has an answer; leaderboard and page are written all the same.
        ModelRefused, TryLater: Each with its cure.
    """
    leaderboard = board.write()
    best, sureness, refused = board.best, None, dict[str, NightreadError]()
    if best is not None:
        tell(ScoreProgress("ranking"))
        others = [point for point in board.ranked() if point is not best]
        sureness = how_sure(search.folder, config.ranked_by, best, others, ground.data, ground.found.positive)
        search, refused = _registered(config, ground, search, board, best, check, connect, tell)
    counts = {"points": len(plan.points), "trainings": len(plan.trainings), "passes": len(plan.passes)}
    counts |= {status: board.count(status) for status in (DONE, STOPPED, FAILED)}
    search = replace(
        search,
        counts=counts,
        best=None if best is None else _told(search, board, best),
        sureness=None if sureness is None else asdict(sureness),
        seconds=search.seconds + time.monotonic() - ran[1],
    )
    told = [*_concerns(config, ground), *(_refusal(backbone, error) for backbone, error in refused.items())]
    page = _write_page(search.folder, _content(config, ground, plan, search, board, sureness, told))
    check()
    save_search(search)
    if best is None:
        reasons = {row["error"] for row in board.table().select(["error"]).to_pylist()} - {None}
        raise UsageError(
            f"Not one of {len(plan.points)} points has an answer: {min(reasons, default='no figure was a number')}",
            f"See the reasons in {leaderboard}, and search other values.",
        )
    if best.recipe.backbone in refused:
        raise refused[best.recipe.backbone]
    return _report(config, plan, search, board, leaderboard, page, ran, told)


def _write_page(folder: str, content: SearchContent) -> str:
    """Write search.html, and its first figure by itself, for a paper or a slide."""
    figure, page = figure_1(content), paths.join(folder, SEARCH_FILE)
    if figure is not None:
        files.write_atomic(paths.join(folder, FIGURE), figure)
    files.write_atomic(page, search_page(content).encode())
    return page


def _registered(
    config: TuneConfig,
    ground: Ground,
    search: Search,
    board: Board,
    best: Point,
    check: Callable[[], None],
    connect: Connect,
    tell: Tell,
) -> tuple[Search, dict[str, NightreadError]]:
    """Write the best point of each backbone, and of all, as bundles, unless they stand already.

    Returns:
        The record, and why the best point of a backbone was not registered, for those of which it was not.
    """
    about = {"id": search.id, "points": len(config.points), "metric": config.ranked_by, "targets": config.targets}
    best_of, refused = dict(search.best_of), dict[str, NightreadError]()
    for backbone, point in board.leaders.items():
        said = best_of.get(backbone, {})
        stands = (said.get("point"), said.get("targets")) == (point.key, config.targets)
        named = point is best and not _is_named(config, search, point)
        if stands and not named:
            continue
        try:
            own, ready, made = make(config, ground, search.folder, point, about, connect, tell)
        except ModelRefused as error:
            refused[backbone] = error
            continue
        check()
        if not stands:
            written = register_backbone(own, made, search.folder, point)
            best_of[backbone] = {**_record(config, written), "bundle": paths.relative(written.bundle, search.folder)}
            search = replace(search, best_of=best_of)
            save_search(search)
        if named and (found := _meanwhile(config, ground, search, point)) is not None:
            if isinstance(found, NightreadError):
                refused[backbone] = found
            else:
                search = replace(search, registered=found)
                save_search(search)
        elif named:
            written = register(own, ready, made, point, config.refit, connect, tell)
            version = written.bundle.rpartition("/")[2]
            search = replace(search, registered={**_record(config, written), "version": version, "refit": config.refit})
            save_search(search)
    if config.promote and search.registered is not None and not refused.get(best.recipe.backbone):
        registry.promote(_version_place(config, search.registered))
    return search, refused


def _is_named(config: TuneConfig, search: Search, point: Point) -> bool:
    """Whether a version of the model's name holds this point already."""
    said = search.registered
    if said is None or (said["point"], said["refit"], said["targets"]) != (point.key, config.refit, config.targets):
        return False
    return files.exists(paths.join(_version_place(config, said), BUNDLE_FILE))


def _meanwhile(
    config: TuneConfig, ground: Ground, search: Search, point: Point
) -> dict[str, Any] | NightreadError | None:
    """What has become of the name since the search began.

    Returns:
        The record of a version that holds this point, which a killed command could not write down any more; an error
        where another command made a version of another split, which later ones must keep; else None.
    """
    train, mine = config.train, None
    split = ground.data.split
    own = dict(zip(split["content_sha256"].to_pylist(), split["part"].to_pylist(), strict=True))
    for number in range(search.newest + 1, registry.newest_version(train.models, train.name) + 1):
        version = {"version": f"v{number}"}
        place = _version_place(config, version)
        if not files.exists(paths.join(place, BUNDLE_FILE)):
            continue
        bundle = peek(place)
        said = bundle.provenance.get("search") or {}
        theirs = read_split(bundle).part_of if SPLIT_FILE in bundle.files else {}
        if any(theirs.get(content, part) != part for content, part in own.items()):
            return UsageError(
                f"{train.name}@v{number} was made since the search began, with another split, which later versions "
                "keep: the best point was not registered.",
                f"It lies below {paths.join(search.folder, BEST)}. Begin another search with --search ID to choose on "
                "that split.",
            )
        if said.get("id") == search.id and (said["point"], "refit" in said, said["targets"]) == (
            point.key,
            config.refit,
            config.targets,
        ):
            name, parameters = f"{train.name}@v{number}", search.best_of[point.recipe.backbone]["parameters"]
            mine = {"point": point.key, "name": name, "model_id": bundle.model_id, "parameters": parameters}
            mine |= {"targets": config.targets, "refit": config.refit, **version}
    return mine


def _version_place(config: TuneConfig, registered: Mapping[str, Any]) -> str:
    """The folder of the version that a search made; MODELS may have moved since."""
    return paths.join(paths.canonical(config.train.models), config.train.name, registered["version"])


def _record(config: TuneConfig, written: Registered) -> dict[str, Any]:
    """What search.json says of a bundle, but where it lies."""
    said = {name: value for name, value in vars(written).items() if name != "bundle"}
    return {**said, "targets": config.targets}


def _told(search: Search, board: Board, point: Point) -> dict[str, Any]:
    """A point for the record: its settings, its figure, and all figures of the epoch that it keeps."""
    answer = load_answer(search.folder, point.key, logits=False)
    assert answer is not None  # it has a figure
    row = answer.history[answer.kept_epoch - 1]
    return {
        "point": point.key,
        "settings": plain_settings(point.settings),
        "value": board.value(point),
        "epochs": len(answer.history),
        "kept_epoch": answer.kept_epoch,
        "figures": {name: row[column] for name, column in VALIDATION_COLUMNS.items()},
    }


def _content(
    config: TuneConfig,
    ground: Ground,
    plan: Plan,
    search: Search,
    board: Board,
    sureness: Sureness | None,
    concerns: Sequence[str],
) -> SearchContent:
    train, recipe = config.train, config.train.recipe
    registered = search.registered or {}
    crowned = registry.champion(train.models, train.name)
    return SearchContent(
        name=train.name,
        search=search.id,
        data=search.settings["data"],
        counts=ground.data.counts,
        recipe=recipe.name,
        searched=config.grid,
        random=config.random,
        scheduler=config.scheduler,
        metric=config.ranked_by,
        seed=train.seed,
        points=plan.points,
        leaderboard=board.table(),
        histories=_histories(search.folder, plan, board),
        trainings=len(plan.trainings),
        passes=len(plan.passes),
        seconds=search.seconds,
        best=board.best.key if board.best else None,
        sureness=sureness,
        backbones=tuple(_backbone_row(config, plan, search, board, backbone) for backbone in config.weights),
        registered=registered.get("name"),
        promoted=crowned is not None and registered.get("name") == f"{train.name}@{crowned.version}",
        published=paper_behind(recipe.name),
        concerns=tuple(concerns),
        provenance=tuple(_provenance(search).items()),
    )


def _histories(folder: str, plan: Plan, board: Board) -> dict[str, Sequence[Row]]:
    points = list(plan.points)
    if len(points) > MOST_HISTORIES:
        points = board.ranked()[:MOST_HISTORIES]
    answers = ((point.key, load_answer(folder, point.key, logits=False)) for point in points)
    return {key: answer.history for key, answer in answers if answer is not None}


def _backbone_row(config: TuneConfig, plan: Plan, search: Search, board: Board, backbone: str) -> BackboneRow:
    best, said = board.leaders.get(backbone), search.best_of.get(backbone, {})
    weights = config.weights[backbone]
    return BackboneRow(
        backbone=backbone,
        weights={"imagenet": "published", "none": "none"}.get(weights, paths.name(paths.canonical(weights))),
        parameters=said.get("parameters"),
        megabytes=said["parameters"] * BYTES_A_PARAMETER / 1e6 if said else None,
        points=sum(point.recipe.backbone == backbone for point in plan.points),
        trainings=sum(training.recipe.backbone == backbone for training in plan.trainings),
        feature_seconds=search.feature_seconds.get(backbone),
        training_seconds=board.training_seconds(backbone),
        best=best.key if best else None,
        bundle=said.get("bundle"),
    )


def _concerns(config: TuneConfig, ground: Ground) -> list[str]:
    """What a person should be careful about."""
    told = []
    random = [backbone for backbone, weights in config.weights.items() if weights == "none"]
    if random:
        told.append(
            f"The weights of {', '.join(random)} were drawn at random (--weights none), not learned from photographs: "
            "these figures say nothing of what the published networks can do."
        )
    if config.scheduler == "asha":
        told.append(
            "Poor trainings were ended early, judged by those that came before them: another run of the same search "
            "may end others."
        )
    if config.refit:
        told.append(
            "The version that holds the best point was trained again on the training and validation images together "
            "(--refit): what stands here is of the model before that."
        )
    told.extend(ground.data.audit.warnings())
    return told


def _refusal(backbone: str, error: NightreadError) -> str:
    return f"The best point of {backbone} was not registered: {error.message}"


def _provenance(search: Search) -> dict[str, str]:
    versions = search.who.get("versions", {})
    return {
        "Command that makes it again": " ".join(search.who.get("command_line", ())),
        "Began": search.started_at,
        **{f"SHA-256 of {name}" if len(text) == 64 else name.capitalize(): text for name, text in _known(search)},
        "Versions": ", ".join(f"{name} {text}" for name, text in versions.items()),
    }


def _known(search: Search) -> list[tuple[str, str]]:
    return [*search.fingerprint.items(), ("split", search.split or "")]


def _report(
    config: TuneConfig,
    plan: Plan,
    search: Search,
    board: Board,
    leaderboard: str,
    page: str,
    ran: tuple[int, float],
    concerns: Sequence[str],
) -> TuneReport:
    registered: Mapping[str, Any] = search.registered or {}
    crowned = registry.champion(config.train.models, config.train.name)
    return TuneReport(
        search=search.id,
        folder=search.folder,
        metric=config.ranked_by,
        best=search.best or {},
        trials=len(plan.points),
        trainings=len(plan.trainings),
        run=ran[0],
        finished=board.count(DONE),
        stopped=board.count(STOPPED),
        failed=board.count(FAILED),
        seconds=time.monotonic() - ran[1],
        leaderboard=leaderboard,
        page=page,
        sureness=str((search.sureness or {}).get("sentence", "")),
        model=registered.get("name"),
        path=_version_place(config, registered) if registered else None,
        champion=crowned.version if crowned else None,
        backbones={name: paths.join(search.folder, own["bundle"]) for name, own in search.best_of.items()},
        warnings=tuple(concerns),
    )
