"""`score --engine split` against `--engine direct` on the same images, and what one GPU answers alone.

    python tests/benchmarks/bench_split_engine.py [--images 600] [--folder DIR] [--backbone mobilenet_v2] [--rounds 2]

On a machine with a GPU that TensorFlow sees, `split` uses it. Without one a processor stands in, which measures that
both engines give the same rows and what the hand-over costs, but says nothing of a GPU; the first line says which it
is. Ends with an error where a row differs. Images are those of bench_score.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_score import ENVIRONMENT, draw_images, run_script

SIDE = 224
TOLERANCE = 1e-4

MAKE_BUNDLE = """
import sys
from dataclasses import asdict
from pathlib import Path
import numpy as np
from pipelines.images.preprocess import Preprocessing
from pipelines.models import backbones, compile, heads
from pipelines.models.bundle import WEIGHTS_FILE, write_bundle
from pipelines.models.rebuild import joined
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
models, images, name, side = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
preparation = Preprocessing(side)
pictures = np.stack([preparation.prepare(path.read_bytes()).pixels for path in sorted(Path(images).iterdir())[:32]])
spec, head_spec = backbones.BackboneSpec(name, 1.0, side), heads.HeadSpec(pooling="avg", classes=2)
backbone = backbones.build_backbone(spec, "none", seed=1, calibration_images=pictures)
head = heads.build_head(head_spec, backbone.output_shape[-1:])
data, io = compile.compile_scorer(backbone, head, 1.0, side), ScorerIO(side, 2)
write_bundle(models, f"split-{name}", BundleSpec(("benign", "malignant"), ("malignant",), side, preparation.id,
    {"float32": ScorerEntry("scorer.tflite", io)}, thresholds={"image": {"threshold": 0.5}},
    backbone=asdict(spec), head={**asdict(head_spec), "dense_units": []}),
    {"scorer.tflite": data, WEIGHTS_FILE: backbones.weights_to_bytes(joined(backbone, head, "avg"))})
"""

# One process, no Ray: batches of every size that the rule may choose, on what TensorFlow sees.
ALONE = """
import json, sys
from pipelines.models.bundle import WEIGHTS_FILE
from pipelines.models.golden import golden_answers
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
from pipelines.scoring.tensorflow_scorer import TensorFlowScorer
bundle = resolve(sys.argv[1])
scorer = TensorFlowScorer(bundle, bundle.read(WEIGHTS_FILE), sys.argv[2] == "gpu", 1)
scorer.check(golden_answers(Scorer(*bundle.scorer("float32")), bundle.input_size))
rates = {size: scorer.rate(size) for size in (8, 32, 64, 128)}
print(json.dumps({"device": scorer.device, "images_per_second": rates}))
"""

ROWS = """
import json, sys
import pyarrow.dataset as ds
from deltalake import DeltaTable
columns = ["image_uri", "p_malignant", "predicted_class", "decision", "content_sha256", "error_code"]
rows = ds.dataset(DeltaTable(sys.argv[1] + "/predictions").file_uris()).to_table(columns=columns).to_pylist()
print(json.dumps({row.pop("image_uri"): row for row in rows}))
"""


def score(images: Path, model: str, results: str, engine: str) -> dict[str, Any]:
    """Run the command; its JSON answer."""
    command = [sys.executable, "-m", "jobs", "score", str(images), "--model", model, "--results", results]
    done = subprocess.run(
        [*command, "--engine", engine, "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def apart(direct: dict[str, Any], split: dict[str, Any]) -> float:
    """The largest difference of a probability; ends with an error where anything else differs."""
    if direct.keys() != split.keys():
        raise SystemExit("the engines did not score the same images")
    largest = 0.0
    for uri, row in direct.items():
        other = split[uri]
        p, q = row.pop("p_malignant"), other.pop("p_malignant")
        difference = 0.0 if p is None and q is None else abs(p - q)
        if difference > TOLERANCE or (row != other and abs(p - 0.5) > TOLERANCE):
            raise SystemExit(f"an image has {row} and p={p} by one engine, {other} and p={q} by the other")
        largest = max(largest, difference)
    return largest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nightread-bench")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    seen = run_script("from pipelines.scoring.gpus import *\nprint((seen_by_tensorflow() or 0) if gpus_here() else 0)")
    device = "gpu" if seen else "processor"
    note = "" if seen else "no GPU here: a processor stands in, and rates of split say nothing of a GPU"
    print(json.dumps({"gpus_seen_by_tensorflow": seen, "note": note}), flush=True)
    images, models = options.folder / f"images-{options.images}", options.folder / "models"
    draw_images(images, options.images)
    models.mkdir(parents=True, exist_ok=True)
    name = f"split-{options.backbone}"
    if not (models / name).exists():
        run_script(MAKE_BUNDLE, str(models), str(images), options.backbone, str(SIDE))
    print(json.dumps({"what": "alone", **run_script(ALONE, f"{models}/{name}", device)}), flush=True)
    for number in range(options.rounds):
        rows = {}
        for engine in ("direct", "split"):
            with tempfile.TemporaryDirectory() as folder:
                answer = score(images, f"{models}/{name}", f"{folder}/results", engine)
                rows[engine] = run_script(ROWS, f"{folder}/results")
            figures = {key: answer[key] for key in ("scored", "images_per_second", "seconds", "engine")}
            print(json.dumps({"round": number, "what": engine, **figures}), flush=True)
        print(json.dumps({"round": number, "largest_difference": apart(rows["direct"], rows["split"])}), flush=True)


if __name__ == "__main__":
    main()
