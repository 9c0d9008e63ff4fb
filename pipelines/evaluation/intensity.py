"""Mean intensity of the images by class, and whether the model is right more often on dark or on bright ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.figures import Figure
from pipelines.evaluation.intervals import Basis, of_share
from pipelines.evaluation.metrics import share
from pipelines.evaluation.resampling import DRAWS, Counts, Floats, Groups, Key, form_groups
from pipelines.evaluation.tallies import Bools, GroupSums, make_figures

STEPS = 30
FIFTHS = (0.2, 0.4, 0.6, 0.8)
WHISKER = 1.5
LEAST_IMAGES, LEAST_GROUPS = 20, 10
SIGNIFICANT = 0.05


def measure_intensity(cases: Cases, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The intensity analysis as it stands in metrics.json.

    Args:
        cases: The images; those whose mean intensity is NaN are left out and counted as `unknown`.
        draws: Resamples for the intervals of accuracy.
        seed: Decides them.

    Returns:
        `classes` by name (see `describe_values`; histograms share their edges), `accuracy` (see `accuracy_by_value`),
        `n` and `unknown`; or `reason` and `unknown` where no intensity is known.
    """
    known = np.flatnonzero(np.isfinite(cases.mean_intensity))
    unknown = len(cases) - len(known)
    if not len(known):
        return {"reason": "the mean intensity of no image is known", "unknown": unknown}
    values, labels = cases.mean_intensity[known], cases.labels[known]
    edges = _edges(values)
    classes = {name: describe_values(values[labels == number], edges) for number, name in enumerate(cases.classes)}
    groups = form_groups([cases.groups[row] for row in known.tolist()], labels)
    right = cases.predicted[known] == labels
    accuracy = accuracy_by_value(values, right, groups, draws, seed)
    return {"n": len(known), "unknown": unknown, "classes": classes, "accuracy": accuracy}


def describe_values(values: Floats, edges: Floats) -> dict[str, Any]:
    """A sample in a few numbers.

    Quartiles are interpolated linearly, NumPy's default. `skewness` is the adjusted Fisher-Pearson coefficient G1
    (`scipy.stats.skew(bias=False)`, as spreadsheets have it), null below three values or where all are equal. Outliers
    lie more than 1.5 interquartile ranges outside the quartiles (Tukey, Exploratory Data Analysis, 1977).

    Args:
        values: `[N]`, finite.
        edges: Of the histogram, rising; they hold all values.

    Returns:
        `n, min, q1, median, q3, max, mean, skewness, outliers, values_histogram`; of no values `n` alone.
    """
    from scipy.stats import skew

    if not len(values):
        return {"n": 0}
    low, first, median, third, high = (float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    reach = WHISKER * (third - first)
    outside = (values < first - reach) | (values > third + reach)
    counts, _ = np.histogram(values, edges)
    return {
        "n": len(values),
        "min": low,
        "q1": first,
        "median": median,
        "q3": third,
        "max": high,
        "mean": float(values.mean()),
        "skewness": float(skew(values, bias=False)) if len(values) > 2 and low < high else None,
        "outliers": int(outside.sum()),
        "values_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def accuracy_by_value(values: Floats, right: Bools, groups: Groups, draws: int, seed: int) -> dict[str, Any]:
    """Accuracy in fifths of the images by their value, and the rank correlation of value and being right.

    Args:
        values: `[N]`, finite.
        right: Whether the most probable class of each is its class.
        groups: Of the images; intervals draw them, and the test of the correlation counts on them alone.
        draws: How many resamples.
        seed: Decides them.

    Returns:
        `bins` (`low` and `high` are the values at the ends: above low, the first one from it on, up to high; `n`;
        `accuracy`, a figure), `spearman` and `p` (null where not defined), `depends` (p below 0.05) and `sentence`.
    """
    ends = np.unique(np.quantile(values, FIFTHS, method="inverted_cdf"))
    ends = ends[ends < values.max()]
    step = np.searchsorted(ends, values, side="left")
    figures = make_figures(_Accuracies(right, step, len(ends) + 1, groups), groups, draws, seed)
    outer = [float(values.min()), *ends.tolist(), float(values.max())]
    bins = [
        {
            "low": outer[at],
            "high": outer[at + 1],
            "n": int((step == at).sum()),
            "accuracy": figures[str(at), "accuracy"],
        }
        for at in range(len(ends) + 1)
    ]
    spearman, p = rank_correlation(values, right, groups)
    told = [{**one, "accuracy": one["accuracy"].as_json()} for one in bins]
    return {
        "bins": told,
        "spearman": spearman,
        "p": p,
        "depends": p is not None and p < SIGNIFICANT,
        "sentence": _sentence(bins, right, spearman, p),
    }


def rank_correlation(values: Floats, right: Bools, groups: Groups) -> tuple[float | None, float | None]:
    """Spearman's correlation of a value with being right, and whether groups of images bear it out.

    The correlation is that of all images. Its p is that of a score test: each group's sum of the products of centred
    ranks, taken as independent between groups, over the square root of the sum of their squares, by Student's t. With
    one image to a group it is close to the usual p.

    Args:
        values: `[N]`.
        right: bool `[N]`.
        groups: Of the images.

    Returns:
        Correlation and two-sided p; null and null where all values are equal or all answers are right or wrong, and p
        null below 20 images or 10 groups.
    """
    from scipy.stats import rankdata, t

    if not np.ptp(values) > 0 or right.all() or not right.any():
        return None, None
    of_value, of_right = (rank - rank.mean() for rank in (rankdata(values), rankdata(right)))
    products = of_value * of_right
    spearman = float(products.sum() / math.sqrt((of_value @ of_value) * (of_right @ of_right)))
    if len(values) < LEAST_IMAGES or groups.count < LEAST_GROUPS:
        return spearman, None
    by_group = np.bincount(groups.member, products)
    score = by_group.sum() / math.sqrt(by_group @ by_group)
    return spearman, float(2 * t.sf(abs(score), groups.count - 1))


class _Accuracies:
    """Accuracy in each step; see `tallies.Measured`."""

    def __init__(self, right: Bools, step: NDArray[np.intp], steps: int, groups: Groups) -> None:
        self._right, self._step, self._steps, self._groups = right, step, steps, groups
        self._sums = GroupSums(groups)
        self._sums.add("cells", (step * 2 + right).astype(np.int64), steps * 2)

    def at(self, counts: Counts) -> dict[Key, Floats]:
        cells = self._sums.at(counts)["cells"].reshape(-1, self._steps, 2)
        shares = share(cells[..., 1], cells.sum(axis=2))
        return {(str(at), "accuracy"): shares[:, at] for at in range(self._steps)}

    def rests_on(self, whole: Mapping[Key, float]) -> dict[Key, Basis]:
        return {key: of_share(self._right, self._step == int(key[0]), self._groups) for key in whole}

    def why(self, key: Key) -> str:
        return f"no image in step {key[0]}"


def _edges(values: Floats) -> Floats:
    """Of `STEPS` equal steps that hold all values; of one step where all are equal."""
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high, STEPS + 1) if low < high else np.array([low, low + 1 / 256])


def _sentence(bins: list[dict[str, Any]], right: Bools, spearman: float | None, p: float | None) -> str:
    """The answer in words."""
    if spearman is None:
        which = "right" if right.all() else "wrong"
        if right.any() and not right.all():
            return "All images have the same mean intensity, so accuracy cannot depend on it."
        return f"All {len(right):,} answers are {which}, so accuracy does not depend on intensity here."
    ends = f"It is {_in_words(bins[0])} in the darkest part of the images and {_in_words(bins[-1])} in the brightest."
    if p is None:
        return f"The images are too few to say whether accuracy depends on intensity. {ends}"
    if p >= SIGNIFICANT:
        return f"That accuracy rises or falls with intensity is not borne out. {ends}"
    return f"Accuracy {'rises' if spearman > 0 else 'falls'} with intensity. {ends}"


def _in_words(one: Mapping[str, Any]) -> str:
    figure: Figure = one["accuracy"]
    if figure.value is None:
        return "not defined"
    ends = f", 95 % interval {figure.low:.3f} to {figure.high:.3f}" if figure.low is not None else ""
    return f"{figure.value:.3f} ({one['n']:,} images{ends})"
