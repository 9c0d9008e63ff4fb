"""Ray's own launcher takes the clusters of machines."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

VMS = Path(__file__).resolve().parents[3] / "cluster" / "deploy" / "vms"


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """Prepare and validate a configuration as `ray up` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    prepared.setdefault("cluster_synced_files", [])
    validate_config(prepared)
    return prepared


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((VMS / name).read_text())


def test_the_clusters_are_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    types = checked(load("aws.yaml"))["available_node_types"]
    assert types["cpu"]["min_workers"] < types["cpu"]["max_workers"]
    assert types["head"]["resources"]["CPU"] == 0 and types["gpu"]["max_workers"] > 0
    machines = load("on-premise.yaml")["provider"]["worker_ips"]
    (only,) = checked(load("on-premise.yaml"))["available_node_types"].values()
    assert only["max_workers"] == len(machines)


@pytest.mark.parametrize("name", ["aws.yaml", "on-premise.yaml"])
def test_what_is_wrong_is_noticed(name: str) -> None:
    for key, value in (("idle_timeout_minuts", 5), ("upscaling_speed", "fast"), ("cluster_name", 5)):
        with pytest.raises(jsonschema.ValidationError):
            checked({**load(name), key: value})
    with pytest.raises(ValueError, match="head_node_type"):
        checked({**load("aws.yaml"), "head_node_type": "hed"})


@pytest.mark.parametrize("name", ["aws.yaml", "on-premise.yaml"])
def test_every_ray_is_started_with_a_token_and_a_closed_dashboard(name: str) -> None:
    config = load(name)
    started = [
        command
        for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(started) == 2 and all("RAY_AUTH_MODE=token" in command for command in started)
    assert "--dashboard-host=127.0.0.1" in started[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_library_of_the_autoscaler_is_the_locked_one() -> None:
    lock = (VMS.parents[2] / "requirements.lock").read_text().splitlines()
    wanted = next(line.split()[-1] for line in load("aws.yaml")["head_setup_commands"] if "boto3" in line)
    assert wanted in lock
