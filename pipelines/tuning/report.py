"""The two pages of a search, in the look of the evaluation report: what was found, and how it does on test."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from pipelines.evaluation.content import Evaluated
from pipelines.evaluation.report import KeyFigure, render_page
from pipelines.evaluation.report_blocks import Section
from pipelines.tuning import report_search, report_tested
from pipelines.tuning.page_content import SearchContent, TestContent
from pipelines.tuning.panels import make_panels
from pipelines.tuning.plots_grid import whole_figure
from pipelines.tuning.shown_points import show_points

SEARCH_FILE = "search.html"
TEST_FILE = "test.html"
TABLES = ("leaderboard.csv", "leaderboard.parquet", "search.json")

_TEMPLATE = "page.html.jinja"
_PACKAGE = "pipelines.tuning"


def search_page(content: SearchContent) -> str:
    """search.html: one page that needs no script, no server and nothing that must be fetched.

    The same values give the same page. All text that comes from data is escaped.
    """
    points = show_points(content)
    return _page(
        "nightread search",
        report_search.head(content, points),
        report_search.key_figures(content, points),
        report_search.sections(content, points),
        ("The whole leaderboard and the search lie beside this page:", [(name, name) for name in TABLES]),
    )


def test_page(content: TestContent) -> str:
    """test.html: what the best point of each backbone does on the test part, as the study's first table has it.

    The same values give the same page. All text that comes from data is escaped.
    """
    links = [(name, quote(one.report)) for name, one in content.tested.items()]
    return _page(
        "nightread search, test part",
        report_tested.head(content),
        report_tested.key_figures(content),
        report_tested.sections(content),
        ("The whole report of each backbone:", links),
    )


def figure_1(content: SearchContent) -> bytes | None:
    """The study's figure as an SVG file that stands alone: the metric over epochs, a panel for each backbone.

    Returns:
        UTF-8; None where no point has a value.
    """
    panels = make_panels(show_points(content), content.histories, content.metric)
    return whole_figure(panels) if panels.panels else None


def _page(
    kicker: str,
    evaluated: Evaluated,
    key_figures: Sequence[KeyFigure],
    sections: Sequence[Section],
    links: tuple[str, list[tuple[str, str]]],
) -> str:
    page = render_page(
        _TEMPLATE, _PACKAGE, evaluated, key_figures, sections, kicker=kicker, links_say=links[0], links=links[1]
    )
    return page.decode()
