"""Charts of a night: where its time went, and how fast it was over time. Each is an SVG element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pipelines.evaluation.night_facts import Piece
from pipelines.evaluation.plots_canvas import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, SKY, VERMILLION, draw
from pipelines.evaluation.report_numbers import per_cent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A name has one colour and one hatch, so that two charts of a page say the same with them.
_LOOKS: Final = {
    "read": (SKY, ""),
    "decode": (ORANGE, "////"),
    "score": (BLUE, ""),
    "write": (GREEN, "xxxx"),
    "wait": (VERMILLION, "...."),
    "idle": ("#c3cad1", ""),
    "list": (SKY, ""),
    "plan": (ORANGE, "////"),
    "start": (PURPLE, ""),
    "commit": (GREEN, "xxxx"),
    "other": ("#c3cad1", ""),
}
_LEAST_LABELLED: Final = 0.09


def time_figure(key: str, title: str, pieces: Sequence[Piece]) -> str:
    """A bar of pieces, one after the other, with their shares.

    Args:
        key: Another one for each chart of a page.
        title: Whose time it is.
        pieces: In order; their shares sum to 1.
    """
    shown = [piece for piece in pieces if piece.share > 0]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = 0.0
        for piece in shown:
            colour, hatch = _LOOKS.get(piece.name, (QUIET, ""))
            axes.barh(
                0, piece.share * 100, left=left, height=0.7, color=colour, hatch=hatch, edgecolor="#ffffff",
                linewidth=0.8, label=f"{piece.name} {per_cent(piece.share)}",
            )  # fmt: skip
            if piece.share >= _LEAST_LABELLED:
                box = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.5}
                axes.text(left + piece.share * 50, 0, piece.name, ha="center", va="center", bbox=box, fontsize=10)
            left += piece.share * 100
        axes.set(xlim=(0, 100), ylim=(-0.5, 0.5), yticks=(), xlabel="per cent of the time")
        axes.spines[["left"]].set_visible(False)
        axes.grid(False)
        figure.legend(loc="outside lower center", ncols=3, borderaxespad=0.2, labelspacing=0.35, columnspacing=1.2)

    said = ", ".join(f"{piece.name} {per_cent(piece.share)}" for piece in shown)
    return draw(key, title, f"{title}: {said}.", 116 + 18 * -(-len(shown) // 3), paint)


def rate_figure(points: Sequence[tuple[float, float]], steady: float | None) -> str:
    """Images per second over the time of the scoring, as steps.

    Args:
        points: Seconds at which a step ends, and its rate; in order.
        steady: The steady rate; None where there is none.
    """
    seconds = points[-1][0]
    unit, divisor = ("hours", 3600.0) if seconds > 7200 else ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)
    edges = [0.0, *(at / divisor for at, _ in points)]
    rates = [rate for _, rate in points]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.stairs(rates, edges, fill=True, facecolor=SKY, alpha=0.45, linewidth=0)
        axes.stairs(rates, edges, color=BLUE, linewidth=1.4, baseline=None)
        if steady is not None:
            axes.axhline(steady, color=INK, linewidth=1, linestyle=(0, (4, 2)), label=f"steady rate {steady:,.1f}/s")
            figure.legend(loc="outside lower center", borderaxespad=0.2)
        axes.set(xlim=(0, edges[-1]), ylim=(0, max(1.0, max(rates), steady or 0.0) * 1.08))
        axes.set(xlabel=f"{unit} since the scoring began", ylabel="images per second")
        axes.yaxis.set_major_formatter("{x:,.0f}")

    span = f"{len(rates)} steps over {edges[-1]:,.1f} {unit}"
    description = f"{span}: from {min(rates):,.1f} to {max(rates):,.1f} images per second."
    return draw("rate", "Images per second over time", description, 270, paint)
