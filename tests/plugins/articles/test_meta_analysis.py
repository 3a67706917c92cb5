"""Random-effects meta-analysis: statsmodels, the closed form of two effects, and simulated sources."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.plugins.articles.meta_analysis import paule_mandel, random_effects

CASES = [
    ([0.015, 0.008, 0.049, -0.005, 0.016, -0.023], [0.010, 0.010, 0.006, 0.001, 0.009, 0.005]),
    ([0.4, 0.1, -0.2, 0.9], [0.1, 0.2, 0.15, 0.3]),
    ([-0.86, 0.15, -0.82, -0.53], [0.011, 0.021, 0.021, 0.021]),
    ([0.1, 0.11, 0.09], [0.2, 0.2, 0.3]),
]


@pytest.mark.parametrize(("effects", "errors"), CASES)
def test_it_agrees_with_statsmodels(effects, errors):
    meta_analysis = pytest.importorskip("statsmodels.stats.meta_analysis")
    variances = np.square(errors)
    expected = meta_analysis.combine_effects(np.array(effects), variances, method_re="iterated", use_t=True)
    found = random_effects(effects, errors)
    assert found.tau**2 == pytest.approx(max(0.0, expected.tau2), rel=1e-5, abs=1e-9)
    assert found.value == pytest.approx(expected.mean_effect_re, abs=1e-5)
    assert found.i_squared == pytest.approx(max(0.0, expected.i2), abs=1e-9)
    weights = 1 / (variances + found.tau**2)
    plain = 1 / math.sqrt(weights.sum())
    assert found.error == pytest.approx(max(plain, expected.sd_eff_w_re_hksj), rel=1e-4)
    if expected.sd_eff_w_re_hksj > plain:
        low, high = expected.conf_int()[3]  # of Hartung and Knapp, by Student's t
        assert found.interval()[1:] == pytest.approx((low, high), rel=1e-3, abs=1e-5)


def test_two_effects_have_a_closed_form():
    one, other, errors = 0.5, 0.1, (0.1, 0.2)
    expected = ((one - other) ** 2 - sum(error**2 for error in errors)) / 2
    assert paule_mandel(np.array([one, other]), np.square(errors)) == pytest.approx(expected)


def test_effects_that_agree_do_not_differ_truly_and_are_no_surer_than_their_errors():
    found = random_effects([0.1, 0.1, 0.1], [0.03, 0.03, 0.03])
    assert (found.tau, found.i_squared) == (0, 0)
    assert found.error == pytest.approx(0.03 / math.sqrt(3))
    half = found.interval().high - 0.1
    assert half == pytest.approx(4.302653 * 0.03 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom
    assert found.prediction().high - 0.1 == pytest.approx(12.7062 * 0.03 / math.sqrt(3), rel=1e-5)  # t of 1


def test_one_source_has_no_interval_and_two_predict_nothing():
    alone, both = random_effects([0.2], [0.1]), random_effects([0.2, 0.3], [0.1, 0.1])
    assert alone.value == pytest.approx(0.2)
    assert math.isnan(alone.interval().low)
    assert not math.isnan(both.interval().low)
    assert math.isnan(both.prediction().low)


@pytest.mark.parametrize(("sources", "tau"), [(3, 0.0), (3, 0.02), (6, 0.05)])
def test_intervals_hold_the_mean_and_one_more_source(sources, tau):
    random, runs = np.random.default_rng(sources), 600
    covered = predicted = 0
    for _ in range(runs):
        errors = random.uniform(0.005, 0.03, sources)
        found = random_effects(0.01 + tau * random.normal(size=sources) + errors * random.normal(size=sources), errors)
        covered += found.interval().low <= 0.01 <= found.interval().high
        predicted += found.prediction().low <= 0.01 + tau * random.normal() <= found.prediction().high
    assert covered / runs > 0.93
    assert predicted / runs > 0.9
