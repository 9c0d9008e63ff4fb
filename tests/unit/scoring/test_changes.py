"""When an archive that is not what it was is shown to a person first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archive.plan import Moved, Plan
from pipelines.errors import UsageError
from pipelines.scoring import changes
from pipelines.scoring.changes import Seen
from pipelines.scoring.config import Allowance, ScoreConfig
from pipelines.scoring.night import Night

COUNT = st.integers(0, 20_000)


def plan_of(changed: int, gone: int, known: int, unchanged: int = 0) -> Plan:
    return Plan(
        found=changed + unchanged,
        new=0,
        changed=changed,
        unchanged=unchanged,
        rescored_for_model=0,
        backfilled=0,
        gone=gone,
        known=known,
        planned=changed,
        shards=1,
        paths=(),
    )


def config_of(**options: object) -> ScoreConfig:
    return ScoreConfig("/archive", "/models/m", "/results", **options)  # type: ignore[arg-type]


@given(changed=COUNT, gone=COUNT, left=COUNT, before=COUNT, staying=COUNT)
def test_more_than_a_fifth_and_more_than_a_thousand(
    changed: int, gone: int, left: int, before: int, staying: int
) -> None:
    known = changed + gone + staying
    plan, seen = plan_of(changed, gone, known, unchanged=staying), Seen(before, left)
    sudden = max(0, changed - left) + max(0, gone - before)
    assert changes.too_much_changed(plan, seen, config_of()) == (sudden > 1000 and 5 * sudden > known)
    # Nobody has looked before: what is gone may be gone for years.
    assert changes.too_much_changed(plan, None, config_of()) == (changed > 1000 and 5 * changed > known)
    counted = config_of(max_changed=Allowance.parse("--max-changed", "7"))
    assert changes.too_much_changed(plan, seen, counted) == (sudden > 7)
    for yes in ({"accept_changes": True}, {"same_bytes": True}):
        assert not changes.too_much_changed(plan, seen, config_of(**yes))


def test_a_manifest_is_compared_with_what_it_names() -> None:
    assert not changes.too_much_changed(plan_of(1500, 0, 0, unchanged=9000), None, config_of())
    assert changes.too_much_changed(plan_of(1500, 0, 0, unchanged=5000), None, config_of())


def test_the_three_ways_on_are_named() -> None:
    with pytest.raises(UsageError, match="1,900 images are newly changed and 1,500 newly gone, of 4,000") as caught:
        changes.refuse_changes(plan_of(2000, 1700, 4000), Seen(200, 100), config_of())
    for way in ("runs rebase", "--same-bytes", "--accept-changes"):
        assert way in caught.value.cure
    changes.refuse_changes(plan_of(2000, 1700, 4000), Seen(200, 100), config_of(accept_changes=True))


def test_what_was_seen_is_remembered_for_each_archive_and_its_filters(tmp_path: Path) -> None:
    def night(archive: str, *include: str) -> Night:
        config = ScoreConfig(archive, "/models/m", str(tmp_path), include=include)
        return cast(Night, SimpleNamespace(config=config, results=str(tmp_path)))

    assert changes.read_seen(night("/a")) is None
    changes.write_seen(night("/a"), Seen(12, 3))
    assert changes.read_seen(night("/a")) == changes.read_seen(night("/a/")) == Seen(12, 3)
    assert changes.read_seen(night("/a", "*.png")) is changes.read_seen(night("/b")) is None
    changes.write_seen(night("/b"), Seen(0, 0))
    assert changes.read_seen(night("/b")) == Seen(0, 0)
    for path in (tmp_path / "archives").iterdir():
        path.write_bytes(b"{")
    assert changes.read_seen(night("/a")) is None


@pytest.mark.parametrize(("still_there", "stops"), [(False, True), (True, False)])
def test_a_moved_archive_is_asked_about_and_a_copied_one_is_not(tmp_path: Path, still_there: bool, stops: bool) -> None:
    old = tmp_path / "it's old"
    if still_there:
        old.mkdir()
        (old / "a.png").touch()
    plan = replace(plan_of(0, 0, 0), new=1001, moved=Moved(str(old), "/new", 490, 500))
    assert changes.was_moved(plan, config_of()) is stops
    assert not changes.was_moved(plan, config_of(accept_changes=True))
    assert not changes.was_moved(replace(plan, new=1000), config_of())
    if stops:
        with pytest.raises(UsageError, match="of 500 new images that were looked at, 490 are known") as caught:
            changes.refuse_changes(plan, None, config_of())
        assert "runs rebase RESULTS '" in caught.value.cure and "/new" in caught.value.cure
    else:
        changes.refuse_changes(plan, None, config_of())
