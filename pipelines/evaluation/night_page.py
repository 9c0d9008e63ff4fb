"""One night as one page that opens from a mail, without a server, a script or anything that must be fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pipelines.errors import IMAGE_ERRORS
from pipelines.evaluation.content import Evaluated
from pipelines.evaluation.night_facts import (
    NightView,
    Piece,
    actor_pieces,
    concerns,
    driver_pieces,
    moment,
    rate_points,
)
from pipelines.evaluation.night_plots import rate_figure, time_figure
from pipelines.evaluation.report import PACKAGE, KeyFigure, render_page
from pipelines.evaluation.report_blocks import Block, Cell, Drawing, Drawings, Part, Section, Table, TableMaker, Words
from pipelines.evaluation.report_numbers import number, p_text, per_cent, whole

TEMPLATE: Final = "night.html.jinja"
GENERATOR: Final = b'<meta name="generator" content="nightread">'
NOTICE: Final = (
    "This page names images, and names may say who a patient is: keep it and send it only where the results may go."
)
_COUNTS: Final = {
    "found": "in the archive",
    "planned": "in the plan of this run",
    "new": "not in the table before",
    "changed": "in the table with another version only",
    "unchanged": "scored before, so left alone",
    "rescored_for_model": "scored by another version of the model before",
    "gone": "in the table and no longer in the archive",
    "scored": "with a score",
    "failed": "without one, with the reason as a row",
    "kept": "with their old score, because their bytes are the old ones",
    "remaining": "left to the next night, because the time was over",
}


def render_night(view: NightView, results: str) -> bytes:
    """The page. The same values give the same bytes.

    Args:
        view: What is known of the run.
        results: Where its results lie.

    Returns:
        HTML in UTF-8. All text that comes from data is escaped.
    """
    record, said = view.record, tuple(concerns(view))
    evaluated = Evaluated(
        title=f"Night of {record.started_at:%Y-%m-%d}",
        model=str(record.configuration.get("model_name") or record.configuration.get("model") or "unknown model"),
        paragraph=_paragraph(view, results, said),
        concerns=said,
        provenance=(),
    )
    sections = [_images(view), *_rate(view), *_time(view), *_slowest(view), *_drift(view), _made_by(view)]
    return render_page(TEMPLATE, PACKAGE, evaluated, _key_figures(view), sections, notice_said=NOTICE)


def clock(seconds: float) -> str:
    """Seconds as `h:mm:ss`, below a minute as `12.3 s`."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _paragraph(view: NightView, results: str, below: Sequence[str]) -> str:
    record = view.record
    archive = record.configuration.get("archive", "an archive")
    began = f"Run {record.run_id} of {archive} into {results}, started {record.started_at:%Y-%m-%d %H:%M:%S} UTC"
    who = f"by {record.who.get('user', 'somebody')} on {record.who.get('host', 'an unknown machine')}"
    return f"{began} {who}." + ("" if view.sentence in below else f" {view.sentence}")


def _key_figures(view: NightView) -> tuple[KeyFigure, ...]:
    counts, timings = view.record.counts, view.timings
    if view.progress is not None:
        told = view.progress
        left, rate, at = told.get("seconds_left"), told.get("rate"), moment(str(told.get("at")))
        return (
            KeyFigure("Done", whole(told.get("done")), "", f"of {whole(told.get('total'))} images", ""),
            KeyFigure("Failed", whole(told.get("failed")), "", "so far", ""),
            KeyFigure("Rate", "–" if rate is None else f"{rate:,.1f}", "", "images per second so far", ""),
            KeyFigure("Time left", "–" if left is None else clock(left), "", f"told at {at}", ""),
        )
    total = int(counts.get("scored") or 0) + int(counts.get("failed") or 0)
    share = per_cent(int(counts.get("failed") or 0) / total) if total else "–"
    rate, took, hours = timings.get("images_per_second"), timings.get("seconds"), timings.get("node_hours")
    return (
        KeyFigure("Scored", whole(counts.get("scored")), "", f"of {whole(counts.get('planned'))} images planned", ""),
        KeyFigure("Failed", whole(counts.get("failed")), "", f"{share} of all; each is a row with its reason", ""),
        KeyFigure(
            "Images per second",
            "–" if rate is None else f"{rate:,.1f}",
            "",
            "steady, without start and end",
            "" if rate is not None else "The run was too short for a steady rate.",
        ),
        KeyFigure("Took", "–" if took is None else clock(took), "", "from the model's self-test to the commit", ""),
        KeyFigure(
            "Cost",
            "–" if hours is None else f"{hours:.3f} node-hours",
            "",
            f"{number(timings.get('core_hours'))} core-hours of work; cores: {whole(timings.get('cores'))}, "
            f"machines: {whole(timings.get('nodes'))}",
            "" if hours is not None else "It was scored by an earlier command or release, which did not keep it.",
        ),
    )


def _images(view: NightView) -> Section:
    counts = view.record.counts
    maker = TableMaker("counts", "Images by what became of them", ["", "Images", "Meaning"])
    for name, meaning in _COUNTS.items():
        if counts.get(name) is not None and (counts[name] or name in ("scored", "failed")):
            maker.add(name.replace("_", " ").capitalize(), [whole(counts[name]), Cell(meaning, plain=True)])
    by_code: Mapping[str, int] = counts.get("failed_by_code") or {}
    parts = (_failures(by_code, view),) if by_code else ()
    return Section("images", "Images", "", (maker.made(),), parts)


def _failures(by_code: Mapping[str, int], view: NightView) -> Part:
    codes = TableMaker("failures", "Failed images by reason", ["Reason", "Images", "Meaning"])
    examples = TableMaker("examples", "Some of the failed images", ["Image", "Reason", "What was found"])
    for code, count in sorted(by_code.items(), key=lambda one: (-one[1], one[0])):
        kind = IMAGE_ERRORS.get(code)
        codes.add(code, [whole(count), Cell(kind.meaning if kind else "", plain=True)])
        for one in view.examples.get(code, ()):
            examples.add(_name(one.image_uri), [Cell(code, plain=True), Cell(one.message, plain=True)])
    blocks: list[Block] = [codes.made()]
    if any(view.examples.values()):
        blocks.append(examples.made())
    return Part("Failures", "", tuple(blocks))


def _rate(view: NightView) -> Iterator[Section]:
    points = rate_points(view.record)
    if len(points) > 1:
        drawing = Drawing(
            rate_figure(points, view.timings.get("images_per_second")),
            "Images of finished shards by the time at which the command heard of them. An actor reports up to 16 "
            "shards at once, so a short gap may be nothing but that; a long one is an archive that was away, or "
            "machines that were lost.",
        )
        yield Section("rate", "Rate over time", "", (Drawings((drawing,)),))


def _time(view: NightView) -> Iterator[Section]:
    cores, command = actor_pieces(view.timings), driver_pieces(view.timings)
    parts = []
    if cores:
        said = "All cores together, from the start of the scoring to its end."
        parts.append(_pieces("cores", "The cores", cores, said, "core-time"))
    if command:
        said = "By the clock. The listing is shared by all runs of one command and stands with the first of them."
        parts.append(_pieces("command", "The command", command, said, "time"))
    if parts:
        yield Section("time", "Where the time went", "", (), tuple(parts))


def _pieces(key: str, title: str, pieces: Sequence[Piece], said: str, what: str) -> Part:
    maker = TableMaker(f"time-{key}", f"{title}: {what} by what it was spent on", ["", "Share", "Time", "What it is"])
    for piece in pieces:
        maker.add(piece.name, [per_cent(piece.share), clock(piece.seconds), Cell(piece.meaning, plain=True)])
    drawing = Drawing(time_figure(f"bar-{key}", title, pieces), said)
    return Part(title, "", (Drawings((drawing, maker.made())),))


def _slowest(view: NightView) -> Iterator[Section]:
    if view.slowest:
        maker = TableMaker("slowest-images", "Images on which a core was busy longest", ["Image", "Seconds"])
        for seconds, name in view.slowest:
            maker.add(_name(name) if name else "unknown: the run's plan is gone", [f"{seconds:,.2f}"])
        words = "Waiting for the bytes, decoding and scoring together. An image can be slow because its storage was."
        yield Section("slowest", "Slowest images", "", (Words(words), maker.made()))


def _drift(view: NightView) -> Iterator[Section]:
    if view.drift is None:
        return
    blocks: list[Block] = [Words(str(view.drift.get("sentence", "")))]
    figures = view.drift.get("figures") or ()
    if figures:
        blocks.append(_drift_table(figures))
        blocks.append(
            Words(
                "Usual is where 99 of 100 stable nights of this size lie. p is corrected for the number of figures; "
                "the effect is a shift in standard deviations, of shares Cohen's h; PSI is the population stability "
                "index."
            )
        )
    yield Section("drift", "Drift", "", tuple(blocks))


def _drift_table(figures: Sequence[Mapping[str, Any]]) -> Table:
    header = ["Figure", "Verdict", "Tonight", "Expected", "Usual", "p", "Effect", "PSI"]
    maker = TableMaker("drift-figures", "This night against the reference", header)
    for figure in figures:
        of = f" ({figure['of']})" if figure.get("of") else ""
        usual = f"{number(figure.get('low'))} to {number(figure.get('high'))}"
        cells = (number(figure.get("value")), number(figure.get("expected")), usual)
        rest = (p_text(figure.get("p")), number(figure.get("effect")), number(figure.get("psi")))
        maker.add(f"{figure.get('figure')}{of}", [Cell(str(figure.get("verdict")), plain=True), *cells, *rest])
    return maker.made()


def _made_by(view: NightView) -> Section:
    record = view.record
    maker = TableMaker("made-by", "What made this night", ["", "Value"])
    rows: list[tuple[str, Any]] = [
        ("run", record.run_id),
        ("state", view.sentence),
        ("table version", record.table_version),
        *((name.replace("_", " "), value) for name, value in record.configuration.items()),
        ("classes", record.model.get("classes")),
        ("positive classes", record.model.get("positive_classes")),
        ("user", record.who.get("user")),
        ("host", record.who.get("host")),
        ("command", " ".join(map(str, record.who.get("command_line") or ()))),
        ("versions", record.who.get("versions")),
    ]
    for name, value in rows:
        if value not in (None, False, [], {}, ""):
            maker.add(name, [Cell(_text(value), plain=True)])
    return Section("made-by", "What made it", "", (maker.made(),))


def _name(uri: str) -> str:
    """A name on one line; the page escapes the other control characters."""
    return uri.replace("\n", "\\n").replace("\t", "\\t")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
