"""What to be careful about before a figure is believed: rules that speak in words, the gravest first.

A rule reads metrics.json, speaks where its condition holds and is silent otherwise; each sentence carries its numbers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ModelRefused
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.comparison import name_of
from pipelines.evaluation.intervals import wilson
from pipelines.evaluation.report_numbers import figure_text, interval, number, p_text, per_cent, whole
from pipelines.models.bundle import VALIDATION_FILE, Bundle

LEAST_OF_A_KIND = 100
"""Positives and negatives that a validation should have (Collins, Ogundimu and Altman, Stat Med 35 (2016))."""
WIDE_AREA, WIDE_SHARE = 0.1, 0.2
LARGE_ERROR, LEAST_FOR_ERROR = 0.1, 500
"""A calibration error above this is told, from so many images on: of fewer, chance alone makes one as large."""
SHIFT = 1.25
MANY_REFERRED = 0.25
MANY_UNREADABLE = 0.01
MOST_STARS = 3
DISCLAIMER = "For research and quality assurance unless validated locally; this is no medical device."

_LABELS = {
    "roc_auc": "ROC AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "log_loss": "log loss",
}

Figures = Mapping[str, Any]
Rule = Callable[[Figures], Iterator[str]]


def concerns(figures: Figures) -> list[str]:
    """Sentences on what to be careful about, the gravest first; the last one is always the disclaimer.

    Args:
        figures: metrics.json so far. Beside the keys that it always has, two are read where they are there:
            `validation`, see `validation_counts`, and `certain_and_wrong`, see the function of that name.
    """
    return [text for rule in RULES for text in rule(figures)] + [DISCLAIMER]


def certain_and_wrong(cases: Cases) -> int:
    """How many images are of a class whose probability is exactly 0: what the model took for impossible."""
    return int((cases.probabilities[np.arange(len(cases)), cases.labels] <= 0).sum())


def validation_counts(bundle: Bundle) -> dict[str, int] | None:
    """How many images a model was validated on, and how many of them are positive; None where that is not known.

    Args:
        bundle: The model.

    Returns:
        `n` and `positives`.
    """
    if VALIDATION_FILE not in bundle.files:
        return None
    try:
        labels = pq.read_table(io.BytesIO(bundle.read(VALIDATION_FILE)), columns=["label"])["label"].to_pylist()
    except (ModelRefused, pa.ArrowException, KeyError):
        return None
    return {"n": len(labels), "positives": sum(label in bundle.positive_classes for label in labels)}


def _seen(figures: Figures) -> Iterator[str]:
    seen = figures.get("seen_in_training") or {}
    exact, near = seen.get("exact") or 0, seen.get("near_duplicates") or 0
    patient = seen.get("same_patient") or 0
    if exact:
        yield (
            f"{_count(exact, 'image')} of {whole(figures['n'])} {_were(exact)} used to train or validate the model: "
            "the figures flatter it, and say little of new patients."
        )
    if near:
        yield (
            f"{_count(near, 'image')} of {whole(figures['n'])} {_are(near)} nearly a copy of an image that the model "
            "was trained or validated on: the figures flatter it."
        )
    if patient:
        yield (
            f"{_count(patient, 'image')} of {whole(figures['n'])} {_are(patient)} of patients of whom the model was "
            "trained or validated on other images, by their identifiers: the figures flatter it, and say little of new "
            "patients."
        )


def _coin(figures: Figures) -> Iterator[str]:
    area = figures["positive_vs_rest"]["roc_auc"]
    if area.get("low") is not None and area["low"] <= 0.5 <= area["high"]:
        yield f"The model cannot be told from a coin here: ROC AUC {figure_text(area)}."


def _few(figures: Figures) -> Iterator[str]:
    positives = _positives(figures)
    for count, kind in ((positives, "positive"), (figures["n"] - positives, "negative")):
        if count < LEAST_OF_A_KIND:
            yield (
                f"Only {whole(count)} of {_count(figures['n'], 'image')} {_are(count)} {kind}: below "
                f"{LEAST_OF_A_KIND} of a kind every figure that rests on them is uncertain."
            )


def _missed(figures: Figures) -> Iterator[str]:
    points = [("", figures["operating_point"]), ("per patient ", figures["per_patient"].get("operating_point") or {})]
    for unit, point in points:
        reached, target = point.get("sensitivity") or {}, point.get("target")
        if target is not None and reached.get("high") is not None and reached["high"] < target:
            yield (
                f"The frozen threshold {unit}was set for a sensitivity of {target:g} and reaches "
                f"{figure_text(reached)} here: it misses more positive cases than was asked for."
            )


def _stars(figures: Figures) -> Iterator[str]:
    for column in figures.get("subgroups") or ():
        starred = sorted((own for own in column["groups"] if own["starred"]), key=lambda own: float(own["p"]))
        for own in starred[:MOST_STARS]:
            told = ", ".join(f"{_LABELS[name]} {figure_text(own['figures'][name])}" for name in own["differs_in"])
            yield (
                f"By {column['column']}, the {_count(own['n'], 'image')} of {own['name']} differ from the rest by more "
                f"than chance: {told} (corrected for {whole(column['looks'])} looks, p {_p(own['p'])})."
            )
        if len(starred) > MOST_STARS:
            more = len(starred) - MOST_STARS
            yield f"By {column['column']}, {_count(more, 'further group')} {'differs' if more == 1 else 'differ'} too."


def _wide(figures: Figures) -> Iterator[str]:
    point = figures["operating_point"]
    decided = point if "sensitivity" in point else figures["overall"]
    where = "at the frozen threshold" if decided is point else "at the most probable class"
    told = [("ROC AUC", figures["positive_vs_rest"]["roc_auc"], WIDE_AREA)]
    told += [(f"{name} {where}", decided[name], WIDE_SHARE) for name in ("sensitivity", "specificity")]
    wide = [f"{name} {figure_text(own)}" for name, own, most in told if _width(own) > most]
    if wide:
        yield f"These intervals are wide, and the truth may lie anywhere in them: {'; '.join(wide)}."


def _no_threshold(figures: Figures) -> Iterator[str]:
    if "threshold" not in figures["operating_point"]:
        yield (
            "The model has no frozen threshold for these answers, so its decisions were not evaluated: the figures are "
            "at the most probable class."
        )


def _calibration(figures: Figures) -> Iterator[str]:
    overall = figures["overall"]
    off = [
        f"calibration {name} {figure_text(own)} instead of {ideal:g}"
        for name, ideal in (("slope", 1.0), ("intercept", 0.0))
        if (own := overall[f"calibration_{name}"]).get("low") is not None and not own["low"] <= ideal <= own["high"]
    ]
    error = overall["calibration_error"]
    if figures["n"] >= LEAST_FOR_ERROR and (error.get("value") or 0) > LARGE_ERROR:
        off.append(f"calibration error {figure_text(error)}")
    if off:
        yield (
            f"The probabilities are not calibrated for these images: {'; '.join(off)}. `nightread models calibrate` "
            "fits them to labelled images of one's own."
        )


def _shift(figures: Figures) -> Iterator[str]:
    there = figures.get("validation")
    if not there or not there["n"] or not figures["n"]:
        return
    here = _positives(figures)
    low, high = newcombe(here, figures["n"], there["positives"], there["n"])
    own, before = here / figures["n"], there["positives"] / there["n"]
    if (low > 0 or high < 0) and not before / SHIFT <= own <= before * SHIFT:
        yield (
            f"{per_cent(own)} of these images are positive, and {per_cent(before)} of those that the threshold was "
            f"fitted to (difference {_points(own - before)}, 95 % interval {_points(low)} to {_points(high)} "
            "percentage points): PPV and NPV hold for this share only, and probabilities may be off."
        )


def _impossible(figures: Figures) -> Iterator[str]:
    count = figures.get("certain_and_wrong") or 0
    if count:
        yield (
            f"For {_count(count, 'image')} the model gave the true class a probability of exactly 0: it was certain "
            "and wrong, and no threshold mends that."
        )


def _patients(figures: Figures) -> Iterator[str]:
    if figures.get("patients") is None:
        groups = figures.get("groups", figures["n"])
        drawn = (
            "images as independent" if groups == figures["n"] else f"{_count(groups, 'group')} of images for patients"
        )
        yield (
            f"Which patient an image is of is not known, so intervals take {drawn}: where patients have several, they "
            "are too narrow."
        )
        return
    without = figures["per_patient"].get("without_patient") or 0
    if without:
        yield (
            f"{_count(without, 'image')} of {whole(figures['n'])} {'names' if without == 1 else 'name'} no patient and "
            f"{'is' if without == 1 else 'are'} left out of the figures per patient."
        )


def _intensity(figures: Figures) -> Iterator[str]:
    accuracy = (figures.get("intensity") or {}).get("accuracy") or {}
    if accuracy.get("depends"):
        yield f"{accuracy['sentence']} (Spearman's correlation {number(accuracy['spearman'])}, p {_p(accuracy['p'])}.)"


def _referred(figures: Figures) -> Iterator[str]:
    referred = figures["operating_point"].get("referred") or {}
    if (referred.get("value") or 0) > MANY_REFERRED:
        share, ends = per_cent(referred["value"]), [per_cent(referred.get(end)) for end in ("low", "high")]
        yield f"{share} ({' to '.join(ends)}) of the images are referred to a person: the model decides only the rest."


def _compared(figures: Figures) -> Iterator[str]:
    compared = figures.get("comparison")
    if not compared:
        return
    name = name_of(compared["against"])
    seen = compared["against"].get("seen_in_training") or 0
    if seen:
        yield (
            f"The model compared with, {name}, was trained or validated on {_count(seen, 'image')} of "
            f"{whole(compared['n'])}: the comparison flatters it."
        )
    deciding = next((key for key in ("roc_auc", "accuracy") if compared["figures"][key]["low"] is not None), None)
    own = compared["figures"][deciding] if deciding else {}
    if deciding and own["low"] <= 0 <= own["high"]:
        ends = interval(own["low"], own["high"])
        yield (
            f"The comparison with {name} is undecided: difference in {_LABELS[deciding]} {number(own['difference'])} "
            f"({ends}) on {_count(compared['n'], 'image')}."
        )


def _unread(figures: Figures) -> Iterator[str]:
    count = len(figures.get("unreadable") or ())
    if count > MANY_UNREADABLE * (figures["n"] + count):
        yield (
            f"{_count(count, 'labelled image')} of {whole(figures['n'] + count)} could not be read: how the model does "
            "on such images is not known."
        )


def _unknown_training(figures: Figures) -> Iterator[str]:
    seen = figures.get("seen_in_training") or {}
    if seen and not seen.get("known"):
        yield "Whether the model was trained on some of these images is not known: it does not say what made it."
    elif seen and seen.get("near_duplicates") is None:
        yield "Near-duplicates of training images were not looked for; only images of the same bytes were."


RULES: Sequence[Rule] = (
    _seen,
    _coin,
    _few,
    _missed,
    _stars,
    _wide,
    _no_threshold,
    _calibration,
    _shift,
    _impossible,
    _patients,
    _intensity,
    _referred,
    _compared,
    _unread,
    _unknown_training,
)
"""The gravest first."""


def newcombe(one: int, of_one: int, other: int, of_other: int) -> tuple[float, float]:
    """95 % interval of the difference of two proportions (Newcombe's method 10, Stat Med 17 (1998)).

    Args:
        one: Successes of the one.
        of_one: Its trials, at least 1.
        other: Successes of the other.
        of_other: Its trials, at least 1.
    """
    first, second = one / of_one, other / of_other
    (low, high), (its_low, its_high) = wilson(one, of_one), wilson(other, of_other)
    below, above = math.hypot(first - low, its_high - second), math.hypot(high - first, second - its_low)
    return first - second - below, first - second + above


def _positives(figures: Figures) -> int:
    return sum(int(figures["per_class"][name]["n"]) for name in figures["positive_classes"])


def _width(figure: Figures) -> float:
    low, high = figure.get("low"), figure.get("high")
    return float(high - low) if low is not None and high is not None else 0.0


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _count(count: int, noun: str) -> str:
    return f"{whole(count)} {noun}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _p(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"
