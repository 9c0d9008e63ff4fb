from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.storage.roles import EVERYWHERE, PLACES, Role, declare, declared, is_declared, role_of

SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab", "ü", "a b", "%20"]), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NIGHTREAD_S3_")]:
        monkeypatch.delenv(name)


@given(st.dictionaries(SEGMENTS.map(tuple), st.sampled_from(Role), max_size=5), SEGMENTS)
def test_the_longest_declared_folder_decides(places: dict[tuple[str, ...], Role], asked: list[str]) -> None:
    with declared():
        for segments, role in places.items():
            declare(role, "s3://" + "/".join(segments))
        above = [segments for segments in places if tuple(asked[: len(segments)]) == segments]
        expected = places[max(above, key=len)] if above else None
        assert role_of("s3://" + "/".join(asked)) is expected


def test_a_folder_does_not_speak_for_its_neighbour_whose_name_begins_alike() -> None:
    with declared():
        declare(Role.RESULTS, "s3://b/night/")
        assert role_of("s3://b/night") is role_of("s3://b/night/run.json") is Role.RESULTS
        assert role_of("s3://b/nightly/run.json") is None
        assert is_declared("s3a://b/night")


def test_what_nothing_was_said_about_has_the_role_of_everything_else() -> None:
    with declared():
        declare(Role.ARCHIVE, EVERYWHERE)
        declare(Role.MODELS, "s3://b/models")
        assert role_of("s3://other/image.png") is Role.ARCHIVE
        assert role_of("s3://b/models/cells/1") is Role.MODELS


def test_it_is_taken_back_and_local_places_are_left_out() -> None:
    with declared():
        declare(Role.ARCHIVE, "/mnt/images")
        declare(Role.ARCHIVE, "gs://b/images")
        assert PLACES not in os.environ
        declare(Role.ARCHIVE, "s3://b/images")
        with declared():
            declare(Role.MODELS, "s3://b/models")
            assert role_of("s3://b/models/x") is Role.MODELS
            assert role_of("s3://b/images/x") is None
        assert role_of("s3://b/models/x") is None
        assert role_of("s3://b/images/x") is Role.ARCHIVE
    assert PLACES not in os.environ


def test_one_place_with_two_roles_is_refused_only_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    with declared():
        declare(Role.RESULTS, "s3://b/all")
        declare(Role.ARCHIVE, "s3://b/all")
        monkeypatch.setenv("NIGHTREAD_S3_ARCHIVE_REGION", "far")
        with pytest.raises(UsageError, match=r"'s3://b/all' is given both as results and as archive"):
            declare(Role.ARCHIVE, "s3://b/all")
