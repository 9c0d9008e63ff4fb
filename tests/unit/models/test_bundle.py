from __future__ import annotations

import hashlib
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ModelRefused, UsageError
from pipelines.models import bundle as bundles
from pipelines.models.bundle import Bundle, load_bundle, threshold_unit, write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry, from_bytes, to_bytes
from pipelines.models.runtime import Quantisation, ScorerIO

SPEC = BundleSpec(
    classes=("benign", "malignant", "normal"),
    positive_classes=("malignant",),
    input_size=8,
    preprocessing_id="p",
    scorers={"float32": ScorerEntry("scorer.tflite", ScorerIO(8, 3))},
    scorers_absent={"int8": "It loses too much."},
    thresholds={"image": {"threshold": 0.25, "target_sensitivity": 0.95}},
)
FILES = {"scorer.tflite": b"scorer", "weights.weights.h5": b"weights", "MODEL_CARD.md": b"card"}


@pytest.fixture
def written(tmp_path: Path) -> Bundle:
    return write_bundle(str(tmp_path / "MODELS"), "cells", SPEC, FILES)


def test_what_is_written_is_read_again(written: Bundle) -> None:
    read = load_bundle(written.uri)
    assert read == written
    assert read.version == "v1" and read.classes == SPEC.classes and read.thresholds == SPEC.thresholds
    assert read.model_id == hashlib.sha256((Path(read.uri) / "bundle.json").read_bytes()).hexdigest()
    assert read.scorer("float32") == (b"scorer", ScorerIO(8, 3))
    assert set(read.files) == {"scorer.tflite", "weights.weights.h5"}


def test_an_absent_precision_says_why(written: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no int8 scorer\. It loses too much") as caught:
        written.scorer("int8")
    assert "float32" in caught.value.cure


@pytest.mark.parametrize("name", ["bundle.json", "scorer.tflite", "weights.weights.h5"])
def test_one_altered_byte_in_any_file_is_refused(written: Bundle, name: str) -> None:
    path = Path(written.uri) / name
    data = path.read_bytes()
    for position in {*range(0, len(data), 97), len(data) - 1}:
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises((ModelRefused, UsageError)) as caught:
            load_bundle(written.uri)
        # The one byte that is the format number may turn it into a newer one.
        assert isinstance(caught.value, ModelRefused) or "newer" in caught.value.cure
    path.write_bytes(data)
    load_bundle(written.uri)


def test_an_altered_file_is_found_when_it_is_read_later(written: Bundle) -> None:
    (Path(written.uri) / "scorer.tflite").write_bytes(b"Scorer")
    with pytest.raises(ModelRefused, match="altered"):
        written.scorer("float32")


def test_missing_files_are_refused(written: Bundle) -> None:
    (Path(written.uri) / "weights.weights.h5").unlink()
    with pytest.raises(ModelRefused, match=r"weights\.weights\.h5 is missing"):
        load_bundle(written.uri)
    (Path(written.uri) / "bundle.json").unlink()
    with pytest.raises(ModelRefused, match=r"no bundle\.json"):
        load_bundle(written.uri)


def test_the_card_and_the_report_may_change(written: Bundle) -> None:
    (Path(written.uri) / "MODEL_CARD.md").write_text("more")
    (Path(written.uri) / "report").mkdir()
    load_bundle(written.uri)


def test_oversized_files_are_not_read(written: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_FILE_BYTES", 3)
    with pytest.raises(ModelRefused, match="larger than 3"):
        load_bundle(written.uri)
    monkeypatch.setattr(bundles, "MAX_RECORD_BYTES", 3)
    with pytest.raises(ModelRefused, match="larger than 3"):
        load_bundle(written.uri)


def _sealed(change: dict[str, Any]) -> bytes:
    """A bundle.json with some keys replaced and a seal that fits, as a hostile hand would make it."""
    value = json.loads(to_bytes(SPEC, "cells", "v1", {"scorer.tflite": "0" * 64}))
    value |= change
    del value["seal"]

    def dump(item: dict[str, Any]) -> bytes:
        return (json.dumps(item, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    return dump({**value, "seal": hashlib.sha256(dump(value)).hexdigest()})


def test_a_newer_format_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="format 2"):
        from_bytes(_sealed({"format": 2}), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../scorer.tflite": "0" * 64, "scorer.tflite": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64, "scorer.tflite": "0" * 64}},
        {"files": {"bundle.json": "0" * 64, "scorer.tflite": "0" * 64}},
        {"files": {"scorer.tflite": "short"}},
        {"files": {}},
        {"files": []},
        {"format": 0},
        {"format": "1"},
        {"format": True},
        {"classes": ["a"]},
        {"classes": "ab"},
        {"classes": ["a", "a", "b"]},
        {"positive_classes": ["other"]},
        {"positive_classes": []},
        {"temperature": 0},
        {"thresholds": {"image": {"threshold": "0.3"}}},
        {"thresholds": {"image": {}}},
        {"name": "../x"},
        {"version": "../v1"},
        {"input": {"size": 9}},
        {"scorers": {"float32": {"file": "scorer.tflite", "io": {"input_size": 8, "size": 3, "code": "x"}}}},
    ],
)
def test_a_hostile_record_is_refused(change: dict[str, Any]) -> None:
    assert from_bytes(_sealed({}), "here").name == "cells"
    with pytest.raises(ModelRefused):
        from_bytes(_sealed(change), "here")


@given(st.data())
def test_a_cut_record_is_refused(data: st.DataObject) -> None:
    whole = to_bytes(SPEC, "cells", "v1", {"scorer.tflite": "0" * 64})
    with pytest.raises(ModelRefused):
        from_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))], "here")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    with pytest.raises(ModelRefused):
        from_bytes(data, "here")


def test_every_kind_of_scorer_survives_the_record() -> None:
    io = ScorerIO(
        8, 3, "int8", (0.1, 0.2, 0.3), (1, 2, 3), True, Quantisation(0.5, -3), Quantisation(1 / 256, 0), "logits"
    )
    spec = replace(
        SPEC,
        scorers={"int8": ScorerEntry("scorer.tflite", io)},
        temperature=1.7,
        provenance={"é": [1, 2.5], "data": "caf\udce9"},
    )
    record = from_bytes(to_bytes(spec, "n", "v12", {"scorer.tflite": "a" * 64}), "here")
    assert record.spec == spec and (record.name, record.version) == ("n", "v12")


def test_writers_at_once_get_different_versions(tmp_path: Path) -> None:
    models = str(tmp_path / "MODELS")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: write_bundle(models, "cells", SPEC, {"scorer.tflite": bytes([n])}), range(16)))
    assert sorted(int(bundle.version[1:]) for bundle in made) == list(range(1, 17))
    for number, bundle in enumerate(made):
        assert load_bundle(bundle.uri).read("scorer.tflite") == bytes([number])
    champion = json.loads((tmp_path / "MODELS" / "cells" / "champion.json").read_text())
    assert len(champion["history"]) == 1 and champion["version"] in {bundle.version for bundle in made}


def test_a_writer_that_died_leaves_no_bundle_and_its_number_unused(tmp_path: Path) -> None:
    models = str(tmp_path / "MODELS")
    first = write_bundle(models, "cells", SPEC, FILES)
    dead = Path(models) / "cells" / "v2"
    shutil.copytree(first.uri, dead)
    (dead / "bundle.json").unlink()
    assert write_bundle(models, "cells", SPEC, FILES).version == "v3"
    with pytest.raises(ModelRefused):
        load_bundle(str(dead))


def test_names_that_leave_the_folder_are_not_written(tmp_path: Path) -> None:
    for name in ("../x", "", "a/b", ".hidden", "a@b"):
        with pytest.raises(UsageError, match="cannot be a folder"):
            write_bundle(str(tmp_path), name, SPEC, FILES)
    for file in ("../x", "a/b", "bundle.json", ""):
        with pytest.raises(UsageError, match="cannot be a file"):
            write_bundle(str(tmp_path), "cells", SPEC, {**FILES, file: b""})
    with pytest.raises(UsageError, match="not among the files"):
        write_bundle(str(tmp_path), "cells", SPEC, {"other": b""})
    assert not list(tmp_path.iterdir())


def test_a_report_travels_with_the_bundle_unhashed(tmp_path: Path) -> None:
    made = write_bundle(str(tmp_path), "cells", SPEC, {**FILES, "report/calibration.svg": b"<svg/>"})
    assert (Path(made.uri) / "report" / "calibration.svg").read_bytes() == b"<svg/>"
    assert load_bundle(made.uri) == made and not any("report" in file for file in made.files)
    for file in ("report/../x", "report/a/b", "report/", "other/x"):
        with pytest.raises(UsageError, match="cannot be a file"):
            write_bundle(str(tmp_path), "cells", SPEC, {**FILES, file: b""})


def test_decision_is_positive_at_and_above_the_threshold(written: Bundle) -> None:
    assert written.decision(0.25) == "positive"
    assert written.decision(np.nextafter(0.25, 0)) == "negative"
    assert written.decision(1.0) == "positive" and written.decision(0.0) == "negative"
    assert written.decision(None) is None
    # A threshold that was fitted to the float32 scorer's answers decides nothing about another's.
    assert written.decision(1.0, "int8") is None
    both = replace(written.spec, thresholds={**written.thresholds, "image_int8": {"threshold": 0.5}})
    assert replace(written, spec=both).decision(0.4, "int8") == "negative"


def test_between_the_ends_of_the_band_a_case_is_referred(tmp_path: Path) -> None:
    fitted = {"threshold": 0.25, "refer_low": 0.125, "refer_high": 0.5}
    made = write_bundle(str(tmp_path), "cells", replace(SPEC, thresholds={"image": fitted}), FILES)
    read = load_bundle(made.uri)
    assert read.fitted("float32") == fitted and read.fitted("float32", "patient_max") is None
    said = {p: read.decision(p) for p in (0.0, np.nextafter(0.125, 0), 0.125, 0.25, np.nextafter(0.5, 0), 0.5, 1.0)}
    assert list(said.values()) == ["negative", "negative", "refer", "refer", "refer", "positive", "positive"]
    assert threshold_unit("int8", "patient_max") == "patient_max_int8"


@pytest.mark.parametrize(
    "band",
    [(0.3, 0.5), (0.1, 0.2), (-0.1, 0.5), (0.1, 1.5), (0.1, None), (None, 0.5), ("0.1", 0.5), (True, True)],
)
def test_a_band_that_does_not_hold_the_threshold_is_refused(band: tuple[object, object]) -> None:
    fitted = {"threshold": 0.25, "refer_low": band[0], "refer_high": band[1]}
    with pytest.raises(UsageError, match="refer band"):
        replace(SPEC, thresholds={"image": fitted})


def test_without_thresholds_there_is_no_decision(tmp_path: Path) -> None:
    plain = write_bundle(str(tmp_path), "cells", replace(SPEC, thresholds={}), FILES)
    assert plain.decision(0.99) is None


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_p_positive_is_the_sum_over_the_positive_classes(weights: list[float]) -> None:
    probabilities = (np.array(weights) / sum(weights)).astype(np.float32)
    two = Bundle("x", "n", "v1", "id", replace(SPEC, positive_classes=("benign", "normal")), {})
    expected = float(probabilities[0].astype(np.float64) + probabilities[2].astype(np.float64))
    assert two.p_positive(probabilities) == pytest.approx(expected, abs=1e-12)
    assert two.p_positive(probabilities) <= 1.0


def test_training_hashes_are_those_of_train_and_val(tmp_path: Path) -> None:
    rows = {"content_sha256": ["a", "b", "c", "d"], "part": ["train", "val", "test", "train"]}
    out = io.BytesIO()
    pq.write_table(pa.table({**rows, "perceptual_hash": [b"x"] * 4}), out)
    files = {**FILES, "split.parquet": out.getvalue()}
    assert write_bundle(str(tmp_path), "cells", SPEC, files).training_hashes() == {"a", "b", "d"}
    assert write_bundle(str(tmp_path), "cells", SPEC, FILES).training_hashes() is None
    broken = write_bundle(str(tmp_path), "cells", SPEC, {**FILES, "split.parquet": b"no parquet"})
    with pytest.raises(ModelRefused, match=r"split\.parquet"):
        broken.training_hashes()
