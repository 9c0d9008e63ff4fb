"""The OpenAPI document: whatever it allows is answered as it says, and so is whatever it forbids."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "serving"))
from stand_in_service import StandIn

from pipelines.serving.app import make_app
from pipelines.serving.problems import KINDS
from pipelines.serving.settings import ServeSettings

APP = make_app(StandIn(), ServeSettings(auth=False, behind_proxy=True))
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(case: Any) -> None:
    response = case.call()
    # What is an image and what is not is no matter of a schema.
    case.validate_response(response, excluded_checks=[positive_data_acceptance, negative_data_rejection])
    assert response.status_code < 500


def test_the_document_names_every_body_and_every_problem() -> None:
    document = APP.openapi()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"application/json", "multipart/form-data", "application/octet-stream", "image/*"} == set(body)
    assert set(document["components"]["schemas"]["Problem"]["properties"]["error_code"]["enum"]) == set(KINDS)
    for path in ("/predict", "/predict/batch", "/preview"):
        statuses = set(document["paths"][path]["post"]["responses"])
        assert statuses >= {"200", "400", "401", "413", "415", "422", "429", "500", "503"}
