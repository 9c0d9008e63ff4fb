"""A report of drawn cases, by the same code as a real one: what its tests read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.content import (
    Evaluated,
    Gallery,
    Layer,
    PublishedWork,
    Sample,
    Shown,
    Stage,
    TrainingSection,
)

VOID = {"meta", "img", "br", "hr", "input", "link"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def all(self, tag: str) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag:
                    yield child
                yield from child.all(tag)

    def everything(self) -> Iterator[Element]:
        """All elements below this one, in order."""
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.everything()


class Page(HTMLParser):
    """A page as a tree, that fails where tags do not close as they opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("document", {})
        self._open = [self.root]
        self.feed(html)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            element = self._open[-1].children[-1]
            assert isinstance(element, Element)
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


FITTED = {"threshold": 0.3, "refer_low": 0.2, "refer_high": 0.45, "target_sensitivity": 0.95}


def draw_cases(n: int = 400, classes: tuple[str, ...] = ("benign", "malignant"), seed: int = 5) -> Cases:
    """Labels, probabilities that know something of them, patients, intensities and two columns."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(classes), n, p=rng.dirichlet(np.full(len(classes), 20.0)))
    logits = rng.normal(size=(n, len(classes))) * 1.2 + 2.2 * np.eye(len(classes))[labels]
    raised = np.exp(logits)
    patients = tuple(f"patient {number}" for number in rng.integers(0, max(2, n // 3), n))
    return Cases(
        classes=classes,
        positive=(len(classes) - 1,),
        uris=tuple(f"/archive/image {number}.png" for number in range(n)),
        contents=tuple(hashlib.sha256(str(number).encode()).hexdigest() for number in range(n)),
        labels=labels.astype(np.int64),
        probabilities=(raised / raised.sum(axis=1, keepdims=True)).astype(np.float32),
        groups=patients,
        patients=patients,
        mean_intensity=rng.beta(3, 5, n) + 0.03 * labels,
        columns={"site": tuple(("north", "south", None)[number % 3] for number in range(n))},
    )


def jpeg(seed: int) -> bytes:
    grey = np.random.default_rng(seed).integers(0, 255, (12, 12), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(grey).resize((96, 96)).save(sink, "JPEG")
    return sink.getvalue()


def draw_gallery(cases: Cases, overlays: bool = True) -> Gallery:
    wrong = np.flatnonzero(cases.predicted != cases.labels)[:6].tolist()
    right = np.flatnonzero(cases.predicted == cases.labels)[:6].tolist()

    def shown(row: int) -> Shown:
        predicted = int(cases.predicted[row])
        return Shown(
            name=cases.uris[row].removeprefix("/archive/"),
            true=cases.classes[int(cases.labels[row])],
            predicted=cases.classes[predicted],
            probability=float(cases.probabilities[row, predicted]),
            p_positive=float(cases.p_positive[row]),
            picture=jpeg(row),
            overlay=jpeg(row + 1) if overlays else None,
        )

    absent = "" if overlays else "The model was imported as a compiled file."
    return Gallery(tuple(map(shown, wrong)), len(wrong), tuple(map(shown, right)), absent)


def draw_training(classes: tuple[str, ...]) -> TrainingSection:
    rows = []
    for epoch in range(1, 13):
        base = {"loss": 1.2 / epoch, "accuracy": 1 - 0.5 / epoch, "precision": 1 - 0.6 / epoch, "recall": 0.9}
        rows.append({"epoch": epoch} | base | {f"val_{key}": value * 1.05 for key, value in base.items()})
    return TrainingSection(
        recipe="histopathology",
        settings={"backbone": "mobilenet_v2", "learning_rate": 0.0001, "restore_best": True, "exclude": []},
        history=tuple(rows),
        best_epoch=9,
        layers=tuple(
            Layer(f"block_{number}_conv", "Conv2D", "14 × 14 × 96", number > 8, 9216 * number)
            for number in range(1, 15)
        ),
        stages=(
            Stage("Input", "224 × 224 × 3, scaled to −1 to 1", False),
            Stage("MobileNetV2, layers 1–124", "14 × 14 × 96, 1,364,000 parameters", False),
            Stage("MobileNetV2, layers 125–154", "7 × 7 × 1280, 893,000 parameters", True),
            Stage("Head", f"average pooling, dense 100 relu, dropout 0.4, softmax {len(classes)}", True),
        ),
        counts={
            part: {name: size * (place + 2) for place, name in enumerate(classes)}
            for part, size in (("train", 640), ("val", 160), ("test", 200))
        },
        class_descriptions={classes[0]: "Tissue without malignant change."},
        samples=tuple(
            Sample(name, jpeg(place), (jpeg(place + 7), jpeg(place + 8))) for place, name in enumerate(classes)
        ),
        published=PublishedWork(
            source="A paper of 2024",
            figures={"accuracy": 0.97, "roc_auc": 0.992, "mcc": 0.94},
            compared=(("Work", "Year", "Accuracy"), ("Somebody", "2019", "0.91"), ("Somebody else", "2021", "0.93")),
            remarks=("The paper chose its epoch on the images that it reports.",),
        ),
    )


EVALUATED = Evaluated(
    title="moles@v3 on the test part of isic",
    model="moles@v3",
    paragraph=(
        "The model moles@v3 (float32) was evaluated on 400 labelled images of 132 patients: the test part of "
        "isic, which training never saw."
    ),
    concerns=(
        "Only 38 images are positive, so sensitivity is known to about 9 points.",
        "12 near-duplicates of training images are among the evaluated ones; figures may be too good.",
    ),
    provenance=(
        ("nightread", "0.1.0"),
        ("model_id", "ab" * 32),
        ("Command", "nightread evaluate models/moles data/isic"),
    ),
)


def measure(cases: Cases, thresholds: dict[str, Any] | None = None) -> dict[str, Any]:
    """metrics.json of cases, as `evaluate` makes it."""
    from pipelines.evaluation.comparison import compare_cases
    from pipelines.evaluation.intensity import measure_intensity
    from pipelines.evaluation.study import Settings, measure_cases
    from pipelines.evaluation.subgroups import measure_subgroups

    known = {"image": FITTED, "patient_max": FITTED} if thresholds is None else thresholds
    settings = Settings(draws=60, prevalences=(0.005, 0.05))
    other = draw_cases(len(cases), cases.classes, seed=6)
    against = replace(cases, probabilities=other.probabilities)
    return measure_cases(cases, known, "float32", settings) | {
        "subgroups": measure_subgroups(cases, list(cases.columns), known.get("image"), settings),
        "comparison": compare_cases(cases, against, settings, {"name": "other", "version": "v1", "model_id": "c"}),
        "intensity": measure_intensity(cases),
        "unreadable": [{"image_uri": "/archive/torn.png", "error_code": "truncated"}],
    }


@dataclass(frozen=True)
class Drawn:
    """A report, and what it was made of."""

    html: str
    figures: dict[str, Any]
    cases: Cases


def render(cases: Cases, figures: dict[str, Any], **changed: Any) -> str:
    """The page of cases, with everything that a report can hold unless it is changed."""
    from pipelines.evaluation.report import render_report

    given: dict[str, Any] = {
        "evaluated": EVALUATED,
        "figures": figures,
        "cases": cases,
        "fitted": FITTED,
        "training": draw_training(cases.classes),
        "training_absent": "",
        "gallery": draw_gallery(cases),
        "gallery_absent": "",
    }
    return render_report(**given | changed).decode()


@pytest.fixture(scope="session")
def drawn() -> Drawn:
    """Two classes."""
    cases = draw_cases()
    figures = measure(cases)
    return Drawn(render(cases, figures), figures, cases)


@pytest.fixture(scope="session")
def hostile() -> Drawn:
    """Three classes, and every name that data can choose tries to be more than a name."""
    classes = ('benign"><img src=x onerror=alert(1)>', "<script>alert(1)</script>", "zebra & {{ 7 * 7 }}")
    cases = draw_cases(300, classes)
    sites = tuple(("<script>alert(2)</script>", "south", None)[number % 3] for number in range(300))
    uris = tuple(f"/archive/<script>alert({number})</script>.png" for number in range(300))
    cases = replace(cases, columns={"<b>site</b>": sites}, uris=uris)
    figures = measure(cases)
    evil = "<script>alert(3)</script>"
    said = Evaluated(evil, evil, evil, (evil, "javascript:alert(4)"), (("Command", evil),))
    return Drawn(render(cases, figures, evaluated=said), figures, cases)


@pytest.fixture(scope="session")
def bare() -> Drawn:
    """Nothing but the cases is known: no patients, threshold, training, pictures, subgroups or comparison."""
    cases = replace(draw_cases(60), patients=None, columns={}, mean_intensity=np.full(60, np.nan))
    figures = measure(cases, {}) | {"comparison": None, "unreadable": []}
    html = render(
        cases,
        figures,
        fitted=None,
        training=None,
        training_absent="The model was imported.",
        gallery=None,
        gallery_absent="Pictures were left out of this report (--no-images).",
        evaluated=replace(EVALUATED, concerns=()),
    )
    return Drawn(html, figures, cases)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The functions of this file, for tests that want something of their own."""
    return SimpleNamespace(cases=draw_cases, measure=measure, render=render, gallery=draw_gallery)


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Element]:
    """A page as a tree."""
    return lambda html: Page(html).root
