"""Is the archive still what it was? More changed or gone at once than a night takes is for a person to judge."""

from __future__ import annotations

import hashlib
import json
import shlex

from pipelines.archive.plan import Plan
from pipelines.errors import UsageError
from pipelines.scoring.config import LEAST_CHANGED, ScoreConfig
from pipelines.scoring.night import Night
from pipelines.storage import files, paths
from pipelines.storage.reading import lists_something

FORMAT = 1


def suddenly_changed(plan: Plan, gone_before: int) -> int:
    """Images that are changed, and those that were still there when the last command looked."""
    return plan.changed + max(0, plan.gone - gone_before)


def too_much_changed(plan: Plan, gone_before: int, config: ScoreConfig) -> bool:
    """Whether more of the known images are changed or gone at once than a night takes without asking.

    Args:
        plan: The counts of tonight.
        gone_before: Images that were gone when the last command looked.
        config: What is allowed; a share means at least `LEAST_CHANGED` images.
    """
    if config.accept_changes or config.same_bytes:
        return False
    changed, limit = suddenly_changed(plan, gone_before), config.max_changed
    known = max(plan.known, plan.changed + plan.unchanged + plan.rescored_for_model)
    return limit.exceeded(changed, known) and (limit.count is not None or changed > LEAST_CHANGED)


def was_moved(plan: Plan, config: ScoreConfig) -> bool:
    """Whether more images than a night takes without asking are known under a root that is empty now.

    Where the old root still lists something the archive was copied, or there are two of them.
    """
    if plan.moved is None or config.accept_changes:
        return False
    enough = plan.new > (LEAST_CHANGED if config.max_changed.count is None else config.max_changed.count)
    return enough and lists_something(paths.unescape_name(plan.moved.old_root)) is False


def refuse_changes(plan: Plan, gone_before: int, config: ScoreConfig) -> None:
    """Stop before an archive that is not what it was is scored anew.

    Raises:
        UsageError: If too much is changed or gone, with the three ways on; or if the archive was moved.
    """
    if plan.moved is not None and was_moved(plan, config):
        old, new = plan.moved.old_root, plan.moved.new_root
        raise UsageError(
            f"The archive seems to have been moved: of {plan.moved.looked_at:,} new images that were looked at, "
            f"{plan.moved.matched:,} are known below {old!r}, with the same version, and nothing is there any more. "
            "Nothing was scored.",
            f"`nightread runs rebase RESULTS {shlex.quote(old)} {shlex.quote(new)}` takes their scores along; "
            "--accept-changes scores them again.",
        )
    if not too_much_changed(plan, gone_before, config):
        return
    raise UsageError(
        f"{plan.changed:,} images are changed and {max(0, plan.gone - gone_before):,} are newly gone, of "
        f"{plan.known:,} that the results know: more than --max-changed {config.max_changed.text} allows. Nothing was "
        "scored.",
        "If the archive was moved: `nightread runs rebase RESULTS OLD_PREFIX NEW_PREFIX`. If its files were copied or "
        "touched: --same-bytes keeps the scores of those whose bytes are the old ones. If it really changed: "
        "--accept-changes.",
    )


def read_gone(night: Night) -> int:
    """How many images were gone when the last command looked at this archive with these filters; 0 at first."""
    try:
        return int(json.loads(files.read_bytes(_place(night)))["gone"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def write_gone(night: Night, gone: int) -> None:
    """Take note of how many images are gone, so that what was accepted once is not asked about every night."""
    if read_gone(night) != gone:
        files.write_atomic(_place(night), (json.dumps({"format": FORMAT, "gone": gone}) + "\n").encode())


def _place(night: Night) -> str:
    config = night.config
    looked_at = [paths.canonical(config.archive), sorted(config.include), sorted(config.exclude)]
    name = hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()[:16]
    return paths.join(night.results, "archives", f"{name}.json")
