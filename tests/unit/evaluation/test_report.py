from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

Read = Callable[[str], Any]


def tables(read_page: Read, html: str) -> dict[str, dict[str, list[str]]]:
    """Caption's name to row's name to cells, as a reader sees them."""
    found = {}
    for table in read_page(html).all("table"):
        caption = next(table.all("caption"))
        rows = {}
        for row in next(table.all("tbody")).all("tr"):
            cells = [cell for cell in row.children if not isinstance(cell, str)]
            rows[cells[0].words] = [cell.words for cell in cells[1:]]
        found[caption.attributes.get("id", "key").removesuffix("-caption")] = rows
    return found


def shown(figure: dict[str, Any]) -> str:
    """A figure as the report has to write it, by rules of this test."""
    if figure["value"] is None:
        return "–"
    ends = [figure["low"], figure["high"]]
    text = f"{figure['value']:.3f}"
    if None not in ends:
        text += f" ({ends[0]:.3f} to {ends[1]:.3f})" if min(ends) < 0 else f" ({ends[0]:.3f}–{ends[1]:.3f})"
    return text.replace("-", "−")


def same(cell: str, figure: dict[str, Any]) -> bool:
    return re.sub("^–[a-z]+$", "–", cell) == shown(figure)


def headings(read_page: Read, html: str) -> list[str]:
    return [element.words for element in read_page(html).all("h2")]


def test_the_sections_stand_in_the_order_that_readers_know(
    drawn: Any, bare: Any, hostile: Any, read_page: Read
) -> None:
    expected = [
        "The figures that matter",
        "What to be careful about",
        "2 Discrimination, decisions and calibration",
        "3 Training and model",
        "4 Errors at the most probable class",
        "5 Intensity analysis",
        "6 Subgroups",
        "7 Comparison",
        "8 Provenance",
    ]
    for report in (drawn, bare, hostile):
        found = headings(read_page, report.html)
        assert len(found) == len(expected)
        assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_the_four_figures_stand_first_with_intervals_and_at_what_they_are(drawn: Any, read_page: Read) -> None:
    rows = tables(read_page, drawn.html)["key"]
    figures, point = drawn.figures, drawn.figures["operating_point"]
    assert [cells[0] for cells in rows.values()] == [
        shown(figures["positive_vs_rest"]["roc_auc"]),
        shown(point["sensitivity"]),
        shown(point["specificity"]),
        shown(figures["overall"]["calibration_slope"]),
    ]
    truth = drawn.cases.truth
    assert list(rows) == [
        "ROC AUC malignant against the rest, of the probabilities, no threshold",
        f"Sensitivity at the frozen threshold 0.300, {truth.sum()} positive images",
        f"Specificity at the frozen threshold 0.300, {(~truth).sum()} negative images",
        "Calibration slope 1 is ideal, of the probabilities, no threshold",
    ]


def test_every_figure_of_images_stands_beside_that_of_patients(drawn: Any, read_page: Read) -> None:
    rows = tables(read_page, drawn.html)["overall"]
    overall, patients = drawn.figures["overall"], drawn.figures["per_patient"]["overall"]
    assert len(rows) == len(overall) == 15
    for cells, name in zip(rows.values(), overall, strict=True):
        assert same(cells[0], overall[name]), name
        assert same(cells[1], patients[name]), name
    assert f"Per patient (n = {drawn.figures['per_patient']['n']})" in drawn.html


def test_decisions_counts_and_prevalences_are_those_of_the_metrics(drawn: Any, read_page: Read) -> None:
    found = tables(read_page, drawn.html)
    point, patient = drawn.figures["operating_point"], drawn.figures["per_patient"]["operating_point"]
    rows = found["operating-point"]
    for title, name in (("Sensitivity (recall)", "sensitivity"), ("Specificity", "specificity"), ("NPV", "npv")):
        four = [point[name], point["decided"][name], patient[name], patient["decided"][name]]
        assert all(same(cell, figure) for cell, figure in zip(rows[title], four, strict=True))
    assert rows["Decided"] == [
        f"{n:,}" for n in (400, point["decided"]["n"], len(set(drawn.cases.patients)), patient["decided"]["n"])
    ]
    counts = point["counts"]
    assert found["decision-counts"]["truly positive"] == [
        str(counts[name]) for name in ("true_positive", "false_negative", "referred_positive")
    ]
    for row, own in zip(found["prevalence"].values(), point["at_prevalence"], strict=True):
        assert same(row[0], own["ppv"]) and same(row[1], own["npv"])
    assert list(found["prevalence"]) == ["0.5 %", "5 %"]


def test_classes_matrix_and_classification_report_are_those_of_the_metrics(hostile: Any, read_page: Read) -> None:
    found, figures = tables(read_page, hostile.html), hostile.figures
    names = ("roc_auc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1", "calibration_error")
    sources = [*figures["per_class"].values(), figures["macro"], figures["weighted"]]
    assert len(found["classes"]) == 5
    for cells, own in zip(found["classes"].values(), sources, strict=True):
        assert all(same(cell, own[name]) for cell, name in zip(cells[1:], names, strict=True))
    for cells, row in zip(found["confusion-counts"].values(), figures["confusion_matrix"], strict=True):
        assert cells == [*(f"{count} ({100 * count / sum(row):.1f} %)" for count in row), str(sum(row))]
    for name, own in figures["classification_report"].items():
        cells = found["classification"][" ".join(name.split())]
        assert cells[2] == f"{own if isinstance(own, float) else own['f1']:.3f}"


def test_comparison_subgroups_and_intensities_are_those_of_the_metrics(drawn: Any, read_page: Read) -> None:
    found, figures = tables(read_page, drawn.html), drawn.figures
    for cells, own in zip(found["differences"].values(), figures["comparison"]["figures"].values(), strict=True):
        assert cells[0] == f"{own['this']:.3f}" and same(cells[2], {**own, "value": own["difference"]})
    for one in figures["comparison"]["worst"]:
        cells = found["furthest"][drawn.cases.contents[one["row"]][:12]]
        assert cells[2] == f"{drawn.cases.probabilities[one['row'], drawn.cases.labels[one['row']]]:.3f}"
    for cells, own in zip(found["groups-1"].values(), figures["subgroups"][0]["groups"], strict=True):
        assert cells[0] == str(own["n"]) and same(cells[3], own["figures"]["sensitivity"])
    for cells, own in zip(found["intensity-quartiles"].values(), figures["intensity"]["classes"].values(), strict=True):
        assert cells[3] == f"{own['median']:.3f}"
    assert found["published"]["MCC"] == ["0.940", shown(figures["overall"]["mcc"])]


def test_why_class_and_decision_differ_is_said_with_how_often(drawn: Any, read_page: Read) -> None:
    p, predicted = drawn.cases.p_positive, drawn.cases.predicted == 1
    differ = int((predicted & (p < 0.2)).sum() + (~predicted & (p >= 0.45)).sum())
    assert f"Here the one is positive and the other negative for {differ} of 400 images." in read_page(drawn.html).words


def test_every_heading_with_figures_says_at_what_they_are(drawn: Any, bare: Any, read_page: Read) -> None:
    without_figures = ("Architecture", "Class distribution", "Samples", "Not evaluated")
    for report in (drawn, bare):
        for heading in read_page(report.html).all("h3"):
            if not heading.words.startswith(without_figures):
                assert re.search("threshold|probabilit|most probable class|no model", heading.words), heading.words


def test_what_does_not_apply_says_why(bare: Any, read_page: Read) -> None:
    text = read_page(bare.html).words
    for sentence in (
        "No decision was evaluated: no threshold of the unit image is known.",
        "No figures per patient: the data do not say which patient an image is of.",
        "How the model was trained is not shown. The model was imported.",
        "No pictures are shown. Pictures were left out of this report (--no-images).",
        "No subgroups were asked for; --by COLUMN,COLUMN makes them of any column of the data.",
        "No other model was given; --against REF compares with one on the same images.",
        "None of the rules of this report found a reason for particular care.",
        "No pictures of patients are embedded in this file.",
    ):
        assert sentence in text, sentence
    assert "Intensity analysis" in text and "<img" not in bare.html
    rows = tables(read_page, bare.html)["key"]
    assert rows["Sensitivity at the frozen threshold"] == ["– Undefined: no threshold of the unit image is known."]


def test_what_is_undefined_is_a_dash_with_its_reason(read_page: Read, make: Any) -> None:
    cases = make.cases(40)
    cases = replace(cases, labels=np.zeros(40, np.int64))
    figures = make.measure(cases)
    html = make.render(cases, figures)
    assert figures["overall"]["roc_auc"]["value"] is None
    cell = tables(read_page, html)["overall"]["ROC AUC"][0]
    assert cell.startswith("–") and cell[1:].isalpha()
    assert f"{cell[1:]} {figures['overall']['roc_auc']['reason'].capitalize()}." in read_page(html).words
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", read_page(html).words)


def test_a_page_needs_no_script_and_fetches_nothing(drawn: Any, hostile: Any, read_page: Read) -> None:
    for report in (drawn, hostile):
        root = read_page(report.html)
        assert "default-src 'none'" in report.html
        tags = {element.tag for element in root.everything()}
        assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject", "animate"}
        for element in root.everything():
            for name, value in element.attributes.items():
                assert not name.startswith("on"), name
                if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                    assert value.startswith(("#", "data:image/jpeg;base64,")), value[:60]
                assert not re.search(r"url\((?!#)|expression|@import", value)
        style = next(root.all("style")).text
        assert "url(" not in style and "@import" not in style


def test_what_data_say_stays_text_everywhere(hostile: Any, read_page: Read) -> None:
    root = read_page(hostile.html)
    assert "<script" not in hostile.html and "onerror=alert" not in re.sub(r'"[^"<>]*"', "", tagged(hostile.html))
    assert "zebra & {{ 7 * 7 }}" in root.words and "zebra & 49" not in root.words
    drawings = " ".join(svg.text for svg in root.all("svg"))
    assert "<script>alert(1)</script>"[:23] in drawings
    assert "<script>alert(2)</script>"[:23] in drawings
    assert "<script>alert(0)</script>.png" in " ".join(element.words for element in root.all("p"))
    assert next(root.all("h1")).words == next(root.all("title")).words == "<script>alert(3)</script>"


def test_the_page_names_no_place_of_an_image(drawn: Any, read_page: Read) -> None:
    assert "/archive/" not in drawn.html and "torn.png" not in drawn.html
    assert tables(read_page, drawn.html)["unreadable"] == {"truncated": ["1"]}


def test_pictures_are_announced_on_top_and_say_what_they_show(drawn: Any, read_page: Read) -> None:
    root = read_page(drawn.html)
    top = next(root.all("aside")).words
    assert "may show patients" in top and "no medical device" in top
    assert drawn.html.index("<aside") < drawn.html.index("<h1")
    pictures = list(root.all("img"))
    assert len(pictures) == 2 * 3 + 2 * 12  # a sample of each class with two copies, and pairs of the gallery
    row = int(np.flatnonzero(drawn.cases.predicted != drawn.cases.labels)[0])
    true, wrong = drawn.cases.classes[drawn.cases.labels[row]], drawn.cases.classes[drawn.cases.predicted[row]]
    p = drawn.cases.probabilities[row].max()
    assert pictures[6].attributes["alt"] == f"Image image {row}.png of class {true}, predicted {wrong} at {p:.3f}"


def test_the_same_values_give_the_same_bytes(drawn: Any, make: Any) -> None:
    assert make.render(drawn.cases, drawn.figures) == drawn.html


def test_a_compiled_model_shows_pictures_without_heat_maps(drawn: Any, read_page: Read, make: Any) -> None:
    html = make.render(drawn.cases, drawn.figures, gallery=make.gallery(drawn.cases, overlays=False))
    assert "No Grad-CAM is shown. The model was imported as a compiled file." in read_page(html).words
    assert html.count("<img") == 6 + 12


def test_ten_thousand_images_make_a_small_file(make: Any) -> None:
    cases = make.cases(10_000, ("benign", "malignant"))
    assert len(make.render(cases, make.measure(cases))) < 600_000


@pytest.mark.parametrize(
    ("value", "written"), [(0.9123, "0.912"), (-0.0001, "0.000"), (-0.25, "−0.250"), (math.nan, "–"), (None, "–")]
)
def test_numbers_have_three_decimals(value: float | None, written: str) -> None:
    from pipelines.evaluation.report_numbers import number

    assert number(value) == written


def test_counts_shares_and_chances_are_written_alike() -> None:
    from pipelines.evaluation.report_numbers import clause, figure_text, p_text, per_cent, sentence, whole

    assert (whole(1234567), whole(None), per_cent(0.1234), per_cent(None)) == ("1,234,567", "–", "12.3 %", "–")
    assert (p_text(0.0001), p_text(0.04), p_text(None)) == ("< 0.001", "0.040", "–")
    assert figure_text({"value": 0.912, "low": 0.874, "high": 0.941}) == "0.912 (0.874–0.941)"
    assert figure_text({"value": 0.1, "low": -0.012, "high": 0.034}) == "0.100 (−0.012 to 0.034)"
    assert figure_text({"value": None, "low": 0.1, "high": 0.2}) == "–"
    assert (clause("No image."), clause("PPV is not there"), sentence("")) == (
        "no image.",
        "PPV is not there.",
        "The data do not define it.",
    )


def tagged(html: str) -> str:
    """Only the tags of a page."""
    return "".join(re.findall(r"<[^>]*>", html))
