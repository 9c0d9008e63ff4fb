"""Cross-validates recipes against each other on labelled images: five folds grouped by copies, paired.

```
python tests/benchmarks/bench_recipes.py [DATA] [--columns …] [--class-names …] [--weights FILE] [--recipes a,b]
```

In each fold the images of the fold are the test part; the rest is split into training and validation. A recipe is
trained as `nightread train` trains it, and its compiled scorer then answers for the test part once. Prints one JSON
line for each training, and at the end one line for each recipe: mean accuracy, ROC AUC and MCC over the folds, and the
mean difference of the first recipe to each with its 95 % interval (paired by fold, t distribution).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.options import parse_pairs
from pipelines.demo.archive import draw_archive
from pipelines.errors import ImageFailure
from pipelines.evaluation.metrics import measure
from pipelines.images.fingerprint import difference_hash
from pipelines.images.preprocess import Preprocessing
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
from pipelines.training.duplicates import HASH_BYTES, survey
from pipelines.training.labelled import DataConfig, read_labelled
from pipelines.training.split import group_images

FIGURES = ("accuracy", "roc_auc", "mcc")


def main() -> int:
    """Run the comparison."""
    options = _options()
    results: dict[str, list[dict[str, float]]] = {recipe: [] for recipe in options.recipes.split(",")}
    with tempfile.TemporaryDirectory(prefix="nightread-recipes-") as scratch:
        if options.data is None:
            options.data, options.weights = (
                str(draw_archive(f"{scratch}/drawn", labelled=100, archive=1).labelled),
                "none",
            )
        names, labels, groups = read_set(options)
        classes = sorted(set(labels))
        folds = fold_numbers(labels, groups, options.folds, options.seed)
        for fold in range(options.folds):
            manifest = write_manifest(
                Path(scratch) / f"fold{fold}.csv", names, labels, groups, folds, fold, options.seed
            )
            for recipe, rows in results.items():
                rows.append(run_fold(options, Path(scratch), manifest, recipe, names, labels, classes, folds == fold))
                print(json.dumps({"recipe": recipe, "fold": fold, **rows[-1]}), flush=True)
    for line in summarise(results):
        print(json.dumps(line), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="?", help="labelled images; without them a few are drawn, and --weights is none")
    parser.add_argument("--columns")
    parser.add_argument("--class-names")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--recipes", default="default,histopathology,skin-lesion,breast-ultrasound")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_set(options: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Readable images in order of name: path, label and group (copies and near-duplicates stay together)."""
    config = DataConfig(
        options.data,
        columns=parse_pairs("--columns", options.columns),
        class_names=parse_pairs("--class-names", options.class_names),
    )
    table = read_labelled(config).table
    kept, labels, digests, hashes = [], [], [], []
    preprocessing = Preprocessing(224)
    for uri, label in zip(table["image_uri"].to_pylist(), table["label"].to_pylist(), strict=True):
        content = Path(uri).read_bytes()
        try:
            pixels = preprocessing.prepare(content).pixels
        except ImageFailure:
            continue
        kept.append(uri)
        labels.append(label)
        digests.append(hashlib.sha256(content).hexdigest())
        hashes.append(difference_hash(pixels))
    found = survey(digests, np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES), {})
    return kept, labels, group_images(digests, [None] * len(digests), found.links())


def fold_numbers(labels: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each image by scikit-learn's grouped, stratified folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    numbers = np.zeros(len(labels), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, inside) in enumerate(splitter.split(np.zeros(len(labels)), list(labels), list(groups))):
        numbers[inside] = fold
    return numbers


def write_manifest(
    path: Path,
    names: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str],
    folds: NDArray[np.int64],
    fold: int,
    seed: int,
) -> Path:
    """The fold as a given split: its images test, a fifth of the other groups validates."""
    rest = np.flatnonzero(folds != fold)
    inner = fold_numbers([labels[row] for row in rest], [groups[row] for row in rest], 5, seed + 1 + fold)
    parts = np.full(len(names), "test", dtype="U5")
    parts[rest] = np.where(inner == 0, "val", "train")
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["uri", "label", "split"])
        writer.writerows(zip(names, labels, parts.tolist(), strict=True))
    return path


def run_fold(
    options: argparse.Namespace,
    scratch: Path,
    manifest: Path,
    recipe: str,
    names: Sequence[str],
    labels: Sequence[str],
    classes: Sequence[str],
    inside: NDArray[np.bool_],
) -> dict[str, float]:
    """Train one recipe on one fold and measure it on the fold's images."""
    began = time.monotonic()
    command = [sys.executable, "-m", "jobs", "train", str(manifest), "--models", str(scratch / "models")]
    command += ["--name", f"{recipe}-{manifest.stem}", "--recipe", recipe, "--weights", options.weights, "--root", "/"]
    command += ["--positive", classes[-1], "--cache", str(scratch / "cache"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{recipe}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    bundle = resolve(answer["path"])
    scorer, preprocessing = Scorer(*bundle.scorer("float32")), Preprocessing(bundle.input_size)
    rows = np.flatnonzero(inside)
    answers = np.stack([scorer(preprocessing.prepare(Path(names[row]).read_bytes()).pixels) for row in rows])
    truth = np.array([classes.index(labels[row]) for row in rows])
    figures = measure(answers, truth, [len(classes) - 1])
    return {
        **{name: figures[name] for name in FIGURES},
        "images": float(len(rows)),
        "epochs": float(answer["epochs"]),
        "seconds": time.monotonic() - began,
    }


def summarise(results: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Means over folds, and the first recipe's paired difference to each other one with a 95 % interval."""
    from scipy.stats import t

    first = next(iter(results))
    lines = []
    for recipe, rows in results.items():
        line: dict[str, Any] = {"recipe": recipe, "folds": len(rows)}
        for name in FIGURES:
            own = np.array([row[name] for row in rows])
            line[name] = float(own.mean())
            if recipe != first and len(rows) > 1:
                gain = np.array([row[name] for row in results[first]]) - own
                half = t.ppf(0.975, len(rows) - 1) * gain.std(ddof=1) / np.sqrt(len(rows))
                line[f"{first}_gains_{name}"] = [
                    float(gain.mean()),
                    float(gain.mean() - half),
                    float(gain.mean() + half),
                ]
        line["seconds"] = float(np.mean([row["seconds"] for row in rows]))
        lines.append(line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
