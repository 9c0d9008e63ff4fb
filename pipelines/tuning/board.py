"""Where a search stands: a row for each point, brought up to date as answers come, and written now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.scoring.report import ScoreProgress
from pipelines.tuning.answers import drop_variables, load_answer, load_answers, weights_kept
from pipelines.tuning.leaderboard import leaderboard_row, leaderboard_table, write_leaderboard
from pipelines.tuning.page_words import setting_text
from pipelines.tuning.plan import Plan
from pipelines.tuning.points import DONE, FAILED, STOPPED, Answer, Point, Training
from pipelines.tuning.progress import Running, SearchProgress, TrialNews
from pipelines.tuning.ranking import standing

SECONDS_BETWEEN_WRITES = 3.0
UNSEEN = "Its answer was written where this machine does not see it: MODELS has to lie where all nodes do."


class Board:
    """Keeps the leaderboard of a search.

    Args:
        folder: The search's.
        plan: All of its points.
        metric: What they are ranked by.
        tell: Called with `SearchProgress`.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        folder: str,
        plan: Plan,
        metric: str,
        tell: Callable[[ScoreProgress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._plan, self._metric, self._tell, self._clock = folder, plan, metric, tell, clock
        self._points = {point.key: point for point in plan.points}
        self._trainings = {training.key: training for training in plan.trainings}
        self._rows: dict[str, dict[str, Any]] = {}
        self._running: dict[str, TrialNews] = {}
        self._leaders: dict[str, Point] = {}
        self._written = -math.inf
        self._first_heard: tuple[float, int] | None = None
        self._epochs, self._epochs_to_run = 0, 0

    @property
    def leaders(self) -> Mapping[str, Point]:
        """Backbone to its best point so far; a backbone whose points have no value is left out."""
        return self._leaders

    @property
    def best(self) -> Point | None:
        """The best point so far."""
        best: Point | None = None
        for point in self._leaders.values():
            best = point if best is None or self._leads(point, best) else best
        return best

    def ranked(self) -> list[Point]:
        """The points that have a figure, the best first."""
        known = [point for point in self._plan.points if not math.isnan(self.value(point))]
        return sorted(known, key=lambda point: standing(self._rows[point.key], self._metric))

    def training_seconds(self, backbone: str) -> float:
        """Of the epochs of a backbone's trainings, summed."""
        own = [training for training in self._plan.trainings if training.recipe.backbone == backbone]
        spent = ([self._rows.get(point.key, {}).get("seconds") or 0.0 for point in one.points] for one in own)
        return float(sum(map(max, spent)))

    def value(self, point: Point) -> float:
        """The metric of a point at the epoch that it keeps; NaN where there is none."""
        value = self._rows.get(point.key, {}).get("value")
        return math.nan if value is None else float(value)

    def status(self, point: Point) -> str | None:
        """What became of a point; None where it is still waiting."""
        return self._rows[point.key]["status"] if point.key in self._rows else None

    def count(self, status: str) -> int:
        """Points of a status."""
        return sum(row["status"] == status for row in self._rows.values())

    def take_answered(self) -> None:
        """Take what earlier commands left."""
        for answer in load_answers(self._folder, self._points):
            self._take(answer)

    def drop_beaten(self) -> None:
        """Delete the weights of points that lead nothing; another metric ranked them before, or a kill came between."""
        leading = {point.key for point in self._leaders.values()}
        drop_variables(self._folder, weights_kept(self._folder) & self._points.keys() - leading)

    def begin(self, remaining: Plan) -> None:
        """From now on these trainings run: the time left is told from their epochs."""
        self._first_heard, self._epochs, self._epochs_to_run = None, 0, remaining.epochs
        self._trainings |= {training.key: training for training in remaining.trainings}
        self._show()

    def hear(self, news: TrialNews) -> None:
        """Take what a trial tells, and the answers that it has written meanwhile."""
        training = self._trainings[news.training]
        over = news.status != "running"
        for point in training.points:
            if point.key not in self._rows and (over or point.recipe.epochs <= news.epoch):
                self._take_one(point, news)
        if over:
            self._running.pop(news.training, None)
            self._epochs += training.recipe.epochs
        else:
            self._running[news.training] = news
        if self._clock() - self._written >= SECONDS_BETWEEN_WRITES:
            self.write()
        self._show()

    def forget(self, point: Point) -> None:
        """Have a point wait again."""
        del self._rows[point.key]
        backbone = point.recipe.backbone
        if self._leaders.get(backbone) is point:
            del self._leaders[backbone]
            left = [one for one in self.ranked() if one.recipe.backbone == backbone]
            self._leaders.update((backbone, one) for one in left[:1])

    def table(self) -> pa.Table:
        """The leaderboard, a row for each point."""
        rows = [self._rows.get(point.key) or self._row(point, None, "waiting", None) for point in self._plan.points]
        return leaderboard_table(rows, self._plan.points, self._metric)

    def write(self) -> str:
        """Write the leaderboard.

        Returns:
            Where leaderboard.parquet lies.
        """
        place = write_leaderboard(self._folder, self.table())
        self._written = self._clock()
        return place

    def _row(self, point: Point, answer: Answer | None, status: str, error: str | None) -> dict[str, Any]:
        return leaderboard_row(point, answer, self._metric, status, error)

    def _take_one(self, point: Point, news: TrialNews) -> None:
        answer = load_answer(self._folder, point.key, logits=False)
        if answer is not None:
            before = self._leaders.get(point.recipe.backbone)
            self._take(answer)
            leader = self._leaders.get(point.recipe.backbone)
            drop_variables(self._folder, [one.key for one in (before, point) if one is not None and one is not leader])
        elif news.status != "running":
            self._rows[point.key] = self._row(point, None, FAILED, news.error or UNSEEN)

    def _take(self, answer: Answer) -> None:
        point = self._points[answer.point]
        self._rows[point.key] = self._row(point, answer, answer.status, answer.error)
        if answer.status == FAILED or math.isnan(self.value(point)):
            return
        backbone = point.recipe.backbone
        leader = self._leaders.get(backbone)
        if leader is None or self._leads(point, leader):
            self._leaders[backbone] = point

    def _leads(self, point: Point, other: Point) -> bool:
        """Whether a point comes before another."""
        own, its = (standing(self._rows[one.key], self._metric) for one in (point, other))
        return own < its

    def _show(self) -> None:
        best = self.best
        self._tell(
            SearchProgress(
                "searching",
                done=self.count(DONE) + self.count(STOPPED) + self.count(FAILED),
                total=len(self._plan.points),
                failed=self.count(FAILED),
                seconds_left=self._seconds_left(),
                metric=self._metric,
                running=tuple(self._shown(news) for news in self._running.values()),
                best=shown_settings(best) if best else {},
                best_value=self.value(best) if best else math.nan,
            )
        )

    def _shown(self, news: TrialNews) -> Running:
        return Running(common_settings(self._trainings[news.training]), news.epoch, news.epochs, news.value)

    def _seconds_left(self) -> float | None:
        """From the epochs since the first were heard of: before that the actors were starting."""
        done = self._epochs + sum(news.epoch for news in self._running.values())
        if self._first_heard is None and done:
            self._first_heard = self._clock(), done
        began, first = self._first_heard or (0.0, done)
        if done <= first:
            return None
        return (self._clock() - began) / (done - first) * max(0, self._epochs_to_run - done)


def shown_settings(point: Point) -> dict[str, str]:
    """A point's settings for a person."""
    return {key: setting_text(value) for key, value in point.settings.items()}


def common_settings(training: Training) -> dict[str, str]:
    """The settings that all points of a training have in common, for a person."""
    first, *others = (shown_settings(point) for point in training.points)
    return {key: value for key, value in first.items() if all(other[key] == value for other in others)}
