"""How the report and its charts write numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ABSENT = "–"


def number(value: float | None) -> str:
    """Three decimals with a true minus sign; `ABSENT` for null and for what is no number."""
    if value is None or not math.isfinite(value):
        return ABSENT
    text = f"{value:,.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """`0.874–0.941`, or with a negative end `−0.012 to 0.034`; "" where an end is missing."""
    if low is None or high is None:
        return ""
    return f"{number(low)} to {number(high)}" if min(low, high) < 0 else f"{number(low)}–{number(high)}"


def figure_text(figure: Mapping[str, Any]) -> str:
    """`0.912 (0.874–0.941)`, the value alone where it has no interval, `ABSENT` where there is none."""
    ends = interval(figure.get("low"), figure.get("high"))
    value = number(figure.get("value"))
    return f"{value} ({ends})" if ends and value != ABSENT else value


def whole(value: float | None) -> str:
    """A count with thousands separators; `ABSENT` for null."""
    return ABSENT if value is None else f"{value:,.0f}".replace("-", "−")


def per_cent(share: float | None) -> str:
    """A share as per cent with one decimal; `ABSENT` for null."""
    return ABSENT if share is None or not math.isfinite(share) else f"{share * 100:.1f} %"


def p_text(p: float | None) -> str:
    """A p value: three decimals, or that it is smaller; `ABSENT` for null."""
    if p is None or not math.isfinite(p):
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def clause(reason: str) -> str:
    """A reason as the end of a sentence that says what it is the reason of."""
    text = reason.strip() or "the data do not define it"
    small = text if text[1:2].isupper() else text[:1].lower() + text[1:]
    return small if small.endswith(".") else f"{small}."


def sentence(reason: str) -> str:
    """A reason as a sentence of its own."""
    text = reason.strip() or "the data do not define it"
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
