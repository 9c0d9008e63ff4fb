"""What a frozen threshold and its refer band do: figures of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.figures import Wording
from pipelines.evaluation.intervals import Basis, of_binary, of_share
from pipelines.evaluation.metrics import against_rest, share
from pipelines.evaluation.resampling import Counts, Floats, Groups, Key
from pipelines.evaluation.tallies import Bools, GroupSums
from pipelines.models.decision import limits

DECIDED = ("sensitivity", "specificity", "ppv", "npv")


class OperatingMeasures:
    """Figures at a threshold. Keys are `(all, figure)`, `(decided, figure)`, `(prevalence, figure, place)`.

    `all` takes every image as called at the threshold, as if nobody were referred, and has `referred`, the share of
    images in the band; `decided` are those outside the band. PPV and NPV at a prevalence follow from sensitivity and
    specificity over all (Bayes).

    Args:
        p_positive: `[N]`.
        truth: Which are positive, `[N]`.
        fitted: The unit's threshold and band.
        prevalences: Shares of positives, each above 0 and below 1.
        groups: Of the images.
        noun: `image` or `patient`.
    """

    def __init__(
        self,
        p_positive: Floats,
        truth: Bools,
        fitted: Mapping[str, Any],
        prevalences: Sequence[float],
        groups: Groups,
        noun: str = "image",
    ) -> None:
        low, high = limits(fitted)
        self._truth, self._groups, self._noun, self._prevalences = truth, groups, noun, prevalences
        self._called = p_positive >= float(fitted["threshold"])
        self._above = p_positive >= high
        self._referred = (p_positive >= low) & ~self._above
        self.has_band = low < high
        self._sums = GroupSums(groups)
        cell = truth * 8 + self._called * 4 + self._above * 2 + self._referred
        self._sums.add("cells", cell.astype(np.int64), 16)

    @property
    def n_decided(self) -> int:
        """How many are outside the band."""
        return int((~self._referred).sum())

    def counts(self) -> dict[str, int]:
        """Of all at the threshold, which add up to N, and how many of each kind are referred."""
        truth, called, referred = self._truth, self._called, self._referred
        kinds = {
            "true_positive": truth & called,
            "false_positive": ~truth & called,
            "false_negative": truth & ~called,
            "true_negative": ~truth & ~called,
            "referred_positive": truth & referred,
            "referred_negative": ~truth & referred,
        }
        return {name: int(which.sum()) for name, which in kinds.items()}

    def at(self, counts: Counts) -> dict[Key, Floats]:
        """See `Measured`."""
        # Axes: draw, positive, called at the threshold, called at the upper end, referred.
        cells = self._sums.at(counts)["cells"].reshape(-1, 2, 2, 2, 2)
        everything, outside = against_rest(cells.sum(axis=(3, 4))), against_rest(cells[..., 0].sum(axis=2))
        found: dict[Key, Floats] = {}
        for section, figures in (("all", everything), ("decided", outside)):
            found |= {(section, name): figures[name][:, 1] for name in DECIDED}
        found["all", "referred"] = share(cells[..., 1].sum(axis=(1, 2, 3)), cells.sum(axis=(1, 2, 3, 4)))
        for place, prevalence in enumerate(self._prevalences):
            ppv, npv = at_prevalence(found["all", "sensitivity"], found["all", "specificity"], prevalence)
            found |= {("prevalence", "ppv", str(place)): ppv, ("prevalence", "npv", str(place)): npv}
        return found

    def rests_on(self, whole: Mapping[Key, float]) -> dict[Key, Basis]:
        """See `Measured`."""
        truth, groups = self._truth, self._groups
        own = of_binary(truth, self._called, groups)
        outside = of_binary(truth, self._above, groups, ~self._referred)
        found: dict[Key, Basis] = {("all", name): basis for name, basis in own.items()}
        found |= {("decided", name): basis for name, basis in outside.items()}
        if self.has_band:
            found["all", "referred"] = of_share(self._referred, np.ones(len(truth), bool), groups)
        sensitivity, specificity = own["sensitivity"], own["specificity"]
        for place, prevalence in enumerate(self._prevalences):
            worth = at_prevalence(np.array(sensitivity.alone), np.array(specificity.alone), prevalence)
            for name, (low, high) in zip(("ppv", "npv"), worth, strict=True):
                least = min(sensitivity.groups, specificity.groups)
                found["prevalence", name, str(place)] = Basis(least, (float(low), float(high)))
        return found

    def why(self, key: Key) -> str:
        """See `Measured`."""
        section, name = key[:2]
        within = ~self._referred if section == "decided" else np.ones(len(self._truth), bool)
        where = " outside the refer band" if section == "decided" else ""
        true, rest = int((self._truth & within).sum()), int((~self._truth & within).sum())
        wording = Wording(("positive",), self._noun, where)
        if section == "prevalence" and not (true and rest):
            return wording.why("roc_auc", true, rest)
        return wording.why(name, true, rest)


def at_prevalence(sensitivity: Floats, specificity: Floats, prevalence: float) -> tuple[Floats, Floats]:
    """PPV and NPV where the share of positives is `prevalence`, by Bayes' rule; NaN where nobody is called so."""
    ill, well = sensitivity * prevalence, specificity * (1 - prevalence)
    return share(ill, ill + (1 - specificity) * (1 - prevalence)), share(well, well + (1 - sensitivity) * prevalence)
