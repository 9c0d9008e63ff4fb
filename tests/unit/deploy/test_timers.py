"""The units, the line of cron and the loop that repeats a command."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app

DEPLOY = Path(__file__).resolve().parents[3] / "cluster" / "deploy"
UNITS = ("nightread.service", "nightread.timer", "nightread-failed@.service", "nightread-serve.service")
REPEAT = DEPLOY / "cron" / "repeat.sh"

# What systemd itself has: only their names count here.
STUBS = (
    "sysinit.target", "basic.target", "network-online.target", "remote-fs.target", "timers.target",
    "time-set.target", "time-sync.target", "shutdown.target", "multi-user.target",
)  # fmt: skip


def verified(root: Path, changed: dict[str, str]) -> str:
    """What `systemd-analyze verify` has to say of the shipped units below a root, after replacements in them."""
    folder = root / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    for command in ("opt/nightread/bin/nightread", "bin/sh", "bin/kill"):
        (root / command).parent.mkdir(parents=True, exist_ok=True)
        (root / command).write_text("")
        (root / command).chmod(0o755)
    for name in STUBS:
        (folder / name).write_text("[Unit]\nDefaultDependencies=no\n")
    for name in UNITS:
        text = (DEPLOY / "systemd" / name).read_text()
        for old, new in changed.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    settings = (("nightread", "s3.conf"), ("nightread-serve", "s3.conf"), ("nightread-serve", "serve-tls.conf"))
    for unit, setting in settings:
        (folder / f"{unit}.service.d").mkdir(exist_ok=True)
        shutil.copy(DEPLOY / "systemd" / setting, folder / f"{unit}.service.d")
    names = ["nightread.service", "nightread.timer", "nightread-failed@nightread.service", "nightread-serve.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    assert verified(tmp_path, {}) == ""


@needs_systemd
@pytest.mark.parametrize(
    "changed",
    [
        {"ProtectSystem=strict": "ProtectSistem=strict"},
        {"OnCalendar=*-*-* 22:00:00": "OnCalendar=every evening"},
        {"Type=exec": "Type=oneshot"},
        {"/opt/nightread/bin/nightread score": "/opt/nightread/bin/nightreed score"},
        {"/opt/nightread/bin/nightread serve": "/opt/nightread/bin/nightreed serve"},
        {"RestartPreventExitStatus=2 4": "RestartPreventExitStatus=usage"},
    ],
    ids=["unknown setting", "no time", "oneshot cannot repeat on 75", "no night", "no endpoint", "no exit code"],
)
def test_systemd_notices_what_is_wrong(tmp_path: Path, changed: dict[str, str]) -> None:
    assert verified(tmp_path, changed) != ""


def exposure(unit: Path) -> float:
    """How much of the machine a unit could reach, from 0 to 10, as systemd counts."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    return float(found.group(1))


@needs_systemd
@pytest.mark.parametrize("unit", ["nightread.service", "nightread-serve.service"])
def test_a_unit_can_reach_little_of_the_machine(tmp_path: Path, unit: str) -> None:
    assert exposure(DEPLOY / "systemd" / unit) <= 2.0
    open_unit = tmp_path / unit
    text = (DEPLOY / "systemd" / unit).read_text()
    open_unit.write_text(text.replace("ProtectSystem=strict", "").replace("CapabilityBoundingSet=\n", ""))
    assert exposure(open_unit) > 2.0


def settings_of(unit: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / unit)
    return parser


def test_the_night_is_repeated_on_75_alone_and_its_end_is_told() -> None:
    unit = settings_of("nightread.service")
    assert unit["Service"]["RestartForceExitStatus"] == "75" and unit["Service"]["Restart"] == "no"
    assert unit["Unit"]["OnFailure"] == "nightread-failed@%n.service"
    assert int(unit["Unit"]["StartLimitBurst"]) > 1 and unit["Unit"]["StartLimitIntervalSec"]


def test_the_endpoint_is_repeated_without_end_but_for_what_needs_a_person() -> None:
    unit = settings_of("nightread-serve.service")
    assert unit["Service"]["Restart"] == "on-failure" and unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["RestartPreventExitStatus"] == "2 4"
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["Unit"]["OnFailure"] == "nightread-failed@%n.service"


def test_the_endpoint_is_locked_in_as_the_night_is() -> None:
    night, serve = settings_of("nightread.service")["Service"], settings_of("nightread-serve.service")["Service"]
    locks = {name for name in night if name.startswith(("Protect", "Restrict", "Private", "SystemCall", "Capability"))}
    locks -= {"RestartForceExitStatus"}
    assert {name: serve.get(name) for name in locks} == {name: night[name] for name in locks}
    assert serve["LimitCORE"] == "0" and "ReadWritePaths" not in serve


def test_no_file_holds_a_secret() -> None:
    value = re.compile(
        r"(?:SECRET_ACCESS_KEY|SESSION_TOKEN|AUTH_TOKEN|SERVE_TOKEN|PASSWORD)[\"']?\s*[:=]\s*[\"']?(\S+)", re.IGNORECASE
    )
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file():
            found = [match for match in value.findall(path.read_text()) if not match.startswith(("$", "{", "<", "~"))]
            assert found == [], path


# Ends with the codes that its file names, one a run, and leaves a line for each.
STAND_IN = 'code=$(sed -n "1p" codes); sed -i 1d codes; echo ran >> runs; exit "${code:-0}"'


@pytest.mark.parametrize(
    ("codes", "code", "runs"),
    [([0], 0, 1), ([2], 2, 1), ([4], 4, 1), ([75, 75, 0], 0, 3), ([75, 3], 3, 2), ([75, 75, 75, 0], 75, 3)],
    ids=str,
)
def test_cron_repeats_on_75_alone_and_not_for_ever(tmp_path: Path, codes: list[int], code: int, runs: int) -> None:
    (tmp_path / "codes").write_text("".join(f"{number}\n" for number in codes))
    done = subprocess.run(
        ["sh", str(REPEAT), "3", "0", "sh", "-c", STAND_IN], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert len((tmp_path / "runs").read_text().splitlines()) == runs


def test_cron_is_told_what_the_loop_needs() -> None:
    done = subprocess.run(["sh", str(REPEAT), "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "TIMES PAUSE COMMAND" in done.stderr


def test_the_line_of_cron_has_its_five_times_and_a_user() -> None:
    lines = (DEPLOY / "cron" / "nightread.cron").read_text().splitlines()
    entry = next(line for line in lines if line[:1].isdigit())
    times, user, command = entry.split()[:5], entry.split()[5], entry.split(maxsplit=6)[6]
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    assert all(time == "*" or low <= int(time) <= high for time, (low, high) in zip(times, limits, strict=True))
    assert user == "nightread" and "repeat.sh 9 300 /opt/nightread/bin/nightread score" in command
    assert "%" not in command  # cron would make a line end of it


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("systemd/nightread.env", "score"),
        ("kuberay/settings.env", "score"),
        ("systemd/serve.env", "serve"),
        ("systemd/serve-tls.conf", "serve"),
    ],
)
def test_every_setting_is_an_option(file: str, name: str) -> None:
    command: Any = typer.main.get_command(app)
    with typer.Context(command, info_name="nightread", auto_envvar_prefix="NIGHTREAD") as parent:
        wanted = command.commands[name]
        context = typer.Context(wanted, parent=parent, info_name=name)
        known = {variable for parameter in wanted.params for variable in variables_of(parameter, context)}
    variables = rf"(?:^#?|[= ])(NIGHTREAD_{name.upper()}_[A-Z_]+)="
    set_here = re.findall(variables, (DEPLOY / file).read_text(), re.MULTILINE)
    assert set_here and set(set_here) <= known


def variables_of(parameter: Any, context: typer.Context) -> set[str]:
    """The variables that an option is also taken from: those that it names, or the one that its name makes."""
    named = parameter.envvar or f"{context.auto_envvar_prefix}_{parameter.name.upper()}"
    return {named} if isinstance(named, str) else set(named)
