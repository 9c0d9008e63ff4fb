"""What papers report: read strictly, and consistent with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from pipelines.errors import UsageError
from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.training.published import FIGURE_NAMES, Figures, Published, published
from pipelines.training.recipes import load_recipe, recipe_names

PAPERS = ["breast-resnet50v2", "breast-ultrasound", "histopathology", "skin-lesion"]
LEAST = """
[published]
source = "A, 2020"
citation = "A: B. C, 2020."
origin = "invented for a test"
[published.data]
name = "images"
[[published.classes]]
name = "a"
description = "first"
written_by = "us"
[[published.classes]]
name = "b"
description = "second"
written_by = "paper"
[[published.figures]]
part = "test"
backbone = "vgg16"
images = 4
accuracy = 0.5
"""


def paper_of(name: str) -> Published:
    paper = published(name)
    assert paper is not None
    return paper


def labels_of(figures: Figures) -> tuple[list[int], list[int]]:
    """True and predicted class numbers of a confusion matrix."""
    assert figures.confusion_matrix is not None
    cells = [
        (true, called)
        for true, row in enumerate(figures.confusion_matrix)
        for called, count in enumerate(row)
        for _ in range(count)
    ]
    return [true for true, _ in cells], [called for _, called in cells]


def test_which_recipes_have_a_paper() -> None:
    assert set(PAPERS) <= set(recipe_names())
    assert published("default") is None
    assert set(FIGURE_NAMES.values()) <= set(METRIC_NAMES)


@pytest.mark.parametrize("name", PAPERS)
def test_the_figures_are_of_the_recipes_own_backbone_and_the_classes_are_described(name: str) -> None:
    paper, recipe = paper_of(name), load_recipe(name)
    assert recipe.backbone in {one.backbone for one in paper.figures}
    assert all(one.written_by == "us" and one.description.endswith(".") for one in paper.classes)
    assert (len(paper.classes) == 2) == (recipe.loss == "binary_crossentropy")


def test_the_matrices_of_moles_give_the_reported_figures() -> None:
    paper = paper_of("skin-lesion")
    assert [one.backbone for one in paper.figures] == ["mobilenet_v2", "resnet50_v2", "efficientnet_v2_b0", "vgg16"]
    for figures in paper.figures:
        truth, called = labels_of(figures)
        assert (truth.count(0), truth.count(1)) == (360, 300)
        worked_out = {
            "accuracy": metrics.accuracy_score(truth, called),
            "precision": metrics.precision_score(truth, called),
            "recall": metrics.recall_score(truth, called),
            "f1": metrics.f1_score(truth, called),
        }
        assert {name: figures.values[name] for name in worked_out} == pytest.approx(worked_out, abs=5.1e-5)


def test_the_matrix_of_ultrasound_gives_the_reported_figures() -> None:
    (figures,) = paper_of("breast-ultrasound").figures
    truth, called = labels_of(figures)
    assert len(truth) == figures.images == 129
    assert metrics.accuracy_score(truth, called) == pytest.approx(figures.values["accuracy"], abs=0.005)
    assert metrics.matthews_corrcoef(truth, called) == pytest.approx(figures.values["mcc"], abs=0.01)
    weighted = metrics.precision_score(truth, called, average="weighted")
    assert weighted == pytest.approx(figures.values["precision"], abs=0.005)
    assert np.mean(list(figures.by_class["pr_auc"].values())) == pytest.approx(figures.values["pr_auc"], abs=0.005)


def test_what_a_later_report_draws_is_there() -> None:
    grid = paper_of("skin-lesion").grid
    assert grid is not None
    assert len(grid.learning_rates) * len(grid.epochs) == 30
    own = load_recipe("skin-lesion")
    best = {one.backbone: (one.best_learning_rate, one.best_epochs) for one in grid.backbones}
    assert best[own.backbone] == (own.learning_rate, own.epochs)
    assert all(0.5 < one.lowest < one.highest < 0.9 for one in grid.backbones)
    for name, works in (("histopathology", 6), ("breast-ultrasound", 3)):
        comparison = paper_of(name).comparison
        assert comparison is not None
        assert comparison.works == works
        assert len(comparison.rows) == works + 1 or "not stated in what was available to us" in comparison.note
    for one in paper_of("breast-ultrasound").intensities:
        assert 0 < one.lowest < one.lower_quartile < one.median < one.upper_quartile < one.highest < 1
    architecture = paper_of("histopathology").architecture
    assert architecture is not None
    assert (architecture.layers, architecture.parameters) == (158, 2_264_385)


def test_a_file_of_ones_own_may_carry_its_paper(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n")
    assert published(str(path)) is None
    path.write_text(LEAST)
    paper = published(str(path))
    assert paper is not None
    assert paper.figures[0].values == {"accuracy": 0.5}
    assert (paper.url, paper.grid, paper.comparison, paper.data.images) == (None, None, None, None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('source = "A, 2020"', "", ["published.source", "there"]),
        ('source = "A, 2020"', "source = 3", ["published.source", "str"]),
        ('source = "A, 2020"', 'source = "A"\nsauce = "B"', ["published.sauce"]),
        ('name = "images"', 'name = "images"\nimages = "many"', ["published.data.images", "int"]),
        ('name = "images"', 'name = "images"\nhowmany = 3', ["published.data.howmany"]),
        ("[published.data]", "[published.date]", ["published.data"]),
        ('written_by = "paper"', 'written_by = "them"', ["written_by", "'them'"]),
        ("accuracy = 0.5", "accuracy = 1.5", ["published.figures[1].accuracy", "0 to 1"]),
        ("accuracy = 0.5", "auc = 0.5", ["published.figures[1].auc", "roc_auc"]),
        ('backbone = "vgg16"', 'backbone = "vgg"', ["published.figures[1].backbone", "vgg16"]),
        ("accuracy = 0.5", "confusion_matrix = [[1, 1], [1, 2]]", ["confusion_matrix", "4 images"]),
        ("accuracy = 0.5", "confusion_matrix = [[1, 3]]", ["confusion_matrix", "2 rows"]),
        ("accuracy = 0.5", "by_class = { f1 = { c = 0.5 } }", ["by_class.f1", "'c'"]),
        ("[[published.figures]]", "[[published.figure]]", ["published.figure"]),
    ],
)
def test_what_is_wrong_in_a_paper_is_named(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in LEAST
    path = tmp_path / "mine.toml"
    path.write_text(LEAST.replace(old, new))
    with pytest.raises(UsageError) as caught:
        published(str(path))
    assert all(word in str(caught.value) for word in ["mine.toml", *words])


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ('[published.comparison]\nworks = 1\ncolumns = ["a", "b"]\nrows = [["x"]]', ["comparison.rows", "2 cells"]),
        (
            '[published.grid]\npart = "test"\nfigure = "accuracy"\nlearning_rates = [0.1]\nepochs = [1]\n'
            '[[published.grid.backbones]]\nbackbone = "vgg16"\nmegabytes = 1\nlowest = 0\nhighest = 1\n'
            "best_learning_rate = 0.2\nbest_epochs = 1",
            ["grid.backbones", "vgg16"],
        ),
        ('[[published.intensities]]\nname = "a"', ["intensities[1].lowest"]),
    ],
)
def test_what_is_wrong_in_its_tables_is_named(tmp_path: Path, tail: str, words: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{LEAST}\n{tail}\n")
    with pytest.raises(UsageError) as caught:
        published(str(path))
    assert all(word in str(caught.value) for word in words)
