"""The data of charts: what the figure and the page both draw."""

from __future__ import annotations

import re

import pytest

from harness.config import ROOT
from harness.record import read_study
from harness.report.figures import FIGURES, charts
from harness.report.figures.study_results import StudyResults
from harness.report.pages.curves_block import curves_block

REFERENCE = ROOT / "results" / "reference"


@pytest.fixture(scope="module")
def study():
    return StudyResults(read_study(REFERENCE / "smollm2")[0], REFERENCE / "smollm2")


@pytest.mark.long
def test_the_page_and_the_figure_have_the_same_rates(study):
    curves = [curve for curve in charts.rates(study) if len(curve.points) > 1]
    assert [[point["x"] for point in curve["points"]] for curve in curves_block(study)["rates"]] == [
        [point.x for point in curve.points] for curve in curves
    ]
    for axes in FIGURES["lr_methods"].drawing(study).figure.axes:
        drawn = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 1]
        assert set(drawn) <= {tuple(curve.known) for curve in curves}


@pytest.mark.long
def test_losses_are_of_the_settings_that_are_compared(study):
    kind, curves = charts.losses(study)
    block = curves_block(study)["losses"]
    assert kind == block["kind"]
    assert sum(map(len, curves.values())) == len(block["curves"])
    assert re.match(f"{kind} loss", FIGURES["loss"].drawing(study).figure.axes[0].get_ylabel())
