"""A command that is stopped from outside ends with the signal's own exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_with_their_own_code(number: signal.Signals, checkout: Path) -> None:
    script = (
        "import sys, time, typer\n"
        "from jobs import cli\n"
        "app = typer.Typer(rich_markup_mode=None)\n"
        "app.callback()(lambda: None)\n"
        "@app.command()\n"
        "def work() -> None:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "cli.app = app\n"
        "sys.exit(cli.main(['work']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err.startswith("error: Stopped")
