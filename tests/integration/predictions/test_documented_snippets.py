"""Every example of docs/results.md runs as it stands, in a process of its own that ends well."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.predictions import commit
from pipelines.predictions.schema import prediction_schema

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "results.md").read_text()
EXAMPLES = re.findall(r"^### (.+?)\n.*?^```python\n(.*?)^```", TEXT, re.S | re.M)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two nights, the second of a model with another class, in a folder whose name needs escaping."""
    place = str(tmp_path_factory.mktemp("docs") / "the results, ü")
    commit.ensure_table(place)
    for number, (run, classes) in enumerate((("first", ["benign", "malignant"]), ("second", ["normal", "malignant"]))):
        schema = prediction_schema(classes, pa.schema([("patient_id", pa.string())]))
        day = datetime.date(2026, 1, 1 + number)
        fixed = {**dict.fromkeys(schema.names), "run_id": run, "status": "scored", "scored_date": day}
        fixed |= {"model_name": run, "predicted_class": "malignant", "score": 0.75, "patient_id": "007"}
        rows = [{**fixed, "image_uri": f"/{run}/{i}.jpg"} for i in range(3)]
        commit.commit_run(place, run, schema, pa.Table.from_pylist(rows, schema).to_batches(), lambda: None)
    return place


def test_all_five_tools_have_an_example() -> None:
    assert [name for name, _ in EXAMPLES] == ["pandas", "Polars", "DuckDB", "PyArrow", "deltalake"]


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_an_example_runs_and_ends_well(results: str, name: str, code: str) -> None:
    assert "/srv/nightread/results" in code
    told = []
    for _ in range(2):  # a crash at exit does not come every time
        done = subprocess.run(
            [sys.executable, "-c", code.replace("/srv/nightread/results", results)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr == ""
        told.append(done.stdout)
    expected = {"deltalake": ["first", "second"], "DuckDB": ["2026-01-01", "2026-01-02"], "pandas": ["first", "second"]}
    for word in expected.get(name, ["/first/0.jpg"]):
        assert word in told[0]
