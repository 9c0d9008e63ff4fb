from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.content import Stage
from pipelines.evaluation.diagrams import Box, architecture_diagram, broken, flow_diagram
from pipelines.evaluation.plots_canvas import WIDTH

STAGES = (
    Stage("Pixels", "224 × 224 × 3", False),
    Stage("MobileNetV2, layers 125–154", "7 × 7 × 1280, 893,000 parameters, and more words than one line holds", True),
    Stage("<b>Dense</b> & co", "", True),
)


def root_of(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def found(svg: str, tag: str) -> list[ElementTree.Element]:
    return [element for element in root_of(svg).iter() if element.tag.endswith("}" + tag)]


def test_boxes_stand_in_order_and_hold_their_texts() -> None:
    svg = architecture_diagram(STAGES)
    boxes, texts = found(svg, "rect"), found(svg, "text")
    tops = [float(box.get("y", "")) for box in boxes]
    bottoms = [float(box.get("y", "")) + float(box.get("height", "")) for box in boxes]
    assert len(boxes) == 3 and all(bottom < top for bottom, top in zip(bottoms, tops[1:], strict=False))
    assert float((root_of(svg).get("viewBox") or "").split()[3]) >= bottoms[-1]
    for text in texts:
        assert any(top < float(text.get("y", "")) < bottom for top, bottom in zip(tops, bottoms, strict=True))
    assert " ".join("".join(text.itertext()) for text in texts) == (
        "Pixels 224 × 224 × 3 MobileNetV2, layers 125–154 7 × 7 × 1280, 893,000 parameters, and more words than one "
        "line holds <b>Dense</b> & co"
    )
    assert len(found(svg, "path")) == 2  # arrows


def test_what_is_trained_shows_without_colour() -> None:
    widths = [float(box.get("stroke-width", "")) for box in found(architecture_diagram(STAGES), "rect")]
    assert widths[0] < widths[1] == widths[2]


def test_the_diagram_says_what_it_shows() -> None:
    svg = flow_diagram([Box("Data", "400 images"), Box("Decision")])
    named = {element.get("id"): "".join(element.itertext()) for tag in ("title", "desc") for element in found(svg, tag)}
    assert (root_of(svg).get("aria-labelledby") or "").split() == list(named) == ["flow-title", "flow-description"]
    assert named["flow-description"] == "From top to bottom: Data: 400 images; Decision."
    assert root_of(svg).get("role") == "img"


@given(st.text(max_size=200), st.integers(1, 40))
def test_lines_keep_every_word_and_stay_short(text: str, letters: int) -> None:
    lines = broken(text, letters)
    assert all(0 < len(line) <= letters for line in lines)
    kept = "".join("".join(lines).split())
    assert len(kept) <= len("".join(text.split()))
    if text.isascii() and text.isprintable():
        assert kept == "".join(text.split())


def test_texts_are_not_wider_than_their_boxes() -> None:
    svg = flow_diagram([Box("W" * 200, "m" * 300)])
    assert all(len("".join(text.itertext())) * 6 < WIDTH for text in found(svg, "text"))
