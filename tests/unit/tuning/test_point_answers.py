from __future__ import annotations

import io
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.training.history import Row, history_row
from pipelines.tuning.answers import (
    answered,
    drop_variables,
    load_answer,
    load_answers,
    load_variables,
    save_answer,
    weights_kept,
)
from pipelines.tuning.points import DONE, FAILED, STOPPED, Answer

FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy", "val_f1", "learning_rate", "seconds")
KEY = "0123456789abcdef"


def rows_of(epochs: int, seed: int = 0) -> tuple[Row, ...]:
    random = np.random.default_rng(seed)
    return tuple(
        {"epoch": epoch, **dict(zip(FIGURES, random.standard_normal(len(FIGURES)).tolist(), strict=True))}
        for epoch in range(1, epochs + 1)
    )


def answer_of(point: str = KEY, epochs: int = 3, images: int = 5, units: int = 2) -> Answer:
    logits = np.random.default_rng(1).standard_normal((images, units)).astype(np.float32)
    return Answer(point, "aa" * 8, DONE, None, rows_of(epochs), epochs, epochs, logits)


def same(one: Answer | None, other: Answer) -> bool:
    """Equal in every bit: repr tells 1 from 1.0, -0.0 from 0.0 and finds NaN equal to itself."""
    if one is None:
        return False
    ours, theirs = ([getattr(which, field.name) for field in fields(Answer)] for which in (one, other))
    logits, others = ours.pop(), theirs.pop()
    alike = (logits is None) == (others is None)
    if logits is not None and others is not None:
        alike = logits.dtype == others.dtype and logits.shape == others.shape and logits.tobytes() == others.tobytes()
    return repr(ours) == repr(theirs) and alike


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
HISTORIES = st.lists(st.lists(NUMBERS, min_size=len(FIGURES), max_size=len(FIGURES)), max_size=6)
LOGITS = st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(0, 2**31))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    HISTORIES, st.none() | LOGITS, st.sampled_from((DONE, STOPPED, FAILED)), st.none() | st.text(), st.integers(0, 9)
)
def test_a_saved_answer_is_read_as_it_was(
    tmp_path: Path,
    history: list[list[float]],
    logits: tuple[int, int, int] | None,
    status: str,
    error: str | None,
    kept: int,
) -> None:
    rows = tuple(
        {"epoch": epoch, **dict(zip(FIGURES, values, strict=True))} for epoch, values in enumerate(history, start=1)
    )
    said = None
    if logits is not None:
        images, units, bits = logits
        said = np.random.default_rng(bits).integers(0, 2**32, (images, units), np.uint32).view(np.float32)
    answer = Answer(KEY, "ff" * 8, status, error, rows, kept, kept, said)
    save_answer(str(tmp_path), answer, None)
    assert same(load_answer(str(tmp_path), KEY), answer)
    assert same(load_answer(str(tmp_path), KEY, logits=False), replace(answer, logits=None))


def test_rows_of_a_real_history_keep_their_columns_and_their_whole_epochs(tmp_path: Path) -> None:
    figures = {name: 0.1 for name in ("log_loss", "accuracy", "ppv", "sensitivity", "roc_auc")}
    row = history_row(1, 0.3, figures, dict.fromkeys(METRIC_NAMES, math.nan), 1e-3, 0.25)
    save_answer(str(tmp_path), replace(answer_of(), history=(row,)), None)
    read = load_answer(str(tmp_path), KEY)
    assert read is not None and list(read.history[0]) == list(row)
    assert type(read.history[0]["epoch"]) is int and read.seconds == 0.25


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255), cut=st.booleans())
def test_a_torn_or_altered_file_reads_as_missing_or_as_it_was(
    tmp_path: Path, place: float, flipped: int, cut: bool
) -> None:
    answer = answer_of()
    save_answer(str(tmp_path), answer, [np.arange(7, dtype=np.float32)])
    for name in (f"{KEY}.npz", f"{KEY}.weights.npz"):
        path = tmp_path / "points" / name
        data = bytearray(path.read_bytes())
        at = int(place * len(data))
        if cut:
            del data[at:]
        else:
            data[at] ^= flipped
        path.write_bytes(data)
    read, variables = load_answer(str(tmp_path), KEY), load_variables(str(tmp_path), KEY)
    assert read is None or (not cut and same(read, answer))
    assert variables is None or (not cut and [one.tolist() for one in variables] == [list(range(7))])


def test_foreign_files_read_as_missing(tmp_path: Path) -> None:
    folder = tmp_path / "points"
    save_answer(str(tmp_path), answer_of(), None)
    saved = (folder / f"{KEY}.npz").read_bytes()
    (folder / "00.npz").write_bytes(saved)  # a copy under another point's name
    (folder / "01.npz").write_bytes(b"")
    (folder / "02.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "03.npz").write_bytes(json.dumps({"format": 1}).encode())
    for name, said in (("04", {"format": 2, "point": "04"}), ("05", [1]), ("06", {"format": 1, "point": "06"})):
        buffer = io.BytesIO()
        np.savez(buffer, answer=np.frombuffer(json.dumps(said).encode(), np.uint8), history=np.zeros((0, 0)))
        (folder / f"{name}.npz").write_bytes(buffer.getvalue())
    assert all(load_answer(str(tmp_path), f"0{number}") is None for number in range(8))
    keys = [f"0{number}" for number in range(8)]
    assert [answer.point for answer in load_answers(str(tmp_path), [*keys, KEY])] == [KEY]


def test_answered_lists_points_and_neither_weights_nor_what_else_lies_there(tmp_path: Path) -> None:
    assert answered(str(tmp_path)) == set()
    for point in ("aa", "bb"):
        save_answer(str(tmp_path), answer_of(point), [np.zeros(2)])
    (tmp_path / "points" / ".aa.npz.tmp").write_bytes(b"")
    (tmp_path / "points" / "notes.txt").write_bytes(b"")
    save_answer(str(tmp_path / "other"), answer_of("cc"), None)
    assert answered(str(tmp_path)) == {"aa", "bb"}


def test_many_answers_come_in_the_order_asked_for_and_without_logits(tmp_path: Path) -> None:
    points = [f"{number:04x}" for number in range(40)]
    for number, point in enumerate(points):
        save_answer(str(tmp_path), replace(answer_of(point), kept_epoch=number), None)
    wanted = [*reversed(points), "ffff"]
    read = list(load_answers(str(tmp_path), wanted))
    assert [answer.point for answer in read] == wanted[:-1]
    assert [answer.kept_epoch for answer in read] == list(reversed(range(40)))
    assert all(answer.logits is None for answer in read)


def test_weights_are_read_in_their_order_and_dropped_alone(tmp_path: Path) -> None:
    variables = [np.full((2, 3), number, np.float32) for number in range(120)] + [np.array(5, np.int64)]
    save_answer(str(tmp_path), answer_of("aa"), variables)
    save_answer(str(tmp_path), answer_of("bb"), None)
    read = load_variables(str(tmp_path), "aa")
    assert read is not None and len(read) == len(variables)
    for one, other in zip(read, variables, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
    assert load_variables(str(tmp_path), "bb") is None
    assert weights_kept(str(tmp_path)) == {"aa"}
    drop_variables(str(tmp_path), ["aa", "bb", "cc"])
    assert weights_kept(str(tmp_path)) == set()
    assert load_variables(str(tmp_path), "aa") is None and answered(str(tmp_path)) == {"aa", "bb"}


def test_a_later_answer_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    save_answer(str(tmp_path), replace(answer_of(), status=STOPPED), None)
    later = answer_of(epochs=5)
    save_answer(str(tmp_path), later, None)
    assert same(load_answer(str(tmp_path), KEY), later)
    assert [path.name for path in (tmp_path / "points").iterdir()] == [f"{KEY}.npz"]
