"""What the pages of a search show. Plain values; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.training.history import Row
from pipelines.training.published import Published
from pipelines.tuning.points import Point


@dataclass(frozen=True)
class Near:
    """A point that validation does not tell apart from the best one.

    Attributes:
        point: Its key.
        difference: By how much the best one is better in the metric; not negative.
        low: Lower end of the difference's 95 % interval.
        high: Upper end.
    """

    point: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Sureness:
    """How sure the ranking is.

    Attributes:
        sentence: In words, such as "These six are not told apart: …".
        second: The point that comes second; None where there is one point only. Its difference is given however sure
            it is.
        near: Those not told apart from the best, the nearest first; the second may be among them.
        compared: How many points were held against the best.
        groups: How many groups of images (patients) the draws took.
    """

    sentence: str
    second: Near | None
    near: tuple[Near, ...]
    compared: int
    groups: int


@dataclass(frozen=True)
class BackboneRow:
    """What a backbone cost, and its best point.

    Attributes:
        backbone: A key of the backbones' table.
        weights: What it started from, in words such as `published` or `none`.
        parameters: Of the network with the head of its best point; None where no point of it has a value.
        megabytes: Of all its weights as 32-bit numbers, 10^6 bytes; None where nobody knows.
        points: Of the search that have this backbone.
        trainings: That answer them.
        feature_seconds: Of its passes over all images; None where none was needed.
        training_seconds: Of its trainings' epochs, summed.
        best: Key of its best point; None where no point of it has a value.
        bundle: Where the best point's bundle lies below the search's folder, such as `best/vgg16/v1`; None for none.
    """

    backbone: str
    weights: str
    parameters: int | None
    megabytes: float | None
    points: int
    trainings: int
    feature_seconds: float | None
    training_seconds: float
    best: str | None
    bundle: str | None = None


@dataclass(frozen=True)
class SearchContent:
    """What search.html shows.

    Attributes:
        name: Of the model, below `--models`.
        search: Id of the search.
        data: Where the labelled images are, as the user named it.
        counts: Part to class to number of images, as the split has them.
        recipe: Name of the recipe that every point starts from.
        searched: Key of the grid to what of it was searched, in words: `0.001, 0.005`, or `1e-05 to 0.01 (log)`.
        random: How many points were drawn; None for every combination.
        scheduler: `none` or `asha`.
        metric: By a name of `METRIC_NAMES`; decides the ranking, on validation.
        seed: Of the search.
        points: All of them, in the order of the grid.
        leaderboard: As `leaderboard_table` makes it, a row for each point.
        histories: Key of a point to its history; a point without an answer may be missing.
        trainings: How many answer the points.
        passes: How many distinct feature passes they need.
        seconds: The whole search, all its commands together.
        best: Key of the best point; None where no point has a value.
        sureness: None where nothing could be compared.
        backbones: In the order of the grid.
        registered: Such as `moles@v3`; None where no point was registered.
        promoted: Whether that version is the champion.
        published: What the recipe's paper reports; None for a recipe of nobody's paper.
        concerns: Further things to be careful about, a sentence each, such as weights that are random.
        provenance: Name and value: versions, hashes, the command that makes it again.
    """

    name: str
    search: str
    data: str
    counts: Mapping[str, Mapping[str, int]]
    recipe: str
    searched: Mapping[str, str]
    random: int | None
    scheduler: str
    metric: str
    seed: int
    points: tuple[Point, ...]
    leaderboard: pa.Table
    histories: Mapping[str, Sequence[Row]]
    trainings: int
    passes: int
    seconds: float
    best: str | None
    sureness: Sureness | None
    backbones: tuple[BackboneRow, ...]
    registered: str | None = None
    promoted: bool = False
    published: Published | None = None
    concerns: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TestedBackbone:
    """The best point of a backbone on the test part.

    Attributes:
        settings: The point's, key to value.
        metrics: metrics.json, as `evaluate` writes it.
        predictions: predictions.parquet, as `evaluate` writes it; its columns `label` and `p_positive` are read.
        report: Where its whole report lies from the page's folder, such as `test/vgg16/report.html`.
    """

    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    predictions: pa.Table
    report: str


@dataclass(frozen=True)
class TestContent:
    """What test.html shows.

    Attributes:
        name: Of the model.
        search: Id of the search.
        data: Where the labelled images are.
        recipe: Name of the recipe that every point starts from.
        metric: By which the points were chosen on validation.
        points: How many there were.
        tested: Backbone to what its best point did, in the order of the grid; at least one.
        published: What the recipe's paper reports; None for a recipe of nobody's paper.
        concerns: What to be careful about before all else, a sentence each.
        provenance: Name and value.
    """

    name: str
    search: str
    data: str
    recipe: str
    metric: str
    points: int
    tested: Mapping[str, TestedBackbone]
    published: Published | None = None
    concerns: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = field(default=())
