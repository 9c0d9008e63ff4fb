"""From a REF to what answering processes are given: every file verified, and what clients may know of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.models.bundle import Bundle, peek
from pipelines.models.golden import GOLDEN_FILE
from pipelines.models.registry import locate
from pipelines.models.runtime import ScorerIO
from pipelines.serving.answering import ServedModel

# What a client may know of where a model comes from. The rest of a provenance names users, hosts and places.
_TOLD = ("kind", "created_at", "seed", "best_epoch", "groups", "validation", "images")
_BACKBONE = ("name", "alpha", "input_size", "scaling", "trainable_layers")


@dataclass(frozen=True)
class LoadedModel:
    """A verified model, ready to be sent to answering processes.

    Attributes:
        served: What is said of it.
        uri: The bundle's folder.
        io: How the LiteRT model is fed and read.
        scorer: Its bytes.
        golden: Content of the bundle's golden file; None where it has none.
    """

    served: ServedModel
    uri: str
    io: ScorerIO
    scorer: bytes = field(repr=False)
    golden: bytes | None = field(repr=False)


def load_model(ref: str, precision: str = "float32") -> LoadedModel:
    """Read the bundle that a REF means, each file once, and compare each with its hash.

    Args:
        ref: A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION, local or in a bucket.
        precision: `float32` or `int8`.

    Raises:
        ModelRefused: If there is no such model, or a file of it is missing or altered.
        UsageError: If it has no scorer of this precision, or a newer release wrote it.
        TryLater: If its storage does not answer.
    """
    bundle = peek(locate(ref))
    scorer, io = bundle.scorer(precision)
    golden = bundle.read(GOLDEN_FILE) if GOLDEN_FILE in bundle.files else None
    for name in bundle.files.keys() - {GOLDEN_FILE, bundle.spec.scorers[precision].file}:
        bundle.read(name)
    return LoadedModel(describe(bundle, ref, precision), bundle.uri, io, scorer, golden)


def describe(bundle: Bundle, ref: str, precision: str) -> ServedModel:
    """What is said of a bundle by answers, `/model` and the page.

    Args:
        bundle: The model.
        ref: What the user named.
        precision: `float32` or `int8`.
    """
    return ServedModel(
        ref=ref,
        name=bundle.name,
        version=bundle.version,
        model_id=bundle.model_id,
        preprocessing_id=bundle.preprocessing_id,
        precision=precision,
        classes=bundle.classes,
        positive_classes=bundle.positive_classes,
        input_size=bundle.input_size,
        thresholds=bundle.fitted(precision),
        card=_card(bundle),
    )


def _card(bundle: Bundle) -> dict[str, Any]:
    """Validation figures with their intervals, counts of data, and how it was made; only what is listed above."""
    provenance = bundle.provenance
    told = {name: provenance[name] for name in _TOLD if provenance.get(name) is not None}
    calibration = provenance.get("calibration")
    if isinstance(calibration, Mapping):
        told["calibration"] = {name: calibration[name] for name in ("images", "groups") if name in calibration}
    backbone = {name: bundle.backbone[name] for name in _BACKBONE if name in bundle.backbone}
    return {**told, "temperature": bundle.temperature, **({"backbone": backbone} if backbone else {})}
