"""The committed document on what early ends save says what its command makes, and keeps what we promise."""

from __future__ import annotations

import json
import sys

from harness.config import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import halving


def test_early_ends_find_the_same_cell_for_half_the_tokens_in_nine_of_ten_studies():
    measured = json.loads(halving.MEASURED.read_text(encoding="utf-8"))
    assert halving.DOCUMENT.read_text(encoding="utf-8") == halving.document(measured)
    (*promised, few) = measured["simulated"]
    for of in promised:  # with at least ten settings a method
        assert of["repeats"] == 100
        assert of["half_and_alike"] >= 0.9
    assert few["name"].startswith("5 settings")
    assert few["alike"] >= 0.9
    assert 0.5 < few["half_and_alike"] < 0.6
    assert "\n**10 or more.**" in halving.advice(measured["simulated"])
    assert all(of["half_and_alike"] >= 0.9 for of in measured["real"])
