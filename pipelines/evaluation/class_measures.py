"""All figures of classes: of each against the rest, their means, and those of all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.evaluation.curves import equal_mass_bins
from pipelines.evaluation.figures import Wording
from pipelines.evaluation.intervals import Basis, of_binary, of_ranking, of_share
from pipelines.evaluation.metrics import (
    METRIC_NAMES,
    OF_ALL_CLASSES,
    against_rest,
    of_all_classes,
    share,
    squared_error,
    surprise,
)
from pipelines.evaluation.ranking import Ranking
from pipelines.evaluation.recalibration import fit_recalibration, logits, newton_columns, one_step
from pipelines.evaluation.resampling import Counts, Floats, Groups, Key
from pipelines.evaluation.tallies import Bools, GroupSums, Sample

CLASS_FIGURES = (*(name for name in METRIC_NAMES if name not in OF_ALL_CLASSES), "calibration_error")
"""What is told of each class against the rest, and as their mean."""

RANKED = ("roc_auc", "average_precision")
LOSSES = ("brier", "log_loss")
OVERALL_FIGURES = (*METRIC_NAMES, "calibration_error", "calibration_slope", "calibration_intercept")


class ClassMeasures:
    """All figures at the most probable class.

    Keys are `(overall, figure)`, `(positive_vs_rest, figure)`, `(macro, figure)`, `(weighted, figure)` and
    `(per_class, class, figure)`.

    The calibration error is the mean distance between probability and share in bins of equal mass, weighted by the
    bins' images, bins as of the whole sample. Of a class it is that of its probability; `overall`, with two classes,
    that of the positive class, as slope and intercept are. With more classes these three are of the most probable
    class: whether the model is right as often as that class's probability says (Guo et al., ICML 2017).

    Args:
        sample: What is measured.
        groups: Of its images.
    """

    def __init__(self, sample: Sample, groups: Groups) -> None:
        self._sample, self._groups = sample, groups
        p, labels, classes = sample.probabilities, sample.labels, len(sample.classes)
        self._rankings = [Ranking(p[:, one], labels == one, groups.member) for one in range(classes)]
        self._sums = GroupSums(groups)
        self._sums.add("matrix", labels * classes + sample.called, classes**2)
        self._sums.add_columns("losses", np.stack([squared_error(p, labels), surprise(p, labels)], axis=1))
        for one in range(classes):
            self._add_bins(f"bins {one}", p[:, one], labels == one)
        if classes == 2:
            said, so = p[:, sample.positive[0]], labels == sample.positive[0]
        else:
            said, so = p.max(axis=1), sample.called == labels
            self._rankings.append(Ranking(sample.p_positive, sample.truth, groups.member))
            self._add_bins("bins", said, so)
        self._recalibration = fit_recalibration(said, so)
        if not self._recalibration.reason:
            fitted = self._recalibration
            self._sums.add_columns("steps", newton_columns(logits(said), so, fitted.intercept, fitted.slope))

    def _add_bins(self, name: str, said: Floats, so: Bools) -> None:
        place = equal_mass_bins(said)
        self._sums.add(name, place, int(place.max()) + 1, said - so)

    def at(self, counts: Counts) -> dict[Key, Floats]:
        """See `Measured`."""
        sample, sums = self._sample, self._sums.at(counts)
        classes = len(sample.classes)
        matrix = sums["matrix"].reshape(-1, classes, classes)
        true, total = matrix.sum(axis=2), matrix.sum(axis=(1, 2))
        areas = [np.stack(both, axis=1) for both in zip(*(one.areas(counts) for one in self._rankings), strict=True)]
        errors = [share(np.abs(sums[f"bins {one}"]).sum(axis=1), total) for one in range(classes)]
        each = against_rest(matrix) | {"calibration_error": np.stack(errors, axis=1)}
        each |= {name: values[:, :classes] for name, values in zip(RANKED, areas, strict=True)}
        found: dict[Key, Floats] = {}
        for name in CLASS_FIGURES:
            values = each[name]
            found |= {("per_class", label, name): values[:, one] for one, label in enumerate(sample.classes)}
            found["macro", name] = values.mean(axis=1)
            found["weighted", name] = share(np.where(true > 0, values * true, 0).sum(axis=1), total)
            found["overall", name] = values[:, sample.positive[0]] if classes == 2 else found["macro", name]
        at = sample.positive[0] if classes == 2 else classes
        found |= {("positive_vs_rest", name): values[:, at] for name, values in zip(RANKED, areas, strict=True)}
        found |= {("overall", name): values for name, values in of_all_classes(matrix).items()}
        found |= {("overall", name): share(sums["losses"][:, at], total) for at, name in enumerate(LOSSES)}
        return found | self._calibration(sums, total)

    def _calibration(self, sums: Mapping[str, Floats], total: Floats) -> dict[Key, Floats]:
        found: dict[Key, Floats] = {}
        if "bins" in sums:
            found["overall", "calibration_error"] = share(np.abs(sums["bins"]).sum(axis=1), total)
        intercept = slope = np.full(len(total), np.nan)
        if "steps" in sums:
            intercept, slope = one_step(sums["steps"], self._recalibration)
        return found | {("overall", "calibration_slope"): slope, ("overall", "calibration_intercept"): intercept}

    def rests_on(self, whole: Mapping[Key, float]) -> dict[Key, Basis]:
        """See `Measured`."""
        sample, groups = self._sample, self._groups
        everything = np.ones(len(sample.labels), bool)
        found: dict[Key, Basis] = {
            ("overall", "accuracy"): of_share(sample.called == sample.labels, everything, groups)
        }
        for one, label in enumerate(sample.classes):
            truth = sample.labels == one
            own = of_binary(truth, sample.called == one, groups)
            own |= of_ranking(whole["per_class", label, "roc_auc"], truth, groups)
            found |= {("per_class", label, name): basis for name, basis in own.items()}
            if len(sample.classes) == 2 and one == sample.positive[0]:
                found |= {("overall", name): basis for name, basis in own.items()}
        ranked = of_ranking(whole["positive_vs_rest", "roc_auc"], sample.truth, groups)
        return found | {("positive_vs_rest", name): basis for name, basis in ranked.items()}

    def why(self, key: Key) -> str:
        """See `Measured`."""
        section, name = key[0], key[-1]
        classes = self._sample.classes
        if name in ("calibration_slope", "calibration_intercept"):
            return self._recalibration.reason
        if name == "mcc":
            return self._why_no_mcc()
        if section == "positive_vs_rest":
            return self._why(self._sample.positive, name)
        if section == "per_class":
            return self._why([classes.index(key[1])], name)
        if section == "overall" and len(classes) == 2 and name != "balanced_accuracy":
            return self._why(self._sample.positive, name)
        name = "sensitivity" if name == "balanced_accuracy" else name
        for one in range(len(classes)):
            if self._lacks(one, name) and (section != "weighted" or (self._sample.labels == one).any()):
                return self._why([one], name)
        return f"the {self._sample.noun}s do not define it"

    def _lacks(self, one: int, name: str) -> bool:
        true, called = self._sample.labels == one, self._sample.called == one
        without = {
            "average_precision": not true.any(),
            "sensitivity": not true.any(),
            "specificity": true.all(),
            "ppv": not called.any(),
            "npv": called.all(),
            "f1": not true.any() and not called.any(),
        }
        return bool(without.get(name, not true.any() or true.all()))

    def _why(self, numbers: Sequence[int], name: str) -> str:
        truth = np.isin(self._sample.labels, numbers)
        wording = Wording([self._sample.classes[one] for one in numbers], self._sample.noun)
        return wording.why(name, int(truth.sum()), int((~truth).sum()))

    def _why_no_mcc(self) -> str:
        sample = self._sample
        if len(np.unique(sample.labels)) == 1:
            return f"every {sample.noun} is of the class {sample.classes[sample.labels[0]]}"
        return f"every {sample.noun} is called {sample.classes[sample.called[0]]}"
