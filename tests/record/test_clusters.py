"""The standard error of a mean over items in clusters, and means in which subjects count alike."""

from __future__ import annotations

import numpy as np
import pytest

from harness.record import cluster_numbers, clustered_error, subject_weights
from harness.report.statistics.accuracies import over_items


def test_items_are_clustered_by_what_they_share():
    subjects = ["law", "law", "art", "law"]
    assert cluster_numbers(subjects, None) == [0, 0, 1, 0]
    assert cluster_numbers(subjects, ["p", None, "p", "p"]) == [0, 1, 2, 0], "a passage is of one subject"
    assert cluster_numbers(["law"] * 3, [None] * 3) == [0, 1, 2]
    assert cluster_numbers(["law"] * 3, ["p"] * 3) == [0, 1, 2], "a single group tells nothing of its variance"


def test_the_error_of_independent_items_is_the_usual_one():
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert clustered_error(values, range(5)) == pytest.approx(np.std(values, ddof=1) / 5**0.5)


def test_the_error_counts_clusters_as_the_report_does():
    draw = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), draw.integers(5, 40, 12))
    values = (draw.random(len(clusters)) < 0.2 + 0.05 * clusters).astype(float)
    error = clustered_error(values.tolist(), clusters.tolist())
    assert error == pytest.approx(over_items(values, clusters)[0] ** 0.5)
    assert error > 1.5 * clustered_error(values.tolist(), range(len(values)))


def test_subjects_that_count_alike():
    """Means of 1 and 0.25 of 2 and 4 items; as two subjects are the clusters, the error is that of two numbers."""
    subjects, values = ["a", "a", "b", "b", "b", "b"], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    weights = subject_weights(subjects)
    assert weights == [1.5, 1.5, 0.75, 0.75, 0.75, 0.75]
    assert np.mean(np.multiply(weights, values)) == pytest.approx(0.625)
    error = clustered_error(values, cluster_numbers(subjects, None), weights)
    assert error == pytest.approx(np.std([1.0, 0.25], ddof=1) / 2**0.5)
