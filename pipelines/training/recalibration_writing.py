"""A recalibrated model, written as a new version beside the one that it was made from."""

from __future__ import annotations

import io as memory
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ModelRefused
from pipelines.evaluation.calibration import probabilities
from pipelines.evaluation.plots import reliability_diagram
from pipelines.models import registry
from pipelines.models.bundle import CARD_FILE, REPORT_FOLDER, SPLIT_FILE, VALIDATION_FILE, Bundle, write_bundle
from pipelines.models.golden import GOLDEN_FILE, golden_answers, make_golden
from pipelines.models.record import BundleSpec, plain
from pipelines.models.runtime import Scorer
from pipelines.predictions.runs import without_secrets
from pipelines.storage import files as storage
from pipelines.storage import paths
from pipelines.storage.listing import root_uri
from pipelines.training import records
from pipelines.training.calibration_card import calibration_card
from pipelines.training.config import CalibrateConfig
from pipelines.training.duplicates import HASH_BYTES
from pipelines.training.recalibration_fit import NewImages, Recalibrated, class_counts, graph_logits
from pipelines.training.split import hash_person

DIAGRAM = f"{REPORT_FOLDER}/calibration.svg"
LARGEST_DIFFERENCE = 1e-5
"""Of a probability, between the scorer with its new temperature and what the temperature was computed to make of it."""

_SPLIT = pa.schema(
    [
        ("content_sha256", pa.string()),
        ("perceptual_hash", pa.binary(HASH_BYTES)),
        ("group", pa.string()),
        ("part", pa.string()),
        ("person", pa.string()),
    ]
)


def write_calibrated(
    models: str, bundle: Bundle, config: CalibrateConfig, new: NewImages, fitted: Recalibrated
) -> tuple[Bundle, str]:
    """Write the new version; it becomes champion only where the name has none.

    Args:
        models: The MODELS folder.
        bundle: The model that was calibrated.
        config: What the command was told.
        new: The images.
        fitted: What was fitted to them.

    Returns:
        The new version, and the version that the name means now.

    Raises:
        ModelRefused: If a scorer does not answer what was computed.
    """
    spec = _spec(bundle, config, new, fitted)
    cases = new.labelled.cases
    kept = {entry.file for entry in spec.scorers.values()}
    dropped = {entry.file for entry in bundle.spec.scorers.values()} - kept
    names = [cases.classes[number] for number in cases.labels.tolist()]
    made = {
        GOLDEN_FILE: _golden(bundle, spec),
        SPLIT_FILE: records.split_file(_split(bundle, new)),
        VALIDATION_FILE: records.validation_file(
            new.labelled.facts, new.groups, names, cases.classes, fitted.probabilities
        ),
        DIAGRAM: _diagram(fitted).encode(),
        CARD_FILE: calibration_card(bundle, spec, class_counts(cases), new.left_out, fitted, _card_of(bundle)),
    }
    copied = {name: bundle.read(name) for name in bundle.files if name not in made and name not in dropped}
    written = write_bundle(models, bundle.name, spec, {**copied, **made})
    crowned = registry.champion(models, bundle.name)
    return written, crowned.version if crowned else written.version


def _spec(bundle: Bundle, config: CalibrateConfig, new: NewImages, fitted: Recalibrated) -> BundleSpec:
    spec, verdict = bundle.spec, fitted.int8
    refused = verdict is not None and not verdict.offered
    scorers = {
        precision: replace(entry, io=replace(entry.io, temperature=entry.io.temperature * fitted.factor))
        for precision, entry in spec.scorers.items()
        if not (refused and precision == "int8")
    }
    absent = {**spec.scorers_absent, "int8": verdict.sentence()} if verdict and refused else spec.scorers_absent
    thresholds = {unit: point.record() for unit, point in fitted.points.items()}
    return replace(
        spec,
        scorers=scorers,
        scorers_absent=absent,
        temperature=spec.temperature * fitted.factor,
        thresholds=plain(thresholds),
        provenance=plain(_provenance(bundle, config, new, fitted)),
    )


def _provenance(bundle: Bundle, config: CalibrateConfig, new: NewImages, fitted: Recalibrated) -> dict[str, Any]:
    """That of the weights, with what was done now. Names of images stay out: a bundle travels."""
    told = dict(bundle.provenance)
    made = {name: told.pop(name, None) for name in ("created_at", "user", "host", "command_line")}
    return {
        **told,
        **config.who,
        "versions": {**told.get("versions", {}), **config.who.get("versions", {})},
        "calibrated_from": {"model": f"{bundle.name}@{bundle.version}", "id": bundle.model_id, **made},
        "calibration": {
            "data": without_secrets([root_uri(config.data.data)])[0],
            "images": class_counts(new.labelled.cases),
            "groups": len(set(new.groups)),
            "left_out": dict(new.left_out),
            "unreadable": len(new.labelled.unreadable),
            "target_sensitivity": config.target_sensitivity,
            "target_specificity": config.target_specificity,
            "temperature": {"before": bundle.temperature, "after": bundle.temperature * fitted.factor},
            "before": fitted.before.record(),
            "after": fitted.after.record(),
        },
        "validation": fitted.judged.record(),
        "int8": fitted.int8.record() if fitted.int8 is not None else told.get("int8"),
        # It compared validation figures of the weights' own training.
        "versus": None,
    }


def _golden(bundle: Bundle, spec: BundleSpec) -> bytes:
    """What the scorers answer to the golden images at the new temperature, held against the old answers."""
    found = {}
    for precision, entry in spec.scorers.items():
        model, io = bundle.scorer(precision)
        before = golden_answers(Scorer(model, io), spec.input_size)
        found[precision] = golden_answers(Scorer(model, entry.io), spec.input_size)
        wanted = probabilities(graph_logits(before, io), entry.io.temperature)
        if not float(np.abs(found[precision] - wanted).max()) <= LARGEST_DIFFERENCE:
            raise ModelRefused(
                f"The {precision} scorer does not answer what its new temperature should make of its answers, so "
                "nothing was written.",
                "Report this with the model: no model should do so.",
            )
    return make_golden(found, spec.input_size)


def _split(bundle: Bundle, new: NewImages) -> pa.Table:
    """The model's split, where it has one, and the new images as part `val`: from now on the model has seen them."""
    cases = new.labelled.cases
    people = cases.patients or [None] * len(cases)
    own = pa.table(
        {
            "content_sha256": list(cases.contents),
            "perceptual_hash": new.labelled.facts["perceptual_hash"].to_pylist(),
            "group": list(new.groups),
            "part": ["val"] * len(cases),
            "person": [None if person is None else hash_person(person) for person in people],
        },
        schema=_SPLIT,
    )
    if SPLIT_FILE not in bundle.files:
        return own
    before = pq.read_table(memory.BytesIO(bundle.read(SPLIT_FILE)))
    if "person" not in before.column_names:  # as earlier releases wrote it
        before = before.append_column("person", pa.nulls(before.num_rows, pa.string()))
    return pa.concat_tables([before.select(_SPLIT.names).cast(_SPLIT), own])


def _diagram(fitted: Recalibrated) -> str:
    return reliability_diagram(
        {"before": fitted.before.bins, "after, on the images it was fitted to": fitted.after.bins}
    )


def _card_of(bundle: Bundle) -> str:
    """The card of the model, which nothing verifies; "" where there is none."""
    try:
        return storage.read_bytes(paths.join(bundle.uri, CARD_FILE)).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
