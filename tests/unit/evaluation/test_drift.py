"""Drift: against scipy, laws, and a small seeded simulation of what the benchmark measures at length."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, ks_2samp, rankdata

from pipelines.evaluation.drift import DriftReport, compare
from pipelines.evaluation.drift_chance import Comparison, Spread, learned_spread, merged
from pipelines.evaluation.drift_figures import ALPHA, holm
from pipelines.evaluation.drift_profile import (
    ORDERED,
    Profile,
    added,
    clustering_of,
    middles,
    profile_of,
    steps_of,
)
from pipelines.predictions.night_counts import INTENSITY_STEPS, STEPS

INDEPENDENT = Spread(1.0, 0.0, 1)


def night(
    seed: int, images: int = 300, darker: float = 0.0, sicker: float = 0.0, effect: float = 0.0, failed: float = 0.01
) -> Profile:
    """A night of two-humped scores with ties, three sizes, two suffixes; shifts are in standard deviations."""
    generator = np.random.default_rng(seed)
    move = generator.normal(size=3) * effect
    log_odds = np.where(generator.random(images) < 0.15, 1.5, -2.5) + generator.normal(move[0], 1.2, images)
    score = np.round(1 / (1 + np.exp(-log_odds - sicker * log_odds.std())), 3)
    intensity = np.clip(0.4 + 0.12 * (generator.normal(move[1], 1, images) - darker), 0, 1)
    size = generator.choice([512.0, 1024.0, 2048.0], images, p=[0.6, 0.3, 0.1])
    gone = generator.random(images) < failed
    decision = np.where(score >= 0.6, "positive", np.where(score >= 0.3, "refer", "negative"))
    suffix = generator.choice([".jpg", ".png"], images, p=[0.9, 0.1])
    values = {
        name: np.where(gone, np.nan, own) for name, own in (("score", score), ("intensity", intensity), ("size", size))
    }
    shares: Mapping[str, Sequence[str]] = {
        "decision": decision[~gone].tolist(),
        "suffix": suffix.tolist(),
        "failures": np.where(gone, "image", "scored").tolist(),
    }
    return profile_of(values, shares, list(range(images)))


@pytest.fixture(scope="module")
def trailing() -> list[Profile]:
    """Fourteen stable nights."""
    return [night(seed, 300) for seed in range(100, 114)]


def of(report: DriftReport) -> dict[str, Any]:
    """The figures by name."""
    return {figure.figure: figure for figure in report.figures}


def test_distances_are_those_of_scipy_and_of_the_textbook() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(0.45, 0.1, 400), generator.normal(0.5, 0.1, 3000)
    steps = [np.bincount(steps_of("intensity", own), minlength=INTENSITY_STEPS) for own in (first, second)]
    both = np.stack(steps)
    seen = Comparison(both[0], both[1:], middles("intensity")[:, None], ordered=True).observed
    grid = [steps_of("intensity", own) for own in (first, second)]
    assert seen.ks == pytest.approx(ks_2samp(*grid).statistic)
    ranks = rankdata(np.concatenate(grid))
    assert seen.location == pytest.approx((ranks[:400].mean() - ranks[400:].mean()) / ranks.std())
    edges = np.quantile(second, np.linspace(0, 1, 11)[1:-1])
    shares = [np.bincount(np.searchsorted(edges, own), minlength=10) / len(own) for own in (first, second)]
    textbook = float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())
    assert seen.psi == pytest.approx(textbook, rel=0.1)


def test_of_independent_images_the_simulated_index_is_distributed_as_chi_square() -> None:
    generator = np.random.default_rng(2)
    usual = generator.multinomial(2000, np.full(8, 1 / 8))
    for seed in range(4):
        drawn = generator.multinomial(1000, np.full(8, 1 / 8) + np.linspace(-0.012, 0.012, 8))
        comparison = Comparison(drawn, usual[None], np.eye(8), ordered=False)
        chance = comparison.chance(INDEPENDENT, INDEPENDENT, least=0.0, seed=seed)
        expected = chi2.sf(comparison.observed.psi / (1 / 1000 + 1 / 2000), 7)
        assert chance.p == pytest.approx(expected, abs=0.06)


def test_night_effects_are_learned_from_the_nights() -> None:
    generator = np.random.default_rng(3)
    shares = np.array([0.2, 0.3, 0.5])
    alike = np.stack([generator.multinomial(400, shares) for _ in range(300)])
    assert learned_spread(alike, np.eye(3)).factor == pytest.approx(1.0, abs=0.15)
    assert learned_spread(alike, np.eye(3)).together < 0.0005
    moving = np.stack([generator.multinomial(4000, generator.dirichlet(shares * 99)) for _ in range(300)])
    assert learned_spread(moving, np.eye(3)).together == pytest.approx(0.01, rel=0.25)


def test_an_enormous_night_is_not_judged_by_chance_alone() -> None:
    spread = Spread(41.0, 0.01, 30)
    assert spread.variance(4000) == pytest.approx(1 / 4000 + 0.01, rel=0.05)
    assert spread.variance(400_000) == pytest.approx(0.01, rel=0.01)
    assert spread.variance(100) == pytest.approx(0.41)
    assert spread.variance(5) == 1.0


def test_a_night_like_the_others_is_no_drift(trailing: list[Profile]) -> None:
    report = compare(night(1), trailing, None)
    assert (report.verdict, report.reference) == ("none", "nights")
    assert [figure.figure for figure in report.figures] == [
        "score", "decision", "intensity", "size", "suffix", "failures"
    ]  # fmt: skip
    assert all(figure.low <= figure.value <= figure.high for figure in report.figures)
    assert report.sentence == "The night is like what was seen in the last 14 nights."


def test_darker_images_are_told_in_words(trailing: list[Profile]) -> None:
    report = compare(night(1, 500, darker=1.0), trailing, night(7, 500))
    assert report.verdict == "drift"
    found = of(report)["intensity"]
    assert found.verdict == "drift" and found.effect < -0.8 and found.p <= ALPHA and not found.low <= found.value
    assert report.sentence == (
        f"Mean intensity {found.value:.3f} against {found.expected:.3f} in the last 14 nights: "
        "images have become darker."
    )
    assert {figure.figure: figure.verdict for figure in report.offsets}["intensity"] == "drift"
    assert {figure.figure for figure in report.offsets} >= {"score", "decision", "intensity", "size", "suffix"}


@pytest.mark.parametrize("figure, changed", [("score", {"sicker": 0.5}), ("intensity", {"darker": 0.5})])
@pytest.mark.parametrize("reference", ["nights", "validation"])
def test_half_a_deviation_in_500_images_is_found(
    figure: str, changed: dict[str, float], reference: str, trailing: list[Profile]
) -> None:
    before = trailing if reference == "nights" else []
    report = compare(night(1, 500, **changed), before, night(9, 800))
    assert report.reference == reference
    assert of(report)[figure].verdict == "drift"


@pytest.mark.parametrize("images", [5, 30, 2000])
@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_stable_nights_raise_no_alarm(images: int, effect: float) -> None:
    """A few of the nights that the benchmark draws by the thousand."""
    wrong = 0
    for seed in range(2):
        before = [night(1000 * seed + at, images, effect=effect) for at in range(1, 15)]
        before += [night(1000 * seed + 99, 250, effect=effect)]
        wrong += compare(night(1000 * seed, images, effect=effect), before, None, seed).verdict != "none"
    assert not wrong


def test_a_kind_of_file_that_was_never_there_is_found() -> None:
    def with_suffix(suffix: str) -> Profile:
        return profile_of({}, {"suffix": [suffix] * 100, "failures": ["scored"] * 100}, list(range(100)))

    report = compare(with_suffix(".png"), [with_suffix(".jpg")] * 10, None)
    assert report.verdict == "drift"
    assert report.sentence.startswith("Share of .")
    assert of(report)["suffix"].shares == {".jpg": 0.0, ".png": 1.0}


def test_failures_are_told_by_who_is_to_blame(trailing: list[Profile]) -> None:
    report = compare(night(5, 300, failed=0.2), trailing, None)
    found = of(report)["failures"]
    assert (report.verdict, found.verdict, found.of) == ("drift", "drift", "image")
    assert found.shares is not None and sum(found.shares.values()) == pytest.approx(1)


def test_too_little_is_said_to_be_unknown(trailing: list[Profile]) -> None:
    small = compare(night(1, 4), trailing, None)
    assert (small.verdict, small.sentence) == ("unknown", "The night has 4 images; fewer than 5 are not compared.")
    alone = compare(night(1), trailing[:3], None)
    assert alone.verdict == "unknown"
    assert alone.sentence == (
        "Only 3 of the 7 earlier nights of this model that are needed are there, and it has no validation set."
    )
    few = [night(seed, 20) for seed in range(8)]
    assert "8 earlier nights of this model hold fewer than 200 images" in compare(night(1), few, None).sentence
    assert "too small" in compare(night(1), [], night(2, 20)).sentence
    assert compare(night(1), trailing[:3], night(2, 500)).reference == "validation"


def test_identical_nights_never_alarm() -> None:
    for images in (5, 40, 50_000):
        same = night(3, images)
        report = compare(same, [same] * 8, None) if images >= 40 else compare(same, [same] * 60, None)
        assert report.verdict == "none"
        assert all(figure.p == 1.0 and figure.psi == pytest.approx(0, abs=1e-9) for figure in report.figures)


def test_the_same_night_gets_the_same_answer_in_whatever_order_nights_come(trailing: list[Profile]) -> None:
    tonight = night(5, 200, darker=0.25)
    first, second = compare(tonight, trailing, None), compare(tonight, trailing[::-1], None)
    assert first.verdict == second.verdict
    for one, other in zip(first.figures, second.figures, strict=True):
        assert one.p == pytest.approx(other.p, abs=0.01)
        assert [one.psi, one.effect] == pytest.approx([other.psi, other.effect])
    assert compare(tonight, trailing, None) == first


def test_a_larger_shift_is_never_less_certain(trailing: list[Profile]) -> None:
    found = [of(compare(night(5, 200, darker=shift), trailing, None))["intensity"] for shift in (0, 0.3, 0.6, 1.2)]
    ps = [figure.p for figure in found]
    assert ps == sorted(ps, reverse=True)
    effects = [abs(figure.effect) for figure in found[1:]]
    assert effects == sorted(effects)


def test_images_of_few_patients_count_as_few() -> None:
    values, members = np.repeat(np.random.default_rng(0).random(50), 8), np.repeat(np.arange(50), 8)
    assert clustering_of(values, members) == pytest.approx(8, rel=1e-6)
    assert clustering_of(np.random.default_rng(0).random(4000), np.arange(4000)) == 1.0
    assert clustering_of(np.zeros(5), np.arange(5)) == 1.0


def test_nights_add_up(trailing: list[Profile]) -> None:
    whole = added(trailing[:3])
    assert whole.images == 900
    for figure in ORDERED:
        assert whole.count(figure) == sum(own.count(figure) for own in trailing[:3])
    weights = [own.count("score") for own in trailing[:3]]
    assert whole.means["score"] == pytest.approx(
        np.average([own.means["score"] for own in trailing[:3]], weights=weights)
    )
    assert sum(whole.shares["suffix"].values()) == 900


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(ps: list[float]) -> None:
    corrected = holm(ps)
    ordered = sorted(ps)
    for p, found in zip(ps, corrected, strict=True):
        # Of equal ones the last place decides nothing: the running maximum is the same.
        place = max(at for at, other in enumerate(ordered) if other == p)
        expected = max(min(1.0, (len(ps) - at) * ordered[at]) for at in range(place + 1))
        assert found == pytest.approx(expected)
        assert p <= found <= 1


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 200))
def test_merging_steps_keeps_every_image_and_the_order(seed: int, rows: int, steps: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.poisson(generator.gamma(0.3, 5, steps), (rows, steps)).astype(np.int64)
    counts[0, 0] += 1
    middle = np.linspace(0.5, steps - 0.5, steps)
    joined, values = merged(counts, middle)
    assert joined.sum(axis=1).tolist() == counts.sum(axis=1).tolist()
    assert joined.shape[1] <= 30 and (np.diff(values) > 0).all()
    assert (joined.sum(axis=0) * values).sum() == pytest.approx((counts.sum(axis=0) * middle).sum())


@given(st.sampled_from(ORDERED), st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_steps_keep_the_order_and_hold_their_values(figure: str, shares: list[float]) -> None:
    values = np.sort(np.array(shares)) * (60_000 if figure == "size" else 1)
    steps = steps_of(figure, values)
    assert (np.diff(steps) >= 0).all() and steps.min() >= 0 and steps.max() < STEPS[figure]
    near = np.abs(middles(figure)[steps] - values) <= np.maximum(values * 0.06, 0.02 if figure == "score" else 1.1)
    assert near.all()


def of_one_figure(figure: str, values: np.ndarray[Any, Any]) -> Profile:
    """A night of which only one figure is known."""
    return profile_of({figure: values}, {"failures": ["scored"] * len(values)}, list(range(len(values))))


def test_images_of_one_size_are_usual_at_exactly_that_size() -> None:
    nights = [of_one_figure("size", np.full(300, 300.0)) for _ in range(8)]
    size = of(compare(nights[0], nights[1:], None))["size"]
    assert (size.verdict, size.value, size.expected) == ("none", 300.0, 300.0)
    assert (size.low, size.high) == (pytest.approx(300.0), pytest.approx(300.0))


@pytest.mark.parametrize(("figure", "values"), [("size", (300.0, 600.0)), ("score", (0.11, 0.13))])
def test_what_is_usual_lies_around_the_mean_of_the_images_themselves(figure: str, values: tuple[float, float]) -> None:
    generator = np.random.default_rng(7)
    every = [generator.choice(values, 400, p=(0.9, 0.1)) for _ in range(12)]
    nights = [of_one_figure(figure, own) for own in every]
    found = of(compare(nights[0], nights[1:], None))[figure]
    # No steps, no merging: images drawn anew from those of the trailing nights.
    resampled = generator.choice(np.concatenate(every[1:]), (4000, 400)).mean(axis=1)
    narrow = np.quantile(resampled, [0.005, 0.995])
    assert found.low <= narrow[0] + 0.2 * np.ptp(narrow) and narrow[1] - 0.2 * np.ptp(narrow) <= found.high
    # What is granted beyond chance widens the range on both sides alike.
    assert (found.low + found.high) / 2 == pytest.approx(resampled.mean(), abs=0.2 * np.ptp(narrow))


def test_days_of_trailing_nights_are_told() -> None:
    days = [datetime.date(2026, 11, day) for day in range(1, 9)]
    before = [Profile(**{**vars(night(day.day, 100)), "day": day}) for day in days]
    told = compare(night(50, 100), before, None).as_json()
    assert told["nights"] == {"count": 8, "images": 800, "from": "2026-11-01", "to": "2026-11-08"}
    assert told["format"] == 1 and told["validation"] is None and len(told["figures"]) == 6
