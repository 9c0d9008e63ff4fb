"""What a job trains, built in a worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipelines.models.backbones import build_architecture, weights_from_bytes
from pipelines.models.compile import feature_length
from pipelines.models.cut import cut_backbone
from pipelines.models.folding import fold
from pipelines.models.heads import build_head
from pipelines.storage import files
from pipelines.training import checkpoint
from pipelines.training.job import FitJob
from pipelines.training.network import backbone_spec, head_spec
from pipelines.training.trainee import Trainee, build_trainee, build_trainee_for_worker, even_if_empty


def worker_trainee(job: FitJob, size: int) -> Trainee:
    """Build the trained part as a job describes it, with its first weights.

    Args:
        job: Says which network, and whether the inputs are pixels.
        size: D of the inputs.
    """
    spec, heads = backbone_spec(job.recipe), head_spec(job.recipe, job.classes)
    weights = files.read_bytes(job.backbone_weights) if job.backbone_weights else None
    if job.pixels and weights is not None:
        trainee = _on_pixels(job, weights)
    else:
        layers, start = job.recipe.trainable_layers, job.recipe.head_start
        trainee = build_trainee_for_worker(spec, heads, layers, weights, job.seed, size, start)
    if job.start:
        trainee.assign(checkpoint.load_arrays(job.start))
    return trainee


def _on_pixels(job: FitJob, weights: bytes) -> Trainee:
    """A trainee whose neck takes pixels, its frozen lower part before the trained one."""
    heads = head_spec(job.recipe, job.classes)
    backbone = build_architecture(backbone_spec(job.recipe))
    weights_from_bytes(backbone, weights)
    cut = cut_backbone(backbone, job.recipe.trainable_layers, heads.pooling)
    head = build_head(heads, (feature_length(backbone, heads.pooling),), job.seed, job.recipe.head_start)
    trainee = build_trainee(cut, head, heads)
    if cut.lower is None:
        return trainee
    lower = fold(cut.lower)

    def neck(batch: Any, training: bool = False) -> Any:
        return trainee.neck(even_if_empty(lower, batch), training=training)

    return replace(trainee, neck=neck)
