"""Where a cluster's token is found, and what its certificates are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import door
from cluster.tokens import ray_token
from pipelines.errors import UsageError

SECRET = "0f" * 32


def test_a_token_is_found_where_ray_looks_and_in_its_order(tmp_path: Path) -> None:
    home, named = tmp_path / "home", tmp_path / "token"
    (home / ".ray").mkdir(parents=True)
    assert ray_token({"HOME": str(home)}) is None
    (home / ".ray" / "auth_token").write_text("of the home\n")
    named.write_text("of the file\n")
    known = {"HOME": str(home)}
    assert ray_token(known) == "of the home"
    known["RAY_AUTH_TOKEN_PATH"] = str(named)
    assert ray_token(known) == "of the file"
    known["RAY_AUTH_TOKEN"] = f" {SECRET} "
    assert ray_token(known) == SECRET


@pytest.mark.parametrize("content", [None, " \n"])
def test_a_token_file_that_was_named_and_does_not_help_is_told(tmp_path: Path, content: str | None) -> None:
    place = tmp_path / "token"
    if content is not None:
        place.write_text(content)
    with pytest.raises(UsageError, match=str(place)):
        ray_token({"RAY_AUTH_TOKEN_PATH": str(place)})


def test_certificates_are_asked_for_one_by_one(tmp_path: Path) -> None:
    assert not door.uses_tls({})
    assert not door.uses_tls({"RAY_USE_TLS": "0"})
    known = {"RAY_USE_TLS": "1"}
    for name in door.TLS_FILES:
        with pytest.raises(UsageError, match=f"{name} is not"):
            door.uses_tls(known)
        place = tmp_path / name
        known[name] = str(place)
        with pytest.raises(UsageError, match=f"{place}, which cannot be read: no such file"):
            door.uses_tls(known)
        place.write_text("PEM")
    assert door.uses_tls(known)


def test_addresses_that_cannot_be_rays_are_refused_before_anything_is_asked() -> None:
    for address in ("head", "head:", ":6379", "ray://head:10001", "head:port"):
        with pytest.raises(UsageError, match="is not an address of Ray"):
            door.knock(address, insecure=False)


def test_another_ray_and_an_open_cluster_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"head:6379 runs Ray 2\.9\.0, and this machine has 2\."):
        door.refuse_other_version("head:6379", "2.9.0")
    with pytest.raises(UsageError, match="takes anybody") as refused:
        door.refuse_open("head:6379", insecure=False)
    assert "--insecure" in refused.value.cure
    door.refuse_open("head:6379", insecure=True)
