"""The Ray that a command starts for itself: no more processes than it needs, and none of them afterwards."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
from pathlib import Path
from cluster.session import start_or_join

with start_or_join("local") as size:
    import ray
    answer = ray.get(ray.remote(num_cpus=1)(lambda: 41 + 1).remote())
    session = ray._private.worker._global_node.get_session_dir_path()
    lines = [path.read_bytes().replace(b"\\0", b" ").decode() for path in Path("/proc").glob("[0-9]*/cmdline")]
    print(answer, size.cpus > 0, session, oct(Path(session).parents[1].stat().st_mode & 0o777))
    print("\\n".join(line for line in lines if session in line))
"""


def test_no_process_that_is_not_needed_is_started_and_none_stays(checkout: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, *processes = done.stdout.splitlines()
    assert first.startswith("42 True ")
    session, mode = first.split()[2:]
    assert mode == "0o700"
    assert any("gcs_server" in line for line in processes) and any("raylet" in line for line in processes)
    for needless in ("autoscaler/_private/monitor.py", "dashboard/dashboard.py", "log_monitor.py"):
        assert not any(f"{needless} " in line.split(" --raylet_socket_name")[0] for line in processes), needless
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (left := _of(session)):
        time.sleep(0.2)
    assert not left
    assert not Path(session).exists()


def _of(session: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if session in line:
            found.append(line)
    return found
