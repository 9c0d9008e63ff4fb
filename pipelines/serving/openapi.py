"""What the OpenAPI document says beyond what the routes' signatures say: bodies, answers, problems and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

from pipelines.serving.problems import KINDS, MEDIA_TYPE, Problem

VERSION = "1"
DESCRIPTION = """Answers for one image at a time, with the very same answer that the night would write.

Images are kept in memory only and are never written to a disk or a log. Not a medical device.

Where the server asks for a token, send it as `Authorization: Bearer …`. Every answer that is not the one asked for is
a problem of RFC 9457 with a stable `error_code`."""

_REF = "#/components/schemas/"
_HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_DECISION = {"type": ["string", "null"], "enum": ["negative", "refer", "positive", None]}
_IDENTITY = {
    "type": "object",
    "required": ["name", "version", "model_id"],
    "properties": {"name": {"type": "string"}, "version": {"type": "string"}, "model_id": _HASH},
}

ANSWER = {
    "request_id": "5f1c9a7e30b2d846",
    "content_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "predicted_label": "benign",
    "probabilities": {"benign": 0.75, "malignant": 0.25},
    "p_positive": 0.25,
    "decision": "refer",
    "model": {
        "name": "cells",
        "version": "v3",
        "model_id": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    },
    "width": 1024,
    "height": 768,
    "decoder": "simplejpeg",
    "milliseconds": 6.4,
}

SCHEMAS: Mapping[str, Any] = {
    "Answer": {
        "type": "object",
        "description": "The answer to one image: the same values as in the row that the night would write.",
        "required": list(ANSWER),
        "properties": {
            "request_id": {"type": "string"},
            "content_sha256": _HASH,
            "predicted_label": {"type": "string", "description": "The class of the highest probability."},
            "probabilities": {"type": "object", "additionalProperties": _SHARE},
            "p_positive": {"type": ["number", "null"], "description": "The sum over the positive classes."},
            "decision": _DECISION,
            "model": _IDENTITY,
            "width": {"type": "integer", "minimum": 1},
            "height": {"type": "integer", "minimum": 1},
            "decoder": {"type": "string"},
            "milliseconds": {"type": "number", "minimum": 0},
        },
    },
    "Envelope": {
        "type": "object",
        "description": "The published envelope; `body` is the JSON text of an answer or a problem.",
        "required": ["statusCode", "headers", "body"],
        "properties": {
            "statusCode": {"type": "integer"},
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "body": {"type": "string"},
        },
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "error_code", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "error_code": {"type": "string", "enum": sorted(KINDS)},
            "request_id": {"type": "string"},
        },
    },
    "Answers": {
        "type": "object",
        "required": ["answers"],
        "properties": {
            "answers": {
                "type": "array",
                "minItems": 1,
                "maxItems": 64,
                "items": {"anyOf": [{"$ref": f"{_REF}Answer"}, {"$ref": f"{_REF}Problem"}]},
            }
        },
    },
    "Model": {
        "type": "object",
        "required": ["name", "version", "model_id", "classes", "positive_classes"],
        "properties": {
            **_IDENTITY["properties"],  # type: ignore[dict-item]
            "preprocessing_id": _HASH,
            "precision": {"type": "string", "enum": ["float32", "int8"]},
            "classes": {"type": "array", "items": {"type": "string"}},
            "positive_classes": {"type": "array", "items": {"type": "string"}},
            "input_size": {"type": "integer"},
            "thresholds": {"type": ["object", "null"]},
            "card": {"type": "object"},
            "loaded_at": {"type": ["string", "null"], "format": "date-time"},
        },
    },
    "Status": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
}

# A PNG of one grey pixel.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
_FILE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "description": "Base64, line breaks allowed, or a data URL.", "example": _PIXEL}
_IMAGE_BODY = {
    "required": True,
    "description": "The image in one of three ways.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": _BASE64}},
        },
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": _FILE}},
        },
        "application/octet-stream": {"schema": _FILE},
        "image/*": {"schema": _FILE},
    },
}
_BATCH_BODY = {
    "required": True,
    "description": "Up to 64 images in one of two ways.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "minItems": 1, "maxItems": 64, "items": _BASE64}},
            },
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "minItems": 1, "maxItems": 64, "items": _FILE}},
            },
        },
    },
}

_DETAILS = {
    "bad_request": "The image is not valid base64.",
    "unauthorized": "This needs the server's token as bearer.",
    "forbidden_origin": "Pages of this origin may not ask here; --cors lists those that may.",
    "request_timeout": "The request came too slowly.",
    "too_large": "The body is longer than 67108864 bytes.",
    "not_an_image": "The bytes are of no image format that is read.",
    "misdirected": "This server answers to names of its own machine only.",
    "truncated": "The JPEG data end early or are damaged.",
    "queue_full": "As many images wait as may; ask again later.",
    "internal": "The server has a defect; its log knows this request's id.",
    "not_ready": "The model is being loaded.",
}
_ENVELOPED = {"oneOf": [{"$ref": f"{_REF}Answer"}, {"$ref": f"{_REF}Envelope"}]}
_ANYWHERE = ("misdirected", "forbidden_origin", "request_timeout", "internal")
_WITH_TOKEN = ("unauthorized", *_ANYWHERE)
_OF_IMAGES = ("bad_request", "too_large", "not_an_image", "truncated", "queue_full", "not_ready", *_WITH_TOKEN)


def _problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The answers that are problems, an example of each; their statuses stand for all codes that have them."""
    answers: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        problem = Problem(code, _DETAILS[code])
        content = {"schema": {"$ref": f"{_REF}Problem"}, "example": problem.as_json(ANSWER["request_id"])}  # type: ignore[arg-type]
        names = ", ".join(name for name, kind in KINDS.items() if kind.status == problem.status)
        answer: dict[str, Any] = {"description": f"A problem: {names}", "content": {MEDIA_TYPE: content}}
        if code in ("queue_full", "not_ready"):
            answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
        answers[problem.status] = answer
    return answers


def _enveloped(problems: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    for answer in problems.values():
        answer["content"]["application/json"] = {"schema": {"$ref": f"{_REF}Envelope"}}
    return problems


def _ok(media_type: str, schema: Mapping[str, Any], example: object = None) -> dict[int | str, dict[str, Any]]:
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {200: {"description": "Done", "content": {media_type: content}}}


def _route(name: str, responses: dict[int | str, dict[str, Any]], **extra: Any) -> dict[str, Any]:
    return {
        "operation_id": name,
        "response_class": Response,
        "responses": responses,
        "openapi_extra": {"security": [{"bearer": []}, {}], **extra},
    }


def _parameter(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


PREDICT = _route(
    "predict",
    {**_ok("application/json", _ENVELOPED, ANSWER), **_enveloped(_problems(*_OF_IMAGES))},
    requestBody=_IMAGE_BODY,
    parameters=[_parameter("envelope", {"type": "string", "enum": ["lambda"]}, "Puts the answer into an envelope.")],
)
BATCH = _route(
    "predict_batch",
    {**_ok("application/json", {"$ref": f"{_REF}Answers"}, {"answers": [ANSWER]}), **_problems(*_OF_IMAGES)},
    requestBody=_BATCH_BODY,
)
PREVIEW = _route(
    "preview",
    {**_ok("image/png", _FILE), **_problems(*_OF_IMAGES)},
    requestBody=_IMAGE_BODY,
    parameters=[_parameter("side", {"type": "integer", "minimum": 16, "maximum": 4096, "default": 1024}, "Pixels.")],
)
MODEL = _route("model", {**_ok("application/json", {"$ref": f"{_REF}Model"}), **_problems("not_ready", *_WITH_TOKEN)})
METRICS = _route("metrics", {**_ok("text/plain", {"type": "string"}), **_problems(*_WITH_TOKEN)})
_STATUS = {"$ref": f"{_REF}Status"}
HEALTH = _route("healthz", {**_ok("application/json", _STATUS), **_problems(*_ANYWHERE)}, security=[])
READY = _route("readyz", {**_ok("application/json", _STATUS), **_problems("not_ready", *_ANYWHERE)}, security=[])


def complete(app: FastAPI) -> None:
    """Let an application's OpenAPI document hold the schemas that its routes name.

    Args:
        app: The application, with all its routes.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            components = app.openapi_schema.setdefault("components", {})
            components["schemas"] = dict(SCHEMAS)
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
