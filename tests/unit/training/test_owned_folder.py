"""Who owns the folder of a fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import TryLater
from pipelines.storage import leases
from pipelines.storage.leases import Lease
from pipelines.storage.processes import Identity
from pipelines.training.owned_folder import owned_folder


def test_a_training_goes_on_after_one_that_died_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    place = str(tmp_path / "fit")
    elsewhere = replace(Identity.of_this_process(), host="pod-1", pid_namespace="pid:[1]")
    Lease.acquire(place, identity=elsewhere)  # never released
    with owned_folder(place) as folder:
        assert folder == place
        with pytest.raises(TryLater, match="is being written by process"), owned_folder(place):
            pass
    assert not (tmp_path / "fit").exists()
