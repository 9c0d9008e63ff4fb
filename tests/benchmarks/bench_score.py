"""The main job against its raw limit and its peers, in one run, with the answers compared.

    python tests/benchmarks/bench_score.py [--images 2000] [--folder DIR] [--rounds 3] [--peers]

Draws JPEGs of 1024x768, makes a MobileNetV2 bundle (alpha 1.0, 224 px, seeded weights) and measures, in turn:

raw         one process per core, the project's own read, decode and kernel in a plain loop, no Ray
nightread   `nightread score`: steady rate, seconds, seconds to the first part on disk, memory of an actor
ray_data    Ray Data as its documentation does it: read_images -> map_batches(Keras) -> write_parquet
tf_data     tf.data with parallel decoding and Keras `predict`

Rates of all four are steady: start-up, imports and model loading are not in them. Prints one JSON line each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 1024, 768
SECONDS_BETWEEN_LOOKS = 8.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "0"}


def draw_images(folder: Path, count: int) -> None:
    """Draw `count` textured JPEGs of about 180 kB, each different; those that are there stay."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(7)
    grain = generator.normal(0, 9, (HEIGHT * 2, WIDTH * 2, 3)).astype(np.float32)
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if path.exists():
            continue
        coarse = generator.uniform(40, 220, (12, 16, 3)).astype(np.float32)
        y, x = int(generator.integers(HEIGHT)), int(generator.integers(WIDTH))
        picture = (
            cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) + grain[y : y + HEIGHT, x : x + WIDTH]
        )
        encoded = cv2.imencode(".jpg", np.clip(picture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
        path.write_bytes(encoded.tobytes())


MAKE_BUNDLE = """
import sys
import numpy as np
from pipelines.images.preprocess import Preprocessing
from pipelines.models import backbones, compile, heads
from pipelines.models.bundle import write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
models, first_image = sys.argv[1:3]
from pathlib import Path
preparation = Preprocessing(224)
paths = sorted(Path(first_image).parent.iterdir())[:32]
images = np.stack([preparation.prepare(p.read_bytes()).pixels for p in paths])
spec = backbones.BackboneSpec("mobilenet_v2", 1.0, 224, "backbone")
backbone = backbones.build_backbone(spec, "none", seed=1, calibration_images=images)
head = heads.build_head(heads.HeadSpec(pooling="avg", classes=2), backbone.output_shape[1:])
data, io = compile.compile_scorer(backbone, head, 1.0, 224), ScorerIO(224, 2)
backbone.save_weights(models + "/backbone.weights.h5")
head.save_weights(models + "/head.weights.h5")
write_bundle(models, "bench", BundleSpec(("benign", "malignant"), ("malignant",), 224, preparation.id,
    {"float32": ScorerEntry("scorer.tflite", io)}, thresholds={"image": {"threshold": 0.5}}), {"scorer.tflite": data})
"""

RAW = """
import json, multiprocessing, sys, time
def work(index, workers, barrier, queue):
    from pathlib import Path
    from pipelines.images.preprocess import Preprocessing
    from pipelines.models.registry import resolve
    from pipelines.models.runtime import Scorer
    bundle = resolve(sys.argv[1] + "/bench")
    scorer, prepare = Scorer(*bundle.scorer("float32")), Preprocessing(224).prepare
    paths = sorted(Path(sys.argv[2]).iterdir())[index::workers]
    scorer(prepare(paths[0].read_bytes()).pixels)
    barrier.wait()
    answers = [float(scorer(prepare(path.read_bytes()).pixels)[1]) for path in paths]
    queue.put(dict(zip([path.name for path in paths], answers)))
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    workers = int(sys.argv[3])
    barrier, queue = context.Barrier(workers + 1), context.Queue()
    processes = [context.Process(target=work, args=(i, workers, barrier, queue)) for i in range(workers)]
    for process in processes: process.start()
    barrier.wait()
    began = time.perf_counter()
    answers = {}
    for _ in processes: answers |= queue.get()
    seconds = time.perf_counter() - began
    for process in processes: process.join()
    print(json.dumps({"images_per_second": len(answers) / seconds, "answers": answers}))
"""

KERAS_MODEL = """
def keras_model(models):
    import keras
    from pipelines.models import heads
    inputs = keras.Input((224, 224, 3))
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(224, 224, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    from pipelines.models import backbones
    backbone = backbones.build_backbone(backbones.BackboneSpec("mobilenet_v2", 1.0, 224, "backbone"), "none", seed=1,
        calibration_images=__import__("numpy").zeros((1, 224, 224, 3), "uint8"))
    head = heads.build_head(heads.HeadSpec(pooling="avg", classes=2), backbone.output_shape[1:])
    backbone.load_weights(models + "/backbone.weights.h5"); head.load_weights(models + "/head.weights.h5")
    outputs = keras.layers.Softmax()(head(backbone(keras.layers.Identity()(inputs))))
    return keras.Model(inputs, outputs)
"""

RAY_DATA = (
    KERAS_MODEL
    + """
import json, os, shutil, sys, time
import numpy as np
class KerasPredictor:
    def __init__(self, models, log):
        self.model, self.log = keras_model(models), log
        self.model.predict(np.zeros((64, 224, 224, 3), np.float32), verbose=0)
    def __call__(self, batch):
        out = self.model.predict(batch["image"].astype(np.float32), batch_size=64, verbose=0)
        with open(self.log, "a") as f: f.write(json.dumps([time.time(), os.getpid(), len(out)]) + chr(10))
        return {"path": batch["path"], "p": out[:, 1]}
import ray
models, images, workers, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
ray.init(address="local", num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
log = out + ".log"
ds = ray.data.read_images(images, size=(224, 224), mode="RGB", include_paths=True)
ds = ds.map_batches(KerasPredictor, batch_size=64, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1),
    fn_constructor_args=(models, log))
ds.write_parquet(out)
ended = time.time()
import pyarrow.parquet as pq
table = pq.read_table(out)
calls = [json.loads(line) for line in open(log)]
first = calls[0]
print(json.dumps({"images_per_second": sum(c[2] for c in calls[1:]) / (ended - first[0]), "answers":
    {os.path.basename(p): float(v) for p, v in zip(table["path"].to_pylist(), table["p"].to_pylist())}}))
ray.shutdown()
"""
)

TF_DATA = (
    KERAS_MODEL
    + """
import json, os, sys, time
import numpy as np, tensorflow as tf
models, images, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = keras_model(models)
paths = sorted(os.path.join(images, name) for name in os.listdir(images))
def load(path):
    picture = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    return tf.image.resize(picture, (224, 224))
ds = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=tf.data.AUTOTUNE)
ds = ds.batch(64).prefetch(tf.data.AUTOTUNE)
model.predict(ds.take(2), verbose=0)
began = time.perf_counter()
out = model.predict(ds, verbose=0)[:, 1]
seconds = time.perf_counter() - began
print(json.dumps({"images_per_second": len(out) / seconds,
    "answers": {os.path.basename(p): float(v) for p, v in zip(paths, out)}}))
"""
)


def run_script(text: str, *arguments: str) -> dict:
    """Run a script in a fresh process and read the JSON of its last line."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(text)
        done = subprocess.run(
            [sys.executable, str(script), *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {}


def watch_first_part(results: Path, began: float, seen: dict[str, float], stop: threading.Event) -> None:
    """Note when the first part appears and how much private memory the actors hold."""
    look_again = began + SECONDS_BETWEEN_LOOKS
    while not stop.wait(0.05):
        if "first_part" not in seen and any(results.glob("runs/*/parts/*.parquet")):
            seen["first_part"] = time.perf_counter() - began
        if time.perf_counter() < look_again:  # walking through a process's pages costs the cores that are measured
            continue
        look_again = time.perf_counter() + SECONDS_BETWEEN_LOOKS
        for actor in actor_processes():
            seen["actor_private_mb"] = max(seen.get("actor_private_mb", 0.0), private_mb(actor))
            seen.setdefault("actors_with_tensorflow", 0.0)
            if "tensorflow" in (Path("/proc") / actor / "maps").read_text(errors="ignore"):
                seen["actors_with_tensorflow"] += 1


def actor_processes() -> list[str]:
    """Process ids of Ray's scoring actors."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"MapWorker" in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


def private_mb(pid: str) -> float:
    """Private memory of a process in MB (private clean and dirty pages)."""
    try:
        text = (Path("/proc") / pid / "smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


def run_nightread(models: Path, images: Path, results: Path) -> dict:
    """Score with the command itself; returns its JSON, the watched figures and the table's answers."""
    seen: dict[str, float] = {}
    stop = threading.Event()
    began = time.perf_counter()
    watcher = threading.Thread(target=watch_first_part, args=(results, began, seen, stop))
    watcher.start()
    command = [
        sys.executable,
        "-m",
        "jobs",
        "score",
        str(images),
        "--model",
        f"{models}/bench",
        "--results",
        str(results),
    ]
    done = subprocess.run([*command, "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    stop.set()
    watcher.join()
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    report = json.loads(done.stdout)
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

    table = ds.dataset(DeltaTable(results / "predictions").file_uris()).to_table(columns=["image_uri", "p_malignant"])
    answers = {
        os.path.basename(u): p
        for u, p in zip(table["image_uri"].to_pylist(), table["p_malignant"].to_pylist(), strict=True)
    }
    return {**report, **seen, "rows": table.num_rows, "answers": answers}


def largest_difference(one: dict[str, float], other: dict[str, float]) -> float:
    """Largest difference between two sets of answers to the same images."""
    if one.keys() != other.keys():
        raise SystemExit("the answers are not for the same images")
    return max(abs(one[name] - other[name]) for name in one)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nightread-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    images, models = options.folder / f"images-{options.images}", options.folder / "models"
    workers = str(len(os.sched_getaffinity(0)))
    draw_images(images, options.images)
    models.mkdir(parents=True, exist_ok=True)
    if not (models / "bench").exists():
        run_script(MAKE_BUNDLE, str(models), str(images / "00000.jpg"))
    for number in range(options.rounds):
        raw = run_script(RAW, str(models), str(images), workers)
        with tempfile.TemporaryDirectory() as results:
            ours = run_nightread(models, images, Path(results) / "results")
        difference = largest_difference(raw.pop("answers"), ours.pop("answers"))
        print(json.dumps({"round": number, "what": "raw", **raw}), flush=True)
        print(
            json.dumps(
                {
                    "round": number,
                    "what": "nightread",
                    **ours,
                    "largest_difference_to_raw": difference,
                    "of_raw": ours["images_per_second"] / raw["images_per_second"],
                }
            ),
            flush=True,
        )
        if ours["rows"] != options.images or difference > 1e-6:
            raise SystemExit("the answers differ")
        if options.peers:
            for what, script in (("tf_data", TF_DATA), ("ray_data", RAY_DATA)):
                with tempfile.TemporaryDirectory() as out:
                    peer = run_script(script, str(models), str(images), workers, f"{out}/table")
                rows = len(peer.pop("answers"))
                print(
                    json.dumps(
                        {
                            "round": number,
                            "what": what,
                            **peer,
                            "rows": rows,
                            "nightread_is_times": ours["images_per_second"] / peer["images_per_second"],
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
