"""The finished model, written as a bundle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from pipelines.images.preprocess import CONTRACT, Preprocessing
from pipelines.models.backbones import weights_to_bytes
from pipelines.models.bundle import (
    CARD_FILE,
    HISTORY_FILE,
    SCORER_FILE,
    SCORER_INT8_FILE,
    SPLIT_FILE,
    VALIDATION_FILE,
    WEIGHTS_FILE,
    Bundle,
    threshold_unit,
    write_bundle,
)
from pipelines.models.golden import GOLDEN_FILE, golden_answers, make_golden
from pipelines.models.rebuild import joined
from pipelines.models.record import BundleSpec, ScorerEntry, plain
from pipelines.models.runtime import Scorer
from pipelines.predictions.runs import without_secrets
from pipelines.storage import paths
from pipelines.storage.listing import root_uri
from pipelines.training import records
from pipelines.training.card import DataFacts, TrainingFacts, ValidationFacts, model_card
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset
from pipelines.training.finishing import Finished
from pipelines.training.history import history_csv
from pipelines.training.inherit import with_seen
from pipelines.training.judging import Judged
from pipelines.training.loop import FitResult
from pipelines.training.network import Network
from pipelines.training.versus import Versus


@dataclass(frozen=True)
class Made:
    """All that a training made.

    Attributes:
        network: Backbone and head with the weights to keep.
        data: The images and their split.
        fit: The history.
        finished: The scorers.
        judged: What validation says.
        versus: The comparison with the champion.
        start: The bundle that training started from; None where it started from `--weights`.
        source: The paper behind the recipe in a few words; None for a recipe of nobody's.
    """

    network: Network
    data: Dataset
    fit: FitResult
    finished: Finished
    judged: Judged
    versus: Versus
    start: Bundle | None = None
    source: str | None = None


def write(config: TrainConfig, made: Made) -> Bundle:
    """Write the bundle; see the design for its files.

    Args:
        config: What the training was told.
        made: What it made.
    """
    network, data, finished = made.network, made.data, made.finished
    validation = data.part("val")
    labels = [data.classes[number] for number in validation.labels]
    files = {
        WEIGHTS_FILE: weights_to_bytes(joined(network.backbone, network.head, config.recipe.pooling)),
        SCORER_FILE: finished.scorer,
        GOLDEN_FILE: _golden(finished),
        HISTORY_FILE: history_csv(made.fit.history),
        SPLIT_FILE: records.split_file(with_seen(data.split, made.start)),
        VALIDATION_FILE: records.validation_file(
            validation.images, validation.groups, labels, data.classes, finished.probabilities
        ),
        CARD_FILE: _card(config, made),
    }
    if finished.int8_scorer is not None:
        files[SCORER_INT8_FILE] = finished.int8_scorer[0]
    return write_bundle(config.models, config.name, _spec(config, made), files)


def _spec(config: TrainConfig, made: Made) -> BundleSpec:
    network, finished, size = made.network, made.finished, config.recipe.input_size
    scorers = {"float32": ScorerEntry(SCORER_FILE, finished.io)}
    thresholds = {threshold_unit("float32"): finished.point.record()}
    if finished.int8_scorer is not None:
        scorers["int8"] = ScorerEntry(SCORER_INT8_FILE, finished.int8_scorer[1])
        assert finished.int8.point is not None
        thresholds[threshold_unit("int8")] = finished.int8.point.record()
    thresholds |= {unit: point.record() for unit, point in finished.patients.items()}
    return BundleSpec(
        classes=made.data.classes,
        positive_classes=made.judged.positive,
        input_size=size,
        preprocessing_id=Preprocessing(size).id,
        preprocessing_contract=CONTRACT,
        scorers=scorers,
        scorers_absent={} if finished.int8_scorer is not None else {"int8": finished.int8.sentence()},
        backbone={
            **asdict(network.spec),
            "weights": _first_weights(config, made.start),
            "weights_sha256": network.weights_sha256,
            "trainable_layers": config.recipe.trainable_layers,
        },
        head={**asdict(network.head_spec), "dense_units": list(network.head_spec.dense_units)},
        temperature=finished.temperature,
        thresholds=plain(thresholds),
        provenance=plain(_provenance(config, made)),
    )


def _golden(finished: Finished) -> bytes:
    """What the scorers that the bundle offers answer to the golden images."""
    models = {"float32": (finished.scorer, finished.io)}
    if finished.int8_scorer is not None:
        models["int8"] = finished.int8_scorer
    size = finished.io.input_size
    return make_golden({name: golden_answers(Scorer(*model), size) for name, model in models.items()}, size)


def _first_weights(config: TrainConfig, start: Bundle | None) -> str:
    """`imagenet`, `none`, the name of the file without its folder, or the version that training started from."""
    if start is not None:
        return f"{start.name}@{start.version}"
    return config.weights if config.weights in ("imagenet", "none") else paths.name(paths.canonical(config.weights))


def _provenance(config: TrainConfig, made: Made) -> dict[str, Any]:
    """Where the model comes from. Names of images stay out: a bundle travels."""
    data, judged, start = made.data, made.judged, made.start
    return {
        **config.who,
        "versions": {**config.who.get("versions", {}), **{name: version(name) for name in ("keras", "tensorflow")}},
        "kind": "trained",
        "data": without_secrets([root_uri(config.data.data)])[0],
        "images": data.counts,
        "groups": data.audit.groups,
        "unreadable": len(data.unreadable),
        "audit": data.audit.as_json(),
        "new_split": config.new_split,
        "started_from": None if start is None else {"model": f"{start.name}@{start.version}", "id": start.model_id},
        "recipe": {"name": config.recipe.name, **config.recipe.values()},
        "seed": config.seed,
        "workers": config.workers,
        "epochs": len(made.fit.history),
        "best_epoch": made.fit.best_epoch,
        "validation": judged.record(),
        "int8": made.finished.int8.record(),
        "versus": made.versus.record(),
    }


def _card(config: TrainConfig, made: Made) -> bytes:
    data, judged, finished, audit = made.data, made.judged, made.finished, made.data.audit
    counted = {key: value for key, value in audit.as_json().items() if isinstance(value, int)}
    facts = DataFacts(
        counts=data.counts,
        groups=_groups_of_parts(data),
        split=_split_text(audit.origin, audit.predecessor, config.new_split),
        without_patient=audit.without_patient,
        unreadable=len(data.unreadable),
        audit=counted,
    )
    training = TrainingFacts(
        recipe=config.recipe.name,
        source=made.source,
        values=config.recipe.values(),
        backbone=made.network.spec.name,
        weights=_first_weights(config, None),
        start=None if made.start is None else _first_weights(config, made.start),
        seed=config.seed,
        epochs=len(made.fit.history),
        best_epoch=made.fit.best_epoch,
    )
    validation = ValidationFacts(
        figures=judged.figures,
        intervals=judged.intervals,
        report=judged.report,
        matrix=judged.matrix,
        temperature=finished.temperature,
        point=finished.point,
        patients=finished.patients,
        int8=finished.int8,
        versus=made.versus,
        warnings=judged.warnings,
    )
    command = config.who.get("command_line", ())
    return model_card(config.name, data.classes, judged.positive, facts, training, validation, command)


def _groups_of_parts(data: Dataset) -> Mapping[str, int]:
    groups: dict[str, set[str]] = defaultdict(set)
    for group, part in zip(data.split["group"].to_pylist(), data.split["part"].to_pylist(), strict=True):
        groups[part].add(group)
    return {part: len(own) for part, own in groups.items()}


def _split_text(origin: str, predecessor: str | None, new_split: bool) -> str:
    """Where the split comes from, one sentence."""
    if origin == "given":
        return "The data bring the split."
    if predecessor is not None:
        return f"The split is that of {predecessor}: its images kept their parts, new ones were dealt out."
    if new_split:
        return "The split was made anew (--new-split): an earlier version's test images may be among these that train."
    return "The split was made for this version."
