"""Architecture and flow as diagrams of boxes: SVG of our own, drawn from the model and its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from pipelines.evaluation.content import Stage
from pipelines.evaluation.plots_canvas import BLUE, FONTS, INK, QUIET, WIDTH, label

_LINE = 15
_LETTER = 6.3
"""Width of a letter of 12 units, on average; a little wide, so that text stays within its box."""
_GAP = 22
_MARGIN = 6


@dataclass(frozen=True)
class Box:
    """One box of a diagram.

    Attributes:
        title: In bold.
        detail: Under it, broken into lines; "" for none.
        strong: Whether it is drawn with a heavy frame, for what training can change.
    """

    title: str
    detail: str = ""
    strong: bool = False


def architecture_diagram(stages: Sequence[Stage]) -> str:
    """The network from the picture to the probabilities, what training can change in a heavy frame.

    Args:
        stages: In the order in which a picture goes through them; at least one.
    """
    boxes = [Box(stage.title, stage.detail, stage.trainable) for stage in stages]
    said = "; ".join(f"{box.title}, {box.detail}, {'trained' if box.strong else 'not trained'}" for box in boxes)
    return stacked("architecture", "Architecture", f"From top to bottom: {said}.", boxes)


def flow_diagram(boxes: Sequence[Box]) -> str:
    """The way of an image from the data to the decision, in the same kind of boxes."""
    said = "; ".join(f"{box.title}: {box.detail}" if box.detail else box.title for box in boxes)
    return stacked("flow", "Flow", f"From top to bottom: {said}.", boxes)


def stacked(key: str, title: str, description: str, boxes: Sequence[Box]) -> str:
    """Boxes under each other with arrows between them.

    Args:
        key: Begins the names of its parts.
        title: What it is, for people who do not see it.
        description: What it says, for the same people.
        boxes: From top to bottom; texts may hold anything.

    Returns:
        `<svg role="img" …>`, `WIDTH` units wide.
    """
    root = ElementTree.Element("svg")
    for tag, text in (("title", title), ("desc", description)):
        name = f"{key}-{'title' if tag == 'title' else 'description'}"
        ElementTree.SubElement(root, tag, {"id": name}).text = label(text, len(text))
    top = float(_MARGIN)
    for number, box in enumerate(boxes):
        if number:
            _arrow(root, top, top + _GAP)
            top += _GAP
        top += _box(root, box, top)
    height = round(top + _MARGIN)
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-description",
        "viewBox": f"0 0 {WIDTH} {height}",
        "width": str(WIDTH),
        "height": str(height),
        "font-family": FONTS,
    }
    return ElementTree.tostring(root, encoding="unicode")


def _box(root: ElementTree.Element, box: Box, top: float) -> float:
    """Add one box; its height."""
    width = WIDTH - 2 * _MARGIN
    titles = broken(box.title, int((width - 24) / (_LETTER * 1.12)))
    details = broken(box.detail, int((width - 24) / _LETTER))
    height = 16 + _LINE * (len(titles) + len(details))
    ElementTree.SubElement(
        root,
        "rect",
        {
            "x": str(_MARGIN),
            "y": f"{top:g}",
            "width": str(width),
            "height": str(height),
            "rx": "5",
            "fill": "#e8f1f7" if box.strong else "#f5f7f8",
            "stroke": BLUE if box.strong else QUIET,
            "stroke-width": "2.2" if box.strong else "1",
        },
    )
    for number, text in enumerate([*titles, *details]):
        is_title = number < len(titles)
        attributes = {
            "x": f"{WIDTH / 2:g}",
            "y": f"{top + 19 + _LINE * number:g}",
            "text-anchor": "middle",
            "font-size": "12.5" if is_title else "12",
            "fill": INK if is_title else QUIET,
        }
        if is_title:
            attributes["font-weight"] = "600"
        ElementTree.SubElement(root, "text", attributes).text = text
    return height


def _arrow(root: ElementTree.Element, top: float, bottom: float) -> None:
    middle = WIDTH / 2
    path = f"M{middle:g} {top + 2:g}V{bottom - 4:g}m-4.5 -5l4.5 6l4.5 -6"
    ElementTree.SubElement(root, "path", {"d": path, "fill": "none", "stroke": QUIET, "stroke-width": "1.4"})


def broken(text: str, letters: int) -> list[str]:
    """Lines of at most `letters` letters, broken between words where that can be."""
    lines: list[str] = []
    for word in label(text, len(text) + 1).split():
        rest = word
        if lines and len(lines[-1]) + 1 + len(rest) <= letters:
            lines[-1] += " " + rest
            continue
        while rest:
            lines.append(rest[:letters])
            rest = rest[letters:]
    return lines
