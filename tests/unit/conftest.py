"""Unit tests cannot start Ray, load TensorFlow, open a connection or sleep: what needs those is an integration test."""

from __future__ import annotations

import builtins
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

TOO_HEAVY = ("ray", "tensorflow", "keras")


@pytest.fixture(autouse=True)
def _only_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real_import = builtins.__import__

    def light_import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0 and name.partition(".")[0] in TOO_HEAVY and _is_ours(globals):
            raise AssertionError(f"a unit test may not import {name}")
        return real_import(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", light_import)
    real_sleep = time.sleep

    def no_sleep(seconds: float) -> None:
        caller = sys._getframe(1)
        if _is_ours(caller.f_globals):  # waiting for a child process sleeps in the standard library
            raise AssertionError("a unit test may not sleep")
        real_sleep(seconds)

    monkeypatch.setattr(time, "sleep", no_sleep)
    for method in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, method, _refuse(f"call socket.{method}"))
    loaded = {name for name in TOO_HEAVY if name in sys.modules}
    yield
    now = {name for name in TOO_HEAVY if name in sys.modules}
    assert now == loaded, f"a unit test loaded {now - loaded}"


def _is_ours(importer: dict[str, Any] | None) -> bool:
    """Other libraries look whether TensorFlow is there (narwhals, hypothesis' plugins); only our own code may not."""
    name = (importer or {}).get("__name__", "")
    return name.partition(".")[0] in ("jobs", "cluster", "pipelines") or name.rpartition(".")[2].startswith("test_")


def _refuse(what: str) -> Any:
    def refused(*_arguments: object, **_options: object) -> NoReturn:
        raise AssertionError(f"a unit test may not {what}")

    return refused
