"""How the pages of a search write settings, counts, times and the names of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.evaluation.report_blocks import FIGURE_LABELS
from pipelines.evaluation.report_numbers import whole
from pipelines.training.recipe_rules import Value


def setting_text(value: Value) -> str:
    """A value in few letters: four digits of a number, `true` and `false` as the command line has them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings_text(settings: Mapping[str, Value], keys: Sequence[str]) -> str:
    """Some settings in one line; "" without any."""
    return ", ".join(f"{key} {setting_text(settings[key])}" for key in keys if key in settings)


def metric_text(metric: str) -> str:
    """What a figure is called within a sentence."""
    name = FIGURE_LABELS[metric]
    return name[:1].lower() + name[1:] if name[1:2].islower() else name


def title_text(text: str) -> str:
    """A text as the beginning of a line."""
    return text[:1].upper() + text[1:]


def counted(count: int, noun: str, plural: str = "s") -> str:
    """`1 point`, `2 points`."""
    return f"{whole(count)} {noun}{'' if count == 1 else plural}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def seconds_text(seconds: float) -> str:
    """`4.2 s`, `312 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{whole(seconds)} s"
    return f"{whole(seconds // 3600)} h {seconds % 3600 // 60:02.0f} min"
