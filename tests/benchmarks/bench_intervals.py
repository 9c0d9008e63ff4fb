"""How often the 95 % intervals hold the truth, and how long 2,000 draws of 100,000 images take.

`python tests/benchmarks/bench_intervals.py [--studies 2000] [--draws 500] [--images 100000]` prints a table of coverage
and one JSON value, and exits 1 where a figure that it holds to 93–97 % lies outside, or time or memory do. Of its 25
figures, if each held the truth in 95 % of all studies, one would lie outside over 500 studies by chance; over 2,000
none does.

A study draws patients, sick or not, and images of them. An image's score is normal around a mean by its own class, with
a part of the spread that a patient's images share; probabilities are the true ones of the score. So every true figure
follows from the normal distribution, and a slope of 1 is true. Images of a sick patient may be negative.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.class_measures import ClassMeasures
from pipelines.evaluation.resampling import form_groups
from pipelines.evaluation.study import Settings, measure_cases
from pipelines.evaluation.tallies import Sample, make_figures

SECONDS, MEGABYTES, CORES = 20, 1024, 2
LEAST, MOST = 0.93, 0.97
HELD = ("roc_auc", "sensitivity", "specificity", "accuracy", "ppv")
TOLD = (*HELD, "npv", "f1", "mcc", "calibration_slope", "calibration_intercept")


@dataclass(frozen=True)
class Design:
    """What studies are drawn.

    Attributes:
        name: For the table.
        images: N.
        patients: At most N; each has an image, and the others fall on any.
        sick: Share of the patients.
        positive: Share of a sick patient's images.
        shared: Share of the score's variance that the images of a patient have in common.
        distance: Between the means of the classes, in standard deviations.
        fixed: Whether each study has the same number of sick patients, as in a case-control study.
        gated: Whether the figures of `HELD` must lie within `LEAST` and `MOST`.
    """

    name: str
    images: int
    patients: int
    sick: float = 0.3
    positive: float = 1.0
    shared: float = 0.5
    distance: float = 1.8
    fixed: bool = False
    gated: bool = True

    def truth(self) -> dict[str, float]:
        """The true figures."""
        share = self.sick * self.positive
        cut = np.log((1 - share) / share) / self.distance
        hit, rest = norm.cdf(self.distance / 2 - cut), norm.cdf(self.distance / 2 + cut)
        called = hit * share + (1 - rest) * (1 - share)
        ppv, npv = hit * share / called, rest * (1 - share) / (1 - called)
        return {
            "roc_auc": norm.cdf(self.distance / np.sqrt(2)),
            "sensitivity": hit,
            "specificity": rest,
            "accuracy": hit * share + rest * (1 - share),
            "ppv": ppv,
            "npv": npv,
            "f1": 2 * ppv * hit / (ppv + hit),
            "mcc": (hit + rest - 1) * np.sqrt(share * (1 - share) / (called * (1 - called))),
            "calibration_slope": 1.0,
            "calibration_intercept": 0.0,
        }

    def draw(self, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
        """One study: probability of the positive class, labels and groups."""
        rng = np.random.default_rng([seed, self.images, self.patients])
        sick = rng.random(self.patients) < self.sick
        if self.fixed:
            sick = rng.permutation(self.patients) < round(self.sick * self.patients)
        extra = rng.integers(0, self.patients, self.images - self.patients)
        patient = np.concatenate([np.arange(self.patients), extra])
        label = sick[patient] & (rng.random(self.images) < self.positive)
        common = rng.normal(0, np.sqrt(self.shared), self.patients)[patient]
        score = self.distance * (label - 0.5) + common + rng.normal(0, np.sqrt(1 - self.shared), self.images)
        share = self.sick * self.positive
        p = 1 / (1 + np.exp(-self.distance * score - np.log(share / (1 - share))))
        return p, label.astype(np.int64), [str(number) for number in patient]


DESIGNS = (
    Design("200 images, 200 patients", 200, 200),
    Design("200 images, 120 patients", 200, 120),
    Design("200 images, 120 patients, mixed", 200, 120, sick=0.5, positive=0.6),
    Design("600 images, 120 patients", 600, 120, sick=0.4),
    Design("1,000 images, 800 patients", 1000, 800, sick=0.1),
    Design("200 images, 120 patients, 36 of them sick", 200, 120, fixed=True, gated=False),
    Design("60 images, 40 patients", 60, 40, gated=False),
    Design("30 images, 30 patients", 30, 30, gated=False),
)


def check_study(design: Design, draws: int, seed: int) -> dict[str, tuple[bool, float] | None]:
    """Whether each interval of one study holds the truth, and how wide it is; None where there is none."""
    p, labels, names = design.draw(seed)
    both = np.stack([1 - p, p], axis=1)
    groups = form_groups(names, labels)
    sample = Sample(("negative", "positive"), (1,), both, labels, p)
    found = make_figures(ClassMeasures(sample, groups), groups, draws, seed)
    answer: dict[str, tuple[bool, float] | None] = {}
    for name, true in design.truth().items():
        figure = found["overall", name]
        low, high = figure.low, figure.high
        answer[name] = None if low is None or high is None else (low <= true <= high, high - low)
    return answer


def cover(design: Design, studies: int, draws: int) -> dict[str, dict[str, float]]:
    """Coverage, mean width and share of studies with an interval, by figure."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        answers = list(pool.map(partial(check_study, design, draws), range(studies), chunksize=10))
    told = {}
    for name in TOLD:
        known = [found for found in (answer[name] for answer in answers) if found]
        told[name] = {
            "coverage": float(np.mean([held for held, _ in known])),
            "width": float(np.mean([width for _, width in known])),
            "known": len(known) / studies,
        }
    return told


def drawn_cases(images: int, groups: int) -> Cases:
    """Images of two classes, a fifth of them positive, in groups; patients where there are fewer than images."""
    design = Design("", images, groups, sick=0.2)
    p, labels, names = design.draw(0)
    numbers = tuple(str(number) for number in range(images))
    both = np.stack([1 - p, p], axis=1).astype(np.float32)
    patients = tuple(names) if groups < images else None
    nothing = np.full(images, np.nan)
    return Cases(("a", "b"), (1,), numbers, numbers, labels, both, tuple(names), patients, nothing)


def time_one(images: int, groups: int) -> dict[str, float]:
    """Seconds of all figures with 2,000 draws, and the most memory of this process."""
    cases = drawn_cases(images, groups)
    fitted = {"threshold": 0.2, "refer_low": 0.1, "refer_high": 0.4}
    began, used = time.perf_counter(), time.process_time()
    measure_cases(cases, {"image": fitted, "patient_max": fitted}, "float32", Settings(prevalences=(0.005, 0.05)))
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "seconds_of_cores": round(time.process_time() - used, 1),
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Print the table, then the times; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--time", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if options.time:
        print(json.dumps(time_one(options.images, options.time)))
        return
    wrong: list[str] = []
    coverage: dict[str, dict[str, float]] = {}
    for design in DESIGNS:
        told = cover(design, options.studies, options.draws)
        print(f"{design.name}{'' if design.gated else ' (told, not held to anything)'}", flush=True)
        for name, row in told.items():
            outside = design.gated and name in HELD and not LEAST <= row["coverage"] <= MOST
            wrong += [f"{design.name}: {name} {row['coverage']:.3f}"] if outside else []
            lacking = "" if row["known"] == 1 else f"  an interval in {row['known']:.1%} of studies"
            mark = "  OUTSIDE" if outside else ""
            print(f"  {name:22} {row['coverage']:6.1%}  width {row['width']:.3f}{lacking}{mark}", flush=True)
        coverage[design.name] = {name: round(row["coverage"], 3) for name, row in told.items()}
    answer: dict[str, object] = {"studies": options.studies, "coverage": coverage}
    for groups in (options.images, options.images * 3 // 10):
        command = [sys.executable, __file__, "--images", str(options.images), "--time", str(groups)]
        timed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        answer[f"{options.images} images in {groups} groups"] = timed
        wrong += [f"{groups} groups: {timed}"] if timed["seconds"] > SECONDS or timed["mb"] > MEGABYTES else []
    print(json.dumps({**answer, "wrong": wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
