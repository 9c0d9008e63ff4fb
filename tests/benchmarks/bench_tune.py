"""Measure a search: against its parts alone, against Keras, and what a trial costs beside its training.

    python tests/benchmarks/bench_tune.py [--weights FILE] [--images 3297] [--only grid,keras,…] [--small]

Draws pictures of two classes and prints one JSON line a part. Each part compares within its own run, and checks the
answers too; the weights of MobileNetV2 (alpha 1.0) decide none of the times, so without --weights they are drawn.

- grid: `nightread tune` itself, from its start to its end, on the published grid (5 learning rates, 6 numbers of
  epochs, recipe skin-lesion), against what it cannot do without, measured in a process of its own: the feature pass of
  `train` (Ray and Keras already started) and five trainings of the head, 100 epochs each, one after the other on all
  cores, with nothing that comes after them. All 30 points are compared with these trainings.
- keras: the same command against thirty `fit` of Keras, of which one epoch is measured, after a warm-up, and the other
  1,249 are taken to be like it. Keras gets all cores and the images decoded, in memory; backbone frozen and without
  gradients, batches of 32, compiled as Keras does by default, validation after each epoch as in the search.
- trials: trainings of a head for one epoch, under Ray Tune, from the fourth on, when the actors have started. What one
  takes a core for, less its epoch, is `seconds_beside_the_epoch`; less the same trainings in a plain loop without Ray,
  which builds and traces them too, is `seconds_beside_a_plain_loop`.
- points: six points of the grid drawn at random, each trained by a `nightread train --set …` of its own.
- thousand: 1,000 points of head settings on small images: memory of the command while the search runs, and whether the
  leaderboard can be read at any moment.
- layers: four learning rates of the last 30 layers (recipe histopathology, without augmentation), against one pass and
  the four trainings above the cut alone, one after the other on one core each, as a trial has it: on two cores
  convolutions add in another order, and at the higher rates a training with batch normalisation over 8 images makes
  of that another training altogether (validation loss 6.7 or 4.6 after five epochs).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tuning_peers import Work, alone, keras_epoch, one_epoch_trials

from pipelines.models.registry import resolve

ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "0"}
RATES = ("0.00001", "0.0001", "0.0005", "0.001", "0.005")
LAYER_RATES = ("0.00001", "0.00003", "0.0001", "0.0003")
NO_AUGMENTATION = {"rotation": "0", "shear": "0", "zoom": "0", "flip": "none", "variants": "0"}
SAMPLED = 6
LARGEST_DIFFERENCE = 1e-5
"""Of a validation loss."""
SECONDS_BETWEEN_LOOKS = 0.5

Grid = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    images: int
    size: int = 224
    network: Mapping[str, str] = field(default_factory=dict)
    epochs: Sequence[str] = ("10", "20", "30", "40", "50", "100")
    trials: int = 60
    choices: int = 10
    layer_images: int = 300
    layer_epochs: int = 5


SMALL = Scale(
    images=200,
    size=64,
    network={"alpha": "0.35", "input_size": "64"},
    epochs=("2", "4", "6"),
    trials=12,
    choices=3,
    layer_images=80,
    layer_epochs=2,
)


def draw(folder: Path, count: int, size: int) -> Path:
    """Draw JPEGs of two classes, 1,800 of 3,297 benign as published; each a mosaic of its own."""
    import cv2

    random = np.random.default_rng(0)
    for number in range(count):
        malignant = number * 3297 // count >= 1800
        coarse = random.integers(0, 220, (size // 8, size // 8, 3)) + 30 * malignant
        place = folder / ("malignant" if malignant else "benign") / f"{number:05d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(".jpg", coarse.astype(np.uint8).repeat(8, 0).repeat(8, 1))[1]
        place.write_bytes(encoded.tobytes())
    return folder


@dataclass(frozen=True)
class Tuned:
    """What a search took, answered, and wrote: a row for each point, by its settings as numbers."""

    seconds: float
    answer: Mapping[str, Any]
    rows: Mapping[tuple[float, ...], Mapping[str, Any]]


def tune(work: Work, grid: Grid) -> Tuned:
    """Search a grid with the command itself."""
    said = [f"--grid={key}={','.join(values)}" for key, values in grid.items()]
    answer, seconds = run(work.command("tune", "--name", "grid", *said))
    if answer["finished"] != answer["trials"]:
        raise SystemExit(f"{answer['finished']} of {answer['trials']} points have an answer")
    rows = pq.read_table(answer["leaderboard"]).to_pylist()
    return Tuned(seconds, answer, {tuple(float(row[key]) for key in grid): row for row in rows})


def run(command: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Run a command of ours: its answer and the seconds from its start to its end."""
    began = time.perf_counter()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-3000:]}")
    return json.loads(done.stdout), seconds


def in_a_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, so that nothing that it starts lives on."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def checked(apart: float) -> float:
    """The largest difference of two answers; other answers than the same end the benchmark."""
    if not apart <= LARGEST_DIFFERENCE:
        raise SystemExit(f"the answers differ by {apart}")
    return apart


class Bench:
    """What the parts share: the pictures, and the search of the published grid, which is run once."""

    def __init__(self, folder: Path, scale: Scale, weights: str) -> None:
        self._folder, self._scale = folder, scale
        data = draw(folder / "moles", scale.images, scale.size)
        self._work = Work(data, folder / "grid", "skin-lesion", scale.network, weights)
        self._work.folder.mkdir()

    @cached_property
    def tuned(self) -> Tuned:
        """The published grid."""
        return tune(self._work, {"learning_rate": RATES, "epochs": self._scale.epochs})

    def grid(self) -> dict[str, Any]:
        """Against its parts alone."""
        tuned, longest = self.tuned, self._scale.epochs[-1]
        parts = in_a_process(alone, self._work, [{"learning_rate": rate, "epochs": longest} for rate in RATES])
        apart = max(
            abs(tuned.rows[float(rate), float(mark)]["last_log_loss"] - losses[int(mark) - 1])
            for rate, losses in zip(RATES, parts["losses"], strict=True)
            for mark in self._scale.epochs
        )
        least = parts["pass"] + sum(parts["fits"])
        return {
            "points": len(tuned.rows),
            "trainings": tuned.answer["trainings"],
            "training_images": parts["train"],
            "command_seconds": round(tuned.seconds, 1),
            "pass_seconds": round(parts["pass"], 1),
            "trainings_seconds": [round(seconds, 1) for seconds in parts["fits"]],
            "ratio": round(tuned.seconds / least, 2),
            "target": "at most 1.5",
            "val_loss_apart_of_all_points": checked(apart),
        }

    def keras(self) -> dict[str, Any]:
        """Against thirty `fit`, told from one epoch."""
        tuned, epoch = self.tuned, in_a_process(keras_epoch, self._work)
        epochs = len(RATES) * sum(map(int, self._scale.epochs))
        thirty = epochs * epoch["seconds"]
        return {
            "keras_epoch_seconds": round(epoch["seconds"], 2),
            "keras_images": [epoch["images"], epoch["validation"]],
            "epochs_of_all_fits": epochs,
            "keras_hours_extrapolated": round(thirty / 3600, 2),
            "command_seconds": round(tuned.seconds, 1),
            "times": round(thirty / tuned.seconds),
            "target": "at least 100 times",
        }

    def trials(self) -> dict[str, Any]:
        """What a trial costs beside its training."""
        folder = self._folder / "trials"
        folder.mkdir()
        found = in_a_process(one_epoch_trials, folder, self._scale.trials, int(self._scale.images * 0.64))
        return {**found, "val_loss_apart": checked(found["val_loss_apart"])}

    def points(self) -> dict[str, Any]:
        """Some points against trainings by the command."""
        chosen = np.random.default_rng(0).permutation(sorted(self.tuned.rows))[:SAMPLED]
        apart, points = [], []
        for number, (rate, epochs) in enumerate(chosen.tolist()):
            settings = {"learning_rate": f"{rate:.10f}", "epochs": str(int(epochs))}
            answer, _ = run(self._work.command("train", "--name", f"point{number}", settings=settings))
            history = list(csv.DictReader(io.StringIO(resolve(answer["path"]).read("history.csv").decode())))
            row = self.tuned.rows[rate, epochs]
            if len(history) != row["epochs_run"] or int(answer["best_epoch"]) != row["kept_epoch"]:
                raise SystemExit(f"another number of epochs at {settings}")
            apart.append(abs(float(history[-1]["val_loss"]) - row["last_log_loss"]))
            points.append([rate, int(epochs)])
        return {"points": points, "val_loss_apart": checked(max(apart)), "target": f"at most {LARGEST_DIFFERENCE}"}

    def thousand(self) -> dict[str, Any]:
        """Many points of little work each."""
        count = self._scale.choices
        grid = {
            "dropout": [f"{0.8 * number / count:.3f}" for number in range(count)],
            "dense_units": [str(8 * (number + 1)) for number in range(count)],
            "learning_rate": [f"{0.0005 * (number + 1):.4f}" for number in range(count)],
        }
        settings = {"alpha": "0.35", "input_size": "32", "epochs": "2"}
        work = Work(draw(self._folder / "tiny", 120, 64), self._folder / "many", "skin-lesion", settings, "none")
        work.folder.mkdir()
        return watch(work, grid)

    def layers(self) -> dict[str, Any]:
        """The last 30 layers against their parts alone."""
        scale = self._scale
        data = draw(self._folder / "cells", scale.layer_images, scale.size)
        fixed = {"early_stopping": "0", "reduce_on_plateau": "0", "epochs": str(scale.layer_epochs)}
        settings = {**scale.network, **NO_AUGMENTATION, **fixed}
        work = Work(data, self._folder / "layers", "histopathology", settings, self._work.weights)
        work.folder.mkdir()
        tuned = tune(work, {"learning_rate": LAYER_RATES})
        parts = in_a_process(alone, work, [{"learning_rate": rate} for rate in LAYER_RATES], True)
        apart = max(
            abs(tuned.rows[(float(rate),)]["last_log_loss"] - losses[-1])
            for rate, losses in zip(LAYER_RATES, parts["losses"], strict=True)
        )
        return {
            "training_images": parts["train"],
            "epochs": scale.layer_epochs,
            "command_seconds": round(tuned.seconds, 1),
            "pass_seconds": round(parts["pass"], 1),
            "trainings_seconds": [round(seconds, 1) for seconds in parts["fits"]],
            "ratio": round(tuned.seconds / (parts["pass"] + sum(parts["fits"])), 2),
            "val_loss_apart": checked(apart),
        }


def watch(work: Work, grid: Grid) -> dict[str, Any]:
    """Run a search, and look at its memory and its leaderboard all the while."""
    said = [f"--grid={key}={','.join(values)}" for key, values in grid.items()]
    began = time.perf_counter()
    seen: list[tuple[int, float]] = []
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            work.command("tune", "--name", "many", *said), env=ENVIRONMENT, stdout=output, stderr=errors
        )
        board = work.folder / "models" / "many" / "searches" / "s1" / "leaderboard.parquet"
        while process.poll() is None:
            megabytes, done = resident_mb(process.pid), answered(board)
            seen.append((done, megabytes))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seconds = time.perf_counter() - began
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(errors.read().decode()[-3000:])
        answer = json.loads(output.read())
    total = answer["trials"]
    running = [(done, megabytes) for done, megabytes in seen if 0.1 * total <= done < total]
    growth = None
    if len({done for done, _ in running}) > 1:
        growth = round(float(np.polyfit([one[0] for one in running], [one[1] for one in running], 1)[0]) * 1024, 1)
    return {
        "points": total,
        "finished": answer["finished"],
        "seconds": round(seconds, 1),
        "looks_at_the_leaderboard": sum(done >= 0 for done, _ in seen),
        "states_of_it_seen": len({done for done, _ in seen if done >= 0}),
        "driver_mb_while_searching": [round(running[0][1]), round(running[-1][1])] if running else None,
        "driver_mb_peak_while_searching": round(max((megabytes for _, megabytes in running), default=0)),
        "driver_kb_growth_a_point": growth,
        "driver_mb_peak_of_the_whole_command": round(max(megabytes for _, megabytes in seen)),
    }


def answered(board: Path) -> int:
    """Answered points of a leaderboard, -1 before there is one; whatever else keeps it from being read is raised."""
    try:
        table = pq.read_table(io.BytesIO(board.read_bytes()), columns=["status"])
    except FileNotFoundError:
        return -1
    return int(pc.sum(pc.not_equal(table["status"], "waiting")).as_py())


def resident_mb(process: int) -> float:
    """Memory of a process that lies in RAM; 0 when it is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Measure and print."""
    parts = ("grid", "keras", "trials", "points", "thousand", "layers")
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="none", help="a .weights.h5 file of MobileNetV2, alpha 1.0")
    parser.add_argument("--images", type=int, default=3297)
    parser.add_argument("--only", default=",".join(parts), help="parts, with commas between them")
    parser.add_argument("--small", action="store_true", help="to try the benchmark itself; its figures mean nothing")
    options = parser.parse_args()
    scale = SMALL if options.small else Scale(options.images)
    with tempfile.TemporaryDirectory(prefix="bench-tune-") as name:
        bench = Bench(Path(name), scale, "none" if options.small else options.weights)
        for part in options.only.split(","):
            if part not in parts:
                parser.error(f"--only knows {', '.join(parts)}")
            print(json.dumps({"what": part, "small": options.small, **getattr(bench, part)()}), flush=True)


if __name__ == "__main__":
    main()
