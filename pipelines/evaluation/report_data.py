"""The report's fourth to seventh section: errors, intensities, subgroups and the comparison with another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.content import Gallery, Shown
from pipelines.evaluation.plots_data import ForestRow, Steps, forest_figure, intensity_box_figure, intensity_figure
from pipelines.evaluation.report_blocks import (
    AT_CLASS,
    AT_THRESHOLD,
    FIGURE_LABELS,
    OF_PROBABILITIES,
    Block,
    Card,
    Cards,
    Cell,
    Drawing,
    Drawings,
    Part,
    Section,
    Table,
    TableMaker,
    Words,
)
from pipelines.evaluation.report_numbers import clause, figure_text, interval, number, p_text, per_cent, sentence, whole
from pipelines.evaluation.report_training import embedded

_SHORT_HASH = 12
_NO_WORST = "No group is named as the worst: fewer than two are large enough to be compared."
_SUBGROUP_FIGURES = ("roc_auc", "sensitivity", "specificity", "accuracy")


def error_section(figures: Mapping[str, Any], gallery: Gallery | None, absent: str) -> Section:
    """Pictures of the worst errors and of the surest hits.

    Args:
        figures: metrics.json.
        gallery: Pictures; None for none.
        absent: Why there are none.
    """
    matrix = figures["confusion_matrix"]
    wrong = sum(map(sum, matrix)) - sum(row[place] for place, row in enumerate(matrix))
    counted = Words(
        f"{whole(wrong)} of {whole(figures['n'])} images "
        f"({per_cent(wrong / figures['n'] if figures['n'] else None)}) were given another class than their label."
    )
    if gallery is None:
        return Section("errors", "Errors", AT_CLASS, (counted, Words(f"No pictures are shown. {absent}".strip())))
    blocks: list[Block] = [counted]
    if gallery.overlay_absent:
        blocks.append(Words(f"No Grad-CAM is shown. {gallery.overlay_absent}"))
    elif gallery.wrong or gallery.right:
        blocks.append(
            Words(
                "The second picture of each is the same one with Grad-CAM: brightest where the image spoke most for "
                "the predicted class. It shows where a network looked, not why, and is no finding."
            )
        )
    wrong_ones = _shown("Misclassified images, the most confident first", gallery.wrong, "No image was misclassified.")
    right_ones = _shown("Correct images, the most confident first", gallery.right, "No image was right.")
    parts = (Part("Worst errors", AT_CLASS, wrong_ones), Part("Surest hits", AT_CLASS, right_ones))
    return Section("errors", "Errors", AT_CLASS, tuple(blocks), parts)


def _shown(name: str, images: Sequence[Shown], nothing: str) -> tuple[Block, ...]:
    if not images:
        return (Words(nothing),)
    return (Cards(name, tuple(_card(one) for one in images)),)


def _card(shown: Shown) -> Card:
    said = f"of class {shown.true}, predicted {shown.predicted} at {number(shown.probability)}"
    pictures = [embedded(shown.picture, f"Image {shown.name} {said}")]
    if shown.overlay is not None:
        pictures.append(
            embedded(shown.overlay, f"Grad-CAM of image {shown.name}: where it speaks for {shown.predicted}")
        )
    lines = (
        ("true", shown.true),
        ("predicted", f"{shown.predicted} at {number(shown.probability)}"),
        ("positive", number(shown.p_positive)),
    )
    return Card(tuple(pictures), shown.name, lines)


def intensity_section(figures: Mapping[str, Any], cases: Cases) -> Section:
    """Mean intensity by true class, and whether accuracy depends on it."""
    measured = figures["intensity"]
    title = "Intensity analysis"
    if "reason" in measured:
        return Section("intensity", title, AT_CLASS, (Words(f"It was not made: {clause(measured['reason'])}"),))
    return Section("intensity", title, "", (), (_intensities(measured, cases), _by_intensity(measured["accuracy"])))


def _intensities(measured: Mapping[str, Any], cases: Cases) -> Part:
    known = np.isfinite(cases.mean_intensity)
    values = {
        name: own
        for place, name in enumerate(cases.classes)
        if len(own := cases.mean_intensity[known & (cases.labels == place)])
    }
    steps = {
        name: Steps(own["values_histogram"]["edges"], own["values_histogram"]["counts"])
        for name, own in measured["classes"].items()
        if own["n"]
    }
    maker = TableMaker(
        "intensity-quartiles",
        "Mean intensity (0–1) by true class; outliers lie more than 1.5 interquartile ranges outside the quartiles",
        ["", "n", "Minimum", "1st quartile", "Median", "3rd quartile", "Maximum", "Mean", "Skewness", "Outliers"],
    )
    for name, own in measured["classes"].items():
        numbers = [number(own.get(key)) for key in ("min", "q1", "median", "q3", "max", "mean", "skewness")]
        maker.add(name, [whole(own["n"]), *numbers, whole(own.get("outliers"))])
    blocks: list[Block] = [maker.made()]
    if steps and values:
        charts = (
            Drawing(intensity_figure(steps), "How many images have which mean intensity."),
            Drawing(intensity_box_figure(values), "Quartiles, whiskers to 1.5 interquartile ranges, and outliers."),
        )
        blocks.insert(0, Drawings(charts))
    return Part("Mean intensity by class", "of the images, no model", tuple(blocks))


def _by_intensity(accuracy: Mapping[str, Any]) -> Part:
    bins = accuracy.get("bins") or []
    rows = [
        ForestRow(f"{one['low']:.2f} to {one['high']:.2f}", own["value"], own.get("low"), own.get("high"))
        for one in bins
        if (own := one["accuracy"])
    ]
    maker = TableMaker("intensity-accuracy", "Accuracy by mean intensity", ["Mean intensity", "n", "Accuracy"])
    for one in bins:
        maker.add(f"{number(one['low'])} to {number(one['high'])}", [whole(one["n"]), one["accuracy"]])
    correlation = f"Spearman's correlation of being right with intensity: {number(accuracy.get('spearman'))}"
    words = Words(f"{accuracy.get('sentence', '')} {correlation} (p {_p_in_words(accuracy.get('p'))}).".strip())
    blocks: list[Block] = [words]
    if rows:
        chart = forest_figure("intensity-forest", "Accuracy by intensity", rows, "accuracy", None)
        blocks.append(
            Drawings((Drawing(chart, "Accuracy in steps of mean intensity with 95 % intervals."), maker.made()))
        )
    return Part("Accuracy by intensity", AT_CLASS, tuple(blocks))


def _p_in_words(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def subgroup_section(figures: Mapping[str, Any]) -> Section:
    """Figures of each group of each column that was asked for."""
    title = "Subgroups"
    columns = figures.get("subgroups") or []
    basis = (
        f"sensitivity and specificity {AT_THRESHOLD}, accuracy {AT_CLASS}"
        if "threshold" in figures["operating_point"]
        else AT_CLASS
    )
    if not columns:
        words = Words("No subgroups were asked for; --by COLUMN,COLUMN makes them of any column of the data.")
        return Section("subgroups", title, basis, (words,))
    return Section("subgroups", title, "", (), tuple(_column(figures, one, basis) for one in columns))


def _column(figures: Mapping[str, Any], column: Mapping[str, Any], basis: str) -> Part:
    name, groups, looks = column["column"], column["groups"], column["looks"]
    rows = [
        ForestRow(_group_name(own), figure["value"], figure.get("low"), figure.get("high"), marked=own["small"])
        for own in groups
        if (figure := own["figures"]["roc_auc"])
    ]
    overall = figures["positive_vs_rest"]["roc_auc"]["value"]
    chart = forest_figure(f"subgroup-{_key(figures, column)}", f"ROC AUC by {name}", rows, "ROC AUC", overall)
    worst = column.get("worst")
    said = f"The lowest sensitivity is that of {worst}." if worst else _NO_WORST
    found = [f"{own['name']} in {_listed(own['differs_in'])}" for own in groups if own.get("starred")]
    said += f" It differs from the rest: {'; '.join(found)}." if found else ""
    stars = (
        f"A star marks a group that differs from the rest after correction for {whole(looks)} looks; without one a "
        "difference may well be chance. Small groups are marked and drawn hollow."
    )
    caption = "ROC AUC with 95 % intervals; the dashed line is that of all images."
    return Part(
        f"By {name}",
        basis,
        (Words(f"{said} {stars}"), Drawings((Drawing(chart, caption),)), _group_table(figures, column)),
    )


def _group_table(figures: Mapping[str, Any], column: Mapping[str, Any]) -> Table:
    maker = TableMaker(
        f"groups-{_key(figures, column)}",
        f"Figures by {column['column']}",
        ["", "n", "Positive", *(FIGURE_LABELS[name] for name in _SUBGROUP_FIGURES), "p, corrected"],
    )
    for own in column["groups"]:
        cells = [own["figures"].get(name, {"value": None}) for name in _SUBGROUP_FIGURES]
        maker.add(_group_name(own), [whole(own["n"]), whole(own["positives"]), *cells, p_text(own.get("p"))])
    return maker.made()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(FIGURE_LABELS[name] for name in names)


def _group_name(group: Mapping[str, Any]) -> str:
    return f"{group['name']}{' *' if group.get('starred') else ''}{' (small)' if group['small'] else ''}"


def _key(figures: Mapping[str, Any], column: Mapping[str, Any]) -> int:
    """A number that names the column in the page, whatever letters its own name has."""
    return 1 + [one["column"] for one in figures["subgroups"]].index(column["column"])


def comparison_section(figures: Mapping[str, Any], cases: Cases) -> Section:
    """Paired differences with another model on the same images.

    Args:
        figures: metrics.json.
        cases: What was evaluated; its content hashes name images on which the two disagree.
    """
    title = "Comparison"
    compared = figures.get("comparison")
    basis = f"{AT_CLASS}; areas and losses {OF_PROBABILITIES}"
    if not compared:
        words = Words("No other model was given; --against REF compares with one on the same images.")
        return Section("comparison", title, basis, (words,))
    against = compared["against"]
    name = " ".join(str(against[key]) for key in ("name", "version") if against.get(key))
    words = Words(
        f"{compared['sentence']} Compared on {whole(compared['n'])} images of {whole(compared['groups'])} groups."
    )
    parts = (_differences(compared, name), _tests(compared), _disagreement(figures, compared, name, cases))
    return Section("comparison", f"{title} with {name}", basis, (words,), parts)


def _differences(compared: Mapping[str, Any], name: str) -> Part:
    maker = TableMaker("differences", "Paired differences", ["", "this model", name, "Difference (95 % interval)"])
    rows = []
    for key, own in compared["figures"].items():
        title = FIGURE_LABELS.get(key, key)
        difference = {**own, "value": own["difference"]}
        maker.add(title, [number(own["this"]), number(own["other"]), difference])
        if key != "log_loss":
            rows.append(ForestRow(title, own["difference"], own.get("low"), own.get("high")))
    caption = "This model minus the other, resampled by group; right of zero this model's figure is higher."
    chart = forest_figure("comparison-forest", "Paired differences", rows, "difference, this minus other", 0.0)
    basis = f"{AT_CLASS}; areas and losses {OF_PROBABILITIES}"
    return Part("Paired differences", basis, (Drawings((Drawing(chart, caption), maker.made())),))


def _tests(compared: Mapping[str, Any]) -> Part:
    mcnemar, delong = compared["mcnemar"], compared["delong"]
    maker = TableMaker("paired-tests", "Paired tests, images as independent", ["", "What was found", "p"])
    found = f"only this model right {whole(mcnemar['only_this'])}, only the other {whole(mcnemar['only_other'])}"
    maker.add("McNemar, classes", [Cell(found, plain=True), p_text(mcnemar["p"])])
    if "reason" in delong:
        maker.add("DeLong, ROC AUC", [Cell(sentence(delong["reason"]), plain=True), p_text(None)])
    else:
        found = f"difference {number(delong['difference'])} ({interval(delong['low'], delong['high'])})"
        maker.add("DeLong, ROC AUC", [Cell(found, plain=True), p_text(delong["p"])])
    return Part("Paired tests", f"McNemar {AT_CLASS}; DeLong {OF_PROBABILITIES}", (maker.made(),))


def _disagreement(figures: Mapping[str, Any], compared: Mapping[str, Any], name: str, cases: Cases) -> Part:
    share = per_cent(compared["disagree"] / compared["n"]) if compared["n"] else figure_text({})
    words = Words(f"The two predict another class for {whole(compared['disagree'])} images ({share}).")
    maker = TableMaker(
        "disagreement",
        f"Predicted classes: rows this model's, columns those of {name}",
        ["this model", *figures["classes"]],
    )
    for own, row in zip(figures["classes"], compared["predicted"], strict=True):
        maker.add(own, [whole(count) for count in row])
    blocks: list[Block] = [words, maker.made()]
    if compared.get("worst"):
        blocks.append(_furthest(compared, name, cases))
    return Part("Where they disagree", AT_CLASS, tuple(blocks))


def _furthest(compared: Mapping[str, Any], name: str, cases: Cases) -> Table:
    """Single images that the two name otherwise; by content hash where all that was evaluated was compared."""
    maker = TableMaker(
        "furthest",
        "Images on which they are furthest apart, with the probability that each gives to the true class",
        ["content hash", "true class", "this model", "probability", name, "probability there"],
    )
    for place, one in enumerate(compared["worst"], start=1):
        known = compared["n"] == len(cases)
        title = cases.contents[one["row"]][:_SHORT_HASH] if known else f"image {place}"
        words = [Cell(one[key], plain=True) for key in ("label", "this", "other")]
        maker.add(
            title, [words[0], words[1], number(one["this_probability"]), words[2], number(one["other_probability"])]
        )
    return maker.made()
