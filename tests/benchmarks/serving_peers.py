"""What an endpoint is measured against: the raw limit and the published way, each a script for its own process."""

from __future__ import annotations

from bench_score import KERAS_MODEL

# A golden self-test as real bundles have it, around the network of bench_score.
MAKE_SERVED = """
import sys
from dataclasses import replace
from pipelines.models import golden
from pipelines.models.bundle import write_bundle
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
bundle = resolve(sys.argv[1] + "/bench")
data, io = bundle.scorer("float32")
answers = golden.golden_answers(Scorer(data, io), 224)
write_bundle(sys.argv[1], "served", bundle.spec,
    {"scorer.tflite": data, golden.GOLDEN_FILE: golden.make_golden({"float32": answers}, 224)})
"""

# What each image is answered, by the kernel itself: {"content_sha256": …, "probabilities": {class: p}} by name.
EXPECTED = """
import json, sys
from pathlib import Path
from pipelines.images.preprocess import Preprocessing
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
bundle = resolve(sys.argv[1] + "/served")
scorer, prepare = Scorer(*bundle.scorer("float32")), Preprocessing(bundle.input_size).prepare
answers = {}
for path in sorted(Path(sys.argv[2]).iterdir()):
    prepared = prepare(path.read_bytes())
    values = [float(value) for value in scorer(prepared.pixels)]
    answers[path.name] = {"content_sha256": prepared.content_sha256,
        "probabilities": dict(zip(bundle.classes, values)),
        "predicted_label": bundle.classes[values.index(max(values))]}
print(json.dumps(answers))
"""

# Decode and kernel in a plain loop; for each line with a number of seconds one line with what was reached.
RAW = """
import json, sys, time
from pathlib import Path
from pipelines.images.preprocess import Preprocessing
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
bundle = resolve(sys.argv[1] + "/served")
scorer, prepare = Scorer(*bundle.scorer("float32")), Preprocessing(bundle.input_size).prepare
pictures = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]
for picture in pictures[:20]: scorer(prepare(picture).pixels)
print("ready", flush=True)
for line in sys.stdin:
    began, cpu, times = time.perf_counter(), time.process_time(), []
    while (start := time.perf_counter()) < began + float(line):
        scorer(prepare(pictures[len(times) % len(pictures)]).pixels)
        times.append(time.perf_counter() - start)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    times.sort()
    print(json.dumps({"images": len(times), "seconds": seconds, "cpu_ms_per_image": 1000 * cpu / len(times),
        "p50_ms": 1000 * times[len(times) // 2], "p99_ms": 1000 * times[int(0.99 * len(times))]}), flush=True)
"""

# The published way: an endpoint that decodes base64 with Pillow and calls Keras' `predict` for the one image.
PUBLISHED = (
    KERAS_MODEL
    + """
import base64, io, json, sys
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel
model, classes = keras_model(sys.argv[1]), ("benign", "malignant")
app = FastAPI()
class Body(BaseModel):
    image: str
@app.get("/readyz")
def ready(): return {}
@app.post("/predict")
def predict(body: Body):
    picture = Image.open(io.BytesIO(base64.b64decode(body.image))).convert("RGB").resize((224, 224))
    answer = model.predict(np.asarray(picture, dtype=np.float32)[None], verbose=0)[0]
    told = json.dumps({"predicted_label": classes[int(answer.argmax())], "probabilities": answer.tolist()})
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": told}
model.predict(np.zeros((1, 224, 224, 3), np.float32), verbose=0)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
"""
)

# From nothing to the first answer of the serverless handler, as a platform starts it.
COLD = """
import time
began = time.perf_counter()
import json, sys
from pipelines.serving.handler import handler
with open(sys.argv[1]) as file: event = json.load(file)
answer = handler(event, None)
seconds, cpu = time.perf_counter() - began, time.process_time()
warm = time.perf_counter()
handler(event, None)
warm = time.perf_counter() - warm
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
heavy = [name for name in ("ray", "tensorflow", "fastapi", "keras", "pandas", "pyarrow") if name in sys.modules]
print(json.dumps({"seconds_to_first_answer": seconds, "cpu_seconds": cpu, "warm_ms": warm * 1000,
    "resident_mb": int(status["VmRSS"].split()[0]) / 1024, "largest_mb": int(status["VmHWM"].split()[0]) / 1024,
    "heavy_modules": heavy, "status": answer["statusCode"], "body": answer["body"]}))
"""

# A Ray of this machine, with a token, until its input closes.
HOLD_RAY = """
import os, sys
from cluster.session import start_or_join
with start_or_join("local"):
    import ray
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.read()
"""
