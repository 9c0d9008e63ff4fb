"""The upload page as it is sent: nothing in it that its policy would have to allow, and colours that can be read."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from pipelines.serving.page import SCRIPTS, page_html

HTML = page_html()[0].decode()
POLICY = dict(part.split(" ", 1) for part in page_html()[1].split("; "))
SOURCES = {
    name: (files("pipelines.serving") / "page" / name).read_text() for name in (*SCRIPTS, "page.css", "page.html")
}


class Elements(HTMLParser):
    """Every element with its attributes, and the text of styles and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style") and data.strip() and self.lasttag not in self.inline:
            self.inline[self.lasttag] = data


ELEMENTS = Elements()


def test_the_policy_allows_this_style_and_this_script_and_nothing_else() -> None:
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(ELEMENTS.inline[tag].encode()).digest()).decode()
        assert POLICY[f"{tag}-src"] == f"'sha256-{digest}'"
        assert sum(name == tag for name, _ in ELEMENTS.found) == 1
    assert POLICY["default-src"] == POLICY["base-uri"] == POLICY["form-action"] == POLICY["frame-ancestors"] == "'none'"
    assert POLICY["connect-src"] == "'self'" and POLICY["img-src"] == "blob: data:"
    assert "unsafe" not in page_html()[1]


def test_nothing_is_fetched_and_nothing_is_written_into_attributes() -> None:
    for tag, attributes in ELEMENTS.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/svg+xml,")), (tag, name)
    spaces = {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^'\"\s)]+", HTML)) <= spaces
    assert "@import" not in HTML and "url(" not in SOURCES["page.css"]


FORBIDDEN = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "localStorage",
    "sessionStorage", "indexedDB", "document.cookie", "caches", "serviceWorker", "sendBeacon", "WebSocket",
    "console.", "history.", "location",
)  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_turn_no_text_into_markup_and_keep_nothing(name: str) -> None:
    assert [word for word in FORBIDDEN if word in SOURCES[name]] == []


@pytest.mark.parametrize("name", SOURCES)
def test_sources_stay_as_short_as_others(name: str) -> None:
    lines = SOURCES[name].splitlines()
    assert len(lines) <= 400
    if name.endswith(".js"):
        assert [line for line in lines if len(line) > 120] == []


def test_every_id_that_a_script_or_a_label_names_is_there_once() -> None:
    ids = [attributes["id"] for _, attributes in ELEMENTS.found if attributes.get("id")]
    assert len(ids) == len(set(ids))
    named = set(re.findall(r"byId\('([^']+)'\)", ELEMENTS.inline["script"]))
    for _, attributes in ELEMENTS.found:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            named.update((attributes.get(name) or "").split())
        if (attributes.get("href") or "").startswith("#"):
            named.add((attributes["href"] or "")[1:])
    assert len(named) > 40
    assert named <= set(ids)


def test_every_button_and_field_has_a_name() -> None:
    labelled = {attributes.get("for") for tag, attributes in ELEMENTS.found if tag == "label"}
    for tag, attributes in ELEMENTS.found:
        if tag == "input" and "hidden" not in attributes:
            assert attributes["id"] in labelled
        if tag == "button":
            assert attributes["type"] in ("button", "submit")
    # A sign alone is no name.
    for content, attributes in re.findall(r"<button([^>]*)>([^<]*)</button>", HTML):
        assert "aria-label" in content or re.search(r"\w{2}|1 : 1", attributes) or "banner-button" in content


def colours(scheme: str) -> dict[str, str]:
    found = re.findall(r":root \{(.*?)\}", SOURCES["page.css"], re.DOTALL)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", found[("light", "dark").index(scheme)]))


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme: str) -> None:
    own = colours(scheme)
    texts = [("ink", "paper"), ("ink", "field"), ("quiet", "paper"), ("quiet", "field"), ("accent", "paper")]
    texts += [("on-accent", "accent"), ("warn-ink", "warn"), ("accent", "field")]
    for decision in ("negative", "refer", "positive"):
        texts += [
            (decision, f"{decision}-field"),
            (decision, "paper"),
            (decision, "field"),
            ("ink", f"{decision}-field"),
        ]
    for text, ground in texts:
        assert contrast(own[text], own[ground]) >= 4.5, (text, ground)
    # What is seen rather than read: edges of controls and the marker on the scale.
    assert contrast(own["edge"], own["paper"]) >= 3
    for decision in ("negative", "refer", "positive"):
        assert contrast(own["ink"], own[f"{decision}-bar"]) >= 3 or scheme == "dark"


def test_both_schemes_define_the_same_colours() -> None:
    assert colours("light").keys() == colours("dark").keys()
