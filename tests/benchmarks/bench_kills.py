"""Kill nights, one after the other, at many more seeded moments than the test suite does.

    python tests/benchmarks/bench_kills.py [--nights 100] [--seed N]

Runs the suite's own test: each night 48 images arrive, `nightread score` is killed with -9 (the whole process group)
at a seeded moment before the plan, while scoring, between parts and commit, or just after the commit; after each kill
no image may be in the table twice, at the end each must be there once, and a further night must find nothing new.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TEST = "tests/end_to_end/test_kills.py::test_killed_at_twenty_seeded_moments"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=0", TEST],
        cwd=CHECKOUT,
        env={**os.environ, "KILL_NIGHTS": str(options.nights), "KILL_SEED": str(options.seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = done.returncode == 0
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {"what": "kills", "nights": options.nights, "seed": options.seed, "passed": passed, "seconds": seconds}
        )
    )
    if not passed:
        raise SystemExit(done.stdout[-5000:])


if __name__ == "__main__":
    main()
