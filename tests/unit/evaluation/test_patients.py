from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.patients import fit_patients, group_patients
from pipelines.evaluation.thresholds import fit_point

images = st.lists(
    st.tuples(st.sampled_from(["b", "a", "patient 10", "é", None]), st.floats(0, 1, width=32), st.booleans()),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(rows=images, how=st.sampled_from(["max", "mean"]))
def test_patients_are_what_pandas_groups(rows: list[tuple[str | None, float, bool]], how: str) -> None:
    patients, score, truth = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    found = group_patients(np.array(score, np.float32), np.array(truth, bool), patients, how)
    frame = pd.DataFrame({"patient": patients, "p": np.array(score, np.float32).astype(float), "truth": truth})
    wanted = (
        frame.dropna(subset="patient").groupby("patient").agg(p=("p", how), truth=("truth", "any"), n=("truth", "size"))
    )
    assert list(found.names) == list(wanted.index) and len(found) == len(wanted)
    np.testing.assert_allclose(found.p_positive, wanted["p"].to_numpy(float), rtol=1e-12)
    np.testing.assert_array_equal(found.truth, wanted["truth"].to_numpy(bool))
    np.testing.assert_array_equal(found.images, wanted["n"].to_numpy(int))
    assert found.without_patient == sum(patient is None for patient in patients)


def test_patients_are_fitted_to_the_targets_of_the_images() -> None:
    random = np.random.default_rng(0)
    truth = np.repeat(random.random(80) < 0.5, 3)
    score = np.clip(random.normal(np.where(truth, 0.6, 0.4), 0.15), 0, 1)
    patients = [None if number % 40 == 7 else f"patient {number // 3}" for number in range(240)]
    point = fit_point(score, truth, 0.9, 0.85)
    fitted = fit_patients(point, score, truth, patients)
    assert set(fitted) == {"patient_max", "patient_mean"}
    frame = pd.DataFrame({"patient": patients, "p": score, "truth": truth}).dropna(subset="patient").groupby("patient")
    for how in ("max", "mean"):
        own = frame.agg(p=("p", how), truth=("truth", "any"))
        assert fitted[f"patient_{how}"] == fit_point(own["p"], own["truth"], 0.9, 0.85)
    assert fit_patients(point, score, truth, None) == {}
    assert fit_patients(point, score, truth, [None] * 240) == {}
    assert fit_patients(point, [0.1, 0.9], [False, True], ["a", None]) == {}


def test_another_aggregate_is_no_aggregate() -> None:
    with pytest.raises(ValueError, match="median"):
        group_patients([0.1], [True], ["a"], "median")
