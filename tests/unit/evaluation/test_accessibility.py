"""What a reader who does not see the page, or sees little of it, needs: checked on the page and its style."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest

from pipelines.evaluation import plots_canvas
from pipelines.evaluation.plots import confusion_figure

LEAST_CONTRAST = 4.5
"""Of text on its ground (WCAG 2.2, 1.4.3)."""


@pytest.fixture(scope="module", params=["drawn", "hostile", "bare"])
def page(request: pytest.FixtureRequest, read_page: Callable[[str], Any]) -> Any:
    return read_page(request.getfixturevalue(request.param).html)


def test_the_page_says_its_language_its_title_and_how_wide_it_is(page: Any) -> None:
    assert next(page.all("html")).attributes["lang"] == "en"
    assert next(page.all("title")).words
    named = {meta.attributes.get("name"): meta.attributes.get("content", "") for meta in page.all("meta")}
    assert named["viewport"] == "width=device-width, initial-scale=1"  # and nothing that forbids to zoom


def test_headings_make_an_outline(page: Any) -> None:
    ranks = [int(element.tag[1]) for element in page.everything() if re.fullmatch("h[1-6]", element.tag)]
    assert ranks[0] == 1 and ranks.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(ranks))
    assert all(element.words for element in page.everything() if re.fullmatch("h[1-6]", element.tag))


def test_everything_stands_in_a_landmark(page: Any) -> None:
    body = next(page.all("body"))
    tags = [child.tag for child in body.children if not isinstance(child, str)]
    assert tags == ["a", "aside", "main", "footer"]
    assert all(child.isspace() for child in body.children if isinstance(child, str))


def test_names_are_unique_and_every_reference_is_met(page: Any) -> None:
    names = [element.attributes["id"] for element in page.everything() if "id" in element.attributes]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    texts = {element.attributes["id"]: element.words for element in page.everything() if "id" in element.attributes}
    for element in page.everything():
        for name in element.attributes.get("aria-labelledby", "").split():
            assert texts[name], name
        target = element.attributes.get("href", "#main")
        assert target.startswith("#") and target[1:] in texts


def test_the_first_link_leads_to_the_report(page: Any) -> None:
    first = next(page.all("a"))
    assert first.attributes["href"] == "#main" and first.words
    main = next(page.all("main"))
    assert main.attributes["id"] == "main" and main.attributes["tabindex"] == "-1"


def test_every_picture_says_what_is_seen(page: Any) -> None:
    texts = [picture.attributes["alt"] for picture in page.all("img")]
    assert all(len(text) > 15 for text in texts) and len(set(texts)) == len(texts)
    for figure in page.all("figure"):
        (drawing,) = figure.all("svg")
        assert drawing.attributes["role"] == "img"
        title, description = next(drawing.all("title")), next(drawing.all("desc"))
        assert title.words and len(description.words) > len("nothing is said")
        assert next(figure.all("figcaption")).words
    assert sum(1 for _ in page.all("svg")) == sum(1 for _ in page.all("figure"))


def test_tables_have_a_caption_and_cells_know_their_headers(page: Any) -> None:
    captions = []
    for table in page.all("table"):
        captions.append(next(table.all("caption")).words)
        columns = next(next(table.all("thead")).all("tr"))
        width = len([child for child in columns.children if not isinstance(child, str)])
        assert all(header.attributes["scope"] == "col" and header.words for header in columns.all("th"))
        for row in next(table.all("tbody")).all("tr"):
            cells = [child for child in row.children if not isinstance(child, str)]
            assert cells[0].tag == "th" and cells[0].attributes["scope"] == "row" and cells[0].words
            assert {cell.tag for cell in cells[1:]} == {"td"} and len(cells) == width
    assert all(captions) and len(set(captions)) == len(captions)


def test_what_scrolls_can_be_reached_by_keyboard_and_has_a_name(page: Any) -> None:
    boxes = [box for box in page.all("div") if "scroll" in box.attributes.get("class", "").split()]
    assert boxes
    for box in boxes:
        assert box.attributes["tabindex"] == "0" and box.attributes["role"] == "region"
        assert box.attributes["aria-labelledby"]
    for table in page.all("table"):
        assert "key" in table.attributes.get("class", "") or any(table in list(box.all("table")) for box in boxes)


@pytest.fixture(scope="module")
def style() -> str:
    return (resources.files("pipelines.evaluation") / "templates" / "report.css").read_text()


def colours_of(style: str, properties: str) -> set[str]:
    """Every colour that a property takes anywhere in the style."""
    known = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", style))
    found = set()
    for value in re.findall(rf"(?<![\w-])(?:{properties}): ([^;]+);", style):
        if value in ("inherit", "none"):
            continue
        name = re.fullmatch(r"var\(--([\w-]+)\)", value)
        colour = known[name[1]] if name else value
        assert re.fullmatch("#[0-9a-f]{6}", colour), value
        found.add(colour)
    return found


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_it_should_be() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_every_text_colour_can_be_read_on_every_ground(style: str) -> None:
    inks, grounds = colours_of(style, "color"), colours_of(style, "background|background-color")
    assert len(inks) >= 3 and len(grounds) >= 3
    for ink in inks:
        for ground in grounds:
            assert contrast(ink, ground) >= LEAST_CONTRAST, (ink, ground)


def test_shaded_cells_can_be_read(hostile: Any) -> None:
    shares = [float(share) for share in re.findall(r"background-color: rgb\(0 114 178 / ([\d.]+)\)", hostile.html)]
    assert len(shares) == 9
    for share in shares:
        mixed = [round(255 + (part - 255) * share) for part in (0, 114, 178)]
        assert contrast("#1b232b", "#" + "".join(f"{part:02x}" for part in mixed)) >= LEAST_CONTRAST


def test_texts_of_drawings_can_be_read(drawn: Any) -> None:
    style_of_text = re.findall(r"<text[^>]* style=\"([^\"]*)\"", drawn.html)
    assert {ink for one in style_of_text for ink in re.findall(r"fill: (#[0-9a-f]{6})", one)} == {plots_canvas.INK}
    assert contrast(plots_canvas.INK, plots_canvas.PAPER) >= LEAST_CONTRAST
    boxes = set(re.findall(r'fill="(#[0-9a-f]{6})" stroke=', drawn.html))
    for ink in set(re.findall(r'<text[^>]* fill="(#[0-9a-f]{6})"', drawn.html)):
        assert all(contrast(ink, box) >= LEAST_CONTRAST for box in boxes)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_cells_of_the_matrix_can_be_read_at_any_share(share: float) -> None:
    hits = round(1000 * share)
    svg = confusion_figure([[hits, 1000 - hits], [0, 7]], ["a", "b"])
    paths = re.findall(r'<path d="[^"]*" [^>]*style="fill: (#[0-9a-f]{6})', svg)
    cells = [colour for colour in paths if colour != plots_canvas.PAPER]
    inks = re.findall(r"<text[^>]*fill: (#[0-9a-f]{6})[^>]*>(?:<tspan[^>]*>)?([\d,]+)<", svg)
    assert len(cells) == 4 and len(inks) >= 4
    assert all(contrast(ink, cell) >= LEAST_CONTRAST for ink, _ in inks for cell in cells)


def test_lines_can_be_told_from_their_ground() -> None:
    drawn = {plots_canvas.line_style(number).colour for number in range(2)} | {
        plots_canvas.POSITIVE,
        plots_canvas.NEGATIVE,
    }
    assert all(contrast(colour, plots_canvas.PAPER) >= 3 for colour in drawn)  # WCAG 2.2, 1.4.11


def test_focus_is_seen_print_is_thought_of_and_phones_get_one_column(style: str) -> None:
    assert re.search(r":focus-visible[^{]*\{ outline: 3px solid", style)
    assert "outline: none" not in re.sub(r"main:focus \{ outline: none; \}", "", style)
    print_style = style[style.index("@media print") :]
    assert "size: A4" in style
    assert re.search(r"figure[^{]*\{ break-inside: avoid; \}", print_style)
    assert re.search(r"\.scroll[^{]*\{[^}]*overflow: visible", print_style)
    assert re.search(r"@media \(max-width: 50rem\) \{\s*\.first \{ grid-template-columns: minmax\(0, 1fr\)", style)
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style)
    assert not re.search(r"(?<!max-)(?<!min-)width: (?:[3-9]\d|\d{3,})rem", style)  # nothing is wider than a phone
