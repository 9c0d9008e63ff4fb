"""Measure training: epochs against Keras `fit`, two workers against one, and what a kill costs.

    python tests/benchmarks/bench_train.py [--images 512] [--epochs 6] [--only frozen|layers|workers|resume]

MobileNetV2 at 224 px with seeded weights, batch 32. Prints one JSON line a part:

- frozen: epochs after the first of a head on cached features, against Keras `fit` on the images (`target` 200 times);
- layers: epochs after the first with the last 30 layers trained above the cached cut, against Keras `fit` on the
  images, and the whole fit with its start and its cache, put to 20 epochs, against 20 epochs of Keras (2.5 times);
- workers: epochs of the last 30 layers, and of those that `default` trains, on two workers against one, one core
  each (1.7 times);
- resume: `kill -9` of the worker in mid-fit: epochs repeated or lost, and how far the history is from an
  uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cluster.session import start_or_join
from pipelines.models.backbones import BackboneSpec, build_backbone, import_keras, weights_to_bytes
from pipelines.models.cut import cut_backbone
from pipelines.training.job import Arrays, FitJob
from pipelines.training.recipes import load_recipe
from pipelines.training.resources import Resources

SIZE = 224
RECIPE = {
    "alpha": "1.0",
    "input_size": str(SIZE),
    "batch_size": "32",
    "dropout": "0.2",
    "learning_rate": "0.0001",
    "early_stopping": "0",
    "batch_norm": "false",
    "dense_units": "0",
    "variants": "0",
    "rotation": "0",
    "shift": "0",
    "shear": "0",
    "zoom": "0",
    "flip": "none",
    "head_epochs": "0",
    "warmup_epochs": "0",
    "mixup": "0",
    "weight_averaging": "0",
}


class Images:
    """Synthetic pictures of two classes, and a backbone for them."""

    def __init__(self, folder: Path, count: int) -> None:
        random = np.random.default_rng(0)
        self.folder, self.labels = folder, np.arange(count) % 2
        coarse = random.integers(0, 220, (count, 28, 28, 3)) + 30 * self.labels[:, None, None, None]
        self.pixels = coarse.astype(np.uint8).repeat(8, 1).repeat(8, 2)
        self.keys = random.integers(0, 2**62, count)
        self.backbone = build_backbone(BackboneSpec("mobilenet_v2", 1.0, SIZE), "none", 1, self.pixels[:16])
        (folder / "backbone.weights.h5").write_bytes(weights_to_bytes(self.backbone))

    def job(self, layers: int, epochs: int, name: str) -> tuple[FitJob, float]:
        """A fit on what is cached below its cut, and the seconds that the cache took."""
        began = time.perf_counter()
        lower = cut_backbone(self.backbone, layers, "avg").lower
        cached = np.concatenate([np.asarray(lower(self.pixels[at : at + 32])) for at in range(0, len(self.pixels), 32)])
        seconds = time.perf_counter() - began
        held = len(cached) // 5
        arrays = {
            "inputs": cached[held:, None],
            "labels": self.labels[held:],
            "keys": self.keys[held:],
            "validation_inputs": cached[:held],
            "validation_labels": self.labels[:held],
        }
        places = {}
        for key, array in arrays.items():
            places[key] = str(self.folder / f"{name}-{key}.npy")
            np.save(places[key], array)
        recipe = load_recipe("default", RECIPE | {"trainable_layers": str(layers), "epochs": str(epochs)})
        weights = str(self.folder / "backbone.weights.h5") if layers else None
        checkpoint = str(self.folder / f"{name}.npz")
        return FitJob(recipe, 2, (1,), (1.0, 1.0), 7, False, Arrays(**places), checkpoint, weights), seconds

    def keras_epoch(self, layers: int) -> float:
        """Seconds of an epoch of Keras `fit` on the images, after the first, validation included."""
        keras = import_keras()
        for layer in self.backbone.layers:
            layer.trainable = False
        for layer in self.backbone.layers[-layers:] if layers else ():
            layer.trainable = type(layer).__name__ != "BatchNormalization"
        features = keras.layers.GlobalAveragePooling2D()(self.backbone(self.backbone.input, training=False))
        answer = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Dropout(0.2)(features))
        model = keras.Model(self.backbone.input, answer)
        model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
        held = len(self.labels) // 5
        seconds: list[float] = []

        class Clock(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.began = time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                seconds.append(time.perf_counter() - self.began)

        model.fit(
            self.pixels[held:], self.labels[held:], batch_size=32, epochs=2, verbose=0, callbacks=[Clock()],
            validation_data=(self.pixels[:held], self.labels[:held]),
        )  # fmt: skip
        for layer in self.backbone.layers:
            layer.trainable = True
        return seconds[-1]


def fit(job: FitJob, workers: int, cpus: int, tell: Any = lambda row: None) -> tuple[Any, float, float]:
    """Train on Ray: the result, the median seconds of an epoch after the first, and those of the whole."""
    from pipelines.training.distributed import train_on_ray

    began = time.perf_counter()
    result = train_on_ray(job, Resources(workers, cpus), tell)
    epochs = [row["seconds"] for row in result.history[1:]]
    return result, statistics.median(epochs), time.perf_counter() - began


def measure_frozen(images: Images, epochs: int) -> dict[str, Any]:
    """A head on cached features against Keras on the images."""
    _, epoch, _ = fit(images.job(0, max(20, epochs), "frozen")[0], 1, 2)
    keras = images.keras_epoch(0)
    return {"epoch_seconds": round(epoch, 4), "keras_epoch_seconds": round(keras, 2), "times": round(keras / epoch)}


def measure_layers(images: Images, epochs: int) -> dict[str, Any]:
    """The last 30 layers above the cached cut against Keras on the images."""
    job, cache = images.job(30, epochs, "layers")
    _, epoch, whole = fit(job, 1, 2)
    keras = images.keras_epoch(30)
    twenty = cache + whole + (20 - epochs) * epoch
    return {
        "epoch_seconds": round(epoch, 3),
        "keras_epoch_seconds": round(keras, 2),
        "times": round(keras / epoch, 2),
        "cache_seconds": round(cache, 1),
        "start_and_end_seconds": round(whole - epochs * epoch, 1),
        "times_20_epochs_all_included": round(20 * keras / twenty, 2),
    }


def pin_workers(row: Any) -> None:
    """After the first epoch, bind each worker to a core of its own: TensorFlow takes more than it is told."""
    if row["epoch"] == 1:
        for core, worker in zip(sorted(os.sched_getaffinity(0)), training_workers(), strict=False):
            for thread in os.listdir(f"/proc/{worker}/task"):
                os.sched_setaffinity(int(thread), {core})


def training_workers() -> list[int]:
    """Process ids of the workers of the fit that runs."""
    table = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in table.splitlines() if "ray::RayTrainWorker" in line]


def measure_workers(images: Images, epochs: int) -> dict[str, Any]:
    """Two workers against one, one core each: the last 30 layers, and those that the recipe `default` trains."""
    found: dict[str, Any] = {}
    for layers in (30, load_recipe().trainable_layers):
        one, alone, _ = fit(images.job(layers, epochs, f"one{layers}")[0], 1, 1, pin_workers)
        two, together, _ = fit(images.job(layers, epochs, f"two{layers}")[0], 2, 1, pin_workers)
        apart = max(abs(a["val_loss"] / b["val_loss"] - 1) for a, b in zip(one.history, two.history, strict=True))
        found[f"last_{layers}"] = {
            "epoch_seconds_one": round(alone, 3),
            "epoch_seconds_two": round(together, 3),
            "times": round(alone / together, 2),
            "val_loss_apart": float(f"{apart:.2g}"),
        }
    return found


def measure_resume(images: Images, epochs: int) -> dict[str, Any]:
    """Kill the worker in mid-fit."""
    rows: list[Any] = []

    def kill_once(row: Any) -> None:
        rows.append(row)
        if len(rows) == epochs // 2:
            os.kill(training_workers()[0], signal.SIGKILL)

    torn, _, torn_seconds = fit(images.job(30, epochs, "torn")[0], 1, 2, kill_once)
    whole, _, whole_seconds = fit(images.job(30, epochs, "whole")[0], 1, 2)
    apart = max(abs(a["val_loss"] / b["val_loss"] - 1) for a, b in zip(torn.history, whole.history, strict=True))
    return {
        "epochs_as_told": [int(row["epoch"]) for row in rows],
        "val_loss_apart": apart,
        "seconds_lost": round(torn_seconds - whole_seconds, 1),
    }


def main() -> None:
    """Measure and print."""
    parts = {"frozen": measure_frozen, "layers": measure_layers, "workers": measure_workers, "resume": measure_resume}
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--only", choices=parts)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name, start_or_join("local"):
        images = Images(Path(name), options.images)
        for part, measure in parts.items():
            if options.only in (None, part):
                found = measure(images, options.epochs)
                print(json.dumps({"what": part, "images": options.images, **found}), flush=True)


if __name__ == "__main__":
    main()
