from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import TryLater, UsageError
from pipelines.training.config import TrainConfig
from pipelines.training.labelled import DataConfig
from pipelines.training.recipes import load_recipe
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.folder import (
    Search,
    create_search,
    earlier_openings,
    find_search,
    refuse_if_tested,
    refuse_other_leaders,
    save_search,
    with_command,
)
from pipelines.tuning.space import make_points, read_space

FINGERPRINT = {
    "data": "0123456789abcdef0123",
    "recipe": "fedcba9876543210ffff",
    "weights": "none",
    "positive": "malignant",
    "seed": "0",
    "split": "00112233445566778899",
}
POINTS = make_points(read_space(["epochs=10,20"], None), load_recipe("skin-lesion"), 10, 0)


def find(models: Path, search_id: str | None = None, **other: str) -> Search | None:
    return find_search(str(models), "moles", {**FINGERPRINT, **other}, search_id)


def config(models: Path, search_id: str | None = None, name: str = "moles") -> TuneConfig:
    who = {"user": "somebody"}
    train = TrainConfig(DataConfig("s3://lab/moles"), str(models), name, load_recipe("skin-lesion"), seed=5, who=who)
    return TuneConfig(train, POINTS, grid={"epochs": "10, 20"}, search=search_id)


def create(models: Path, search_id: str | None = None, **other: str) -> Search:
    return create_search(config(models, search_id), {**FINGERPRINT, **other}, 0)


def record(models: Path, search: str = "s1") -> Path:
    return models / "moles" / "searches" / search / "search.json"


TEXTS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=OBJECTS, best=st.none() | OBJECTS, best_of=st.dictionaries(TEXTS, OBJECTS, max_size=2), who=OBJECTS)
def test_a_record_is_read_as_it_was_saved(
    tmp_path: Path, asked: dict[str, Any], best: dict[str, Any] | None, best_of: dict[str, Any], who: dict[str, Any]
) -> None:
    made = find(tmp_path, "mine") or create(tmp_path, "mine")
    changed = replace(
        made, settings=asked, best=best, best_of=best_of, who=who, counts={"points": 30}, sureness=best,
        registered=best, tested="2026-11-21T16:00:00+00:00", seconds=12.5, feature_seconds={"vgg16": 1.5},
    )  # fmt: skip
    save_search(changed)
    assert find(tmp_path, "mine") == changed


def test_a_record_says_what_was_asked_and_a_later_command_what_it_asks(tmp_path: Path) -> None:
    made = create_search(config(tmp_path), FINGERPRINT, 3)
    said = json.loads(record(tmp_path).read_text())
    assert said["format"] == 1 and said["id"] == "s1" and "folder" not in said
    assert (said["metric"], said["seed"], said["newest"], said["split"]) == ("accuracy", 5, 3, None)
    assert said["grid"] == {"epochs": "10, 20"} and said["who"] == {"user": "somebody"}
    assert said["settings"]["recipe"]["name"] == "skin-lesion" and said["settings"]["data"] == "s3://lab/moles"
    later = with_command(made, replace(config(tmp_path), metric="log_loss", random=7))
    assert later.metric == "log_loss" and later.settings["random"] == 7
    assert (later.id, later.started_at, later.fingerprint) == (made.id, made.started_at, made.fingerprint)


def test_a_name_from_a_foreign_file_system_survives(tmp_path: Path) -> None:
    made = create(tmp_path)
    changed = replace(made, settings={"data": "/images/\udcff/été"})
    save_search(changed)
    assert find(tmp_path, made.id) == changed


def test_ids_count_up_and_the_newest_of_the_same_fingerprint_goes_on(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    first, other, third = create(tmp_path), create(tmp_path, seed="1"), create(tmp_path)
    assert [search.id for search in (first, other, third)] == ["s1", "s2", "s3"]
    assert find(tmp_path) == third
    named = create(tmp_path, "again")
    assert find(tmp_path) == named and find(tmp_path, seed="1") == other and find(tmp_path, seed="2") is None
    assert find(tmp_path, "s1") == first
    assert create(tmp_path, "s20").id == "s20" and create(tmp_path).id == "s21"


def test_a_search_of_another_name_is_not_found(tmp_path: Path) -> None:
    create_search(config(tmp_path, name="other"), FINGERPRINT, 0)
    assert find(tmp_path) is None and find(tmp_path, "s1") is None


def test_of_many_that_begin_at_once_each_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _number: create(tmp_path), range(8)))
    assert {search.id for search in made} == {f"s{number}" for number in range(1, 9)}
    assert all(find(tmp_path, search.id) == search for search in made)


def test_an_id_that_is_taken_meanwhile_is_not_shared(tmp_path: Path) -> None:
    create(tmp_path, "mine")
    with pytest.raises(TryLater, match="mine"):
        create(tmp_path, "mine")


@pytest.mark.parametrize("text", ["", "Mine", ".hidden", "a/b", "..", "a b", "a\n", "é", "-a", "a" * 101])
def test_an_id_that_is_no_folder_is_refused(tmp_path: Path, text: str) -> None:
    for use in (find, create):
        with pytest.raises(UsageError, match="--search"):
            use(tmp_path, text)
    assert list(tmp_path.iterdir()) == []


def test_a_search_of_something_else_says_what_differs(tmp_path: Path) -> None:
    create(tmp_path, "mine")
    with pytest.raises(UsageError) as refused:
        find(tmp_path, "mine", data="ffffffffffffffffffff", seed="7", positive="benign")
    assert refused.value.message == (
        "The search mine is of another data, another positive (malignant, and now benign), another seed (0, and now 7)."
    )
    assert "--search" in refused.value.cure


@pytest.mark.parametrize(
    "key, value",
    [
        ("format", "1"), ("format", True), ("format", None), ("fingerprint", {"seed": 0}), ("fingerprint", []),
        ("seed", 1.5), ("seed", False), ("metric", 1), ("grid", ["epochs=1"]), ("grid", {"epochs": 1}),
        ("settings", 1), ("counts", {"points": "1"}), ("best", []), ("best_of", {"vgg16": 1}), ("tested", True),
        ("registered", 3), ("newest", None), ("split", 1), ("seconds", "1"), ("feature_seconds", {"vgg16": None}),
        ("sureness", "six"), ("started_at", 5), ("claim", None), ("who", None),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_and_never_begun_anew(tmp_path: Path, key: str, value: Any) -> None:
    create(tmp_path)
    said = json.loads(record(tmp_path).read_text())
    for damaged in ({**said, key: value}, {name: own for name, own in said.items() if name != key}):
        record(tmp_path).write_text(json.dumps(damaged))
        for search_id in (None, "s1"):
            with pytest.raises(UsageError, match=r"search\.json"):
                find(tmp_path, search_id)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_record_at_all_is_named(tmp_path: Path, data: bytes) -> None:
    create(tmp_path)
    record(tmp_path).write_bytes(data)
    with pytest.raises(UsageError, match="damaged"):
        find(tmp_path)


def test_a_record_of_a_newer_release_is_refused_as_such(tmp_path: Path) -> None:
    create(tmp_path)
    said = json.loads(record(tmp_path).read_text())
    record(tmp_path).write_text(json.dumps({"format": 2, "what": said}))
    with pytest.raises(UsageError, match="format 2") as refused:
        find(tmp_path)
    assert "upgrade" in refused.value.cure


def test_what_is_no_search_among_them_is_passed_over(tmp_path: Path) -> None:
    made = create(tmp_path)
    (tmp_path / "moles" / "searches" / "s7").mkdir()
    for name in (".DS_Store", "notes", "s9.zip"):
        (tmp_path / "moles" / "searches" / name).write_bytes(b"")
    assert find(tmp_path) == made and find(tmp_path, "s7") is None
    assert create(tmp_path).id == "s8"


def test_a_tested_search_takes_no_new_points_and_goes_on_with_its_own(tmp_path: Path) -> None:
    made = create(tmp_path)
    refuse_if_tested(made, {"aa", "bb"})
    tested = replace(made, tested="2026-11-21T16:00:00+00:00")
    refuse_if_tested(tested, [])
    for count, told in ((1, "1 point of this grid is not"), (1200, "1,200 points of this grid are not")):
        with pytest.raises(UsageError, match=told) as refused:
            refuse_if_tested(tested, [str(number) for number in range(count)])
        assert "2026-11-21" in refused.value.message and refused.value.exit_code == 2


def test_a_tested_search_does_not_choose_anew(tmp_path: Path) -> None:
    chosen = {"vgg16": {"point": "a", "targets": [0.95, 0.9]}, "mobilenet_v2": {"point": "b", "targets": [0.95, 0.9]}}
    open_still = replace(create(tmp_path, "mine"), best_of=chosen)
    tested = replace(open_still, tested="2026-11-21T16:00:00+00:00")
    same = {"vgg16": "a", "mobilenet_v2": "b"}
    for leaders in (same, {"vgg16": "a"}):
        refuse_other_leaders(tested, leaders, [0.95, 0.9])
    for leaders, targets in (({**same, "vgg16": "c"}, [0.95, 0.9]), (same, [0.99, 0.9]), ({"other": "a"}, [0.95, 0.9])):
        refuse_other_leaders(open_still, leaders, targets)
        with pytest.raises(UsageError, match="2026-11-21"):
            refuse_other_leaders(tested, leaders, targets)


def test_other_searches_that_opened_the_same_test_part_are_found(tmp_path: Path) -> None:
    day = "2026-11-20T16:00:00+00:00"
    for name, split, tested in (("same", "x", day), ("another-split", "y", day), ("still-open", "x", None)):
        save_search(replace(create(tmp_path, name), split=split, tested=tested))
    mine = replace(create(tmp_path, "mine"), split="x", tested=day)
    save_search(mine)
    train = config(tmp_path).train
    assert [one.id for one in earlier_openings(train.models, train.name, mine)] == ["same"]
