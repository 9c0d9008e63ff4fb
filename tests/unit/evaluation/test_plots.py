from __future__ import annotations

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.curves import Bin, reliability_bins, roc_curve
from pipelines.evaluation.plots import (
    MOST_POINTS,
    Curve,
    confusion_figure,
    decision_figure,
    precision_recall_figure,
    reliability_diagram,
    roc_figure,
    score_figure,
)
from pipelines.evaluation.plots_canvas import WIDTH, draw, label, line_style
from pipelines.evaluation.plots_data import (
    MOST_OUTLIERS,
    ForestRow,
    Steps,
    distribution_figure,
    forest_figure,
    history_figure,
    intensity_box_figure,
    intensity_figure,
    metric_bar_figure,
)

HOSTILE = "<script>alert('$x^2$')</script> & \x01 \"q\""


def texts(svg: str) -> list[str]:
    """What a chart writes, in order."""
    return ["".join(element.itertext()) for element in root_of(svg).iter() if element.tag.endswith("}text")]


def root_of(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def curves_of(n: int) -> list[Curve]:
    rng = np.random.default_rng(3)
    truth = rng.random(n) < 0.3
    return [
        Curve(name, *roc_curve(rng.normal(size=n) + shift * truth, truth)[:2], "0.912 (0.874–0.941)")
        for name, shift in (("benign", 1.0), ("malignant", 2.0))
    ]


def all_charts() -> dict[str, str]:
    rng = np.random.default_rng(4)
    bins = reliability_bins(rng.random(200), rng.random(200) < 0.4)
    counts = {"train": {"benign": 1200, HOSTILE: 30}, "test": {"benign": 300, HOSTILE: 9}}
    forest = [
        ForestRow("north", 0.8, 0.7, 0.9),
        ForestRow(HOSTILE, None, None, None),
        ForestRow("s", 0.6, 0.3, 0.9, "g", True),
    ]
    at = (np.arange(1, 100) / 100).tolist()
    return {
        "roc": roc_figure([*curves_of(300), Curve(HOSTILE, np.array([0, 1.0]), np.array([0, 1.0]))], (0.2, 0.9)),
        "precision-recall": precision_recall_figure(curves_of(300), None),
        "confusion": confusion_figure([[1200, 34], [12, 345]], ["benign", HOSTILE]),
        "reliability": reliability_diagram({"this": bins, HOSTILE: bins}, rng.random(200)),
        "decision-curve": decision_figure(at, [0.3] * 99, [0.2] * 99, 0.3),
        "scores": score_figure({"benign": rng.random(40), HOSTILE: rng.random(9)}, [HOSTILE], 0.3, (0.2, 0.4)),
        "history-loss": history_figure("loss", "loss", [1, 2, 3], {"training": np.array([3.0, 2, 1])}, 2),
        "distribution": distribution_figure(counts),
        "metrics": metric_bar_figure([ForestRow("MCC", -0.1, -0.3, 0.1), ForestRow("F1", None, None, None)]),
        "intensity": intensity_figure({HOSTILE: Steps([0, 0.5, 1], [3, 4]), "benign": Steps([0, 0.5, 1], [0, 0])}),
        "intensity-boxes": intensity_box_figure({HOSTILE: rng.random(30), "benign": rng.random(1)}),
        "forest": forest_figure("forest", "Subgroups", forest, "ROC AUC", 0.7),
    }


@pytest.fixture(scope="module")
def charts() -> dict[str, str]:
    return all_charts()


def test_every_chart_has_a_role_a_title_and_a_description(charts: dict[str, str]) -> None:
    for key, svg in charts.items():
        root = root_of(svg)
        assert root.get("role") == "img" and root.get("viewBox", "").startswith(f"0 0 {WIDTH} "), key
        named = {
            element.get("id"): "".join(element.itertext())
            for element in root
            if element.tag.endswith(("}title", "}desc"))
        }
        assert root.get("aria-labelledby", "").split() == list(named), key
        assert all(text.strip() for text in named.values()), key


def test_names_from_data_are_texts_and_nothing_else(charts: dict[str, str]) -> None:
    for key, svg in charts.items():
        assert "<script" not in svg and "\x01" not in svg, key
        assert {element.tag.rpartition("}")[2] for element in root_of(svg).iter()} <= {
            "svg", "title", "desc", "g", "path", "text", "tspan", "defs", "use", "clipPath", "rect", "pattern",
        }, key  # fmt: skip
    shown = [text for svg in charts.values() for text in texts(svg)]
    assert sum(text.startswith("<script>alert(") for text in shown) >= 7
    assert any("$x^2$" in text for text in texts(confusion_figure([[1]], ["$x^2$"])))  # it is no formula


def test_parts_are_named_by_the_chart_and_every_reference_is_met(charts: dict[str, str]) -> None:
    names = [name for svg in charts.values() for name in re.findall(r' id="([^"]+)"', svg)]
    assert len(names) == len(set(names))
    for key, svg in charts.items():
        own = set(re.findall(r' id="([^"]+)"', svg))
        assert all(name.startswith(f"{key}-") for name in own)
        wanted = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
        assert wanted <= own
        assert len(re.findall(r'href="(?!#)', svg)) == 0 and "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_the_same_numbers_give_the_same_bytes_whatever_the_settings_around(charts: dict[str, str]) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "svg.fonttype": "path", "text.parse_math": True}):
        assert all_charts() == charts


def test_drawing_leaves_no_global_state() -> None:
    script = (
        "import json, os, sys\n"
        "from pipelines.evaluation.plots import confusion_figure\n"
        "before = dict(os.environ)\n"
        "confusion_figure([[1, 2], [3, 4]], ['a', 'b'])\n"
        "import matplotlib\n"
        "print(json.dumps([dict(os.environ) == before, 'matplotlib.pyplot' in sys.modules,"
        " matplotlib.rcParams['svg.fonttype'], os.path.exists(matplotlib.get_configdir())]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, False, "path", False]


def test_the_matrix_writes_counts_and_the_per_cent_of_the_row() -> None:
    shown = texts(confusion_figure([[1200, 300], [0, 45]], ["benign", "malignant"]))
    cells = ["1,200 80.0 %", "300 20.0 %", "0 0.0 %", "45 100.0 %"]
    assert all(cell in " ".join(shown) for cell in cells)
    assert {"benign", "malignant", "true class", "predicted class"} <= set(shown)


def test_many_classes_still_fit() -> None:
    names = [f"class {number}" for number in range(12)]
    svg = confusion_figure(np.eye(12, dtype=int).tolist(), names)
    assert set(names) <= set(texts(svg))
    assert "100 %" not in texts(svg)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 3000), st.integers(0, 2**32 - 1))
def test_a_thinned_curve_looks_the_same(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.append(rng.random(n) < 0.2, [True, False])
    across, up, _ = roc_curve(np.round(rng.normal(size=n + 2) + truth, 2), truth)
    line = Curve("a", across, up).thinned()
    assert len(line.across) <= MOST_POINTS and np.all(np.diff(line.across) >= 0)
    assert (line.across[0], line.up[0]) == (0, 0) and (line.across[-1], line.up[-1]) == (1, 1)
    nearest = np.hypot(across[:, None] - line.across, up[:, None] - line.up).min(axis=1)
    assert nearest.max() <= 2 / MOST_POINTS + 1e-9


def test_a_long_curve_makes_no_large_chart() -> None:
    assert len(roc_figure(curves_of(100_000), None)) < 60_000


def test_a_chart_of_calibration_shows_each_bin_and_the_histogram() -> None:
    bins = [Bin(10, 0.1, 0.2, 0.05, 0.5), Bin(10, 0.8, 0.7, 0.4, 0.9)]
    alone, both = reliability_diagram({"before": bins}), reliability_diagram({"before": bins}, [0.1, 0.9])
    assert "0.10 predicted and 0.20 observed" in alone and "images" not in texts(alone)
    assert "images" in texts(both)


def test_outliers_are_drawn_but_not_all_of_very_many() -> None:
    values = np.concatenate([np.full(10_000, 0.5) + np.linspace(-0.01, 0.01, 10_000), np.linspace(0.9, 1, 5_000)])
    svg = intensity_box_figure({"benign": values[:10_100]})
    assert 100 <= svg.count("<use") <= MOST_OUTLIERS + 100
    assert len(intensity_box_figure({"benign": np.concatenate([values[:10_000], values[10_000:11_900]])})) < 60_000


def test_lines_differ_without_colour() -> None:
    styles = [line_style(number) for number in range(12)]
    assert len({(one.dashes, one.marker) for one in styles}) == 12
    assert len({(one.colour, one.dashes) for one in styles}) == 12


def test_labels_are_cut_and_cleaned() -> None:
    assert label("adenocarcinoma of the lung, grade 3") == "adenocarcinoma…grade 3"
    assert len(label("a" * 30)) == 24 and label("a" * 24) == "a" * 24
    assert label("two\nlines\x00") == "two lines "
    assert label("\ud800") == " "


def test_a_chart_may_be_empty() -> None:
    svg = draw("nothing", "Nothing", "There is nothing.", 100, lambda figure: None)
    assert texts(svg) == [] and 'id="nothing-title"' in svg
