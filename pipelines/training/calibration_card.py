"""The card of a recalibrated model: what was done on top of the one that it was made from, whose card follows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipelines.models.bundle import Bundle
from pipelines.models.record import BundleSpec
from pipelines.training.card import operating_tables
from pipelines.training.recalibration_fit import Quality, Recalibrated
from pipelines.training.recipe_document import markdown_table


def calibration_card(
    bundle: Bundle,
    spec: BundleSpec,
    images: Mapping[str, int],
    left_out: Mapping[str, int],
    fitted: Recalibrated,
    before: str,
) -> bytes:
    """Write the card.

    Args:
        bundle: The model that was calibrated.
        spec: What the new version says.
        images: Class name to number of images.
        left_out: Images that were left out, by reason.
        fitted: What was fitted.
        before: The card of `bundle`; "" where it has none.
    """
    name = f"{bundle.name}@{bundle.version}"
    shown = ", ".join(f"{count:,} {label}" for label, count in images.items())
    away = "".join(f" Left out: {count:,} that {reason}." for reason, count in left_out.items())
    warnings = "".join(f"**Warning:** {text}\n\n" for text in fitted.judged.warnings)
    rows = [
        ["temperature", f"{bundle.temperature:.4g}", f"{spec.temperature:.4g}"],
        *([title, _figure(old), _figure(new)] for title, old, new in compared(fitted.before, fitted.after)),
    ]
    points = {unit.replace("_", " "): point for unit, point in fitted.points.items()}
    verdict = f"\n{fitted.int8.sentence()}\n" if fitted.int8 is not None else ""
    text = (
        f"# {bundle.name}, calibrated\n\nThe weights of {name} with a temperature, thresholds and refer bands fitted "
        f"to {sum(images.values()):,} other images ({shown}), none of which it was made from.{away}\n\n"
        "It is not a medical device: its answers are no diagnosis, and no decision about a patient may rest on them "
        "alone.\n\n"
        f"## Calibration\n\n{warnings}{markdown_table(['on these images', 'before', 'after'], rows)}\n"
        "The figures after are those of images that were fitted to, so expect somewhat less on others; before and "
        f"after are drawn in report/calibration.svg.\n\n{operating_tables(points)}{verdict}"
    )
    if before:
        text += (
            f"\n---\n\nWhat follows is the card of {name}. Its data, recipe and licence hold here too; its "
            f"temperature, thresholds and validation figures do not.\n\n{before}"
        )
    return text.encode("utf-8", "backslashreplace")


def compared(before: Quality, after: Quality) -> list[tuple[str, float, float]]:
    """What is told of the probabilities, before and after."""
    return [
        ("log loss", before.log_loss, after.log_loss),
        ("calibration error of p_positive", before.calibration_error, after.calibration_error),
        ("calibration slope of p_positive", before.slope, after.slope),
    ]


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
