"""The search: a grid to a leaderboard, a page, and the best point of it as a bundle."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipelines.errors import UsageError
from pipelines.models import registry
from pipelines.models.backbones import check_weights
from pipelines.storage import paths
from pipelines.storage.leases import Lease
from pipelines.training.arrays import make_job
from pipelines.training.owned_folder import owned_folder
from pipelines.training.preparation import Connect, Found, Tell, find
from pipelines.training.reach import refuse_unseen
from pipelines.training.recipes import Recipe
from pipelines.tuning.answers import load_answers, load_variables
from pipelines.tuning.board import Board
from pipelines.tuning.capacity import choose_room, refuse_impossible
from pipelines.tuning.concluding import conclude
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.estimate import estimate
from pipelines.tuning.folder import (
    Search,
    create_search,
    find_search,
    refuse_if_tested,
    refuse_other_leaders,
    save_search,
    with_command,
)
from pipelines.tuning.identity import identity, split_digest
from pipelines.tuning.passes import Ground, PassDone, run_passes, seconds_by_backbone, stand_on
from pipelines.tuning.plan import Plan, make_plan, without
from pipelines.tuning.points import Training
from pipelines.tuning.progress import PlanReport, TuneReport
from pipelines.tuning.scheduling import Asha
from pipelines.tuning.trial import TrialSpec


def plan_only(config: TuneConfig, cpus: int, tell: Tell) -> PlanReport:
    """What a search would do; nothing is written.

    Args:
        config: The search.
        cpus: Cores that it would have.
        tell: Called with progress; phase `listing`.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    plan, found = make_plan(config.points), _find(config, tell)
    search = _earlier(config, found)
    remaining = without(plan, _answered(plan, search.folder)) if search else plan
    images = found.labelled.table.num_rows
    return PlanReport(search.id if search else None, images, plan, remaining, estimate(remaining, images, cpus))


def tune(config: TuneConfig, connect: Connect, tell: Tell) -> TuneReport:
    """Answer the points of a grid, and register the best.

    The same command after a crash, or with more points, answers only what has no answer yet.

    Args:
        config: What to search, on what, where to.
        connect: Starts or joins Ray for a `with` block, and yields its size; not called where all is there already.
        tell: Called with progress; phases of a training, and `searching` with `SearchProgress`.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure; `UsageError` too where no point has an answer.
    """
    began = time.monotonic()
    plan, found = make_plan(config.points), _find(config, tell)
    search = _earlier(config, found)
    if search is None:
        newest = registry.newest_version(config.train.models, config.train.name)
        search = create_search(config, identity(config, found), newest)
    config = replace(config, train=replace(config.train, newest=search.newest))
    if registry.newest_version(config.train.models, config.train.name) > search.newest:
        found = _find(config, tell)  # what the search itself has registered must not decide its split
    with Lease.acquire(search.folder) as lease:
        lease.start_renewing()
        search = _earlier(replace(config, search=search.id), found) or search  # as the last owner left it
        refuse_if_tested(search, [point.key for point in without(plan, _answered(plan, search.folder)).points])
        connect = _checked(config, plan, search.folder, connect)
        ground = stand_on(config, found, _first(plan, search), connect, tell)
        board = Board(search.folder, plan, config.ranked_by, tell)
        board.take_answered()
        refuse_other_leaders(search, {name: one.key for name, one in board.leaders.items()}, config.targets)
        search = _of_split(with_command(search, config), ground)
        board.drop_beaten()
        run = 0
        for remaining, again in _to_do(plan, board, search.folder):
            run += len(remaining.trainings)
            # What is trained again for its weights has to come out as it was.
            how = replace(config, scheduler="none") if again else config
            search = _answer(how, ground, remaining, search, board, connect, tell)
            lease.check()
        return conclude(config, ground, plan, search, board, (run, began), lease.check, connect, tell)


def _find(config: TuneConfig, tell: Tell) -> Found:
    """The images; where one backbone's weights are `none`, with those that it may look at."""
    said = [config.train.weights, *config.weights_of.values()]
    for weights in said:
        check_weights(weights)
    found = find(replace(config.train, weights="none" if "none" in said else config.train.weights), tell)
    for recipe in {point.recipe.loss: point.recipe for point in config.points}.values():
        recipe.check_classes(len(found.labelled.classes))
    return found


def _earlier(config: TuneConfig, found: Found) -> Search | None:
    """The search that this command continues."""
    return find_search(config.train.models, config.train.name, identity(config, found), config.search)


def _answered(plan: Plan, folder: str) -> set[str]:
    """Keys of the points that have an answer that can be read."""
    return {answer.point for answer in load_answers(folder, [point.key for point in plan.points])}


def _first(plan: Plan, search: Search) -> Recipe:
    """The network by which the images are split: of the input size by which the search has split them."""
    same = [point.recipe for point in plan.points if point.recipe.input_size == search.split_at]
    return (same or [plan.points[0].recipe])[0]


def _of_split(search: Search, ground: Ground) -> Search:
    """Record the split, or refuse to compare points of another one.

    Raises:
        UsageError: If the search was begun with another split.
    """
    digest = split_digest(ground.data)
    if search.split not in (None, digest):
        raise UsageError(
            f"The images train and validate in other parts than when the search {search.id} began.",
            "Begin another search with --search ID.",
        )
    search = replace(search, split=digest, split_at=ground.first.network.spec.input_size)
    save_search(search)
    return search


def _checked(config: TuneConfig, plan: Plan, folder: str, connect: Connect) -> Connect:
    """What connects, and refuses a cluster on which the search could not end."""

    @contextlib.contextmanager
    def checked() -> Iterator[Any]:
        with connect() as cluster:
            refuse_impossible(choose_room(config.room, _runs_backbone(plan), cluster), cluster)
            if cluster.nodes > 1:
                refuse_unseen(config.train.work)
                refuse_unseen(folder)
            yield cluster

    return checked


def _runs_backbone(plan: Plan) -> bool:
    recipes = [training.recipe for training in plan.trainings]
    return any(recipe.trainable_layers or (recipe.augments and not recipe.variants) for recipe in recipes)


def _to_do(plan: Plan, board: Board, folder: str) -> Iterator[tuple[Plan, bool]]:
    """What has no answer yet; then the leaders whose weights were dropped, because they did not lead before.

    Yields:
        A plan, and whether its points were answered before.
    """
    remaining = without(plan, [point.key for point in plan.points if board.status(point) is not None])
    if remaining.points:
        yield remaining, False
    lost = [point for point in board.leaders.values() if load_variables(folder, point.key) is None]
    if lost:
        for point in lost:
            board.forget(point)
        yield make_plan(lost), True


def _answer(
    config: TuneConfig, ground: Ground, plan: Plan, search: Search, board: Board, connect: Connect, tell: Tell
) -> Search:
    """Run the trainings of a plan."""
    arrays = paths.join(config.train.work, f"search-{str(search.split)[:16]}-{search.id}")
    with owned_folder(arrays) as place, connect() as cluster:
        from pipelines.tuning.trials import run_trials  # only now: Ray reads its environment at import

        done = run_passes(config, ground, plan.passes, place, connect, tell)
        longest = max(training.recipe.epochs for training in plan.trainings)
        board.begin(plan)
        run_trials(
            _specs(config, ground, plan, search.folder, done),
            choose_room(config.room, _runs_backbone(plan), cluster),
            config.concurrency,
            Asha(longest) if config.scheduler == "asha" else None,
            config.ranked_by,
            board.hear,
        )
    board.write()
    spent = seconds_by_backbone(plan.passes, done)
    before = search.feature_seconds
    return replace(search, feature_seconds={**before, **{name: spent[name] + before.get(name, 0) for name in spent}})


def _specs(
    config: TuneConfig, ground: Ground, plan: Plan, folder: str, done: dict[str, PassDone]
) -> Iterator[TrialSpec]:
    """The trainings, those of one pass after the other, so that an actor seldom opens other arrays."""
    trainings = {training.key: training for training in plan.trainings}
    for one in plan.passes:
        for key in one.trainings:
            training = trainings[key]
            place = paths.join(folder, "trainings", f"{key}-{training.recipe.epochs}.npz")
            inputs = done[one.key].inputs
            job = make_job(training.recipe, inputs, ground.found.positive, config.train.seed, place)
            yield TrialSpec(key, job, _marks(training), folder)


def _marks(training: Training) -> dict[int, tuple[str, ...]]:
    return {mark: tuple(point.key for point in training.points_at(mark)) for mark in training.marks}
