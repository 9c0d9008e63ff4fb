"""One image's answer, compared with the row that the night writes of the same image."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import ImageFailure, ModelRefused
from pipelines.images.preprocess import Prepared, Preprocessing
from pipelines.models.bundle import Bundle
from pipelines.models.record import BundleSpec
from pipelines.predictions.schema import class_column, prediction_schema
from pipelines.scoring.rows import Outcome, RowContext, prediction_rows
from pipelines.serving.answering import Answer, ServedModel, answer_image

CLASSES = ("benign", "in situ", "invasive")
POSITIVE = ("in situ", "invasive")
BAND = {"threshold": 0.4, "refer_low": 0.3, "refer_high": 0.6}
SIDE = 16


def picture(kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(3).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def served(thresholds: dict[str, float] | None = BAND) -> ServedModel:
    return ServedModel(
        "MODELS/x", "x", "v3", "a" * 64, "b" * 64, "float32", CLASSES, POSITIVE, SIDE, thresholds, card={}
    )


def answered(data: bytes, probabilities: np.ndarray, model: ServedModel) -> Answer:
    return answer_image(data, Preprocessing(SIDE).prepare, lambda pixels: probabilities, model)


def night_row(data: bytes, probabilities: np.ndarray, thresholds: dict[str, float] | None) -> dict[str, object]:
    """What `score` writes of the same picture and the same numbers."""
    units = {} if thresholds is None else {"image": thresholds}
    bundle = Bundle(
        "/m/x/v3", "x", "v3", "a" * 64, BundleSpec(CLASSES, POSITIVE, SIDE, "b" * 64, {}, thresholds=units), {}
    )
    schema = prediction_schema(CLASSES, None)
    context = RowContext("r", datetime.date(2026, 1, 1), bundle, "float32", None, False, schema)
    images = pa.table({"image_uri": ["/a.png"], "image_version": ["1"]})
    outcome = Outcome("1", Preprocessing(SIDE).prepare(data), probabilities)
    row: dict[str, object] = prediction_rows(images, [outcome], context).to_pylist()[0]
    return row


def three_that_sum_to_one(seeds: list[float]) -> np.ndarray:
    powers = np.exp(np.array(seeds, np.float64))
    return (powers / powers.sum()).astype(np.float32)


@settings(max_examples=30)
@given(
    logits=st.lists(st.floats(-8, 8), min_size=3, max_size=3),
    thresholds=st.sampled_from([BAND, {"threshold": 0.5}, {"threshold": 0.0}, None]),
)
def test_an_answer_is_the_row_of_the_night(logits: list[float], thresholds: dict[str, float] | None) -> None:
    data, probabilities = picture(), three_that_sum_to_one(logits)
    answer = answered(data, probabilities, served(thresholds))
    row = night_row(data, probabilities, thresholds)
    assert answer.predicted_label == row["predicted_class"]
    assert (answer.p_positive, answer.decision) == (row["p_positive"], row["decision"])
    assert [answer.probabilities[name] for name in CLASSES] == [row[class_column(name)] for name in CLASSES]
    facts = (answer.content_sha256, answer.width, answer.height, answer.decoder)
    assert facts == (row["content_sha256"], row["width"], row["height"], row["decoder"])
    assert answer.model == {"name": row["model_name"], "version": "v3", "model_id": row["model_id"]}


@settings(max_examples=30)
@given(st.lists(st.floats(-8, 8), min_size=3, max_size=3))
def test_numbers_read_back_from_json_to_the_last_bit(logits: list[float]) -> None:
    probabilities = three_that_sum_to_one(logits)
    told = json.loads(json.dumps(answered(picture(), probabilities, served()).as_json("r1")))
    read = [struct.pack("<f", told["probabilities"][name]) for name in CLASSES]
    assert b"".join(read) == probabilities.tobytes()
    assert np.float64(np.float32(told["p_positive"])) == told["p_positive"]


def test_the_first_of_equals_is_the_label_and_a_border_belongs_to_the_upper_side() -> None:
    equal = np.full(3, 1 / 3, np.float32)
    assert answered(picture(), equal, served()).predicted_label == "benign"
    half = np.array([0.5, 0.5, 0.0], np.float32)
    for low, high, decision in ((0.4, 0.5, "positive"), (0.5, 0.6, "refer"), (0.6, 0.7, "negative")):
        fitted = {"threshold": low, "refer_low": low, "refer_high": high}
        assert answered(picture(), half, served(fitted)).decision == decision


def test_the_json_has_the_documented_keys_in_their_order() -> None:
    data = picture("JPEG")
    told = answered(data, np.array([0.7, 0.2, 0.1], np.float32), served()).as_json("abc")
    assert list(told) == [
        "request_id", "content_sha256", "predicted_label", "probabilities", "p_positive", "decision", "model",
        "width", "height", "decoder", "milliseconds",
    ]  # fmt: skip
    assert (told["request_id"], told["width"], told["height"], told["decoder"]) == ("abc", 60, 40, "simplejpeg")
    assert told["content_sha256"] == hashlib.sha256(data).hexdigest()
    assert told["model"] == {"name": "x", "version": "v3", "model_id": "a" * 64}
    assert list(told["probabilities"]) == list(CLASSES)
    assert told["milliseconds"] > 0


def test_what_is_no_image_has_its_code() -> None:
    for data, code in ((b"", "not_an_image"), (b"hello", "not_an_image"), (picture()[:-40], "truncated")):
        with pytest.raises(ImageFailure) as failed:
            answered(data, np.zeros(3, np.float32), served())
        assert failed.value.code == code


def test_an_image_without_a_finite_answer_and_one_too_large_for_the_memory_fail_alone() -> None:
    def refuses(pixels: np.ndarray) -> np.ndarray:
        raise ModelRefused("The model answered a number that is not finite.")

    def too_much(data: bytes) -> Prepared:
        raise MemoryError

    prepare = Preprocessing(SIDE).prepare
    with pytest.raises(ImageFailure, match="no finite answer") as failed:
        answer_image(picture(), prepare, refuses, served())
    assert failed.value.code == "unsupported"
    with pytest.raises(ImageFailure) as failed:
        answer_image(picture(), too_much, refuses, served())
    assert failed.value.code == "too_large"
