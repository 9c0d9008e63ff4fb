"""The main job with its archive in a bucket, against the same images on local disk, both on one core.

    python tests/benchmarks/bench_s3.py [--images 1500] [--folder DIR] [--rounds 3] [--delay-ms 30]

The command runs on the first core alone (Ray, driver and its one actor); on the second one a server answers each
request late. Images and model are those of bench_score.py. Prints one JSON line for each run and the ratio of a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_score import ENVIRONMENT, MAKE_BUNDLE, draw_images, run_script
from object_server import BUCKET, serving

SETTINGS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}


def score(archive: str, models: Path, core: int, endpoint: str = "") -> dict:
    """Run the command on one core; its JSON answer."""
    settings = {**SETTINGS, "AWS_ENDPOINT_URL": endpoint} if endpoint else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jobs", "score", archive, "--model", f"{models}/bench", "--json"]
        done = subprocess.run(
            [*command, "--results", f"{folder}/results"],
            env={**ENVIRONMENT, **settings},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nightread-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    options = parser.parse_args()
    ours, other = sorted(os.sched_getaffinity(0))[:2]
    images, models = options.folder / f"images-{options.images}", options.folder / "models"
    draw_images(images, options.images)
    models.mkdir(parents=True, exist_ok=True)
    if not (models / "bench").exists():
        run_script(MAKE_BUNDLE, str(models), str(images / "00000.jpg"))
    with serving(images, options.delay_ms, other) as endpoint:
        for number in range(options.rounds):
            rates = {}
            for what, archive in (("local", str(images)), ("s3", f"s3://{BUCKET}")):
                answer = score(archive, models, ours, endpoint if what == "s3" else "")
                if answer["scored"] != options.images:
                    raise SystemExit(f"{answer['scored']} of {options.images} images were scored")
                rates[what] = answer["images_per_second"]
                print(json.dumps({"round": number, "what": what, **answer}), flush=True)
            print(json.dumps({"round": number, "of_local": rates["s3"] / rates["local"]}), flush=True)


if __name__ == "__main__":
    main()
