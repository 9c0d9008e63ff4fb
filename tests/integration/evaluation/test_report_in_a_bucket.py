"""Results, labels and report in a bucket: nothing of an evaluation needs a local disk."""

from __future__ import annotations

import datetime
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluation import EvaluateConfig, evaluate
from jobs.evaluation_sources import CommittedRows
from pipelines.errors import UsageError
from pipelines.evaluation.labelled_rows import JoinConfig
from pipelines.evaluation.labels import LabelsConfig
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema

CLASSES = ("benign", "malignant")
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)


def scored(results: str, images: str, count: int) -> list[str]:
    """Commit a run on images that are there in name only; its labels, by the same names."""
    random = np.random.default_rng(5)
    truth = random.random(count) < 0.4
    p = (1 / (1 + np.exp(-random.normal(np.where(truth, 1.2, -1.2))))).astype(np.float32)
    schema = prediction_schema(CLASSES, None)
    fixed = {
        **dict.fromkeys(schema.names),
        **{"run_id": "run0", "frame": 0, "status": "scored", "model_name": "moles", "model_id": "ab" * 32},
        **{"precision": "float32", "scored_at": START, "scored_date": START.date(), "in_training_set": False},
    }
    rows = [
        {
            **fixed,
            "image_uri": f"{images}/{at}.png",
            "content_sha256": f"{at:064x}",
            "predicted_class": CLASSES[int(one > 0.5)],
            "p_benign": 1 - one,
            "p_malignant": one,
            "p_positive": one,
            "mean_intensity": 0.5,
        }
        for at, one in enumerate(p.tolist())
    ]
    commit.ensure_table(results)
    commit.commit_run(results, "run0", schema, pa.Table.from_pylist(rows, schema).to_batches(), lambda: None)
    told = {
        "classes": CLASSES,
        "positive_classes": ["malignant"],
        "thresholds": {"image": {"threshold": 0.3, "target_sensitivity": 0.95}},
    }
    RunFolder(results, "run0").write_record(RunRecord("run0", "f", {}, {}, {}, {}, 1, "committed", START, model=told))
    return [f"images/{at}.png,{CLASSES[int(one)]}" for at, one in enumerate(truth)]


def test_an_evaluation_in_a_bucket(s3: Any) -> None:
    results, report = f"{s3.uri}/results", f"{s3.uri}/reports/march é"
    labels = scored(results, f"{s3.uri}/images", 80)
    s3.filesystem.pipe_file(f"{s3.uri}/labels.csv", "\n".join(["uri,label", *labels]).encode())
    join = JoinConfig(results, LabelsConfig(f"{s3.uri}/labels.csv"))
    phases = []
    config = EvaluateConfig(report, CommittedRows(join), pictures=False, prevalences=(0.005,))
    answer = evaluate(config, pytest.fail, lambda progress: phases.append(progress.phase))
    assert phases == ["joining", "measuring", "drawing"]
    assert answer.report == f"{report}/report.html"
    written = {path.rpartition("/")[2]: s3.filesystem.cat_file(path) for path in s3.filesystem.find(report)}
    assert sorted(written) == ["metrics.json", "predictions.parquet", "report.html"]
    told = json.loads(written["metrics.json"])
    assert told["n"] == 80 and told["operating_point"]["threshold"] == 0.3
    assert told["operating_point"]["at_prevalence"][0]["prevalence"] == 0.005
    assert pq.read_table(io.BytesIO(written["predictions.parquet"])).num_rows == 80
    with pytest.raises(UsageError, match="there already"):
        evaluate(config, pytest.fail, lambda _: None)
