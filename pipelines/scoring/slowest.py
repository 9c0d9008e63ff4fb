"""The names of a run's slowest images, which its record keeps by their place in the plan only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipelines.errors import NightreadError
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.scoring.parts import PlanFile, open_plan


@dataclass(frozen=True)
class SlowImage:
    """An image that took long.

    Attributes:
        shard: Its shard.
        row: Its row within the shard.
        seconds: How long an actor was busy with it.
        image_uri: Its name; None where the run's plan is gone.
    """

    shard: int
    row: int
    seconds: float
    image_uri: str | None


def slowest_images(folder: RunFolder, record: RunRecord, most: int = 20) -> list[SlowImage]:
    """The slowest images of a run, the slowest first; [] of a run whose record keeps none.

    Args:
        folder: The run.
        record: Its record.
        most: How many at most.
    """
    kept: list[Mapping[str, float]] = list(record.timings.get("slowest") or [])[:most]
    places = [(int(one["shard"]), int(one["row"]), float(one["seconds"])) for one in kept]
    if not places:
        return []
    try:
        with open_plan(folder) as plan:
            names = _names(plan, {(shard, row) for shard, row, _ in places})
    except NightreadError:  # a plan that is gone takes only the names with it
        names = {}
    return [SlowImage(shard, row, seconds, names.get((shard, row))) for shard, row, seconds in places]


def _names(plan: PlanFile, places: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
    groups: dict[int, dict[int, pa.Table]] = {}
    names = {}
    for shard, row in sorted(places):
        group = plan.group_of(shard)
        if group not in groups:
            groups = {group: plan.read_group(group) if group < len(plan.groups) else {}}
        images = groups[group].get(shard)
        if images is not None and row < images.num_rows:
            names[shard, row] = str(images.column("image_uri")[row].as_py())
    return names
