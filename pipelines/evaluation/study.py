"""All figures of a set of labelled answers, as metrics.json has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.class_measures import CLASS_FIGURES, OVERALL_FIGURES, RANKED, ClassMeasures
from pipelines.evaluation.curves import decision_curve, reliability_bins
from pipelines.evaluation.delong import delong_interval
from pipelines.evaluation.figures import Figure
from pipelines.evaluation.intervals import NO_INTERVAL, wilson
from pipelines.evaluation.metrics import confusion_matrix
from pipelines.evaluation.operating import DECIDED, OperatingMeasures
from pipelines.evaluation.patients import Patients, group_patients
from pipelines.evaluation.resampling import DRAWS, Floats, Groups, Key, form_groups
from pipelines.evaluation.tallies import Bools, Sample, make_figures
from pipelines.models.bundle import threshold_unit

CURVE_THRESHOLDS = tuple(percent / 100 for percent in range(1, 100))

Thresholds = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Settings:
    """How figures are made.

    Attributes:
        draws: Resamples for intervals.
        seed: Decides them.
        aggregate: `max` or `mean`: how the images of a patient become one probability.
        prevalences: Shares of positives at which PPV and NPV are told too, each above 0 and below 1.
    """

    draws: int = DRAWS
    seed: int = 0
    aggregate: str = "max"
    prevalences: tuple[float, ...] = ()


def measure_cases(cases: Cases, thresholds: Thresholds, precision: str, settings: Settings) -> dict[str, Any]:
    """Every figure that follows from the answers and the model's frozen thresholds.

    Args:
        cases: N labelled images, N at least 1.
        thresholds: The bundle's, by unit; {} where none are known.
        precision: Whose answers they are, `float32` or `int8`.
        settings: How.

    Returns:
        The part of metrics.json from `n` to `cross_check`; figures are `Figure.as_json`.
    """
    groups = form_groups(cases.groups, cases.labels)
    sample = Sample(
        classes=tuple(cases.classes),
        positive=tuple(cases.positive),
        probabilities=cases.probabilities.astype(np.float64),
        labels=cases.labels,
        p_positive=cases.p_positive,
    )
    found = make_figures(ClassMeasures(sample, groups), groups, settings.draws, settings.seed)
    unit = threshold_unit(precision)
    return {
        "n": len(cases),
        "patients": None if cases.patients is None else len(set(cases.patients) - {None}),
        "groups": groups.count,
        "classes": list(cases.classes),
        "positive_classes": [cases.classes[number] for number in cases.positive],
        "overall": _section(found, ("overall",), OVERALL_FIGURES),
        "positive_vs_rest": _section(found, ("positive_vs_rest",), RANKED),
        "operating_point": _operating_point(cases.p_positive, sample.truth, groups, thresholds, unit, settings),
        "per_patient": _per_patient(cases, groups, thresholds, precision, settings),
        "per_class": {
            name: {**_section(found, ("per_class", name), CLASS_FIGURES), "n": int((sample.labels == number).sum())}
            for number, name in enumerate(sample.classes)
        },
        "macro": _section(found, ("macro",), CLASS_FIGURES),
        "weighted": _section(found, ("weighted",), CLASS_FIGURES),
        "confusion_matrix": confusion_matrix(sample.called, sample.labels, len(sample.classes)).tolist(),
        "classification_report": _report(sample, found),
        "calibration": {"bins": [asdict(one) for one in reliability_bins(cases.p_positive, sample.truth)]},
        "decision_curve": _decision_curve(cases.p_positive, sample.truth),
        "cross_check": _cross_check(sample),
    }


def _section(found: Mapping[Key, Figure], place: Key, names: Sequence[str]) -> dict[str, Any]:
    return {name: found[(*place, name)].as_json() for name in names}


def _operating_point(
    p_positive: Floats,
    truth: Bools,
    groups: Groups,
    thresholds: Thresholds,
    unit: str,
    settings: Settings,
    noun: str = "image",
) -> dict[str, Any]:
    """Figures at the frozen threshold of a unit."""
    fitted = thresholds.get(unit)
    if fitted is None:
        return {"reason": f"no threshold of the unit {unit} is known"}
    measured = OperatingMeasures(p_positive, truth, fitted, settings.prevalences, groups, noun)
    found = make_figures(measured, groups, settings.draws, settings.seed)
    return {
        "unit": unit,
        "threshold": float(fitted["threshold"]),
        "refer_low": fitted.get("refer_low") if measured.has_band else None,
        "refer_high": fitted.get("refer_high") if measured.has_band else None,
        "target": fitted.get("target_sensitivity"),
        "target_specificity": fitted.get("target_specificity"),
        **_section(found, ("all",), (*DECIDED, "referred")),
        "decided": {"n": measured.n_decided, **_section(found, ("decided",), DECIDED)},
        "counts": measured.counts(),
        "at_prevalence": [
            {
                "prevalence": prevalence,
                **{name: found["prevalence", name, str(place)].as_json() for name in ("ppv", "npv")},
            }
            for place, prevalence in enumerate(settings.prevalences)
        ],
    }


def _per_patient(
    cases: Cases, groups: Groups, thresholds: Thresholds, precision: str, settings: Settings
) -> dict[str, Any]:
    """Figures of patients: positive if any image is, by the aggregated probability; `overall` at one half."""
    if cases.patients is None:
        return {"reason": "the data do not say which patient an image is of"}
    patients = group_patients(cases.p_positive, cases.truth, cases.patients, settings.aggregate)
    if not len(patients):
        return {"reason": "no image names its patient"}
    drawn = _groups_of(patients, cases, groups)
    sample = Sample(
        classes=("negative", "positive"),
        positive=(1,),
        probabilities=np.stack([1 - patients.p_positive, patients.p_positive], axis=1),
        labels=patients.truth.astype(np.int64),
        p_positive=patients.p_positive,
        noun="patient",
    )
    found = make_figures(ClassMeasures(sample, drawn), drawn, settings.draws, settings.seed)
    unit = threshold_unit(precision, f"patient_{settings.aggregate}")
    point = _operating_point(patients.p_positive, patients.truth, drawn, thresholds, unit, settings, "patient")
    return {
        "aggregate": settings.aggregate,
        "n": len(patients),
        "positives": int(patients.truth.sum()),
        "without_patient": patients.without_patient,
        "overall": _section(found, ("overall",), OVERALL_FIGURES),
        "operating_point": point,
    }


def _groups_of(patients: Patients, cases: Cases, groups: Groups) -> Groups:
    """The group of each patient's first image: patients that share a picture are drawn together."""
    first: dict[str | None, int] = {}
    for row, patient in enumerate(cases.patients or ()):
        first.setdefault(patient, row)
    names = [str(groups.member[first[name]]) for name in patients.names]
    return form_groups(names, patients.truth.astype(np.int64))


def _report(sample: Sample, found: Mapping[Key, Figure]) -> dict[str, Any]:
    """Precision, recall, F1 and support of each class and their means; null where not defined."""
    names = {"precision": "ppv", "recall": "sensitivity", "f1": "f1"}

    def row(place: Key, support: int) -> dict[str, Any]:
        return {name: found[(*place, own)].value for name, own in names.items()} | {"support": support}

    counts = np.bincount(sample.labels, minlength=len(sample.classes)).tolist()
    told: dict[str, Any] = {
        name: row(("per_class", name), count) for name, count in zip(sample.classes, counts, strict=True)
    }
    told["accuracy"] = found["overall", "accuracy"].value
    return told | {f"{mean} avg": row((mean,), sum(counts)) for mean in ("macro", "weighted")}


def _decision_curve(p_positive: Floats, truth: Bools) -> dict[str, list[float]]:
    model, everybody = decision_curve(p_positive, truth, CURVE_THRESHOLDS)
    return {"threshold": list(CURVE_THRESHOLDS), "model": model.tolist(), "treat_all": everybody.tolist()}


def _cross_check(sample: Sample) -> dict[str, Any]:
    """The intervals by formula of some of `overall`, as if all images were independent; null where there is none.

    With more than two classes, sensitivity and specificity are means and have none, and the ROC AUC is that of
    `positive_vs_rest`.
    """
    binary = len(sample.classes) == 2
    truth, called = sample.truth, np.isin(sample.called, sample.positive)

    def share(part: Bools, means: bool = False) -> dict[str, Any]:
        return {"wilson": None if means or not len(part) else list(wilson(int(part.sum()), len(part)))}

    area = delong_interval(sample.p_positive, truth) if truth.any() and not truth.all() else NO_INTERVAL
    return {
        "sensitivity": share(called[truth], not binary),
        "specificity": share(~called[~truth], not binary),
        "accuracy": share(sample.called == sample.labels),
        "roc_auc": {"delong": None if math.isnan(area[0]) else [float(end) for end in area]},
    }
