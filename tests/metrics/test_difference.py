"""The interval of a difference, its variance over rows and seeds, and the sketches that stand for influences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from pipeline.metrics.auc import auc, auc_influence
from pipeline.metrics.difference import (
    CELLS,
    Difference,
    decoded,
    difference,
    encoded,
    row_variance,
    sketch,
    sketched_variance,
    spread,
)

REPETITIONS = 400


def scored(rng: np.random.Generator, rows: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the scores of two models that share what they know."""
    labels = rng.random(rows) < 0.4
    signal = labels + rng.normal(size=rows)
    scores = np.stack([signal, 0.7 * signal]) + rng.normal(size=(2, rows))
    return labels, np.round(scores, 1) if ties else scores


# --- the variance over rows


@pytest.mark.parametrize("ties", [False, True])
def test_delongs_variance_is_that_of_the_bootstrap(ties: bool) -> None:
    """2000 resamples tell a variance to within 3 %; at 400 rows the bootstrap itself is about 1 % off."""
    rng = np.random.default_rng(5)
    labels, scores = scored(rng, 400, ties)
    resampled = []
    for _ in range(2000):
        rows = rng.integers(0, 400, 400)
        resampled.append([auc(labels[rows], each[rows]) for each in scores])
    values = np.array(resampled)
    influences = [auc_influence(labels, each) for each in scores]
    for model, influence in enumerate(influences):
        assert row_variance(influence) == pytest.approx(values[:, model].var(ddof=1), rel=0.12)
    by_bootstrap = np.subtract(*values.T).var(ddof=1)
    assert row_variance(influences[0] - influences[1]) == pytest.approx(by_bootstrap, rel=0.12)


# --- the interval


def true_auc(slope: float, seed_sd: float, noise: float) -> float:
    """Of scores slope * signal + noise, where the signal of positive rows is 1 higher and the slope varies by seed."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    slopes = slope + seed_sd * points
    of_slopes = stats.norm.cdf(slopes / np.sqrt(2 * (slopes**2 + noise**2)))
    return float((weights * of_slopes).sum() / weights.sum())


def simulated(
    seeds: int, rows: int, seed_sd: float, own: float, both: float, repetitions: int = REPETITIONS
) -> list[Difference]:
    """Differences of two methods in AUC, less the true one, on fresh test rows and seeds each time.

    Args:
        seed_sd: standard deviation of a model's slope over the seeds; small beside the slope, so that the AUC of the
            seeds is nearly normal, as the interval supposes.
        own: noise of a method on a row, the same for all seeds.
        both: noise of a model on a row, of each seed anew.
    """
    rng = np.random.default_rng(seeds)
    slopes = (1.0, 0.8)
    truth = np.subtract(*(true_auc(slope, seed_sd, np.hypot(own, both)) for slope in slopes))
    made = []
    for _ in range(repetitions):
        labels = rng.random(rows) < 0.4
        signal = labels + rng.normal(size=rows)
        aucs, influences = [], []
        for slope in slopes:
            error = own * rng.normal(size=rows)
            drawn = slope + seed_sd * rng.normal(size=(seeds, 1))
            scores = drawn * signal + error + both * rng.normal(size=(seeds, rows))
            aucs.append([auc(labels, each) for each in scores])
            influences.append(np.mean([auc_influence(labels, each) for each in scores], axis=0))
        variance = row_variance(influences[0] - influences[1])
        made.append(difference(np.subtract(aucs[0], truth), aucs[1], variance, rows))
    means = [each.mean for each in made]
    assert abs(np.mean(means)) < 4 * stats.sem(means)  # what is called the true difference is one
    return made


def covered(made: Sequence[Difference]) -> float:
    """Share of the intervals that hold the true difference, which is 0."""
    return float(np.mean([each.interval is not None and each.interval[0] <= 0 <= each.interval[1] for each in made]))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_covers_the_truth_where_the_seeds_dominate_and_one_over_rows_alone_does_not(seeds: int) -> None:
    made = simulated(seeds, rows=1000, seed_sd=0.3, own=0.1, both=1.0)
    assert np.mean([each.seed_sd**2 / seeds for each in made]) > 5 * np.mean([each.row_se**2 for each in made])
    assert 0.9 <= covered(made) <= 0.99
    assert np.mean([abs(each.mean) <= 1.96 * each.row_se for each in made]) < 0.65


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_covers_the_truth_where_the_rows_dominate_and_one_over_seeds_alone_does_not(seeds: int) -> None:
    made = simulated(seeds, rows=300, seed_sd=0.01, own=1.0, both=0.2)
    assert np.mean([each.row_se**2 for each in made]) > 5 * np.mean([each.seed_sd**2 / seeds for each in made])
    assert 0.9 <= covered(made) <= 0.99
    by_seeds = [stats.t.ppf(0.975, seeds - 1) * each.seed_sd / seeds**0.5 for each in made]
    assert np.mean([abs(each.mean) <= half for each, half in zip(made, by_seeds, strict=True)]) < 0.6


def test_the_interval_is_too_wide_rather_than_too_narrow_where_seeds_and_rows_act_together() -> None:
    """Nothing but interaction: it counts twice, so the interval is sqrt(2) times as wide as it has to be."""
    made = simulated(5, rows=300, seed_sd=0.0, own=0.0, both=1.0)
    assert 0.97 <= covered(made) < 1
    variances = [each.seed_sd**2 / 5 + each.row_se**2 for each in made]
    assert np.mean(variances) == pytest.approx(2 * np.var([each.mean for each in made]), rel=0.2)


def test_without_rows_it_is_a_paired_t_test() -> None:
    a, b = [0.81, 0.82, 0.84, 0.80], [0.80, 0.82, 0.81, 0.79]
    found = difference(a, b)
    by_hand = stats.ttest_rel(a, b)
    assert found.mean == pytest.approx(0.0125) and found.p_value == pytest.approx(by_hand.pvalue)
    assert found.interval == pytest.approx(tuple(by_hand.confidence_interval()))
    assert (found.covers, found.row_se, found.seeds) == ("seeds alone", None, 4)


def test_rows_widen_the_interval_as_welch_and_satterthwaite_say() -> None:
    """The rows of a test set beside the seeds are the second sample of Welch's test."""
    by_seed, by_row = np.array([0.3, 0.5, 0.1]), np.tile([-0.2, 0.1, 0.1, 0.4, -0.4, 0.0], 10)
    found = difference(by_seed, np.zeros(3), by_row.var(ddof=1) / 60, rows=60)
    welch = stats.ttest_ind(by_seed, by_row, equal_var=False)
    assert by_row.mean() == pytest.approx(0) and found.covers == "seeds and test rows"
    assert found.p_value == pytest.approx(welch.pvalue)
    assert found.interval == pytest.approx(tuple(welch.confidence_interval()))


def test_one_seed_gives_no_interval_and_says_why() -> None:
    found = difference([0.75], [0.5], 0.01, 100)
    assert (found.mean, found.interval, found.p_value, found.seed_sd) == (0.25, None, None, None)
    assert found.covers == "no interval: it takes two seeds or more" and found.row_se == pytest.approx(0.1)


def test_what_the_variance_is_of_is_named() -> None:
    found = difference([0.7, 0.8, 0.6], [0.5, 0.5, 0.5], 0.01, 100, unit="users")
    assert found.covers == "seeds and test users"
    few = difference([0.7, 0.8, 0.6], [0.5, 0.5, 0.5], 0.01, 49, unit="users")
    assert few.covers == "no interval: it takes 50 test users or more, and there are 49"


def test_no_variation_gives_no_interval_and_says_why() -> None:
    found = difference([0.75, 0.5], [0.5, 0.25])
    assert (found.mean, found.interval, found.p_value) == (0.25, None, None)
    assert found.covers == "no interval: nothing varies"


def test_rounding_is_no_variation() -> None:
    found = difference([0.1 + 0.2, 0.3], [0.3, 0.3 + 1e-17], 0.0, 1000)
    assert found.seed_sd > 0 and (found.interval, found.covers) == (None, "no interval: nothing varies")


def test_too_few_rows_give_no_interval_and_say_how_many_it_takes() -> None:
    for variance in (0.0, 1e-4):
        found = difference([0.75, 0.5], [0.5, 0.5], variance, 49)
        assert (found.mean, found.interval, found.p_value) == (0.125, None, None)
        assert found.covers == "no interval: it takes 50 test rows or more, and there are 49"
        assert difference([0.75, 0.5], [0.5, 0.5], variance, 50).interval is not None


def test_a_single_row_of_a_label_gives_no_interval() -> None:
    """One positive row among 100, ranked first by one model and last by the other: the rows do not tell how much such
    rows vary, and the interval of the seeds alone would be of width 0."""
    labels, scores = np.arange(100) == 0, -np.arange(100.0)
    aucs = [auc(labels, scores)] * 3, [auc(labels, -scores)] * 3
    influence = auc_influence(labels, scores) - auc_influence(labels, -scores)
    for variance in (
        row_variance(influence),
        sketched_variance([decoded(encoded(sketch(influence)))], [np.zeros(512)]),
    ):
        found = difference(*aucs, variance, 100)
        assert (found.mean, found.interval, found.row_se) == (1.0, None, None)
        assert found.covers == "no interval: it takes two test rows of each label or more"
    assert found.to_dict()["rows"] == 100


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0, 2.0, 3.0]), ([], [])])
def test_figures_of_different_seeds_are_not_paired(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=f"the same number of seeds, at least 1, got {len(a)} and {len(b)}"):
        difference(a, b)


# --- sketches


def models(rows: int, seeds: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Influences of two methods' models, whose rows are in the order of their labels, as logs may be."""
    rng = np.random.default_rng(7)
    labels, scores = scored(rng, rows)
    order = np.argsort(labels, kind="stable")
    labels, scores = labels[order], scores[:, order]
    a, b = ([auc_influence(labels, each + 0.3 * rng.normal(size=rows)) for _ in range(seeds)] for each in scores)
    return a, b


@pytest.mark.parametrize("rows", [200, 2_000, 100_000])
def test_sketches_give_the_variance_of_a_difference(rows: int) -> None:
    a, b = models(rows, 3)
    exact = row_variance(np.mean(a, axis=0) - np.mean(b, axis=0))
    kept = [[decoded(encoded(sketch(each))) for each in side] for side in (a, b)]
    assert sketched_variance(*kept) == pytest.approx(exact, rel=0.25)
    assert sketched_variance(kept[0], kept[0]) == 0


def test_the_error_of_sketches_is_that_of_their_cells() -> None:
    """sqrt(2 / cells), over many random influences."""
    rng = np.random.default_rng(11)
    ratios = []
    for _ in range(300):
        influence = rng.normal(size=3_000) * rng.exponential(size=3_000)
        ratios.append(sketched_variance([sketch(influence)], [np.zeros(CELLS)]) / row_variance(influence))
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
    assert np.std(ratios) == pytest.approx((2 / CELLS) ** 0.5, rel=0.2)


@pytest.mark.parametrize("rows", [3_000, 100_000])
def test_influences_of_one_sign_do_not_add_up_in_a_cell(rows: int) -> None:
    influence = np.random.default_rng(17).exponential(size=rows)
    variance = sketched_variance([sketch(influence)], [np.zeros(CELLS)])
    assert variance == pytest.approx(row_variance(influence), rel=0.25)


def test_a_sketch_is_linear_and_keeps_each_row_in_its_own_cell() -> None:
    a, b = (side[0] for side in models(5_000, 1))
    assert sketch(2 * a - 3 * b) == pytest.approx(2 * sketch(a) - 3 * sketch(b), abs=1e-7)
    row = np.zeros(5_000)
    row[123] = 5_000.0
    (cell,) = np.flatnonzero(sketch(row))
    moved = sketch(a + row) - sketch(a)
    assert abs(moved[cell]) == pytest.approx(1, abs=1e-5) and np.abs(np.delete(moved, cell)).max() == 0
    assert np.array_equal(sketch(a), sketch(a.copy())) and len(sketch(a)) == CELLS


def test_the_stored_form_is_as_exact_for_ten_million_rows_of_nearly_equal_models() -> None:
    """Sketches shrink with the rows, down to where float16 is coarse."""
    rng = np.random.default_rng(13)
    common, *own = rng.normal(size=(3, CELLS)) / (CELLS * 1e7) ** 0.5
    a, b = common + 0.1 * own[0], common + 0.1 * own[1]
    exact = sketched_variance([a], [b])
    assert sketched_variance([decoded(encoded(a))], [decoded(encoded(b))]) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("text", ["no base64!", "AAAA", "AAA"])
def test_what_is_no_sketch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a sketch must be base64 of float16 numbers, got"):
        decoded(text)


# --- over seeds


def test_mean_and_standard_deviation_of_hand_worked_numbers() -> None:
    assert spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "sd": pytest.approx(7**0.5), "values": [1.0, 2.0, 6.0]}
    assert spread([1.0]) == {"mean": 1.0, "sd": None, "values": [1.0]}
