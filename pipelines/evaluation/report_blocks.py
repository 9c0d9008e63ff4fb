"""What a section of the report is made of: words, tables, drawings and pictures.

Every text here is plain: the template escapes it. Only `Drawing.svg` goes into the page as it is, and it comes from
`plots_canvas` and `diagrams`, which escape what they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipelines.evaluation.report_numbers import ABSENT, interval, number, sentence

AT_CLASS = "at the most probable class"
AT_THRESHOLD = "at the frozen threshold"
OF_PROBABILITIES = "of the probabilities, no threshold"

MOST_COLUMNS = 6
MOST_BESIDE = 2

FIGURE_LABELS = {
    "roc_auc": "ROC AUC",
    "average_precision": "Average precision",
    "sensitivity": "Sensitivity (recall)",
    "specificity": "Specificity",
    "ppv": "PPV (precision)",
    "npv": "NPV",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "mcc": "MCC",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "calibration_error": "Calibration error",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
}
"""What the report calls the figures of metrics.json, in the order in which it shows them."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What it says.
        interval: Of the figure that it says, or the count's per cent, without brackets; "" for none.
        mark: Letter of the note under the table that explains it; "" for none.
        plain: Whether it is words, which stand at the left; numbers stand at the right.
        shade: 0–1, how dark it is; None for no colour.
    """

    text: str
    interval: str = ""
    mark: str = ""
    plain: bool = False
    shade: float | None = None


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    kind: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True)
class Listing:
    """Sentences under each other."""

    kind: ClassVar[str] = "listing"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        key: Its name in the page.
        caption: What it shows.
        header: A text for each column.
        rows: As wide as the header; the first cell of each names the row.
        notes: Letter and sentence of what the cells are marked with.
        tall: Whether it scrolls in a box of its own on a screen.
    """

    kind: ClassVar[str] = "table"
    key: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[tuple[str, str], ...] = ()
    tall: bool = False

    @property
    def wide(self) -> bool:
        """Whether it has so many columns that intervals go under their values."""
        return len(self.header) > MOST_COLUMNS


@dataclass(frozen=True)
class Drawing:
    """A chart and the line under it."""

    kind: ClassVar[str] = "drawing"
    svg: str
    caption: str


@dataclass(frozen=True)
class Drawings:
    """Charts, and tables that belong to one, beside each other where the page is wide enough."""

    kind: ClassVar[str] = "drawings"
    items: tuple[Drawing | Table, ...]


@dataclass(frozen=True)
class Picture:
    """An embedded picture: a JPEG in base64 and what it shows."""

    data: str
    alt: str


@dataclass(frozen=True)
class Card:
    """Pictures that belong together, and the lines under them: pairs of a name and a value."""

    pictures: tuple[Picture, ...]
    title: str
    lines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Cards:
    """Cards beside each other.

    Attributes:
        label: What they are.
        items: In order.
    """

    kind: ClassVar[str] = "cards"
    label: str
    items: tuple[Card, ...]

    @property
    def wide(self) -> bool:
        """Whether a card has more pictures than fit beside another card."""
        return any(len(card.pictures) > MOST_BESIDE for card in self.items)


Block = Words | Listing | Table | Drawings | Cards


@dataclass(frozen=True)
class Part:
    """What stands under a heading of the third rank.

    Attributes:
        title: The heading.
        basis: At what its figures are: `AT_CLASS`, `AT_THRESHOLD` …; "" where it has no figures of a model.
        blocks: In order.
        narrow: Whether it stands beside the next narrow one where the page is wide enough.
    """

    title: str
    basis: str
    blocks: tuple[Block, ...]
    narrow: bool = False


@dataclass(frozen=True)
class Section:
    """What stands under a heading of the second rank.

    Attributes:
        key: Its name in the page.
        title: The heading.
        basis: As of a part; "" also where each part says it.
        blocks: Before the first part.
        parts: In order.
    """

    key: str
    title: str
    basis: str = ""
    blocks: tuple[Block, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass
class TableMaker:
    """Makes a table row by row and gives each reason why something is undefined one letter.

    Attributes:
        key: Name of the table in the page.
        caption: What it shows.
        header: A text for each column.
    """

    key: str
    caption: str
    header: Sequence[str]
    _rows: list[tuple[Cell, ...]] = field(default_factory=list)
    _reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, cells: Iterable[Cell | str | Mapping[str, Any] | None]) -> None:
        """Add a row.

        Args:
            name: Its first cell.
            cells: The others: a text is a number already written, a mapping is a figure, None an empty cell.
        """
        self._rows.append((Cell(name, plain=True), *(self._cell(one) for one in cells)))

    def figure(self, figure: Mapping[str, Any]) -> Cell:
        """A figure as a cell; an undefined one is marked with the letter of its reason."""
        text = number(figure.get("value"))
        if text != ABSENT:
            return Cell(text, interval(figure.get("low"), figure.get("high")))
        reason = sentence(str(figure.get("reason") or ""))
        return Cell(text, mark=self._reasons.setdefault(reason, _letter(len(self._reasons))))

    def made(self, tall: bool = False) -> Table:
        """The table as it is now."""
        notes = tuple((letter, reason) for reason, letter in self._reasons.items())
        return Table(self.key, self.caption, tuple(self.header), tuple(self._rows), notes, tall)

    def _cell(self, given: Cell | str | Mapping[str, Any] | None) -> Cell:
        if given is None:
            return Cell("")
        if isinstance(given, Cell):
            return given
        return Cell(given) if isinstance(given, str) else self.figure(given)


def _letter(place: int) -> str:
    """The letter of a place: a, b … z, aa, ab and so on."""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)
