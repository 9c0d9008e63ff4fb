"""The report's second section: how well the model tells classes apart, and what its probabilities mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.curves import Bin, precision_recall_curve, roc_curve
from pipelines.evaluation.plots import (
    MOST_CLASSES,
    Curve,
    confusion_figure,
    decision_figure,
    precision_recall_figure,
    reliability_diagram,
    roc_figure,
    score_figure,
)
from pipelines.evaluation.report_blocks import (
    AT_CLASS,
    AT_THRESHOLD,
    FIGURE_LABELS,
    MOST_COLUMNS,
    OF_PROBABILITIES,
    Block,
    Cell,
    Drawing,
    Drawings,
    Part,
    Section,
    Table,
    TableMaker,
    Words,
)
from pipelines.evaluation.report_decisions import decisions
from pipelines.evaluation.report_numbers import clause, figure_text, interval, number, per_cent, whole
from pipelines.models.decision import limits

OF_THE_NAMED_CLASS = (
    "With more than two classes error, slope and intercept ask whether the named class is right as often as its "
    "probability says; the diagram is that of the positive classes together."
)
_CLASS_FIGURES = ("roc_auc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1", "calibration_error")


def answer_section(figures: Mapping[str, Any], cases: Cases, fitted: Mapping[str, Any] | None) -> Section:
    """Discrimination, decisions, classes, calibration, net benefit and scores.

    Args:
        figures: metrics.json.
        cases: What the curves are drawn from.
        fitted: Threshold and band for single images; None where the model has none.
    """
    return Section(
        "answers",
        "Discrimination, decisions and calibration",
        "",
        (),
        (
            _curves(figures, cases, fitted),
            decisions(figures, cases, fitted),
            _classes_of_all(figures),
            _each_class(figures),
            _confusion(figures),
            _calibration(figures, cases),
            _net_benefit(figures, fitted),
            _scores(cases, fitted),
            _cross_check(figures),
        ),
    )


def _curves(figures: Mapping[str, Any], cases: Cases, fitted: Mapping[str, Any] | None) -> Part:
    """ROC and precision-recall of each class, and of the positive classes together where there are several."""
    scored = [
        (name, cases.probabilities[:, column].astype(np.float64), cases.labels == column, figures["per_class"][name])
        for column, name in enumerate(cases.classes)
    ]
    if len(cases.positive) > 1:
        scored.insert(0, ("positive classes", cases.p_positive, cases.truth, figures["positive_vs_rest"]))
    precision_recall = [
        Curve(name, *precision_recall_curve(score, truth)[:2], figure_text(own["average_precision"]))
        for name, score, truth, own in scored
    ]
    binary = len(cases.classes) == 2
    if binary:  # the other class's ROC curve is the same one, mirrored
        scored = [scored[cases.positive[0]]]
    roc = [Curve(name, *roc_curve(score, truth)[:2], figure_text(own["roc_auc"])) for name, score, truth, own in scored]
    point, precise = _operating_places(cases, fitted)
    caption = "With two classes one ROC curve says all: the other class's is its mirror image. " if binary else ""
    if len(cases.classes) > MOST_CLASSES:
        caption += f"The first {MOST_CLASSES} classes are drawn; the table below has all. "
    circle = "The circle is the frozen threshold." if point else "No threshold is frozen, so none is marked."
    drawn = Drawings(
        (
            Drawing(roc_figure([one for one in roc if len(one.across)], point), f"ROC. {caption}{circle}"),
            Drawing(
                precision_recall_figure([one for one in precision_recall if len(one.across)], precise),
                f"Precision and recall, each class against the rest. {circle}",
            ),
        )
    )
    absent = [one.name for one in roc if not len(one.across)]
    blocks: tuple[Block, ...] = (drawn,)
    if absent:
        blocks += (Words(f"No ROC curve of {', '.join(absent)}: only one kind of image is there."),)
    basis = f"{OF_PROBABILITIES}; circle {AT_THRESHOLD}" if point else OF_PROBABILITIES
    return Part("ROC and precision-recall", basis, blocks)


def _operating_places(
    cases: Cases, fitted: Mapping[str, Any] | None
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Where the frozen threshold lies in the two charts; None where it cannot be placed."""
    if fitted is None or cases.truth.all() or not cases.truth.any():
        return None, None
    called, truth = cases.p_positive >= float(fitted["threshold"]), cases.truth
    sensitivity = float(called[truth].mean())
    precise = (sensitivity, float(truth[called].mean())) if called.any() else None
    return (float(called[~truth].mean()), sensitivity), precise


def _classes_of_all(figures: Mapping[str, Any]) -> Part:
    """Every figure of images beside that of patients."""
    patient = figures["per_patient"]
    has_patients = "reason" not in patient
    header = ["", f"Per image (n = {whole(figures['n'])})"]
    if has_patients:
        header.append(f"Per patient (n = {whole(patient['n'])})")
    maker = TableMaker("overall", "All figures with 95 % intervals", header)
    for name, text in FIGURE_LABELS.items():
        if name in figures["overall"]:
            cells = [figures["overall"][name]]
            if has_patients:
                cells.append(patient["overall"].get(name, {"value": None, "reason": "It is not made for patients."}))
            maker.add(text, cells)
    blocks: list[Block] = [Words(_what_overall_is(figures)), maker.made()]
    if has_patients:
        left_out = patient.get("without_patient") or 0
        unknown = f" {whole(left_out)} images name no patient and are not in it." if left_out else ""
        blocks.append(
            Words(
                "A patient is positive if any image of theirs is; the probability is the "
                f"{_AGGREGATES[patient['aggregate']]} of their images, and from 0.5 on the patient is called positive."
                f"{unknown}"
            )
        )
    else:
        blocks.append(Words(f"No figures per patient: {clause(patient['reason'])}"))
    return Part(
        "All figures", f"{AT_CLASS}; areas, Brier, log loss and calibration of the probabilities", tuple(blocks)
    )


_AGGREGATES = {"max": "highest", "mean": "mean"}


def _what_overall_is(figures: Mapping[str, Any]) -> str:
    classes, positive = figures["classes"], figures["positive_classes"]
    if len(classes) == 2:
        return f"With two classes these are the figures of {positive[0]} against the other."
    return (
        f"With {len(classes)} classes areas, sensitivity, specificity, PPV, NPV and F1 are unweighted means of each "
        "class against the rest, and calibration is that of the named class; figures of patients are those of the "
        "positive classes."
    )


def _each_class(figures: Mapping[str, Any]) -> Part:
    """A row for each class and two means."""
    maker = TableMaker(
        "classes", "Each class against the rest", ["", "n", *(FIGURE_LABELS[name] for name in _CLASS_FIGURES)]
    )
    rows = [(name, own["n"], own) for name, own in figures["per_class"].items()]
    rows += [
        ("Mean (macro)", figures["n"], figures["macro"]),
        ("Mean weighted by n", figures["n"], figures["weighted"]),
    ]
    for name, n, own in rows:
        maker.add(name, [whole(n), *(own.get(key, {"value": None}) for key in _CLASS_FIGURES)])
    return Part("Each class", f"{AT_CLASS}; areas and calibration of the probabilities", (maker.made(),))


def _report_table(figures: Mapping[str, Any]) -> Table:
    """Precision, recall, F1 and support as scikit-learn's classification report has them."""
    maker = TableMaker("classification", "Classification report", ["", "Precision", "Recall", "F1", "Support"])
    sources = {**figures["per_class"], "macro avg": figures["macro"], "weighted avg": figures["weighted"]}
    for name, own in figures["classification_report"].items():
        if not isinstance(own, Mapping):
            maker.add(name, [None, None, number(own), whole(figures["n"])])
            continue
        shown = [
            {"value": own[key], "reason": sources[name][figure].get("reason")}
            for key, figure in (("precision", "ppv"), ("recall", "sensitivity"), ("f1", "f1"))
        ]
        maker.add(name, [*shown, whole(own["support"])])
    return maker.made()


def _confusion(figures: Mapping[str, Any]) -> Part:
    """The matrix as a chart and as a table, and the classification report."""
    matrix, classes = figures["confusion_matrix"], figures["classes"]
    maker = TableMaker(
        "confusion-counts",
        "Counts and per cent of the row: rows are true classes, columns predicted ones",
        ["true class", *classes, "in all"],
    )
    for name, row in zip(classes, matrix, strict=True):
        everyone = sum(row)
        shares = [count / everyone if everyone else 0.0 for count in row]
        cells = [Cell(whole(count), per_cent(share), shade=share) for count, share in zip(row, shares, strict=True)]
        maker.add(name, [*cells, whole(everyone)])
    blocks: tuple[Block, ...] = (maker.made(),)
    if len(classes) <= MOST_CLASSES:
        blocks = (
            Drawings((Drawing(confusion_figure(matrix, classes), "Darker: a greater share of the row."),)),
            *blocks,
        )
    few = len(classes) <= MOST_COLUMNS - 2  # more columns than half a page of paper holds
    return Part("Confusion matrix and report", AT_CLASS, (*blocks, _report_table(figures)), narrow=few)


def _calibration(figures: Mapping[str, Any], cases: Cases) -> Part:
    """How far the probabilities can be taken at their word."""
    bins = [Bin(**one) for one in figures["calibration"]["bins"]]
    overall = figures["overall"]
    maker = TableMaker("calibration-figures", "Calibration", ["", "Value (95 % interval)", "Ideal"])
    ideal = {"calibration_error": "0", "calibration_slope": "1", "calibration_intercept": "0", "brier": "0"}
    for name, best in ideal.items():
        if name in overall:
            maker.add(FIGURE_LABELS[name], [overall[name], best])
    points = TableMaker(
        "calibration-bins", "Bins of the diagram", ["Mean predicted", "Images", "Observed share (Wilson interval)"]
    )
    for one in bins:
        points.add(
            number(one.mean_predicted),
            [whole(one.n), {"value": one.observed, "low": one.low, "high": one.high}],
        )
    if not bins:
        return Part("Calibration", OF_PROBABILITIES, (Words("There are no images to draw it from."), maker.made()))
    chart = Drawing(
        reliability_diagram({"this model": bins}, cases.p_positive),
        "Probability of the positive classes in bins of equal mass with 95 % Wilson bars; on the diagonal 0.3 is right "
        "three times in ten. "
        "Below: how often each probability is given.",
    )
    blocks: list[Block] = [Drawings((chart,)), maker.made(), points.made()]
    if len(cases.classes) > 2:
        blocks.insert(2, Words(OF_THE_NAMED_CLASS))
    return Part("Calibration", OF_PROBABILITIES, tuple(blocks), narrow=True)


def _net_benefit(figures: Mapping[str, Any], fitted: Mapping[str, Any] | None) -> Part:
    curve = figures["decision_curve"]
    basis = "at each threshold probability"
    if not curve.get("threshold"):
        return Part("Decision curve", basis, (Words(f"None is drawn: {clause(curve.get('reason', ''))}"),))
    threshold = float(fitted["threshold"]) if fitted else None
    chart = decision_figure(curve["threshold"], curve["model"], curve["treat_all"], threshold)
    caption = (
        "Net benefit per image: true positives less false ones, weighed by the odds of the threshold probability "
        "(Vickers and Elkin, 2006). A model is of use where it lies above both other lines."
    )
    return Part("Decision curve", basis, (Drawings((Drawing(chart, caption),)),), narrow=True)


def _scores(cases: Cases, fitted: Mapping[str, Any] | None) -> Part:
    """Histograms by true class with threshold and band."""
    scores = {name: cases.p_positive[cases.labels == place] for place, name in enumerate(cases.classes)}
    positive = [cases.classes[place] for place in cases.positive]
    threshold = float(fitted["threshold"]) if fitted else None
    band = limits(fitted) if fitted else (0.0, 0.0)
    chart = score_figure(scores, positive, threshold, band if band[0] < band[1] else None)
    caption = (
        "The line is the frozen threshold, the grey field the refer band." if fitted else "No threshold is frozen."
    )
    return Part("Scores by class", OF_PROBABILITIES, (Drawings((Drawing(chart, caption),)),), narrow=True)


def _cross_check(figures: Mapping[str, Any]) -> Part:
    """The same intervals by formulas that know nothing of the bootstrap."""
    maker = TableMaker("cross-check", "Intervals by another way", ["", "As reported", "Formula", "By"])
    names = {"wilson": "Wilson", "delong": "DeLong"}
    for name, own in figures["cross_check"].items():
        for way, ends in own.items():
            if isinstance(ends, Sequence) and not isinstance(ends, str) and len(ends) == 2:
                boot = _crossed(figures, name)
                formula = interval(*ends) or number(None)
                maker.add(FIGURE_LABELS[name], [boot, formula, Cell(names.get(way, way), plain=True)])
    words = Words(
        "The reported intervals come from resamples of patients. The formulas take images as independent: where "
        "patients have several images, they are only a check."
    )
    return Part(
        "Intervals cross-checked", f"as named: areas {OF_PROBABILITIES}, the others {AT_CLASS}", (maker.made(), words)
    )


def _crossed(figures: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    own: Mapping[str, Any] = figures["positive_vs_rest" if name == "roc_auc" else "overall"][name]
    return own
