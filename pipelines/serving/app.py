"""The endpoint's routes: from a request to the service behind it and back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from pipelines.serving import openapi
from pipelines.serving.access import Access
from pipelines.serving.answering import Answer, QueueFull, Service
from pipelines.serving.audit_log import AuditLog, Entry
from pipelines.serving.bodies import form_of, many_images, one_image
from pipelines.serving.docs_page import add_docs
from pipelines.serving.door import Door, defect_of
from pipelines.serving.envelope import in_envelope
from pipelines.serving.metrics import MEDIA_TYPE as METRICS_TYPE
from pipelines.serving.metrics import Metrics
from pipelines.serving.page import page_html
from pipelines.serving.preview import LEAST_SIDE, MOST_SIDE
from pipelines.serving.problems import IMAGE_CODES, NO_ANSWER, START_SECONDS, Problem, Refused, problem_of, refused
from pipelines.serving.reading import ClientLeft, Held, Receive, Share, read_body
from pipelines.serving.settings import MEBIBYTE, ServeSettings

JSON = "application/json"
BATCH_PATIENCE_SECONDS, BATCH_PAUSE_SECONDS = 120.0, 0.1
"""How long an image of a batch waits for room in a queue that others fill, and how often it looks."""

Outcome = TypeVar("Outcome")


def make_app(service: Service, settings: ServeSettings, replica: str | None = None) -> FastAPI:
    """Compose the endpoint.

    Args:
        service: What answers images.
        settings: Who may ask, and how much.
        replica: On Ray, what names this one of several that answer at one address; Ray gives requests their ids.

    Returns:
        The ASGI application. `app.state.metrics` counts; `connections.GuardedProtocol` counts there too.

    Raises:
        UsageError: If the audit log cannot be written.
    """
    metrics = Metrics({} if replica is None else {"replica": replica})
    access = Access(settings)
    audit = None if settings.audit_log is None else AuditLog(settings.audit_log)
    endpoint = Endpoint(service, settings, metrics, access, audit)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if audit is not None:
            audit.close()

    app = FastAPI(
        title="nightread",
        version=openapi.VERSION,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # A redirection would repeat what the client sent as Host.
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_served},
    )
    app.state.metrics = metrics
    app.add_middleware(Door, access=access, metrics=metrics, ids_given=replica is not None)
    endpoint.add_routes(app)
    add_docs(app)
    openapi.complete(app)
    return app


class Endpoint:
    """The routes.

    Args:
        service: What answers images.
        settings: Limits.
        metrics: Counts images.
        access: Says who asks.
        audit: What every image is written to, or None.
    """

    def __init__(
        self, service: Service, settings: ServeSettings, metrics: Metrics, access: Access, audit: AuditLog | None
    ) -> None:
        self._service = service
        self._settings = settings
        self._metrics = metrics
        self._access = access
        self._audit = audit
        self._held = Held(settings.max_held_bytes)

    def add_routes(self, app: FastAPI) -> None:
        """Give an application these routes."""
        app.post("/predict", **openapi.PREDICT)(self.predict)
        app.post("/predict/batch", **openapi.BATCH)(self.batch)
        app.post("/preview", **openapi.PREVIEW)(self.preview)
        app.get("/model", **openapi.MODEL)(self.model)
        app.get("/healthz", **openapi.HEALTH)(self.health)
        app.get("/readyz", **openapi.READY)(self.readiness)
        app.get("/metrics", **openapi.METRICS)(self.figures)
        app.get("/", include_in_schema=False)(self.page)

    async def predict(self, request: Request) -> Response:
        """Answer one image."""
        envelope = _parameter(request, "envelope")
        if envelope not in (None, "lambda"):
            raise refused("bad_request", "There is one envelope: lambda.")
        if envelope is None:
            return _json(await self._predicted(request))
        try:
            body, status, headers = json.dumps(await self._predicted(request)), 200, {"Content-Type": JSON}
        except NO_ANSWER as error:
            problem = problem_of(error)
            body = json.dumps(problem.as_json(request.state.request_id))
            status, headers = problem.status, problem.all_headers()
        return _json(in_envelope(status, headers, body), status)

    async def batch(self, request: Request) -> Response:
        """Answer up to 64 images; one that cannot be answered never costs another its answer."""
        if _parameter(request, "envelope") is not None:
            raise refused("bad_request", "The envelope is for one image: send it to /predict.")
        self._check_ready()
        form = form_of(request.headers.get("content-type"))
        with self._held.share() as share:
            images = many_images(form, await self._body(request, self._settings.max_batch_bytes, share))
            images = [self._within_limit(image) for image in images]
            request_id = request.state.request_id
            outcomes = await _while_client_waits(request.receive, self._answers(images, request_id))
            ids = [f"{request_id}-{number}" for number in range(len(images))]
            await self._record(request, list(zip(ids, images, outcomes, strict=True)))
        return _json({"answers": [outcome.as_json(own) for own, outcome in zip(ids, outcomes, strict=True)]})

    async def preview(self, request: Request) -> Response:
        """Show an image as a PNG."""
        given = _parameter(request, "side") or "1024"
        if not re.fullmatch(r"[0-9]{1,4}", given) or not LEAST_SIDE <= (side := int(given)) <= MOST_SIDE:
            raise refused("bad_request", f"The side is a number from {LEAST_SIDE} to {MOST_SIDE}.")
        self._check_ready()
        form = form_of(request.headers.get("content-type"))
        with self._held.share() as share:
            image = one_image(form, await self._body(request, self._settings.max_body_bytes, share))
            png = await _while_client_waits(request.receive, self._service.preview(image, side))
        return Response(png, media_type="image/png")

    async def model(self) -> Response:
        """Tell about the model that answers: nothing of where it lies, nothing of a patient."""
        self._check_ready()
        model, state = self._service.model(), self._service.state()
        assert model is not None
        return _json(
            {
                **model.identity,
                "preprocessing_id": model.preprocessing_id,
                "precision": model.precision,
                "classes": model.classes,
                "positive_classes": model.positive_classes,
                "input_size": model.input_size,
                "thresholds": None if model.thresholds is None else dict(model.thresholds),
                "card": dict(model.card),
                "loaded_at": None if state.loaded_at is None else state.loaded_at.isoformat(),
            }
        )

    async def health(self) -> Response:
        """Say that this process lives."""
        return _json({"status": "ok"})

    async def readiness(self) -> Response:
        """Say whether images are answered."""
        self._check_ready()
        if self._audit is not None and self._audit.is_failing:
            raise self._audit.refusal()
        return _json({"status": "ready"})

    async def figures(self) -> Response:
        """Give the figures for Prometheus."""
        text = self._metrics.text(self._service.model(), self._service.state(), self._held.now)
        return Response(text, headers={"Content-Type": METRICS_TYPE})

    async def page(self) -> Response:
        """Give the upload page."""
        html, policy = page_html()
        return Response(html, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def _predicted(self, request: Request) -> dict[str, Any]:
        self._check_ready()
        form = form_of(request.headers.get("content-type"))
        with self._held.share() as share:
            image = one_image(form, await self._body(request, self._settings.max_body_bytes, share))
            request_id = request.state.request_id
            outcome = await _while_client_waits(request.receive, self._outcome(image, request_id))
            await self._record(request, [(request_id, image, outcome)])
        if isinstance(outcome, Problem):
            raise Refused(outcome)
        return outcome.as_json(request_id)

    def _within_limit(self, image: bytes | Problem) -> bytes | Problem:
        """An image of a batch, if it could have come alone."""
        limit = self._settings.max_body_bytes
        if isinstance(image, bytes) and len(image) > limit:
            return Problem("too_large", f"One image may have at most {limit / MEBIBYTE:g} MiB.")
        return image

    def _check_ready(self) -> None:
        state = self._service.state()
        if not state.ready:
            raise refused("not_ready", state.why_not or "No model answers yet.", START_SECONDS)

    async def _body(self, request: Request, limit: int, share: Share) -> bytes:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise refused("unsupported_media_type", "The body is compressed; send it as it is.")
        return await read_body(request.receive, request.headers.get("content-length"), limit, share)

    async def _answers(self, images: Sequence[bytes | Problem], request_id: str) -> list[Answer | Problem]:
        """Answer images, no more at once than there are processes, so that other requests get their turn in between."""
        at_once = asyncio.Semaphore(self._settings.workers)

        async def answered(image: bytes | Problem) -> Answer | Problem:
            if isinstance(image, Problem):
                return image
            async with at_once:
                return await self._outcome(image, request_id, BATCH_PATIENCE_SECONDS)

        return await asyncio.gather(*map(answered, images))

    async def _outcome(self, image: bytes, request_id: str, patience: float = 0.0) -> Answer | Problem:
        """The answer to one image, or why there is none; waits `patience` seconds for room in the queue."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + patience
        while True:
            try:
                return await self._service.answer(image)
            except QueueFull as full:
                if clock() >= deadline:
                    return problem_of(full)
                await asyncio.sleep(BATCH_PAUSE_SECONDS)
            except NO_ANSWER as error:
                return problem_of(error)
            except Exception as defect:
                return defect_of(defect, request_id)

    async def _record(self, request: Request, rows: Sequence[tuple[str, bytes | Problem, Answer | Problem]]) -> None:
        """Count images and write those that were looked at to the audit log, before any of their answers leaves."""
        for _, _, outcome in rows:
            if isinstance(outcome, Answer):
                self._metrics.count_image("answered", outcome.decision)
            else:
                self._metrics.count_image(outcome.error_code)
        if self._audit is None:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        caller, token = self._access.caller(request.scope), self._access.token_id
        entries: list[Entry] = []
        for request_id, image, outcome in rows:
            if isinstance(outcome, Answer):
                sha256, model_id = outcome.content_sha256, outcome.model["model_id"]
                entries.append(Entry(time, request_id, caller, token, sha256, model_id, outcome.decision, "answered"))
            elif isinstance(image, bytes) and outcome.error_code in IMAGE_CODES:
                sha256 = await asyncio.to_thread(_sha256, image)
                entries.append(Entry(time, request_id, caller, token, sha256, None, None, outcome.error_code))
        self._audit.append(entries)


def _parameter(request: Request, name: str) -> str | None:
    """A query parameter; the framework's own way costs a third of a request, for two that are seldom given."""
    if not request.scope["query_string"]:
        return None
    value: str | None = request.query_params.get(name)
    return value


def _sha256(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


async def _while_client_waits(receive: Receive, work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Do some work, and leave it as soon as the client has left: its place in the queue is another's then.

    Raises:
        ClientLeft: If it did.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        task.cancel()
        left.cancel()


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type=JSON)


async def _not_served(request: Request, error: Exception) -> NoReturn:
    """Turn the framework's refusals into ours."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        raise refused("method_not_allowed", "This path does not take this method.", headers=error.headers)
    if error.status_code == 404:
        raise refused("not_found", "There is nothing at this path.")
    raise refused("bad_request", "The request cannot be read.")
