"""The limits that tests/unit/conftest.py sets hold."""

from __future__ import annotations

import importlib
import socket
import time

import pytest


def test_a_unit_test_cannot_sleep() -> None:
    with pytest.raises(AssertionError, match="sleep"):
        time.sleep(0)


def test_a_unit_test_cannot_open_a_connection() -> None:
    with socket.socket() as client, pytest.raises(AssertionError, match="connect"):
        client.connect(("127.0.0.1", 9))


@pytest.mark.parametrize("name", ["ray", "tensorflow", "keras"])
def test_a_unit_test_cannot_load(name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        exec(f"import {name}", {"__name__": "jobs.score"})


def test_what_is_light_still_loads() -> None:
    assert importlib.import_module("pipelines.errors")
