"""Drift in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pipelines.evaluation.drift import DriftReport
    from pipelines.evaluation.drift_figures import FigureDrift

_NAMES: Final = {
    "score": "Mean score of the positive class",
    "intensity": "Mean intensity",
    "size": "Image size",
}
# What it means where the mean is lower, and where it is higher.
_MEANING: Final = {
    "score": ("the model sees fewer positive images", "the model sees more positive images"),
    "intensity": ("images have become darker", "images have become brighter"),
    "size": ("images have become smaller", "images have become larger"),
}
_SHARES: Final = {
    "decision": "Share of images decided {name}",
    "suffix": "Share of {name} files",
    "failures": "Share of {name}",
}
_FAILURES: Final = {
    "scored": "images that were scored",
    "image": "images that cannot be read",
    "storage": "images that storage did not give",
}


def against(reference: str | None, nights: Mapping[str, Any] | None) -> str:
    """What a night was compared with, to stand behind a figure."""
    if reference == "nights" and nights is not None:
        return f"in the last {nights['count']:,} nights"
    return "in the model's validation set"


def of_figure(figure: FigureDrift, reference: str) -> str:
    """One figure as a sentence: its value, the usual one, and what that means where it is certain.

    Args:
        figure: The figure.
        reference: From `against`.
    """
    if figure.of is not None:
        name = _FAILURES[figure.of] if figure.figure == "failures" else figure.of or "files without a suffix"
        told = _SHARES[figure.figure].format(name=name)
        return f"{told} {_share(figure.value)} against {_share(figure.expected)} {reference}."
    told = f"{_NAMES[figure.figure]} {_number(figure, figure.value)} against {_number(figure, figure.expected)}"
    if figure.verdict == "none":
        return f"{told} {reference}."
    lower, higher = _MEANING[figure.figure]
    moved = figure.value - figure.expected
    # Where mean and ranks do not move together it is the form that has changed.
    if abs(figure.effect) < 0.1 or moved * figure.effect <= 0:
        return f"{told} {reference}: the mean is as usual, but values are spread differently."
    return f"{told} {reference}: {lower if moved < 0 else higher}."


def of_report(report: DriftReport) -> str:
    """The verdict as one or a few sentences."""
    if report.verdict == "unknown":
        return report.reason
    where = against(report.reference, report.nights)
    changed = [figure for figure in report.figures if figure.verdict == report.verdict]
    if report.verdict == "none" or not changed:
        return f"The night is like what was seen {where}."
    return " ".join(of_figure(figure, where) for figure in sorted(changed, key=lambda figure: figure.p))


def too_small(images: int, least: int) -> str:
    """Why a night is not compared: its size."""
    return f"The night has {images:,} images; fewer than {least} are not compared."


def no_reference(nights: int, least: int, least_images: int, has_validation: bool) -> str:
    """Why a night is not compared: nothing to compare it with."""
    known = f"Only {nights:,} of the {least} earlier nights of this model that are needed are there"
    if nights >= least:
        known = f"The {nights:,} earlier nights of this model hold fewer than {least_images} images"
    return f"{known}, and {'its validation set is too small' if has_validation else 'it has no validation set'}."


def _share(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def _number(figure: FigureDrift, value: float) -> str:
    return f"{value:,.0f} pixels" if figure.figure == "size" else f"{value:.3f}"
