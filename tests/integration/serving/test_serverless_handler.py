"""The handler as a platform runs it: in a fresh process, with real events, the model in a bucket."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.images.preprocess import Preprocessing
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer

# One process for all events, as a platform does it; the first line tells how it was until the first answer.
CALLS = """
import json, sys, time
from pipelines.serving.handler import handler
for number, line in enumerate(sys.stdin):
    answer = handler(json.loads(line), None)
    if number == 0:
        status = dict(row.split(":", 1) for row in open("/proc/self/status"))
        print(json.dumps({"cpu": time.process_time(), "mb": int(status["VmHWM"].split()[0]) / 1024}))
    print(json.dumps(answer), flush=True)
import importlib.metadata
owners = importlib.metadata.packages_distributions()
tops = {module.partition(".")[0] for module in sys.modules}
print(json.dumps(sorted({owner for top in tops for owner in owners.get(top, [])})))
"""


def call(environment: Mapping[str, str], *events: Any) -> tuple[dict[str, float], list[Any], set[str], str]:
    """Hand events to a fresh process: how the first went, the answers, the distributions loaded, and the log."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input="".join(json.dumps(event) + "\n" for event in events),
        env=dict(environment), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *answers, loaded = [json.loads(line) for line in done.stdout.splitlines()]
    return first, answers, set(loaded), done.stderr


def post(body: str, encoded: bool = False, content_type: str = "application/json") -> dict[str, Any]:
    return {
        "version": "2.0",
        "rawPath": "/prod/predict",
        "headers": {"content-type": content_type},
        "requestContext": {"http": {"method": "POST"}, "requestId": "JKJaXmPLvHcESHA="},
        "body": body,
        "isBase64Encoded": encoded,
    }


def published(picture: bytes) -> dict[str, Any]:
    """A REST event with the body of the published system."""
    body = json.dumps({"image": base64.b64encode(picture).decode()})
    return {"httpMethod": "POST", "path": "/predict", "headers": None, "body": body, "isBase64Encoded": False}


def as_kind(path: Path, kind: str) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    Image.open(path).save(made, kind)
    return made.getvalue()


@pytest.fixture(scope="module")
def in_bucket(s3_server: str, tiny_models: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment of a function whose models lie in a bucket."""
    import s3fs

    store = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=s3_server)
    store.call_s3("create_bucket", Bucket="functions")
    store.put(str(tiny_models), "functions/models", recursive=True)
    keys = {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    return {**environment, **keys, "NIGHTREAD_MODEL": "s3://functions/models/other"}


def test_a_fresh_process_gives_the_nights_answers_soon_and_in_little_memory(
    in_bucket: dict[str, str], tiny_models: Path, draw: Callable[..., list[Path]], tmp_path: Path, checkout: Path
) -> None:
    paths = draw(tmp_path, 3)
    pictures = [path.read_bytes() for path in paths] + [as_kind(paths[0], kind) for kind in ("PNG", "TIFF", "WEBP")]
    whole = post(base64.b64encode(pictures[2]).decode(), encoded=True, content_type="image/jpeg")
    broken = [(b"no picture", 415, "not_an_image"), (pictures[0][:-2000], 422, "truncated")]
    first, answers, loaded, log = call(
        in_bucket,
        *map(published, pictures),
        whole,
        *(published(data) for data, _, _ in broken),
        {"httpMethod": "GET", "path": "/health"},
    )
    # The tiny network is no help here: libraries make up nearly all of it, and a real one's 0.1 s and 15 MB fit too.
    assert first["cpu"] < 1.5 and first["mb"] < 150
    required = (checkout / "cluster" / "deploy" / "serverless" / "requirements.txt").read_text().splitlines()
    assert loaded - {"setuptools"} == {line.partition("==")[0] for line in required if not line.startswith("#")}
    bundle = resolve(f"{tiny_models}/other")
    scorer, prepare = Scorer(*bundle.scorer("float32")), Preprocessing(96).prepare
    for data, answer in zip([*pictures, pictures[2]], answers, strict=False):
        told, prepared = json.loads(answer["body"]), prepare(data)
        wanted = scorer(prepared.pixels)
        assert answer["statusCode"] == 200 and answer["headers"]["Cache-Control"] == "no-store"
        assert told["content_sha256"] == hashlib.sha256(data).hexdigest()
        assert np.array_equal(np.float32(list(told["probabilities"].values())), wanted)
        assert told["predicted_label"] == ("benign", "malignant")[int(wanted.argmax())]
        assert told["decision"] == bundle.decision(bundle.p_positive(wanted))
        assert told["model"] == {"name": "other", "version": "v1", "model_id": bundle.model_id}
    for (_, status, code), answer in zip(broken, answers[len(pictures) + 1 :], strict=False):
        assert (answer["statusCode"], json.loads(answer["body"])["error_code"]) == (status, code)
    assert json.loads(answers[-1]["body"])["status"] == "ready"
    assert log == ""


def test_an_altered_model_is_not_answered_with(in_bucket: dict[str, str], tiny_models: Path, tmp_path: Path) -> None:
    import shutil

    models = shutil.copytree(tiny_models, tmp_path / "models")
    scorer = models / "cells" / "v1" / "scorer.tflite"
    data = bytearray(scorer.read_bytes())
    data[len(data) // 2] ^= 1
    scorer.write_bytes(data)
    _, answers, _, log = call({**in_bucket, "NIGHTREAD_MODEL": f"{models}/cells@v1"}, published(b"x"), published(b"x"))
    assert [answer["statusCode"] for answer in answers] == [503, 503]
    assert all(str(tmp_path) not in answer["body"] for answer in answers)
    assert log.count("was altered") == 2 and "Traceback" not in log


def test_nothing_is_left_on_the_disk(
    in_bucket: dict[str, str], draw: Callable[..., list[Path]], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    [picture] = draw(tmp_path / "pictures", 1)
    places = {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    _, [answer], _, _ = call({**in_bucket, **places}, published(picture.read_bytes()))
    assert answer["statusCode"] == 200 and os.listdir(home) == []
