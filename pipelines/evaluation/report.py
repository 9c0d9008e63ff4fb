"""The report: one page that opens from a mail, without a server, a script or anything that must be fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.content import Evaluated, Gallery, TrainingSection
from pipelines.evaluation.report_answers import answer_section
from pipelines.evaluation.report_blocks import (
    AT_THRESHOLD,
    OF_PROBABILITIES,
    Block,
    Cards,
    Cell,
    Part,
    Section,
    TableMaker,
    Words,
)
from pipelines.evaluation.report_data import (
    comparison_section,
    error_section,
    intensity_section,
    subgroup_section,
)
from pipelines.evaluation.report_numbers import clause, interval, number, whole
from pipelines.evaluation.report_training import training_section

TEMPLATE = "report.html.jinja"
PACKAGE = "pipelines.evaluation"
# Names of files may hold them, HTML may not; marks that turn the direction of writing let a name lie about its suffix.
_CONTROLS = {
    code: f"\\x{code:02x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\t\n"
}
PICTURES = (
    "The pictures embedded here may show patients. Treat this file as you treat the images themselves: keep it and "
    "send it only where they may go."
)
NO_PICTURES = "No pictures of patients are embedded in this file."
INTENDED_USE = "For research and quality assurance unless validated locally; no medical device."


@dataclass(frozen=True)
class KeyFigure:
    """One of the few figures at the head of a page.

    Attributes:
        name: What it is.
        value: Three decimals, or that it is absent.
        interval: Without brackets; "" for none.
        basis: At what it is, and of how many.
        reason: Why there is no value; "" where there is one.
    """

    name: str
    value: str
    interval: str
    basis: str
    reason: str


def render_report(
    evaluated: Evaluated,
    figures: Mapping[str, Any],
    cases: Cases,
    fitted: Mapping[str, Any] | None,
    training: TrainingSection | None,
    training_absent: str,
    gallery: Gallery | None,
    gallery_absent: str,
) -> bytes:
    """The page. The same values give the same bytes.

    Args:
        evaluated: What is said at its head and its end.
        figures: metrics.json, the source of every number that is shown.
        cases: What the curves and histograms are drawn from.
        fitted: Threshold and band for single images; None where the model has none.
        training: How the model was made; None where that is not known.
        training_absent: Why not, in a sentence.
        gallery: Pictures of errors and hits; None for none.
        gallery_absent: Why not, in a sentence.

    Returns:
        HTML in UTF-8. All text that comes from data is escaped.
    """
    sections = (
        answer_section(figures, cases, fitted),
        training_section(figures, training, training_absent),
        error_section(figures, gallery, gallery_absent),
        intensity_section(figures, cases),
        subgroup_section(figures),
        comparison_section(figures, cases),
        _provenance(evaluated, figures),
    )
    return render_page(TEMPLATE, PACKAGE, evaluated, _key_figures(figures), sections)


def render_page(
    template: str,
    package: str,
    evaluated: Evaluated,
    key_figures: Sequence[KeyFigure],
    sections: Sequence[Section],
    **more: Any,
) -> bytes:
    """A page of this look: head, figures that matter, what to be careful about, sections.

    Args:
        template: Name of the template: the report's, or one that extends it.
        package: Whose folder `templates` holds it.
        evaluated: What is said at its head; its provenance is for a section to show.
        key_figures: Those at the head.
        sections: In order.
        more: What else the template reads.

    Returns:
        HTML in UTF-8. All text that comes from data is escaped.
    """
    page: str = _environment(package).get_template(template).render(
        evaluated=evaluated,
        key_figures=key_figures,
        sections=sections,
        notice=PICTURES if any(_holds_pictures(section) for section in sections) else NO_PICTURES,
        intended_use=INTENDED_USE,
        **more,
    )  # fmt: skip
    page = page.translate(_CONTROLS)
    return page.encode("utf-8", "replace")  # a lone surrogate, which a name of a file may hold, has no UTF-8


def _environment(package: str) -> Any:
    """Jinja that escapes everything that the template does not call safe, and fails on a name that is not there."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(one, "templates") for one in dict.fromkeys((package, PACKAGE))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _key_figures(figures: Mapping[str, Any]) -> tuple[KeyFigure, ...]:
    """Discrimination, the two sides of the decision, and how far the probabilities can be taken at their word."""
    positive, point, overall = " or ".join(figures["positive_classes"]), figures["operating_point"], figures["overall"]
    area = figures["positive_vs_rest"]["roc_auc"]
    rows = [_key_figure("ROC AUC", area, f"{positive} against the rest, {OF_PROBABILITIES}")]
    counts = point.get("counts", {})
    for name, kinds in (
        ("sensitivity", ("true_positive", "false_negative")),
        ("specificity", ("true_negative", "false_positive")),
    ):
        if "threshold" in point:
            n = sum(counts[kind] for kind in kinds)
            kind = "positive" if name == "sensitivity" else "negative"
            basis = f"{AT_THRESHOLD} {number(point['threshold'])}, {whole(n)} {kind} images"
            rows.append(_key_figure(name.capitalize(), point[name], basis))
        else:
            rows.append(_key_figure(name.capitalize(), {"value": None, "reason": point["reason"]}, AT_THRESHOLD))
    # With more classes the calibration that is measured is that of the class that is named.
    whose = OF_PROBABILITIES if len(figures["classes"]) == 2 else "of the named class's probability, no threshold"
    slope = overall.get("calibration_slope", {"value": None})
    if slope["value"] is not None:
        rows.append(_key_figure("Calibration slope", slope, f"1 is ideal, {whose}"))
    else:
        rows.append(_key_figure("Calibration error", overall["calibration_error"], f"0 is ideal, {whose}"))
    return tuple(rows)


def _key_figure(name: str, figure: Mapping[str, Any], basis: str) -> KeyFigure:
    reason = "" if figure["value"] is not None else f"Undefined: {clause(str(figure.get('reason') or ''))}"
    ends = "" if reason else interval(figure.get("low"), figure.get("high"))
    return KeyFigure(name, number(figure["value"]), ends, basis, reason)


def _holds_pictures(section: Section) -> bool:
    blocks = (*section.blocks, *(block for part in section.parts for block in part.blocks))
    return any(isinstance(block, Cards) for block in blocks)


def _provenance(evaluated: Evaluated, figures: Mapping[str, Any]) -> Section:
    """Where everything comes from, and what was not evaluated."""
    maker = TableMaker("provenance-values", "What made this report", ["", "Value"])
    for name, value in evaluated.provenance:
        maker.add(name, [Cell(value, plain=True)])
    method = (
        f"Intervals are 95 %, from resamples of {whole(figures['groups'])} groups (images of one patient, copies and "
        "near-duplicates are drawn together) unless another way is named. The calibration error is over bins of equal "
        "mass. Figures without a value are undefined, never 0."
    )
    blocks: list[Block] = [maker.made(), Words(method)]
    unreadable = figures.get("unreadable") or ()
    parts = (_unreadable(unreadable),) if unreadable else ()
    return Section("provenance", "Provenance", "", tuple(blocks), parts)


def _unreadable(unreadable: Any) -> Part:
    """How many images could not be read, by reason; their names stay in metrics.json."""
    codes: dict[str, int] = {}
    for one in unreadable:
        codes[str(one["error_code"])] = codes.get(str(one["error_code"]), 0) + 1
    maker = TableMaker("unreadable", "Labelled images that could not be read, by reason", ["Reason", "Images"])
    for code, count in sorted(codes.items()):
        maker.add(code, [whole(count)])
    return Part("Not evaluated", "", (maker.made(),))
