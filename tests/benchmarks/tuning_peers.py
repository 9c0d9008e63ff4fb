"""What a search is measured against: its parts alone, Keras, a plain loop; each called in a process of its own."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.training.config import TrainConfig
from pipelines.training.labelled import DataConfig
from pipelines.training.recipes import load_recipe

STARTED = 4
"""Trials after which every actor has started."""


@dataclass(frozen=True)
class Work:
    """Images, a base recipe with settings, and the weights; enough for a command and for its parts alone."""

    data: Path
    folder: Path
    recipe: str
    settings: Mapping[str, str]
    weights: str

    def command(self, name: str, *more: str, settings: Mapping[str, str] | None = None) -> list[str]:
        """`nightread` `name` on these images, in a MODELS folder with a cache of its own."""
        said = [f"--set={key}={value}" for key, value in {**self.settings, **(settings or {})}.items()]
        places = [str(self.data), "--models", str(self.folder / "models"), "--cache", str(self.folder / "cache")]
        base = [*places, "--recipe", self.recipe, "--weights", self.weights, "--json"]
        return [sys.executable, "-m", "jobs", name, *base, *said, *more]

    def config(self, cache: str, settings: Mapping[str, str]) -> TrainConfig:
        """What `train` would be told."""
        recipe = load_recipe(self.recipe, {**self.settings, **settings})
        data, models = DataConfig(str(self.data)), str(self.folder / "alone")
        return TrainConfig(data, models, name="alone", recipe=recipe, weights=self.weights, cache=cache)


def alone(work: Work, grid: Sequence[Mapping[str, str]], one_core: bool = False) -> dict[str, Any]:
    """The pass and the trainings by themselves: seconds, and each training's validation loss by epoch.

    On one core convolutions add in the order in which a trial adds them.
    """
    from cluster.session import shared_session
    from pipelines.models.backbones import import_keras
    from pipelines.training.arrays import make_job, write_inputs
    from pipelines.training.distributed import use_resources
    from pipelines.training.loop import fit_job
    from pipelines.training.preparation import find, keep, split
    from pipelines.training.steps import Place

    import_keras()
    if one_core:
        use_resources(1, on_gpu=False)
    with tempfile.TemporaryDirectory(dir=work.folder) as place:
        config = work.config(f"{place}/cache", grid[0])
        found = find(config, silent)
        with shared_session("local") as connect, connect():
            began = time.perf_counter()
            kept = keep(config, found, config.recipe, connect, silent)
            pass_seconds = time.perf_counter() - began
        data = split(config, found, kept)
        inputs = write_inputs(place, kept.network, data, kept.plain, None)
        seconds, losses = [], []
        for number, settings in enumerate(grid):
            recipe = work.config(place, settings).recipe
            job = make_job(recipe, inputs, found.positive, config.seed, f"{place}/{number}.npz")
            began = time.perf_counter()
            fit = fit_job(job, Place(), silent)
            seconds.append(time.perf_counter() - began)
            losses.append([row["val_loss"] for row in fit.history])
    return {"pass": pass_seconds, "fits": seconds, "losses": losses, "train": len(data.part("train").labels)}


def silent(_said: object) -> None:
    """Nobody listens."""


def keras_epoch(work: Work) -> dict[str, Any]:
    """An epoch of Keras `fit` on decoded images, after a warm-up, validation included."""
    from pipelines.images.preprocess import Preprocessing
    from pipelines.models.backbones import BackboneSpec, build_backbone, import_keras

    keras, recipe = import_keras(), work.config("", {}).recipe
    places = sorted(work.data.rglob("*.jpg"))
    order = np.random.default_rng(0).permutation(len(places))
    used, held = int(len(places) * 0.64), int(len(places) * 0.80)
    prepare = Preprocessing(recipe.input_size).prepare
    pixels = np.stack([prepare(places[row].read_bytes()).pixels for row in order[:held]])
    labels = np.array([places[row].parent.name == "malignant" for row in order[:held]])
    spec = BackboneSpec(recipe.backbone, recipe.alpha, recipe.input_size)
    backbone = build_backbone(spec, "none", 1, pixels[:16])
    backbone.trainable = False
    flow = keras.layers.GlobalAveragePooling2D()(backbone(backbone.input, training=False))
    flow = keras.layers.Dense(recipe.dense_units, activation=recipe.activation)(flow)
    model = keras.Model(backbone.input, keras.layers.Dense(1, activation="sigmoid")(flow))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    model.fit(pixels[:64], labels[:64], batch_size=32, validation_data=(pixels[used:], labels[used:]), verbose=0)
    began = time.perf_counter()
    model.fit(
        pixels[:used], labels[:used], batch_size=32, validation_data=(pixels[used:], labels[used:]), verbose=0
    )  # fmt: skip
    return {"seconds": time.perf_counter() - began, "images": used, "validation": held - used}


def one_epoch_trials(folder: Path, trials: int, images: int) -> dict[str, Any]:
    """Trainings of one epoch under Ray Tune and in a plain loop."""
    from cluster.session import start_or_join
    from pipelines.training.distributed import use_resources
    from pipelines.training.job import Arrays, FitJob
    from pipelines.training.loop import fit_job
    from pipelines.training.steps import Place
    from pipelines.tuning.answers import load_answer
    from pipelines.tuning.capacity import TrialRoom
    from pipelines.tuning.trial import TrialSpec
    from pipelines.tuning.trials import run_trials

    random = np.random.default_rng(0)
    labels, others = (np.arange(count) % 2 for count in (images, images // 4))
    arrays: dict[str, np.ndarray] = {
        "inputs": random.normal(0, 1, (images, 1, 1280)).astype(np.float32),
        "labels": labels,
        "keys": random.integers(0, 2**62, images),
        "validation_inputs": random.normal(0, 1, (len(others), 1, 1280)).astype(np.float32),
        "validation_labels": others,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    places = Arrays(**{name: str(folder / f"{name}.npy") for name in arrays})

    def job(number: int, where: str) -> FitJob:
        recipe = load_recipe("skin-lesion", {"epochs": "1", "learning_rate": str(1e-4 * (number + 1))})
        return FitJob(recipe, 2, (1,), (1.0, 1.0), 0, False, places, str(folder / f"{where}-{number}.npz"))

    specs = [TrialSpec(f"{n:04x}", job(n, "tune"), {1: (f"{n:016x}",)}, str(folder)) for n in range(trials + STARTED)]
    ends: list[float] = []
    with start_or_join("local") as size:
        run_trials(
            specs,
            TrialRoom(1),
            None,
            None,
            "accuracy",
            lambda news: ends.append(time.perf_counter()) if news.status == "done" else None,
        )
        at_a_time = size.cpus
    use_resources(1, on_gpu=False)
    plain, apart = [], 0.0
    for number in range(max(4, trials // 4)):
        began = time.perf_counter()
        fit = fit_job(job(number, "plain"), Place(), silent)
        plain.append(time.perf_counter() - began)
        answer = load_answer(str(folder), f"{number:016x}")
        assert answer is not None
        apart = max(apart, abs(answer.history[-1]["val_loss"] - fit.history[-1]["val_loss"]))
    answers = [load_answer(str(folder), f"{number:016x}") for number in range(STARTED, trials + STARTED)]
    epochs = [answer.seconds for answer in answers if answer is not None]
    each = (ends[-1] - ends[STARTED - 1]) / (len(ends) - STARTED) * at_a_time
    return {
        "trials": len(ends),
        "at_a_time": at_a_time,
        "seconds_a_trial": round(each, 3),
        "epoch_seconds": round(float(np.mean(epochs)), 3),
        "plain_loop_seconds": round(float(np.mean(plain[1:])), 3),
        "seconds_beside_the_epoch": round(each - float(np.mean(epochs)), 3),
        "seconds_beside_a_plain_loop": round(each - float(np.mean(plain[1:])), 3),
        "target": "under 0.5",
        "val_loss_apart": apart,
    }
