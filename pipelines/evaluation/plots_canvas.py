"""Where a chart is painted: one look for all of them, and SVG that is the same bytes for the same numbers.

Charts are 400 units wide, so that a phone shows them at their own size and a page of paper two beside each other. Texts
stay texts. The colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008); a second sign, such as a dash, a
marker or a hatch, says the same for print without colour.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from pipelines.storage.scratch import Scratch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 400
POINTS_PER_INCH = 72
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, QUIET, GRID, PAPER = "#1b232b", "#55606b", "#dfe4e8", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
POSITIVE, NEGATIVE = VERMILLION, BLUE
LONGEST_LABEL = 24

_LOOK: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nightread",
    "text.parse_math": False,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "figure.facecolor": PAPER,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 2.6,
    "hatch.linewidth": 0.8,
    "hatch.color": PAPER,
}
_XLINK = "{http://www.w3.org/1999/xlink}"
_SVG = "http://www.w3.org/2000/svg"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True)
class LineStyle:
    """How one of several lines is told apart: by colour, and without it by dashes and marker."""

    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str


_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
_MARKERS = ("o", "s", "^", "D", "v")


def line_style(number: int) -> LineStyle:
    """The style of line `number`, from 0; colours, dashes and markers go round at their own pace."""
    return LineStyle(_COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)], _MARKERS[number % len(_MARKERS)])


def label(text: str, longest: int = LONGEST_LABEL) -> str:
    """A name that a chart can show: on one line, without what no XML may hold, and shorter within if it is too long."""
    seen = "".join(" " if unicodedata.category(one).startswith(("C", "Z")) else one for one in text)
    tail = longest // 3  # long names of classes often differ at their end
    return seen if len(seen) <= longest else f"{seen[: longest - tail - 1].rstrip()}…{seen[-tail:].lstrip()}"


def draw(
    key: str, title: str, description: str, height: float, paint: Callable[[Figure], None], width: float = WIDTH
) -> str:
    """One chart as an SVG element.

    Args:
        key: Begins the names of its parts; another one for each chart of a page.
        title: What it is, for people who do not see it.
        description: What it says, for the same people.
        height: In the units of its width.
        paint: Called with the empty figure.
        width: More than a phone's only for what stands alone.

    Returns:
        `<svg role="img" …>` with title and description, without anything that must be fetched.
    """
    with _quiet_matplotlib() as settings, settings, warnings.catch_warnings():
        from matplotlib.figure import Figure

        # Texts stay texts: a sign that matplotlib's font lacks is drawn by the reader's.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")

        figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), layout="constrained")
        paint(figure)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _own(written.getvalue(), key, title, description)


def unit_axes(axes: Axes, across: str, up: str) -> None:
    """Both axes from 0 to 1, a little wider so that lines at the edge are seen whole."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=across, ylabel=up)


def legend_below(figure: Figure, entries: int, columns: int = 1) -> None:
    """The legend under the chart, where it covers nothing."""
    if entries:
        figure.legend(loc="outside lower center", ncols=columns, borderaxespad=0.2, labelspacing=0.35)


@contextmanager
def _quiet_matplotlib() -> Iterator[Any]:
    """The settings of matplotlib as this module wants them, whoever has settings of their own in a folder or a file.

    Its list of fonts is made in a folder that is gone afterwards: a report is written nowhere but where it was asked
    for, and matplotlib looks for its own folder only when it is imported.
    """
    before = os.environ.get("MPLCONFIGDIR")
    with Scratch() as folder:
        os.environ["MPLCONFIGDIR"] = str(folder)
        try:
            import matplotlib.figure
            import matplotlib.font_manager
            import matplotlib.style
        finally:
            if before is None:
                del os.environ["MPLCONFIGDIR"]
            else:
                os.environ["MPLCONFIGDIR"] = before
    yield matplotlib.style.context(["default", dict(_LOOK)])


def _own(written: bytes, key: str, title: str, description: str) -> str:
    """What matplotlib wrote as an element of a page: named parts of its own, texts in the page's fonts."""
    root = ElementTree.fromstring(written)
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    names = _rename(root, key)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            if (name == "id" and value not in names) or value.startswith("rotate(-0 "):
                continue
            element.set(name.removeprefix(_XLINK), _short(name, value, names))
    width, height = (round(float(root.attrib[side].removesuffix("pt"))) for side in ("width", "height"))
    root.attrib.clear()
    root.attrib |= {
        "xmlns": _SVG,
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-description",
        "viewBox": f"0 0 {width} {height}",
        "width": str(width),
        "height": str(height),
        "font-family": FONTS,
        "stroke-linejoin": "round",
    }
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{key}-{'title' if tag == 'title' else 'description'}"})
        element.text = label(text, len(text))
        root.insert(position, element)
    return ElementTree.tostring(root, encoding="unicode")


def _rename(root: ElementTree.Element, key: str) -> dict[str, str]:
    """New names of the parts that others refer to; all other names go."""
    wanted = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            wanted.update(_REFERENCE.findall(value))
            if name == f"{_XLINK}href":
                wanted.add(value.removeprefix("#"))
    numbers = count(1)
    found = (element.attrib["id"] for element in root.iter() if element.attrib.get("id") in wanted)
    return {name: f"{key}-{next(numbers)}" for name in found}


def _short(name: str, value: str, names: Mapping[str, str]) -> str:
    """An attribute as the page needs it: new names, two decimals, and no font of matplotlib's."""
    if name == "id":
        return names[value]
    if name == f"{_XLINK}href":
        return "#" + names[value.removeprefix("#")]
    if name in ("d", "x", "y", "transform", "points"):
        return _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
    value = _REFERENCE.sub(lambda found: f"url(#{names[found[1]]})", value)
    return _FONT_FAMILY.sub("", value)
