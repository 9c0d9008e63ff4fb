"""A service without a model, so that a test decides what an image gets."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pipelines.errors import ImageFailure
from pipelines.serving.answering import Answer, NotReady, QueueFull, ServedModel, ServiceState

MODEL = ServedModel(
    ref="s3://secret-place/models/cells",
    name='ce"ll\\s',
    version="v3",
    model_id="a" * 64,
    preprocessing_id="b" * 64,
    precision="float32",
    classes=("benign", "malignant"),
    positive_classes=("malignant",),
    input_size=96,
    thresholds={"threshold": 0.5},
    card={"images": {"val": {"benign": 7}}},
)
STATE = ServiceState(
    ready=True,
    why_not=None,
    queued=3,
    queue_limit=64,
    workers=2,
    workers_alive=2,
    worker_restarts=1,
    promotion_failed=None,
    loaded_at=datetime(2026, 3, 1, tzinfo=UTC),
)


@dataclass
class StandIn:
    """What an image begins with decides what it gets: the code of a failure, `queue_full`, `not_ready`, or `defect`.

    Attributes:
        known: Its state.
        asked: The images that it was asked for.
        at_once: How many it was ever asked for at the same time.
        full: Times that it says first that its queue is full.
        gate: Where given, answers wait for it.
        cancelled: Images whose askers left.
    """

    known: ServiceState = STATE
    asked: list[bytes] = field(default_factory=list)
    at_once: int = 0
    full: int = 0
    gate: asyncio.Event | None = None
    cancelled: int = 0
    _now: int = 0

    def model(self) -> ServedModel | None:
        return MODEL if self.known.ready else None

    def state(self) -> ServiceState:
        return self.known

    def start_again(self) -> None:
        self.known = replace(STATE, ready=False, why_not="The model is being loaded.", loaded_at=None)

    async def answer(self, data: bytes) -> Answer:
        self.asked.append(data)
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            await (asyncio.sleep(0) if self.gate is None else self.gate.wait())
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._now -= 1
        self._fail(data)
        return Answer(
            content_sha256=hashlib.sha256(data).hexdigest(),
            predicted_label="benign",
            probabilities={"benign": 0.75, "malignant": 0.25},
            p_positive=0.25,
            decision="negative",
            model=MODEL.identity,
            width=4,
            height=3,
            decoder="opencv",
            milliseconds=1.5,
        )

    async def preview(self, data: bytes, side: int) -> bytes:
        self._fail(data)
        return b"\x89PNG%d" % side

    def _fail(self, data: bytes) -> None:
        first = data.partition(b" ")[0].decode("latin-1")
        if first == "queue_full" or self.full > 0:
            self.full -= 1
            raise QueueFull(7)
        if first == "not_ready":
            raise NotReady("The model is being loaded.")
        if first == "defect":
            raise ZeroDivisionError(f"division of {data!r}")
        if first in ("not_an_image", "unsupported", "truncated", "too_large", "decoder_crashed", "timed_out"):
            raise ImageFailure(first, "A sentence about the image.")
