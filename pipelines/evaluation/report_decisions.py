"""What the report says of decisions: the frozen threshold, the refer band, and other prevalences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.report_blocks import AT_THRESHOLD, FIGURE_LABELS, Block, Part, Table, TableMaker, Words
from pipelines.evaluation.report_numbers import clause, figure_text, interval, number, per_cent, whole
from pipelines.models.decision import decide, limits

_ASK_PREVALENCE = "With --prevalence 0.5% the report also says them for a screening archive."
_DECISION_ROWS = ("sensitivity", "specificity", "ppv", "npv")


def decisions(figures: Mapping[str, Any], cases: Cases, fitted: Mapping[str, Any] | None) -> Part:
    """The operating point of images and of patients, who is referred, other prevalences, and class against decision.

    Args:
        figures: metrics.json.
        cases: Whose classes are held against their decisions.
        fitted: Threshold and band for single images; None where the model has none.
    """
    image, patient = figures["operating_point"], figures["per_patient"]
    if "threshold" not in image:
        return Part("Decisions", AT_THRESHOLD, (Words(f"No decision was evaluated: {clause(image['reason'])}"),))
    blocks: list[Block] = [_operating_table(figures), _referred_words(image), _count_table(image)]
    if "reason" in patient:
        blocks.insert(1, Words(f"No figures per patient: {clause(patient['reason'])}"))
    elif "threshold" not in patient["operating_point"]:
        blocks.insert(1, Words(f"No decisions per patient: {clause(patient['operating_point']['reason'])}"))
    if image.get("at_prevalence"):
        blocks.append(_prevalence_table(figures))
    else:
        shares = per_cent(cases.truth.mean()) if len(cases) else per_cent(None)
        blocks.append(Words(f"PPV and NPV hold where {shares} of the images are positive, as here. {_ASK_PREVALENCE}"))
    if fitted is not None:
        blocks.append(Words(_class_and_decision(cases, fitted)))
    return Part("Decisions", AT_THRESHOLD, tuple(blocks))


def _operating_table(figures: Mapping[str, Any]) -> Table:
    """Sensitivity and its sisters: all images, those that were not referred, and the same of patients."""
    image, patient = figures["operating_point"], figures["per_patient"]
    columns = [("Per image", image, figures["n"])]
    if "threshold" in patient.get("operating_point", {}):
        columns.append(("Per patient", patient["operating_point"], patient["n"]))
    header = [""]
    for name, _, n in columns:
        header += [f"{name}, all (n = {whole(n)})", f"{name}, without referred"]
    maker = TableMaker("operating-point", "Positive classes against the rest at the frozen threshold", header)
    maker.add("Threshold", [cell for _, own, _ in columns for cell in (number(own["threshold"]), None)])
    maker.add("Refer band", [cell for _, own, _ in columns for cell in (_band(own), None)])
    for name, key in (("Target sensitivity", "target"), ("Target specificity", "target_specificity")):
        if any(own.get(key) is not None for _, own, _ in columns):
            maker.add(name, [cell for _, own, _ in columns for cell in (number(own.get(key)), None)])
    maker.add("Decided", [cell for _, own, n in columns for cell in (whole(n), whole(own["decided"]["n"]))])
    for name in _DECISION_ROWS:
        maker.add(
            FIGURE_LABELS[name], [own for _, point, _ in columns for own in (point[name], point["decided"][name])]
        )
    maker.add("Referred, share", [cell for _, own, _ in columns for cell in (own["referred"], None)])
    return maker.made()


def _band(point: Mapping[str, Any]) -> str:
    if point.get("refer_low") is None or point.get("refer_high") is None:
        return "none"
    return interval(point["refer_low"], point["refer_high"])


def _referred_words(point: Mapping[str, Any]) -> Words:
    """How many go to a person, and what sensitivity and specificity gain by it."""
    if point.get("refer_low") is None:
        return Words("The model has no refer band: every image is decided, and nobody is referred.")
    counts, decided = point["counts"], point["decided"]
    referred = counts["referred_positive"] + counts["referred_negative"]
    return Words(
        f"{whole(referred)} of {whole(referred + decided['n'])} images ({per_cent(point['referred']['value'])}) lie in "
        f"the refer band {_band(point)} and go to a person: {whole(counts['referred_positive'])} positive and "
        f"{whole(counts['referred_negative'])} negative ones. What that buys: among the images that the model decides "
        f"alone the sensitivity is {figure_text(decided['sensitivity'])} instead of "
        f"{figure_text(point['sensitivity'])}, and the specificity {figure_text(decided['specificity'])} instead of "
        f"{figure_text(point['specificity'])}."
    )


def _count_table(point: Mapping[str, Any]) -> Table:
    """The four kinds of decision and the referred, as counts."""
    counts = point["counts"]
    maker = TableMaker(
        "decision-counts",
        "Images by truth and decision; called positive or negative by the threshold, referred ones included",
        ["", "called positive", "called negative", "of these referred"],
    )
    for name, right, wrong, referred in (
        ("positive", "true_positive", "false_negative", "referred_positive"),
        ("negative", "false_positive", "true_negative", "referred_negative"),
    ):
        maker.add(f"truly {name}", [whole(counts[right]), whole(counts[wrong]), whole(counts[referred])])
    return maker.made()


def _prevalence_table(figures: Mapping[str, Any]) -> Table:
    """PPV and NPV where another share is positive."""
    image, patient = figures["operating_point"], figures["per_patient"]
    of_patients = patient.get("operating_point", {}).get("at_prevalence") or []
    header = ["Prevalence", "PPV, images", "NPV, images", *(["PPV, patients", "NPV, patients"] if of_patients else [])]
    caption = "PPV and NPV at other prevalences, by Bayes from sensitivity and specificity"
    maker = TableMaker("prevalence", caption, header)
    for place, own in enumerate(image["at_prevalence"]):
        cells = [own["ppv"], own["npv"]]
        if of_patients:
            cells += [of_patients[place]["ppv"], of_patients[place]["npv"]]
        share = f"{own['prevalence'] * 100:g} %"
        maker.add(share, cells)
    return maker.made()


def _class_and_decision(cases: Cases, fitted: Mapping[str, Any]) -> str:
    """Why class and decision may differ, with how often they do here."""
    called_class = np.isin(cases.predicted, cases.positive)
    decision = decide(cases.p_positive, fitted)
    otherwise = int(((decision == "positive") & ~called_class).sum() + ((decision == "negative") & called_class).sum())
    low, high = limits(fitted)
    refer = "" if low == high else f", refer from {number(low)} on"
    return (
        "Class and decision may differ: the class is the most probable one, while the decision goes by the probability "
        f"of the positive classes (positive from {number(high)} on{refer}), with limits that were chosen to miss few "
        "positives, so that an image of a negative class may well be decided as positive. Here the one is positive and "
        f"the other negative for {whole(otherwise)} of {whole(len(cases))} images."
    )
