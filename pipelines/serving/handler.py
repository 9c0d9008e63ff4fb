"""One image for each call of a function behind an API gateway: `pipelines.serving.handler.handler`.

The model is that of NIGHTREAD_MODEL: a bundle's folder, MODELS/NAME or MODELS/NAME@VERSION, local or `s3://…`. It is
fetched into memory once for each process, its hashes are checked and its self-test run; nothing is written to a disk.
Neither Ray nor TensorFlow nor FastAPI is loaded.

Images are decoded in this process: a second one would cost memory and the time to start it. Should one ever end the
decoder, the platform starts the function anew, and only the call in hand is lost. Who may call is the gateway's to
decide.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipelines.errors import NightreadError, UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import peek
from pipelines.models.golden import self_test
from pipelines.models.registry import locate
from pipelines.models.runtime import Scorer
from pipelines.serving.answering import NotReady, ServedModel, answer_image, preprocessing_of
from pipelines.serving.door import ALWAYS, LOG, defect_of
from pipelines.serving.envelope import in_envelope
from pipelines.serving.gateway import GatewayRequest, read_event
from pipelines.serving.problems import NO_ANSWER, problem_of, refused
from pipelines.serving.served_model import describe

MODEL_VARIABLE = "NIGHTREAD_MODEL"
PRECISION = "float32"

HEADERS = {"Content-Type": "application/json"} | {name.decode().title(): value.decode() for name, value in ALWAYS}

# A scorer is not thread-safe; platforms call a process for one request at a time anyway.
_ONE_AT_A_TIME = threading.Lock()


def handler(event: Any, context: object) -> dict[str, Any]:
    """Answer one event of an API gateway.

    Args:
        event: REST API (v1) or HTTP API (v2). POST, under any path, is answered as `/predict` is by the endpoint; GET
            tells whether the model is there.
        context: The platform's own; not looked at.

    Returns:
        `{"statusCode", "headers", "body"}`, the body being the JSON of the answer or of a problem (RFC 9457). Nothing
        is raised.
    """
    began = time.perf_counter()
    request = read_event(event)
    status, headers = 200, HEADERS
    try:
        with _ONE_AT_A_TIME:
            value = _answered(request)
    except Exception as error:
        problem = problem_of(error) if isinstance(error, NO_ANSWER) else defect_of(error, request.request_id)
        status, headers, value = problem.status, HEADERS | problem.all_headers(), problem.as_json(request.request_id)
    seconds = time.perf_counter() - began
    LOG.info("request %s status %d %.1f ms", request.request_id, status, seconds * 1000)
    return in_envelope(status, {**headers, "X-Request-Id": request.request_id}, json.dumps(value))


@dataclass(frozen=True)
class _Loaded:
    """A model that passed its self-test in this process."""

    model: ServedModel
    preprocessing: Preprocessing
    scorer: Scorer


def _answered(request: GatewayRequest) -> dict[str, Any]:
    if request.method not in ("GET", "HEAD", "POST"):
        told = "POST an image, or GET to hear whether the model is there."
        raise refused("method_not_allowed", told, headers={"Allow": "GET, POST"})
    # What is wrong with a request is told without a model.
    data = request.image() if request.method == "POST" else b""
    loaded = _model()
    if request.method != "POST":
        return {"status": "ready", "model": loaded.model.identity}
    answer = answer_image(data, loaded.preprocessing.prepare, loaded.scorer, loaded.model)
    return answer.as_json(request.request_id)


def _model() -> _Loaded:
    """The model of this process; where it cannot be loaded, the next call tries again.

    Raises:
        NotReady: If it cannot; the log says why. A client is told of no place and no bucket.
    """
    try:
        ref = os.environ.get(MODEL_VARIABLE, "")
        if not ref:
            raise UsageError(
                f"{MODEL_VARIABLE} is not set.", "Set it to a bundle's folder, MODELS/NAME or MODELS/NAME@VERSION."
            )
        return _load(ref)
    except NightreadError as error:
        LOG.error("The model cannot be loaded: %s", error)
        raise NotReady("The model cannot be loaded; the log says why.") from error


@cache
def _load(ref: str) -> _Loaded:
    # Only the files that answer are fetched, each compared with its hash: the weights of training are no part of that.
    bundle = peek(locate(ref))
    model = describe(bundle, ref, PRECISION)
    preprocessing = preprocessing_of(model)
    scorer = Scorer(*bundle.scorer(PRECISION))
    self_test(bundle, scorer, PRECISION)
    return _Loaded(model, preprocessing, scorer)
