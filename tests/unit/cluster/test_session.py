"""How a Ray that does not start is told."""

from __future__ import annotations

import pytest

from cluster import session
from pipelines.errors import TryLater


def test_a_machine_too_busy_for_ray_is_no_defect_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(ray: object, **arguments: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(session, "_quiet_ray", object)
    monkeypatch.setattr(session, "_reread_environment", lambda: None)
    monkeypatch.setattr(session, "_init", too_slow)
    with (
        pytest.raises(TryLater, match="Ray did not start on this machine: The current node timed out"),
        session.start_or_join("local"),
    ):
        pass
