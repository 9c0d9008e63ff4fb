"""Is the archive still what it was? More changed or gone at once than a night takes is for a person to judge."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass

from pipelines.archive.plan import Plan
from pipelines.errors import UsageError
from pipelines.scoring.config import LEAST_CHANGED, ScoreConfig
from pipelines.scoring.night import Night
from pipelines.storage import files, paths
from pipelines.storage.reading import lists_something

FORMAT = 1


@dataclass(frozen=True)
class Seen:
    """What the last command saw of an archive, so that what was accepted once is not asked about every night.

    Attributes:
        gone: Images that were gone.
        changed: Images that were changed and not scored yet.
    """

    gone: int
    changed: int


def sudden(plan: Plan, seen: Seen | None) -> tuple[int, int]:
    """Images that are newly changed and newly gone; with nothing to compare with, all that is gone is old."""
    before = seen or Seen(plan.gone, 0)
    return max(0, plan.changed - before.changed), max(0, plan.gone - before.gone)


def known_images(plan: Plan) -> int:
    """Images of this archive that the results know."""
    return max(plan.known, plan.changed + plan.unchanged + plan.rescored_for_model)


def too_much_changed(plan: Plan, seen: Seen | None, config: ScoreConfig) -> bool:
    """Whether more of the known images are changed or gone at once than a night takes without asking.

    Args:
        plan: The counts of tonight.
        seen: What the last command saw; None at first.
        config: What is allowed; a share means at least `LEAST_CHANGED` images.
    """
    if config.accept_changes or config.same_bytes:
        return False
    count, limit = sum(sudden(plan, seen)), config.max_changed
    return limit.exceeded(count, known_images(plan)) and (limit.count is not None or count > LEAST_CHANGED)


def was_moved(plan: Plan, config: ScoreConfig) -> bool:
    """Whether more images than a night takes without asking are known under a root that is empty now.

    Where the old root still lists something the archive was copied, or there are two of them.
    """
    if plan.moved is None or config.accept_changes:
        return False
    enough = plan.new > (LEAST_CHANGED if config.max_changed.count is None else config.max_changed.count)
    return enough and lists_something(paths.unescape_name(plan.moved.old_root)) is False


def refuse_changes(plan: Plan, seen: Seen | None, config: ScoreConfig) -> None:
    """Stop before an archive that is not what it was is scored anew.

    Raises:
        UsageError: If too much is changed or gone, with the three ways on; or if the archive was moved.
    """
    if plan.moved is not None and was_moved(plan, config):
        old, new = paths.unescape_name(plan.moved.old_root), paths.unescape_name(plan.moved.new_root)
        raise UsageError(
            f"The archive seems to have been moved: of {plan.moved.looked_at:,} new images that were looked at, "
            f"{plan.moved.matched:,} are known below {plan.moved.old_root!r}, with the same version, and nothing is "
            "there any more. Nothing was scored.",
            f"`nightread runs rebase RESULTS {shlex.quote(old)} {shlex.quote(new)}` takes their scores along; "
            "--accept-changes scores them again.",
        )
    if not too_much_changed(plan, seen, config):
        return
    changed, gone = sudden(plan, seen)
    raise UsageError(
        f"{changed:,} images are newly changed and {gone:,} newly gone, of {known_images(plan):,} that the results "
        f"know: more than --max-changed {config.max_changed.text} allows. Nothing was scored.",
        "If a part of the archive was moved: `nightread runs rebase RESULTS OLD_PREFIX NEW_PREFIX`. If its files were "
        "copied or touched: --same-bytes keeps the scores of those whose bytes are the old ones. If it really changed: "
        "--accept-changes.",
    )


def read_seen(night: Night) -> Seen | None:
    """What the last command saw of this archive with these filters; None at first, and where the file is damaged."""
    try:
        document = json.loads(files.read_bytes(_place(night)))
        return Seen(int(document["gone"]), int(document["changed"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_seen(night: Night, seen: Seen) -> None:
    """Take note of what this command saw."""
    if read_seen(night) != seen:
        files.write_atomic(_place(night), (json.dumps({"format": FORMAT, **asdict(seen)}) + "\n").encode())


def _place(night: Night) -> str:
    config = night.config
    looked_at = [paths.canonical(config.archive), sorted(config.include), sorted(config.exclude)]
    name = hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()[:16]
    return paths.join(night.results, "archives", f"{name}.json")
