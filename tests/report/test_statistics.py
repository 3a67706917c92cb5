"""Intervals, tests and ties: against statsmodels and scipy, and in simulated studies whose truth is known."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from harness.report import statistics
from harness.report.statistics import Answers, MemoryPeak, Outcomes, Run

SEED = 0  # of all simulations; `python tests/report/test_statistics.py 1 2 3` runs them with others


def answers(draw, methods, seeds, items, level=0.0, seed_sd=0.0, item_sd=1.5, own_sd=0.75, together=0.0):
    """Right and wrong answers of equal methods, (seeds, items) each, by a logistic model.

    Of the log odds of a right answer: seed_sd is from seed to seed, together from seed to seed for all methods, item_sd
    from item to item for all methods, own_sd for one method alone.
    """
    item = draw.normal(0, item_sd, items) + (draw.normal(0, together, (seeds, 1)) if together else 0.0)
    odds = [level + draw.normal(0, seed_sd, (seeds, 1)) + item + draw.normal(0, own_sd, items) for _ in range(methods)]
    return [alone((draw.random((seeds, items)) < special.expit(each)).astype(float)) for each in odds]


def alone(values):
    values = np.asarray(values, dtype=float)
    return Answers.independent(values)._replace(seeds=tuple(range(len(values))))


def accuracy(level, seed_sd, item_sd=1.5, own_sd=0.75):
    """The true mean of `answers`: over all seeds and items (Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    spread = (seed_sd**2 + item_sd**2 + own_sd**2) ** 0.5
    return float(np.sum(weights * special.expit(level + spread * nodes)) / weights.sum())


def numbers(draw, means, seeds, items, seed_sd, own_sd, rest_sd):
    """Scores that are no shares, of methods with these `means`: normal, (seeds, items) each."""
    item = draw.normal(0, 1, items)
    return [
        alone(
            mean
            + draw.normal(0, seed_sd, (seeds, 1))
            + item
            + draw.normal(0, own_sd, items)
            + draw.normal(0, rest_sd, (seeds, items))
        )
        for mean in means
    ]


# Coverage. Three seeds that differ little come to 97%, on the safe side; to that the simulation's own error is added.

MOST = 0.97 + 2 * (0.03 * 0.97 / 1000) ** 0.5
COVERAGE = [  # seeds, items, log odds, standard deviation over seeds, over items
    (1, 200, 0.0, 0.0, 1.5),
    (1, 200, 1.0, 0.0, 3.0),
    (3, 200, 0.0, 0.0, 1.5),
    (3, 200, 0.0, 0.2, 1.5),
    (3, 200, 0.0, 0.6, 1.5),
    (3, 200, -2.0, 0.3, 2.0),
    (3, 200, 0.0, 0.2, 6.0),  # seeds agree on almost every item
    (5, 200, 0.0, 0.2, 1.5),
    (5, 200, 1.0, 0.6, 1.5),
]


def covered(seed, seeds, items, level, seed_sd, item_sd):
    draw, truth = np.random.default_rng(seed), accuracy(level, seed_sd, item_sd)
    found = [statistics.mean_intervals(answers(draw, 1, seeds, items, level, seed_sd, item_sd))[0] for _ in range(1000)]
    return np.mean([interval.low <= truth <= interval.high for interval in found])


@pytest.mark.parametrize("setting", COVERAGE)
def test_intervals_of_means_cover_the_truth(setting):
    assert 0.93 <= covered(SEED, *setting) <= MOST


@pytest.mark.parametrize("shared", [0.0, 0.1, 1.0, 2.0, 10.0])
@pytest.mark.parametrize(("freedom", "least", "most"), [(1, 0.925, 0.985), (2, 0.94, 0.98), (4, 0.94, 0.975)])
def test_intervals_cover_whatever_the_spread_of_seeds(shared, freedom, least, most):
    """By quadrature: variances in units of the rest, of which items share `shared` times as much."""
    seeds = np.array([0, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 50, 200, 1000])[:, None]
    chances = (np.arange(2000) + 0.5) / 2000
    observed = (1 + seeds) * scipy_stats.chi2.ppf(chances, freedom) / freedom
    level = statistics.Level(observed, 1.0, freedom)
    variance, degrees = statistics.combined_known(level, 1.0 + shared, 1e6)
    halves = special.stdtrit(degrees, 0.975) * variance**0.5
    covers = (2 * special.ndtr(halves / (1 + shared + seeds) ** 0.5) - 1).mean(axis=1)
    assert covers.min() > least
    assert covers.max() < most


DIFFERENCES = [  # seeds, standard deviation over them: of each method, and of both together
    (1, 0.0, 0.0),
    (3, 0.0, 0.0),
    (3, 0.2, 0.0),
    (3, 0.6, 0.0),
    (5, 0.2, 0.0),
    (10, 0.0, 0.0),
    (10, 0.2, 0.0),
    (10, 0.2, 0.4),
    (10, 0.0, 0.6),
]


def covered_differences(seed, seeds, seed_sd, together):
    draw, found = np.random.default_rng(seed), []
    for _ in range(1000):
        pair = answers(draw, 2, seeds, 200, 0.3, seed_sd, together=together)
        found.append(statistics.differences(pair)[0, 1])
    return np.mean([difference.low <= 0 <= difference.high for difference in found])


@pytest.mark.parametrize("setting", DIFFERENCES)
def test_intervals_of_differences_cover_the_truth(setting):
    assert 0.93 <= covered_differences(SEED, *setting) <= MOST


@pytest.mark.parametrize(("seeds", "at_most"), [(5, 2.2), (9, 1.3), (10, 1.3), (11, 1.3), (29, 1.3), (30, 1.3)])
def test_seeds_that_move_methods_alike_widen_no_interval_of_their_difference(seeds, at_most):
    """Whatever the number of seeds and methods, and if one run is lost."""
    samples = answers(np.random.default_rng(SEED), 3, seeds, 500, seed_sd=0.05, together=0.6)
    one, other, third = samples
    paired = statistics.differences([one, other])[0, 1]
    assert paired.by_seed
    lost = other._replace(values=other.values[1:], seeds=other.seeds[1:])
    gap = statistics.differences([one, lost])[0, 1]
    assert gap.by_seed
    assert gap.high - gap.low < at_most * (paired.high - paired.low)
    assert statistics.differences([one, lost, third])[0, 1].by_seed
    for apart in ([one, other._replace(seeds=tuple(range(100, 100 + seeds)))], [one._replace(seeds=None), other]):
        unpaired = statistics.differences(apart)[0, 1]
        assert not unpaired.by_seed
        assert unpaired.high - unpaired.low > (1.5 if seeds == 5 else 2) * (paired.high - paired.low)


@pytest.mark.parametrize("seeds", [3, 5])
def test_how_much_seeds_share_does_not_change_a_difference(seeds):
    """The shorter of a paired and an unpaired interval was taken: of few seeds mostly the unpaired one, which counts
    what seeds share, and covered 99%."""
    draw = np.random.default_rng(SEED)
    scores = draw.normal(0, 1, (2, seeds, 1)) + draw.normal(0, 3, (2, 1, 200)) + draw.normal(0, 9, (2, seeds, 200))
    common = draw.normal(0, 20, (seeds, 1))
    samples = [[Answers(x + by * common, np.arange(200), tuple(range(seeds))) for x in scores] for by in (0.0, 1.0)]
    apart, together = (statistics.differences(each)[0, 1] for each in samples)
    assert together.by_seed
    assert together[:6] == pytest.approx(apart[:6])


def test_two_seeds_of_two_methods_and_few_common_seeds_are_not_paired():
    draw = np.random.default_rng(SEED)
    one, other, third = answers(draw, 3, 6, 200, seed_sd=0.2)
    short = [sample._replace(values=sample.values[:2], seeds=(0, 1)) for sample in (one, other, third)]
    assert not statistics.differences(short[:2])[0, 1].by_seed
    assert statistics.differences(short)[0, 1].by_seed
    assert not statistics.differences([one, short[1], third])[0, 1].by_seed
    assert statistics.differences([one, short[1]._replace(values=other.values[:3], seeds=(0, 1, 2))])[0, 1].by_seed


@pytest.mark.parametrize(("methods", "seeds"), [(2, 3), (4, 2), (4, 3), (6, 5)])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_means_cover_where_seeds_move_all_methods_alike(methods, seeds, shared):
    """Variances of methods that seeds move alike rest on the same draws: pooled as if independent, they covered 85
    to 92%. Nearly 93% is what few seeds allow."""
    draw, hits = np.random.default_rng(SEED), []
    for _ in range(1000):
        common = shared**0.5 * draw.normal(0, 0.04, (seeds, 1))
        own = (1 - shared) ** 0.5 * draw.normal(0, 0.04, (methods, seeds, 1))
        values = common + own + draw.normal(0, 0.3, (methods, seeds, 200))
        samples = [Answers(each, np.arange(200), tuple(range(seeds))) for each in values]
        hits.append(np.mean([interval.low <= 0 <= interval.high for interval in statistics.mean_intervals(samples)]))
    assert 0.92 <= np.mean(hits) <= 0.975


def test_others_tell_nothing_of_a_variance_where_seeds_move_all_exactly_alike():
    draw, seeds = np.random.default_rng(SEED), dict.fromkeys(range(4), range(5))
    common = draw.normal(0, 1, 5)
    assert statistics.told_by_others({m: common + m for m in range(4)}, seeds) == 0
    alike = statistics.told_by_others({m: common + draw.normal(0, 0.3, 5) for m in range(4)}, seeds)
    assert 0 < alike < 0.3
    apart = [statistics.told_by_others({m: draw.normal(0, 1, 5) for m in range(4)}, seeds) for _ in range(200)]
    assert np.mean(apart) > 0.9
    assert statistics.told_by_others({0: common, 1: common}, {0: range(5), 1: range(5, 10)}) == 1
    assert statistics.told_by_others({}, {}) == 1
    lost = seeds | {1: [0, 1, 3, 4], 2: range(1, 5)}
    scores = {m: common[list(s)] for m, s in lost.items()}
    assert statistics.told_by_others(scores, lost) == 0


def test_what_seeds_share_is_left_out_of_a_methods_own_variance():
    draw, found = np.random.default_rng(SEED), []
    seeds = {0: range(8), 1: range(2, 10), 2: [*range(6), 9]}
    for _ in range(400):
        common, own = draw.normal(0, 4, 10), {0: 1.0, 1: 1.0, 2: 3.0}
        scores = {m: common[list(s)] + draw.normal(0, own[m], len(s)) for m, s in seeds.items()}
        effects = statistics.seed_effects(scores, {m: tuple(s) for m, s in seeds.items()})
        found.append([effects[m].own for m in seeds])
    steady, too, erratic = np.mean(found, axis=0)
    assert erratic == pytest.approx(9, abs=2)
    assert 1 < steady < 4  # a part of what is the erratic method's stays in them, which is safe
    assert 1 < too < 4
    assert not statistics.seed_effects({0: np.ones(2), 1: np.zeros(2)}, {0: (0, 1), 1: (2, 3)})


def test_a_plain_hierarchical_bootstrap_would_cover_too_seldom():
    draw, truth, hits = np.random.default_rng(SEED), accuracy(0.0, 1.0), 0
    for _ in range(300):
        (sample,) = answers(draw, 1, 3, 200, 0.0, 1.0)
        seeds, items = draw.integers(3, size=(300, 3)), draw.integers(200, size=(300, 200))
        means = sample.values[seeds[:, :, None], items[:, None, :]].mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        hits += low <= truth <= high
    assert hits / 300 < 0.9
    assert 0.93 <= covered(SEED, 3, 200, 0.0, 1.0, 1.5) <= MOST


# Equal methods

EQUAL = [  # methods, seeds, standard deviation over seeds
    (2, 1, 0.0),
    (5, 1, 0.0),
    (2, 3, 0.0),
    (2, 3, 0.2),
    (2, 3, 0.6),
    (5, 3, 0.2),
    (5, 3, 0.6),
    (2, 5, 0.2),
    (5, 5, 0.6),
    (2, 10, 0.2),
]


def winners(seed, methods, seeds, seed_sd):
    """The share of 500 studies of equal methods that find any two of them different."""
    draw, found = np.random.default_rng(seed), 0
    for _ in range(500):
        pairs = statistics.differences(answers(draw, methods, seeds, 200, 0.3, seed_sd))
        found += min(statistics.holm([difference.p for difference in pairs.values()])) < 0.05
    return found / 500


@pytest.mark.long
@pytest.mark.parametrize("setting", EQUAL)
def test_equal_methods_have_no_winner(setting):
    """Up to two Monte Carlo standard errors."""
    assert winners(SEED, *setting) <= 0.05 + 2 * (0.05 * 0.95 / 500) ** 0.5


def winners_by_noise(seed, seeds):
    """As `winners`, of two equal methods of which one is restless from seed to seed and the other is not."""
    draw, found = np.random.default_rng(seed), 0
    for _ in range(500):
        (steady,) = numbers(draw, [0.0], seeds, 100, 0.01, 0.5, 1.0)
        (restless,) = numbers(draw, [0.0], seeds, 100, 0.5, 0.5, 1.0)
        found += statistics.differences([steady, restless])[0, 1].p < 0.05
    return found / 500


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_noise_of_one_methods_seeds_is_no_difference(seeds):
    assert winners_by_noise(SEED, seeds) <= 0.05


# A true difference

TRUE = [  # seeds, standard deviation over seeds, of a method's own items, of the rest
    (3, 0.0, 1.0, 0.2),  # items are what is uncertain
    (5, 0.02, 1.0, 0.5),
    (10, 0.1, 1.0, 0.5),
    (20, 1.0, 0.1, 0.5),  # seeds are
]


def found(seed, seeds, seed_sd, own_sd, rest_sd, items=200):
    """The share of 500 studies that find a difference of three standard errors."""
    error = (2 * (seed_sd**2 / seeds + own_sd**2 / items + rest_sd**2 / seeds / items)) ** 0.5
    draw = np.random.default_rng(seed)
    studies = [numbers(draw, [3 * error, 0.0], seeds, items, seed_sd, own_sd, rest_sd) for _ in range(500)]
    return np.mean([statistics.differences(study)[0, 1].p < 0.05 for study in studies])


@pytest.mark.parametrize("setting", TRUE)
def test_a_difference_of_three_standard_errors_is_found(setting):
    assert found(SEED, *setting) > 0.8


def found_by_mcnemar(seed, items=1000, lost=0.08):
    """As `found`, of one seed each: the items that only one gets right are `lost`, and `lost` + the difference."""
    gap = 3 * (2 * lost / items) ** 0.5
    gap = 3 * ((2 * lost + gap - gap**2) / items) ** 0.5
    draw, hits = np.random.default_rng(seed), 0
    for _ in range(500):
        kind = draw.choice(4, items, p=[lost + gap, lost, 0.3, 0.7 - 2 * lost - gap])
        one, other = np.isin(kind, (0, 2)).astype(float), np.isin(kind, (1, 2)).astype(float)
        hits += statistics.differences([alone(one[None]), alone(other[None])])[0, 1].p < 0.05
    return hits / 500


def test_one_seeds_difference_of_three_standard_errors_is_found():
    assert found_by_mcnemar(SEED) > 0.8


# Ties


def test_letters_of_an_example():
    """The best two can't be told apart, nor the last three, but for the first and the third."""
    different = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 2), (0, 3)):
        different[i, j] = different[j, i] = True
    assert statistics.letters(different) == ["a", "ab", "b", "b"]
    assert statistics.letters(np.zeros((3, 3), dtype=bool)) == ["a", "a", "a"]
    assert statistics.letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]
    assert statistics.letters(np.zeros((0, 0), dtype=bool)) == []


@pytest.mark.parametrize("seed", range(50))
def test_ties_are_transitive_as_displayed(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 9))
    different = np.triu(draw.random((n, n)) < draw.random(), 1)
    different |= different.T
    shown = [set(text) for text in statistics.letters(different)]
    for i, j in itertools.combinations(range(n), 2):
        assert bool(shown[i] & shown[j]) == (not different[i, j])
    members = [{i for i in range(n) if letter in shown[i]} for letter in set.union(*shown)]
    for one, two, three in itertools.permutations(range(n), 3):
        for group in members:
            if {one, two} <= group and {two, three} <= group:
                assert not different[one, three]
    assert not any(group < other for group in members for other in members)  # no letter that says nothing


# Against others' code, and by hand


@pytest.mark.parametrize("n", [0, 1, 2, 15])
def test_holm_is_that_of_statsmodels(n):
    p = np.random.default_rng(n).random(n) ** 4
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1] if n else [])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (9, 2), (30, 30), (60, 31)])
def test_mcnemar_is_that_of_statsmodels(wins, losses):
    one = np.array([1.0] * wins + [0.0] * losses + [1.0, 0.0])
    other = np.array([0.0] * wins + [1.0] * losses + [1.0, 0.0])
    expected = statsmodels_mcnemar([[1, wins], [losses, 1]], exact=True).pvalue if wins + losses else 1.0
    assert statistics.mcnemar(one, other) == pytest.approx(expected)
    assert statistics.differences([alone(one[None]), alone(other[None])])[0, 1].p == pytest.approx(expected)


@pytest.mark.parametrize("right", [0, 1, 20, 57])
def test_the_interval_of_one_seeds_accuracy_is_jeffreys(right):
    sample = np.array([[1.0] * right + [0.0] * (57 - right)])
    (interval,) = statistics.mean_intervals([alone(sample)])
    low, high = proportion_confint(right, 57, method="jeffreys")
    assert interval == pytest.approx((right / 57, 0.0 if right == 0 else low, 1.0 if right == 57 else high))


def test_one_seeds_scores_are_compared_by_the_paired_t_test():
    draw = np.random.default_rng(0)
    one, other = draw.normal(0.1, 1, (1, 50)), draw.normal(0, 1, (1, 50))
    difference = statistics.differences([alone(one), alone(other)])[0, 1]
    assert difference.value == pytest.approx(one.mean() - other.mean())
    assert difference.p == pytest.approx(scipy_stats.ttest_rel(one[0], other[0]).pvalue)


def test_an_untuned_model_has_no_seeds_and_is_compared_all_the_same():
    draw = np.random.default_rng(0)
    tuned, base = numbers(draw, [2.0, 0.0], 3, 100, 0.1, 0.5, 0.5)
    difference = statistics.differences([tuned, alone(base.values[:1])])[0, 1]
    assert difference.low > 0
    assert difference.p < 0.05


def test_models_that_answer_alike_do_not_differ():
    sample = np.tile([0.0, 1.0], (3, 20))
    difference = statistics.differences([alone(sample), alone(sample)])[0, 1]
    assert (difference.value, difference.p) == (0.0, 1.0)
    assert difference.low < 0 < difference.high


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_of_models_that_answer_alike_has_an_item_of_doubt(seeds):
    values = np.tile(np.arange(400) % 2.0, (seeds, 1))
    values[0, 0] = 1
    alike = Answers(values, np.arange(400), tuple(range(seeds)))
    one, other = (statistics.differences([sample] * 2)[0, 1] for sample in (alike, alike._replace(seeds=None)))
    assert one.error == other.error == 1 / 400
    assert max(one.high, other.high) < 0.011
    scores, names = dict.fromkeys((0, 1), values.mean(axis=1) / 3), dict.fromkeys((0, 1), range(seeds))
    assert all(effect.own == 0 for effect in statistics.seed_effects(scores, names).values())


def test_the_interval_over_seeds_is_students():
    values = [1.0, 1.2, 1.1, 1.4]
    expected = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert statistics.seeds_interval(values) == pytest.approx((1.175, *expected))
    assert statistics.seeds_interval([1.0]) is None
    assert statistics.summary_interval(values, [None] * 4) == pytest.approx(statistics.seeds_interval(values))


def test_a_score_without_items_has_the_interval_of_its_standard_errors():
    assert statistics.summary_interval([0.5], [0.1]) == pytest.approx((0.5, 0.5 - 0.196, 0.5 + 0.196), abs=1e-4)
    assert statistics.summary_interval([0.5], [None]) is None
    # a variance of 0.01 over seeds, by t(1), and of 0.01 over items: the halves' squares add up
    half = (0.01 * 12.706**2 + 0.01 * 1.96**2) ** 0.5
    assert statistics.summary_interval([0.4, 0.6], [0.1, 0.1]).high == pytest.approx(0.5 + half, rel=1e-3)


def test_a_share_of_known_size_has_the_interval_of_a_proportion():
    for right in (0, 3, 700, 1319):
        share = right / 1319
        expected = scipy_stats.beta.ppf([0.025, 0.975], right + 0.5, 1319 - right + 0.5)
        low, high = min(expected[0], share), max(expected[1], share)
        for error in (None, (share * (1 - share) / 1319) ** 0.5):
            assert statistics.summary_interval([share], [error], 1319) == pytest.approx((share, low, high), abs=1e-5)
    three = statistics.summary_interval([0.0, 0.0, 0.0], [0.0] * 3, 1319)
    assert (three.low, three.high) == (0.0, pytest.approx(0.0019, abs=1e-4))


# Many tests


def family(p, all_pairs=True, freedom=math.inf):
    """p: of the pairs of methods, best first, row by row."""
    methods = round((1 + (1 + 8 * len(p)) ** 0.5) / 2)
    table = np.ones((methods, methods))
    table[np.triu_indices(methods, 1)] = p
    return statistics.Family(table, np.full(table.shape, freedom), all_pairs)


@pytest.mark.parametrize("methods", [3, 6, 12, 40])
@pytest.mark.parametrize("freedom", [2, 10.3, math.inf])
@pytest.mark.parametrize("p", [0.3, 0.01])
def test_the_largest_of_all_differences_has_the_p_value_of_the_studentized_range(methods, freedom, p):
    t = scipy_stats.norm.isf(p / 2) if math.isinf(freedom) else scipy_stats.t.isf(p / 2, freedom)
    expected = scipy_stats.studentized_range.sf(t * 2**0.5, methods, min(freedom, 1e6))
    assert statistics.range_p(p, freedom, methods) == pytest.approx(expected, rel=1e-3)
    assert statistics.range_p(p, freedom, 2) == p
    distance = statistics.range_quantile(expected, freedom, methods)
    assert distance == pytest.approx(t, rel=1e-3)


def test_steps_over_pairs_of_two_methods_each_are_holms():
    p = [0.01, 0.04, 0.03, 0.005]
    corrected = statistics.stepwise([family([each]) for each in p])
    assert [each[0, 1] for each in corrected] == pytest.approx(statistics.holm(p))


def test_steps_from_the_best_count_the_methods_that_are_left():
    p = [0.2, 0.01, 0.002, 0.001]
    (corrected,) = statistics.stepwise([family([*p, *[1] * 6], all_pairs=False)])
    expected = [statistics.range_p(each, math.inf, left) for each, left in zip(p, (2, 3, 4, 5), strict=True)]
    assert corrected[0, 1:] == pytest.approx(expected)
    assert np.isnan(corrected[1, 2:]).all()


def test_others_are_told_apart_once_all_are_worse_than_the_best_or_if_that_is_sure():
    apart, tied = [0.001] * 3, [0.5, 0.001, 0.001]
    for of_best, of_others, expected in ((apart, 0.01, True), (tied, 0.01, False), (tied, 0.001, True)):
        (corrected,) = statistics.stepwise([family([*of_best, of_others, of_others, 1])])
        assert (corrected[1, 2] < 0.05) == expected, (of_best, of_others)
        assert corrected[2, 3] > 0.05


@pytest.mark.parametrize(("rivals", "share"), [(2, 1.0), (12, 0.25), (15, 0.5), (40, 1.0)])
def test_the_lucky_end_of_what_was_picked_errs_in_four_percent(rivals, share):
    """Of equal means; where few rivals have much in common, in less."""
    draw = np.random.default_rng(0)
    common = draw.normal(0, (1 - share) ** 0.5, 50_000)
    best = common + draw.normal(0, share**0.5, (rivals, 50_000)).max(axis=0)
    bound = scipy_stats.norm.isf(0.025) * statistics.luck(rivals, share)
    assert np.mean(best > bound) == pytest.approx(0.04, abs=0.004)
    assert statistics.luck(1, share) == statistics.luck(rivals, 0.0) == 1.0


MEANS = [
    [0] * 6,
    pytest.param([12, 12, 0, 0, 0, 0], marks=pytest.mark.long),
    [12, 12, 12, 0, 0, 0],
    pytest.param([24, 24, 12, 12, 0, 0], marks=pytest.mark.long),
    pytest.param([12, 0, 0, 0, 0, 0], marks=pytest.mark.long),
    [3, 3, 0, 0],
]


@pytest.mark.long
@pytest.mark.parametrize("means", MEANS)
def test_equal_methods_are_rarely_told_apart_by_any_step(means):
    draw, studies, wrong = np.random.default_rng(0), 1000, 0
    for _ in range(studies):
        scores = np.array(means) + draw.normal(0, 0.5**0.5, len(means))
        order = np.argsort(-scores)
        true, scores = np.array(means)[order], scores[order] / (draw.chisquare(10) / 10) ** 0.5
        p = 2 * scipy_stats.t.sf(np.abs(scores[:, None] - scores), 10)
        (corrected,) = statistics.stepwise([statistics.Family(p, np.full(p.shape, 10.0))])
        wrong += bool(np.any((corrected < 0.05) & (true[:, None] <= true) & np.triu(np.ones(p.shape, bool), 1)))
    assert wrong / studies <= 0.05 + 2 * (0.05 * 0.95 / studies) ** 0.5


@pytest.mark.parametrize("means", [[0.0] * 12, [0.0] * 6 + [1.5] * 6, [0.0, 0.5, 1.0, 1.5] * 3, [0.0] * 11 + [5.0]])
def test_equal_methods_are_rarely_told_from_the_best(means):
    """Of 12 normal means with known errors, a method as good as the best one, or better, is called worse."""
    draw, studies, wrong, found, of_all = np.random.default_rng(0), 2_000, 0, 0, 0
    means = np.array(means)
    for _ in range(studies):
        seen = means + draw.normal(size=12)
        best = int(np.argmax(seen))
        others = [i for i in range(12) if i != best]
        p = 2 * scipy_stats.norm.sf((seen[best] - seen) / 2**0.5)
        (corrected,) = statistics.stepwise([family([*p[others], *[1] * 55], all_pairs=False)])
        worse = [i for i, corrected_p in zip(others, corrected[0, 1:], strict=True) if corrected_p < 0.05]
        wrong += any(means[i] >= means[best] for i in worse)
        found += len(worse)
        pairs = [(i, j) for i in range(12) for j in range(i)]
        gaps = np.array([abs(seen[i] - seen[j]) for i, j in pairs])
        all_pairs = statistics.holm(2 * scipy_stats.norm.sf(gaps / 2**0.5))
        of_all += sum(best in pair and q < 0.05 for pair, q in zip(pairs, all_pairs, strict=True))
    assert wrong / studies < 0.05 + 2 * (0.05 * 0.95 / studies) ** 0.5
    assert found >= of_all, "never fewer than by Holm's correction of all pairs"


# Ratios


def test_losses_are_compared_within_each_seed():
    """A hard seed is hard for both: losses that differ by 20% from seed to seed, and by 1% beyond it."""
    ones, others = {0: 2.0, 1: 2.4, 2: 1.6}, {0: 1.0, 1: 1.21, 2: 0.79, 3: 5.0}
    found = statistics.of_losses([ones], [others])
    within = np.log([ones[seed] / others[seed] for seed in range(3)])
    half = scipy_stats.t.ppf(0.975, 2) * np.std(within, ddof=1) / 3**0.5
    assert found.value == pytest.approx(np.exp(within.mean()))
    assert (found.low, found.high) == pytest.approx((np.exp(within.mean() - half), np.exp(within.mean() + half)))
    assert found.units == 3
    assert found.high / found.low < 1.06


def test_the_spread_of_other_settings_makes_a_ratio_of_losses_of_two_seeds_sure():
    """Two seeds leave one degree of freedom; four other settings add one each and keep the ratio."""
    one, other = {0: 1.0, 1: 1.205}, {0: 1.0, 1: 1.22}
    field = [{0: 1.0, 1: 1.21 + 0.01 * k} for k in range(-2, 2)]
    alone, among = statistics.of_losses([one], [other]), statistics.of_losses([one], [other], field)
    assert among.value == pytest.approx(alone.value)
    assert alone.logs[0].freedom == 1
    assert among.logs[0].freedom == pytest.approx(5)
    changes = np.log([losses[1] / losses[0] for losses in (one, other, *field)])
    pooled = np.std(changes, ddof=1) / 2**0.5  # of a ratio of two means over two seeds, were all settings alike
    assert min(alone.logs[0].error, pooled) < among.logs[0].error < max(alone.logs[0].error, pooled)
    assert among.high / among.low < 1.04 < 1.17 < alone.high / alone.low
    elsewhere = statistics.of_losses([one], [other], [{0: 1.0, 2: 9.0}])
    assert elsewhere == alone, "a setting without both seeds tells nothing"


@pytest.mark.parametrize("restless", [0.001, 0.01, 0.3])
def test_three_seeds_have_their_own_spread_whatever_other_settings_have(restless):
    one, other = {0: 1.0, 1: 1.02, 2: 0.99}, {0: 1.01, 1: 1.0, 2: 1.0}
    field = [{seed: 1.0 + restless * ((seed * k) % 3) for seed in range(3)} for k in range(1, 6)]
    assert statistics.of_losses([one], [other], field) == statistics.of_losses([one], [other])


def test_the_ratio_of_losses_of_other_seeds_shrinks_the_spread_of_both_sides():
    ones, others = dict(enumerate([2.0, 2.2, 1.8])), dict(enumerate([1.0, 1.1, 0.9], 3))
    found = statistics.of_losses([ones], [others])
    assert found.value == pytest.approx(2.0)
    half = scipy_stats.t.ppf(0.975, 4) * (2 * np.var(np.log(list(ones.values())), ddof=1) / 3) ** 0.5
    assert (found.low, found.high) == pytest.approx((2 * np.exp(-half), 2 * np.exp(half)), rel=1e-6)
    assert found.logs[0].freedom == pytest.approx(4, abs=1e-3)  # two samples that vary alike are one estimate
    assert statistics.of_losses([{0: 2.0, 1: 2.2}], [{0: 1.0}]) is None


def peaks(values, rates=3):
    return [MemoryPeak(value, seed, rate) for seed, value in enumerate(values) for rate in range(rates)]


def test_learning_rates_of_one_seed_are_no_repeats_of_its_memory():
    few, many = (statistics.of_memory(peaks([4.0, 4.2], n), peaks([8.0, 8.1], n)) for n in (1, 8))
    assert (few.low, few.high) == pytest.approx((many.low, many.high))
    assert few.units == many.units == 2


def test_memory_of_equal_seeds_is_paired_and_not_exact_where_nothing_varies():
    """Equal runs may hide that one in some jumps."""
    found = statistics.of_memory(peaks([4.0, 4.4, 5.0]), peaks([8.0, 8.8, 10.0]))
    half = 1.96 * 0.015 * (2 / 3) ** 0.5
    assert found[:3] == pytest.approx((0.5, 0.5 * np.exp(-half), 0.5 * np.exp(half)), rel=1e-4)
    settings = (
        [MemoryPeak(4.0 + rate / 10, 0, rate) for rate in range(3)],
        [MemoryPeak(8.0, 0, rate) for rate in range(3)],
    )
    found = statistics.of_memory(*settings)
    assert found.low < 0.5 < found.high  # settings differ, so the interval is about settings
    assert found.units == 1


def test_intervals_of_shares_spreads_and_best_rates_are_wider_among_several():
    strata = {1e-4: ([Outcomes(56, 70)], [Outcomes(48, 80)])}
    alone, ten = (statistics.difference_of_shares(strata, alpha)[0] for alpha in (0.05, 0.005))
    assert ten.low < alone.low < alone.value == ten.value < alone.high < ten.high
    spreads = statistics.spread_ratio([np.linspace(1, 2, 10)], [np.linspace(1, 3, 10)])
    alone, ten = spreads.among(1), spreads.among(10)
    assert ten.low < alone.low < alone.value == ten.value < alone.high < ten.high
    losses = parabola(5e-5, noise=0.05)
    alone, ten = (statistics.optimum(losses, alpha) for alpha in (0.05, 0.005))
    assert ten.low < alone.low < alone.value == ten.value < alone.high < ten.high


def test_intervals_of_ratios_are_wider_among_several():
    """Where few seeds vary less than is assumed, their own interval may be the wider one all the same."""
    found = statistics.of_memory(peaks([4.0, 4.04, 4.0]), peaks([8.0, 8.0, 8.0]))
    assert found.among(1) == pytest.approx(found.interval)
    alone, ten = (found.among(comparisons) for comparisons in (1, 10))
    assert alone.high / alone.value == pytest.approx(np.exp(1.96 * 0.015 * (2 / 3) ** 0.5), rel=1e-4)
    error = np.log(1.01) / 3
    assert ten.high / ten.value == pytest.approx(np.exp(scipy_stats.t.ppf(0.9975, 2) * error), rel=1e-4)


def test_memory_of_a_single_run_is_not_exact():
    found = statistics.of_memory(peaks([4.4], 1), peaks([4.0], 1))
    assert found.low < 1.1 < found.high
    assert found.low == pytest.approx(1.1 * np.exp(-1.96 * 0.015 * 2**0.5), rel=1e-4)


def runs(values, starts=None):
    return [Run(v, seed, None if starts is None else starts[seed]) for seed, v in enumerate(values)]


def test_a_single_run_has_no_interval_of_its_speed():
    assert statistics.of_times({"a": runs([1.0]), "b": runs([2.0])}, "a", "b") is None


def test_runs_that_follow_each_other_are_one_unit():
    order = {"a": runs([1.0, 1.1, 1.2], [0, 1, 2]), "b": runs([2.0, 2.1, 2.2], [3, 4, 5])}
    assert statistics.of_times(order, "a", "b") is None
    mixed = {"a": runs([1.0, 1.1, 1.2], [0, 2, 4]), "b": runs([2.0, 2.2, 2.4], [1, 3, 5])}
    found = statistics.of_times(mixed, "a", "b")
    assert found.value == pytest.approx(0.5)
    assert found.units == 3


def test_the_spread_of_times_is_shrunk_over_methods():
    own = {"a": runs([1.0, 1.02]), "b": runs([1.0, 1.04])}
    field = own | {name: runs([1.0, 1.03]) for name in "cdef"}
    alone, together = (statistics.of_times(of, "a", "b") for of in (own, field))
    assert together.high / together.low < alone.high / alone.low < 1.4


# Best learning rates, shares, spreads


def parabola(best, seeds=2, noise=0.0, grid=(8e-6, 2e-5, 5e-5, 1.2e-4, 3e-4), curvature=0.1, draw=None):
    """Losses whose logarithms are a parabola."""
    draw = draw or np.random.default_rng(0)
    return {
        rate: {seed: np.exp(curvature * np.log(rate / best) ** 2 + draw.normal(0, noise)) for seed in range(seeds)}
        for rate in grid
    }


GRIDS = [(2e-5, 5e-5, 1.2e-4), (8e-6, 2e-5, 5e-5, 1.2e-4), (8e-6, 2e-5, 5e-5, 1.2e-4, 3e-4)]


@pytest.mark.parametrize("best", [3e-5, 5e-5, 7.7e-5])
def test_an_optimum_between_two_rates_is_found(best):
    found = statistics.optimum(parabola(best))
    assert found.value == pytest.approx(best, rel=1e-6)
    quarter_of_a_step = 2.5 ** (1 / 4)  # what a curve through five rates may miss
    assert found.low == pytest.approx(best / quarter_of_a_step, rel=0.03)
    assert found.high == pytest.approx(best * quarter_of_a_step, rel=0.03)


CURVES = {"parabola": lambda u: u**2, "steeper above": lambda u: 2 * (np.exp(u) - u - 1)}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_intervals_of_best_rates_cover_the_truth(curve):
    """Where losses follow a curve, more than the 95% that they must cover also where losses jump."""
    draw, hits = np.random.default_rng(SEED), []
    for _ in range(400):
        rates = np.log(2.5) * (np.arange(6) - 2 + draw.uniform(-1, 0))
        losses = {np.exp(u): dict(enumerate(1 + 0.1 * curve(u) + draw.normal(0, 0.02, 3))) for u in rates}
        if not isinstance(found := statistics.optimum(losses), str):
            hits.append(found.low <= 1 <= found.high)
    assert len(hits) > 350
    assert np.mean(hits) >= 0.93 - 2 * (0.07 * 0.93 / 400) ** 0.5


def test_an_erratic_rate_has_a_spread_of_its_own():
    """Near divergence a rate varies ten times as much; the interval beside it has its ends all the same."""
    draw = np.random.default_rng(SEED)
    calm = parabola(5e-5, seeds=3, noise=0.01, grid=(8e-6, 2e-5, 5e-5, 1.2e-4, 3e-4, 7e-4), draw=draw)
    wild = calm | {r: {seed: calm[r][seed] * (1, 1.5, 0.8)[seed] for seed in range(3)} for r in (3e-4, 7e-4)}
    found, beside = statistics.optimum(calm), statistics.optimum(wild)
    assert beside.low < 5e-5 < beside.high
    assert beside.high / beside.low < 2 * found.high / found.low


def test_a_run_that_diverged_is_a_very_high_loss():
    losses = parabola(5e-5, seeds=3, noise=0.01)
    one = losses | {3e-4: losses[3e-4] | {1: math.inf}}
    assert statistics.optimum(one).low < 5e-5 < statistics.optimum(one).high < 3e-4
    all_of_it = losses | {3e-4: dict.fromkeys(range(3), math.inf)}
    without = {rate: of for rate, of in losses.items() if rate < 3e-4}
    assert statistics.optimum(all_of_it) == statistics.optimum(without)
    assert "an end" in statistics.optimum({rate: of for rate, of in all_of_it.items() if rate > 2e-5})


def test_losses_next_to_nothing_tell_no_best_rate():
    small = {rate: {seed: loss / 100 for seed, loss in of.items()} for rate, of in parabola(5e-5).items()}
    assert statistics.optimum(small) == "The best rate can't be told by losses below 0.05"


def test_three_rates_are_less_sure_than_four_and_five():
    three, four, five = [(of := statistics.optimum(parabola(5e-5, grid=grid))).high / of.low for grid in GRIDS]
    assert three > 1.5 * four
    assert four == pytest.approx(five, rel=1e-3)


def test_a_rate_at_which_runs_lost_their_way_does_not_blur_the_best_one():
    """Losses of LoRA in results/reference/study_lr; at the highest rate seeds differ ten times as much as elsewhere."""
    near = {2e-4: [0.449, 0.479], 5e-4: [0.383, 0.359], 1.2e-3: [0.401, 0.381], 3e-3: [0.605, 0.546]}
    losses = {rate: dict(enumerate(both)) for rate, both in near.items()}
    found = statistics.optimum(losses | {8e-3: {0: 1.765, 1: 1.438}})
    assert found == statistics.optimum(losses)
    assert 4e-4 < found.low < found.value < found.high < 1.2e-3
    with_it = statistics.optimum(losses | {8e-3: {0: 0.7, 1: 0.68}})  # not lost: five rates
    assert with_it != found


def test_the_ratio_of_best_rates_is_unknown_where_one_of_them_is():
    known, above = statistics.Interval(2e-5, 1e-5, 4e-5), statistics.Interval(2e-4, 1e-4, np.inf)
    found = statistics.ratio_of_optima(above, known)
    assert found.value == pytest.approx(10)
    assert 0 < found.low < 10
    assert found.high == np.inf
    assert statistics.ratio_of_optima(known, above).low == 0
    below = statistics.Interval(2e-4, 0.0, 4e-4)
    assert statistics.ratio_of_optima(below, known).low == 0
    assert statistics.ratio_of_optima(known, below).high == np.inf


def test_an_optimum_outside_of_the_grid_is_none():
    assert "end of the rates" in statistics.optimum(parabola(1e-3))
    assert statistics.optimum({}) == "No validation losses by learning rate"
    assert statistics.optimum(parabola(1e-5, grid=(1e-5,))) == "One rate"


def test_a_curve_as_flat_as_its_noise_has_no_ends():
    found = statistics.optimum(parabola(5e-5, noise=0.5, curvature=1e-3, draw=np.random.default_rng(3)))
    assert isinstance(found, str) or found.low == 0.0 or found.high == np.inf


def test_the_share_of_one_setting_each_is_newcombes():
    """56/70 against 48/80: 0.0524 to 0.3339 in Newcombe (1998), table II, method 10, example (a)."""
    found, worth = statistics.difference_of_shares({1e-4: ([Outcomes(56, 70)], [Outcomes(48, 80)])})
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert worth == 70


def test_runs_of_a_setting_that_end_alike_count_as_one():
    alike = {lr: ([Outcomes(5 * (lr > 2), 5)], [Outcomes(0, 5)]) for lr in range(4)}
    found, worth = statistics.difference_of_shares(alike)
    assert worth == pytest.approx(4, abs=0.01)
    assert found.low < 0 < found.high


def test_shares_are_compared_within_rates():
    """Simpson: at each rate both sides diverge alike, but the first side ran mostly at the rate that diverges."""
    strata = {1e-4: ([Outcomes(1, 10)], [Outcomes(9, 90)]), 1e-2: ([Outcomes(81, 90)], [Outcomes(9, 10)])}
    assert statistics.difference_of_shares(strata)[0].value == pytest.approx(0)


def test_strata_weigh_as_in_mantel_haenszel_and_their_intervals_add_up_by_squares():
    """60% less 20% with weight 10·10/20 = 5, and 50% less 30% with weight 40·60/100 = 24: (5·0.4 + 24·0.2) / 29."""
    strata = {1e-4: ((6, 10), (2, 10)), 1e-3: ((20, 40), (18, 60))}
    found, worth = statistics.difference_of_shares(
        {rate: ([Outcomes(*one)], [Outcomes(*other)]) for rate, (one, other) in strata.items()}
    )
    ends = [confint_proportions_2indep(*one, *other, method="newcomb") for one, other in strata.values()]
    below = np.hypot(5 * (0.4 - ends[0][0]), 24 * (0.2 - ends[1][0])) / 29
    above = np.hypot(5 * (ends[0][1] - 0.4), 24 * (ends[1][1] - 0.2)) / 29
    assert found == pytest.approx((6.8 / 29, 6.8 / 29 - below, 6.8 / 29 + above), abs=1e-9)
    assert worth == 50, "10 + 40 runs on the first side, 70 on the second"


def test_runs_of_a_setting_that_end_partly_alike_count_as_fewer():
    """4 of 5 and 1 of 5: the variance within settings is 0.8·0.2·5/4 = 0.2, that of any two runs 0.5·0.5, so ρ is
    1 - 0.2 / 0.25 = 0.2, and five runs count as 5 / (1 + 4·0.2). Of the side without any hit nothing is told."""
    found, worth = statistics.difference_of_shares({0: ([Outcomes(4, 5), Outcomes(1, 5)], [Outcomes(0, 5)] * 2)})
    assert worth == pytest.approx(2 * 5 / 1.8)
    # Newcombe's of two shares of that many runs: 0.5 less the lower, and the upper end of Wilson's intervals
    count = 2 * 5 / 1.8
    half = proportion_confint(count / 2, count, method="wilson")
    none = proportion_confint(0, count, method="wilson")
    assert found == pytest.approx((0.5, 0.5 - np.hypot(0.5 - half[0], none[1]), half[1]), abs=1e-9)


def test_the_ratio_of_spreads_is_pooled_over_groups_and_has_the_interval_of_f_where_tails_are_light():
    """Squares of 2 and 6 over 1 + 2 degrees of freedom, against 0.5 over 1; one seed alone has no spread."""
    few = statistics.spread_ratio([[1.0, 3.0], [2.0, 2.0, 5.0], [7.0]], [[1.0, 2.0]])
    assert few.among(1) == (pytest.approx((8 / 3 / 0.5) ** 0.5), 0.0, np.inf)
    even = statistics.spread_ratio([np.linspace(10, 11, 12)], [np.linspace(10, 12, 8)])
    assert statistics.spread_ratio([np.linspace(10, 11, 12), [7.0]], [np.linspace(10, 12, 8)]) == even
    assert statistics.spread_ratio([[7.0]], [np.linspace(10, 12, 8)]) is None
    # n evenly spaced numbers over a range of r have the variance r² · n(n + 1) / 12 / (n - 1)²
    ratio = (12 * 13 / 11**2 / (4 * 8 * 9 / 7**2)) ** 0.5
    for comparisons in (1, 5):
        ends = scipy_stats.f.ppf((1 - 0.025 / comparisons, 0.025 / comparisons), 11, 7) ** 0.5
        assert even.among(comparisons) == pytest.approx((ratio, *(ratio / ends)))


def test_the_ratio_of_spreads_is_wider_than_f_where_tails_are_heavy():
    draw = np.random.default_rng(0)
    ones, others = np.exp(draw.normal(0, 1.0, 10)), np.exp(draw.normal(0, 1.0, 10))
    found = statistics.spread_ratio([ones], [others]).among(1)
    f = scipy_stats.f.ppf(0.975, 9, 9) ** 0.5
    assert found.high / found.low > f**2
    assert statistics.spread_ratio([[1.0, 1.0]], [[1.0, 2.0]]) is None
    assert statistics.spread_ratio([[1.0, 1.1]], [[1.0, 2.0]]).among(1).high == np.inf


def test_a_side_that_shows_no_tail_may_have_one():
    tailed, even = np.array([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 4.0]), np.linspace(1.0, 1.9, 10)
    both, one = (statistics.spread_ratio([tailed], [side]).among(1) for side in (tailed, even))
    # Equal but for rounding: the larger error stands for both sides.
    assert one.high / one.low == pytest.approx(both.high / both.low)


# Ranks and clusters


def test_the_best_of_equal_methods_is_anyones_and_a_better_one_surely_first():
    draw = np.random.default_rng(0)
    equal = statistics.ranks([alone(np.tile([0.0, 1.0], (3, 50)))] * 4)
    assert [rank.best for rank in equal] == pytest.approx([0.25] * 4, abs=0.03)
    assert [rank.expected for rank in equal] == pytest.approx([2.5] * 4, abs=0.06)
    better = statistics.ranks(numbers(draw, [1.0, 0.0, 0.0], 3, 200, 0.05, 0.2, 0.2))
    assert better[0].best > 0.99
    assert better[0].expected == pytest.approx(1, abs=0.01)
    lower = statistics.ranks(numbers(draw, [1.0, 0.0, 0.0], 3, 200, 0.05, 0.2, 0.2), higher_is_better=False)
    assert lower[0].expected == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(("more", "least", "most"), [(1, 0.65, 0.9), (3, 0.9, 0.99), (10, 0.99, 1.0)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_few_items_more_make_a_method_likely_but_not_surely_the_best(more, least, most, seeds):
    """As McNemar's test has it: its p-value is 1 for one item, 0.25 for three and 0.002 for ten."""
    usual = np.tile([0.0, 1.0], (seeds, 50))
    better = usual.copy()
    better[:, : 2 * more : 2] = 1
    first, _ = statistics.ranks([alone(better), alone(usual)])
    assert least < first.best <= most


@pytest.mark.parametrize(("seeds", "seed_sd", "together"), [(2, 0, 0), (2, 0.3, 0), (3, 0.3, 0), (10, 0.1, 0.4)])
def test_a_method_is_as_surely_the_best_as_its_test_says(seeds, seed_sd, together):
    """Of two methods the better one is the best with a probability of about 1 - p / 2: at most 97.5% if they tie."""
    draw, beyond, tied = np.random.default_rng(SEED), [], []
    for _ in range(100):
        samples = answers(draw, 2, seeds, 100, seed_sd=seed_sd, together=together)
        p = statistics.differences(samples)[0, 1].p
        best = max(rank.best for rank in statistics.ranks(samples))
        beyond.append(best - (1 - p / 2))
        tied += [best] * (p >= 0.05)
    assert max(tied) < 0.985
    assert abs(np.mean(beyond)) < 0.02


def clustered(draw, methods, seeds, clusters, size, own_cluster_sd):
    """Equal methods with a preference of their own for each cluster."""
    place = np.repeat(np.arange(clusters), size)
    shared = draw.normal(0, 0.6, clusters)[place] + draw.normal(0, 1.5, len(place))
    return [
        Answers(
            (
                draw.random((seeds, len(place)))
                < special.expit(shared + draw.normal(0, own_cluster_sd, clusters)[place])
            ).astype(float),
            place,
        )
        for _ in range(methods)
    ]


@pytest.mark.parametrize(("seeds", "own"), [(1, 0.5), (3, 0.3)])
def test_items_of_a_cluster_are_not_independent(seeds, own):
    draw, apart, naive = np.random.default_rng(SEED), 0, 0
    for _ in range(200):
        samples = clustered(draw, 4, seeds, 57, 20, own)
        apart += min(statistics.holm([d.p for d in statistics.differences(samples).values()])) < 0.05
        items = [alone(sample.values) for sample in samples]
        naive += min(statistics.holm([d.p for d in statistics.differences(items).values()])) < 0.05
    assert apart / 200 <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5
    assert naive > 2 * apart


def test_clusters_of_one_are_items():
    (sample,) = numbers(np.random.default_rng(0), [0.0], 3, 50, 0.1, 1.0, 0.5)
    means = sample.values.mean(axis=0)
    level = statistics.seed_level(sample)
    assert level.variance == pytest.approx(sample.values.mean(axis=1).var(ddof=1) / 3)
    rest = sample.values - means - sample.values.mean(axis=1, keepdims=True) + sample.values.mean()
    assert level.rest == pytest.approx((rest**2).sum() / (2 * 49) / 50 / 3)


def test_no_interval_of_a_difference_of_shares_leaves_the_possible_range():
    """83 to 101 points better, it said."""
    draw = np.random.default_rng(0)
    samples = [Answers.independent((draw.random((2, 12)) < share).astype(float)) for share in (0.9, 0.02)]
    gap = statistics.differences(samples)[0, 1]
    free = statistics.Statistic(gap.value, gap.error, gap.freedom).interval()
    assert free.high > 1
    assert (gap.high, gap.turned.low) == (1.0, -1.0)
    assert gap.statistic.interval(0.001).high == 1.0


def test_equivalence_takes_two_one_sided_tests():
    found = statistics.Statistic(0.005, 0.005, 20)
    assert found.p_within(0.02) == pytest.approx(scipy_stats.t.sf(3, 20))
    assert found.p_within(0.005) == pytest.approx(0.5)


@pytest.mark.parametrize("n", [1, 2, 15])
def test_false_discoveries_are_those_of_statsmodels(n):
    p = np.random.default_rng(n).random((n, 3)) ** 3
    found = statistics.false_discoveries(p)
    for corrected, column in zip(found.T, p.T, strict=True):
        assert corrected == pytest.approx(multipletests(column, method="fdr_bh")[1])


def test_variances_are_pooled_if_they_are_alike_and_kept_apart_if_one_is_erratic():
    same, freedom = statistics.moderated(np.ones(4), np.array([2.0] * 4))
    assert same == pytest.approx([1.0] * 4)
    assert freedom == pytest.approx([8.0] * 4)
    apart, freedom = statistics.moderated(np.array([1.0, 1.2, 0.9, 1000.0]), np.array([2.0] * 4))
    assert apart[3] == pytest.approx(1000, rel=1e-3)
    assert freedom[3] == pytest.approx(2, rel=1e-3)
    assert statistics.moderated(np.zeros(3), np.ones(3))[0].tolist() == [0.0] * 3
    one, freedom = statistics.moderated(np.array([0.0, 0.0, 1.0]), np.ones(3))
    assert (one[2], freedom[2]) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("methods", "seeds", "most"), [(36, 2, 0.02), (12, 2, 0.05), (36, 3, 0.01)])
def test_of_many_methods_that_vary_alike_none_stands_out(methods, seeds, most):
    """Half lengths of intervals over seeds alone, against that of a variance pooled over all methods."""
    draw, freedoms = np.random.default_rng(SEED), np.full(methods, seeds - 1.0)
    found = draw.chisquare(seeds - 1, (methods, 500)) / (seeds - 1)
    variances, freedom = statistics.moderated(found, freedoms)
    halves = special.stdtrit(freedom, 0.975) * variances**0.5
    pooled = special.stdtrit(freedoms.sum(), 0.975) * found.mean(axis=0) ** 0.5
    assert np.mean(halves > 1.5 * pooled) < most
    assert np.mean(np.abs(draw.normal(size=halves.shape)) < halves) >= 0.945


def test_the_larger_a_methods_own_variance_is_the_wider_is_its_interval():
    """Without a jump where a method begins to be erratic: of 2 seeds that made it several times as wide at once."""
    others = np.tile(special.chdtri(1, (np.arange(11) + 0.5) / 11)[:, None], 2_000)
    variances, freedom = statistics.moderated(np.vstack([others, np.geomspace(0.1, 1e4, 2_000)]), np.ones(12))
    halves = special.stdtrit(freedom, 0.975) * variances**0.5
    assert np.all(np.diff(halves[-1]) > 0)
    assert np.all(halves[:, 1:] / halves[:, :-1] < 1.05)


if __name__ == "__main__":
    for seed in map(int, sys.argv[1:]):
        for look, settings in (
            (covered, COVERAGE),
            (covered_differences, DIFFERENCES),
            (winners, EQUAL),
            (winners_by_noise, [(3,), (5,)]),
            (found, TRUE),
            (found_by_mcnemar, [()]),
        ):
            print(seed, look.__name__, *(f"{look(seed, *setting):.3f}" for setting in settings), flush=True)
