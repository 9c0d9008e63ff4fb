"""The finished model, written as a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from pipelines.images.preprocess import CONTRACT, Preprocessing
from pipelines.models.backbones import weights_to_bytes
from pipelines.models.bundle import (
    CARD_FILE,
    HISTORY_FILE,
    SCORER_FILE,
    SPLIT_FILE,
    VALIDATION_FILE,
    WEIGHTS_FILE,
    Bundle,
    write_bundle,
)
from pipelines.models.golden import GOLDEN_FILE, golden_answers, make_golden
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.predictions.runs import without_secrets
from pipelines.storage import paths
from pipelines.storage.listing import root_uri
from pipelines.training import records
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset
from pipelines.training.finishing import Finished
from pipelines.training.fitting import Fitted
from pipelines.training.head import history_csv
from pipelines.training.network import Network, head_spec, joined


@dataclass(frozen=True)
class Judged:
    """What validation says of the finished model.

    Attributes:
        positive: Positive classes.
        figures: By name.
        interval: 95 % interval of the positive classes' ROC AUC.
        warnings: What a person should know.
    """

    positive: tuple[str, ...]
    figures: Mapping[str, float]
    interval: tuple[float, float]
    warnings: tuple[str, ...]


def write(
    config: TrainConfig, network: Network, data: Dataset, fitted: Fitted, finished: Finished, judged: Judged
) -> Bundle:
    """Write the bundle; see DESIGN for its files."""
    size, classes = config.recipe.input_size, data.classes
    io = ScorerIO(size, len(classes))
    threshold = {
        "threshold": finished.point.threshold,
        "target_sensitivity": finished.point.target,
        "sensitivity": finished.point.sensitivity,
        "specificity": finished.point.specificity,
        "fitted_on": "validation",
    }
    head = head_spec(config.recipe, len(classes))
    spec = BundleSpec(
        classes=classes,
        positive_classes=judged.positive,
        input_size=size,
        preprocessing_id=Preprocessing(size).id,
        preprocessing_contract=CONTRACT,
        scorers={"float32": ScorerEntry(SCORER_FILE, io)},
        scorers_absent={"int8": "Training made none."},
        backbone={
            **asdict(network.spec),
            "weights": _weights_name(config),
            "weights_sha256": network.weights_sha256,
            "trainable_layers": config.recipe.trainable_layers,
        },
        head={**asdict(head), "dense_units": list(head.dense_units)},
        temperature=fitted.temperature,
        thresholds={"image": threshold},
        provenance=_provenance(config, data, fitted),
    )
    validation = data.parts == "val"
    groups = [group for group, inside in zip(data.groups, validation, strict=True) if inside]
    names = data.label_names()
    labels = [name for name, inside in zip(names, validation, strict=True) if inside]
    rows = data.images.filter(pa.array(validation))
    golden = golden_answers(Scorer(finished.scorer, io), size)
    files = {
        WEIGHTS_FILE: weights_to_bytes(joined(network.backbone, fitted.head, config.recipe.pooling)),
        SCORER_FILE: finished.scorer,
        GOLDEN_FILE: make_golden({"float32": golden}, size),
        HISTORY_FILE: history_csv(fitted.trained.history),
        SPLIT_FILE: records.split_table(data.images, data.groups, data.parts),
        VALIDATION_FILE: records.validation_table(rows, groups, labels, classes, finished.probabilities),
        CARD_FILE: _card(config, data, fitted, judged, threshold),
    }
    return write_bundle(config.models, config.name, spec, files)


def _weights_name(config: TrainConfig) -> str:
    """`imagenet`, `none`, or the name of the file without its folder."""
    return config.weights if config.weights in ("imagenet", "none") else paths.name(paths.canonical(config.weights))


def _provenance(config: TrainConfig, data: Dataset, fitted: Fitted) -> dict[str, Any]:
    """Where the model comes from. Names of images stay out: a bundle travels."""
    return {
        **config.who,
        "versions": {**config.who.get("versions", {}), **{name: version(name) for name in ("keras", "tensorflow")}},
        "kind": "trained",
        "data": without_secrets([root_uri(config.data.data)])[0],
        "images": records.count_parts(data.label_names(), data.parts, data.classes),
        "groups": len(set(data.groups)),
        "unreadable": len(data.unreadable),
        "recipe": {"name": config.recipe.name, **_plain(config.recipe.values())},
        "seed": config.seed,
        "epochs": len(fitted.trained.history),
        "best_epoch": fitted.trained.best_epoch,
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _card(config: TrainConfig, data: Dataset, fitted: Fitted, judged: Judged, threshold: Mapping[str, Any]) -> bytes:
    return records.model_card(
        name=config.name,
        classes=data.classes,
        positive=judged.positive,
        counts=records.count_parts(data.label_names(), data.parts, data.classes),
        groups=len(set(data.groups)),
        recipe=config.recipe.values(),
        weights=_weights_name(config),
        figures=judged.figures,
        interval=judged.interval,
        temperature=fitted.temperature,
        threshold=threshold,
        warnings=judged.warnings,
        command=config.who.get("command_line", ()),
    )
