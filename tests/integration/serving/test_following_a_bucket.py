"""A champion in a bucket: promoted there, followed here, and left alone while the bucket does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.models import registry
from pipelines.models.bundle import write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.serving.following import Following
from pipelines.serving.served_model import LoadedModel

SPEC = BundleSpec(("a", "b"), ("b",), 8, "p", {"float32": ScorerEntry("scorer.tflite", ScorerIO(8, 2))})


class Answering:
    """Answers with whatever it was given last."""

    promotion_failed: str | None = None

    async def serve(self, model: LoadedModel) -> None:
        self.model = model


def test_a_champion_in_a_bucket_is_followed_and_an_outage_is_no_failure(
    s3: Any, fault_proxy: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fault_proxy(s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    models, answering, told = f"{s3.uri}/models", Answering(), []
    for content in (b"one", b"two"):
        write_bundle(models, "cells", SPEC, {"scorer.tflite": content})
    following = Following(f"{models}/cells", "float32", answering, told.append)
    asyncio.run(following.load_first())
    assert (answering.model.scorer, answering.model.served.ref) == (b"one", f"{models}/cells")
    registry.promote(f"{models}/cells@v2")
    for fault in (403, 503):
        proxy.rule = lambda _method, _path, fault=fault: fault
        asyncio.run(following.look())
    assert answering.model.scorer == b"one" and answering.promotion_failed is None
    assert len(told) == 1 and "does not answer" in told[0]
    proxy.rule = lambda _method, _path: None
    asyncio.run(following.look())
    assert answering.model.scorer == b"two" and "cells@v2 was promoted" in told[-1]
