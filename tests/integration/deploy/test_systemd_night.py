"""A real systemd, first process of namespaces of its own, runs nights and the endpoint by the shipped units."""

from __future__ import annotations

import json
import os
import shutil
import site
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SYSTEMD = Path("/lib/systemd/systemd")
USER = 64321

FOLDERS = (
    "opt/nightread/bin", "opt/nightread/python", "opt/nightread/site", "opt/nightread/source",
    "srv/nightread/archive", "srv/nightread/results", "srv/out", "etc/nightread", "work", "units",
)  # fmt: skip

# What the units of a whole machine would bring.
STUBS = ("sysinit", "basic", "shutdown", "network-online", "remote-fs", "timers")

# Only pauses, limits and where output goes differ from the shipped units, and a look around before each attempt.
DROP_IN = """[Unit]
StartLimitBurst=6
[Service]
RestartSec=2s
StandardOutput=append:/srv/out/answers
StandardError=append:/srv/out/errors
ExecStartPre=-/bin/sh /srv/out/look.sh
"""
SERVE_DROP_IN = """[Service]
RestartSec=1s
StandardOutput=append:/srv/out/served
StandardError=append:/srv/out/served
"""
FAILED_DROP_IN = "[Service]\nStandardOutput=append:/srv/out/failures\n"
LOOK = """
look() {
echo user=$(id -un) umask=$(umask) $(grep NoNewPrivs /proc/self/status)
for folder in /srv/nightread/archive /opt/nightread /usr /var/lib; do touch $folder/touched && echo wrote $folder; done
touch /srv/nightread/results/touched && rm /srv/nightread/results/touched && echo wrote results
touch /tmp/touched && echo "tmp holds $(ls /tmp)"
echo key $(cat "$AWS_SHARED_CREDENTIALS_FILE")
ls /etc/nightread/s3-keys && cat /etc/nightread/s3-keys && echo read the keys themselves
}
look 2>/dev/null | sed 's/^/look: /'
"""

# Plays the part of the people and the archive while systemd runs.
CONDUCTOR = r"""
exec > /srv/out/conductor 2>&1
unit=nightread.service
state() { systemctl show --property=ActiveState,Result,NRestarts,ExecMainStatus $unit | tr '\n' ' '; }
settled() {
    for i in $(seq 600); do
        case "$(state)" in *ActiveState=inactive*|*ActiveState=failed*) break;; esac; sleep 0.2
    done
    sleep 0.5; echo "$1: $(state)"
}
# An archive that is not mounted yet: 75, again and again until it is there.
systemctl start nightread.service
for i in $(seq 200); do case "$(state)" in *NRestarts=0*active*) sleep 0.2;; *) break;; esac; done
cp -r /srv/images/. /srv/nightread/archive/
settled mounted
# A model that is not there: 4, at once and for good.
mv /srv/nightread/models/chest /srv/nightread/models/away
systemctl start nightread.service
settled no-model
mv /srv/nightread/models/away /srv/nightread/models/chest
# An archive that never comes: 75 until the limit of starts ends it.
mkdir /srv/away; mv /srv/nightread/archive/* /srv/away/
printf '[Unit]\nStartLimitBurst=2\n' > /run/units/nightread.service.d/z-limit.conf
systemctl daemon-reload; systemctl reset-failed nightread.service; systemctl start nightread.service
settled never-mounted
# The endpoint: it answers, comes back from death, looks again when it is told to, and ends well.
unit=nightread-serve.service
. /srv/out/serve.sh
ready() { for i in $(seq 300); do curl -sf $url/readyz >/dev/null && break; sleep 0.1; done; }
picture=$(ls /srv/images/*.jpg | head -n 1)
said() { curl -s -o /dev/null -w '%{http_code}' -H Content-Type:image/jpeg "$@" --data-binary @$picture $url/predict; }
pid() { systemctl show --property=MainPID --value $unit; }
systemctl start $unit; ready; first=$(pid)
echo "served: $(state)without=$(said) with=$(said -H "Authorization: Bearer $token")" \
    "core=$(sed -n 's/^Max core file size *\([0-9]*\).*/\1/p' /proc/$first/limits)"
kill -9 $first; for i in $(seq 100); do [ "$(pid)" != $first ] && break; sleep 0.1; done; ready; second=$(pid)
systemctl reload $unit
echo "came-back: $(state)with=$(said -H "Authorization: Bearer $token") same=$([ "$(pid)" = $second ] && echo yes)"
systemctl stop $unit
echo "stopped: $(state)"
cp -r /var/log/nightread /srv/out/log
mv /srv/nightread/models/chest /srv/nightread/models/away
systemctl start $unit
settled serve-no-model
systemctl --force --force poweroff
"""

# Builds the machine in a mount namespace: every folder that is written to is the test's own.
MACHINE = r"""
set -e
mount --make-rprivate /
mount --bind "$PYTHON" "$HOME_OF_TEST/opt/nightread/python"
mount --bind "$SITE" "$HOME_OF_TEST/opt/nightread/site"
mount --bind "$CHECKOUT" "$HOME_OF_TEST/opt/nightread/source"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$HOME_OF_TEST/etc,workdir=$HOME_OF_TEST/work" /etc
mount --rbind "$HOME_OF_TEST/opt" /opt
mount --rbind "$HOME_OF_TEST/srv" /srv
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/units
cp -r "$HOME_OF_TEST/units/." /run/units/
for folder in /tmp /var/tmp /var/lib /var/log; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
umount -R /sys/fs/cgroup || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test SYSTEMD_UNIT_PATH=/run/units \
    "$SYSTEMD" --system --unit=conductor.service --log-target=null --show-status=0
"""

# A control group of its own for the manager, removed at the end.
OUTER = r"""
mount --make-rprivate / && mkdir "$HOME_OF_TEST/groups" && mount -t cgroup2 cgroup2 "$HOME_OF_TEST/groups" || exit 71
group="$HOME_OF_TEST/groups$(sed -n 's/^0:://p' /proc/self/cgroup)"
mkdir "$group/nightread-test-$$" && echo $$ > "$group/nightread-test-$$/cgroup.procs" || exit 71
timeout --signal=KILL 270 unshare --pid --fork --kill-child --mount --mount-proc --cgroup --uts --ipc \
    bash -c "$MACHINE"
echo $$ > "$group/cgroup.procs"
for i in $(seq 50); do
    find "$group/nightread-test-$$" -depth -type d -exec rmdir {} \; 2>/dev/null
    [ -d "$group/nightread-test-$$" ] || break
    sleep 0.1
done
exit 0
"""


def _lay_out_endpoint(home: Path, deploy: Path) -> None:
    """What docs/serving.md adds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = (
        (deploy / "serve.env")
        .read_text()
        .replace("8460", port)
        .replace("#NIGHTREAD_SERVE_AUDIT", "NIGHTREAD_SERVE_AUDIT")
    )
    (home / "etc" / "nightread" / "serve.env").write_text(settings)
    token = home / "etc" / "nightread" / "serve-token"
    token.write_text("NIGHTREAD_SERVE_TOKEN=0123456789abcdef\n")
    token.chmod(0o600)
    units = home / "units"
    shutil.copy(deploy / "nightread-serve.service", units)
    (units / "multi-user.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "nightread-serve.service.d").mkdir()
    (units / "nightread-serve.service.d" / "test.conf").write_text(SERVE_DROP_IN)
    (home / "srv" / "out" / "serve.sh").write_text(f"url=http://127.0.0.1:{port}\ntoken=0123456789abcdef\n")


def _lay_out(home: Path, checkout: Path, models: Path) -> None:
    """Folders of a machine on which nightread is installed as docs/deploy.md says."""
    deploy = checkout / "cluster" / "deploy" / "systemd"
    for name in FOLDERS:
        (home / name).mkdir(parents=True)
    command = home / "opt" / "nightread" / "bin" / "nightread"
    python = f"/opt/nightread/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    command.write_text(
        "#!/bin/sh\n"
        "export LD_LIBRARY_PATH=/opt/nightread/python/lib\n"
        f'PYTHONPATH=/opt/nightread/source:/opt/nightread/site exec {python} -m jobs "$@"\n'
    )
    command.chmod(0o755)
    chest = home / "srv" / "nightread" / "models" / "chest"
    shutil.copytree(models / "cells", chest)
    for path in (chest, *chest.rglob("*")):
        shutil.chown(path, group=USER)
        path.chmod(0o750 if path.is_dir() else 0o640)
    for user_file, line in (
        ("passwd", f"nightread:x:{USER}:{USER}::/nowhere:/bin/false"),
        ("group", f"nightread:x:{USER}:"),
    ):
        (home / "etc" / user_file).write_text(Path("/etc", user_file).read_text().rstrip("\n") + f"\n{line}\n")
    settings = (deploy / "nightread.env").read_text().replace("/mnt/pacs/images", "/srv/nightread/archive")
    (home / "etc" / "nightread" / "nightread.env").write_text(settings)
    keys = home / "etc" / "nightread" / "s3-keys"
    keys.write_text("[default]\n")
    keys.chmod(0o600)
    units = home / "units"
    for unit in ("nightread.service", "nightread.timer", "nightread-failed@.service"):
        shutil.copy(deploy / unit, units)
    for name in STUBS:
        (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\nDefaultDependencies=no\n")
    for unit, text in (("nightread.service", DROP_IN), ("nightread-failed@.service", FAILED_DROP_IN)):
        (units / f"{unit}.d").mkdir()
        (units / f"{unit}.d" / "test.conf").write_text(text)
    shutil.copy(deploy / "s3.conf", units / "nightread.service.d")
    _lay_out_endpoint(home, deploy)
    (home / "srv" / "out" / "look.sh").write_text(LOOK)
    (home / "srv" / "out" / "conductor.sh").write_text(CONDUCTOR)
    (units / "conductor.service").write_text(
        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/bash /srv/out/conductor.sh\n"
    )
    # Nothing but the unit's own settings may keep the night from writing here.
    for folder in (
        home / "srv",
        home / "srv" / "nightread",
        *(home / "srv" / "nightread").iterdir(),
        home / "srv" / "out",
    ):
        folder.chmod(0o777)
    (home / "opt" / "nightread").chmod(0o777)


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory, checkout: Path, tiny_models: Path, draw: Callable[..., list[Path]]
) -> Path:
    """The folder of a machine on which systemd has run the conductor's scenes."""
    if os.geteuid() or not SYSTEMD.exists() or not shutil.which("unshare") or not shutil.which("systemctl"):
        pytest.skip("needs root, systemd and unshare, to run a systemd in namespaces of its own")
    home = tmp_path_factory.mktemp("machine")
    usual = os.umask(0o022)  # a machine's, whatever this process has
    try:
        _lay_out(home, checkout, tiny_models)
        draw(home / "srv" / "images", 3)
    finally:
        os.umask(usual)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", OUTER],
        env={
            **os.environ,
            "HOME_OF_TEST": str(home),
            "MACHINE": MACHINE,
            "SYSTEMD": str(SYSTEMD),
            "PYTHON": sys.base_prefix,
            "SITE": next(path for path in site.getsitepackages() if path.endswith("site-packages")),
            "CHECKOUT": str(checkout),
        },
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if not (home / "srv" / "out" / "conductor").exists():
        pytest.skip(f"namespaces, or systemd in them, are not permitted here: {done.stderr.strip()[-300:]}")
    return home


def scene(machine: Path, name: str) -> dict[str, str]:
    lines = (machine / "srv" / "out" / "conductor").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}: "))
    return dict(pair.split("=") for pair in line.partition(": ")[2].split())


def told_of(machine: Path, unit: str) -> list[str]:
    """What people were told of a unit, without its name."""
    lines = (machine / "srv" / "out" / "failures").read_text().splitlines()
    return [line.removeprefix(f"{unit} ") for line in lines if line.startswith(f"{unit} ")]


@pytest.mark.slow
def test_a_night_is_repeated_on_75_and_then_scores_every_image(machine: Path, rows_of: Callable) -> None:
    ended = scene(machine, "mounted")
    assert (ended["ActiveState"], ended["Result"], ended["ExecMainStatus"]) == ("inactive", "success", "0")
    rows = rows_of(machine / "srv" / "nightread" / "results")
    assert sorted(Path(row["image_uri"]).name for row in rows) == ["b00000.jpg", "b00001.jpg", "b00002.jpg"]
    assert {row["status"] for row in rows} == {"scored"}


def test_what_the_night_printed_is_its_answers(machine: Path) -> None:
    printed = (machine / "srv" / "out" / "answers").read_text().splitlines()
    codes = [json.loads(line)["exit_code"] for line in printed if not line.startswith("look: ")]
    repeated = codes.index(0)
    assert repeated >= 1 and codes == [75] * repeated + [0, 4, 75, 75]


def test_the_unit_can_write_its_results_and_nothing_else(machine: Path) -> None:
    printed = (machine / "srv" / "out" / "answers").read_text().splitlines()
    assert {line.removeprefix("look: ") for line in printed if line.startswith("look: ")} == {
        "user=nightread umask=0027 NoNewPrivs: 1",
        "wrote results",
        "tmp holds touched",
        "key [default]",
        "/etc/nightread/s3-keys",
    }
    results = machine / "srv" / "nightread" / "results"
    for path in results.rglob("*"):
        assert path.stat().st_uid == USER
        assert path.stat().st_mode & 0o027 == 0, path


def test_a_model_that_is_missing_is_not_tried_again_and_told(machine: Path) -> None:
    ended = scene(machine, "no-model")
    assert (ended["ActiveState"], ended["ExecMainStatus"], ended["NRestarts"]) == ("failed", "4", "0")
    assert told_of(machine, "nightread.service")[0].startswith("has failed: result exit-code, exit status 4.")


def test_repeating_has_an_end_that_is_told(machine: Path) -> None:
    ended = scene(machine, "never-mounted")
    assert (ended["ActiveState"], ended["ExecMainStatus"]) == ("failed", "75")
    told = told_of(machine, "nightread.service")
    assert len(told) == 2 and "exit status 75." in told[1]


def test_the_endpoint_answers_who_has_the_token_and_writes_no_core(machine: Path) -> None:
    served = scene(machine, "served")
    assert (served["ActiveState"], served["without"], served["with"]) == ("active", "401", "200")
    assert served["core"] == "0"


def test_the_endpoint_comes_back_from_death_and_stays_at_a_reload(machine: Path) -> None:
    back = scene(machine, "came-back")
    assert (back["ActiveState"], back["NRestarts"], back["with"], back["same"]) == ("active", "1", "200", "yes")
    stopped = scene(machine, "stopped")
    assert (stopped["ActiveState"], stopped["Result"], stopped["ExecMainStatus"]) == ("inactive", "success", "0")


def test_the_endpoint_wrote_its_audit_log_and_named_no_file(machine: Path) -> None:
    [log] = (machine / "srv" / "out" / "log").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["answered", "answered"]
    assert ".jpg" not in log.read_text() + (machine / "srv" / "out" / "served").read_text()


def test_an_endpoint_without_its_model_is_not_started_again_and_told(machine: Path) -> None:
    ended = scene(machine, "serve-no-model")
    assert (ended["ActiveState"], ended["ExecMainStatus"], ended["NRestarts"]) == ("failed", "4", "0")
    assert told_of(machine, "nightread-serve.service")[-1].startswith("has failed: result exit-code, exit status 4.")
