"""The figure of verdicts: what it draws is what the rules conclude."""

from __future__ import annotations

import math
import re

import pytest
from panels import draw, legend, points
from records import MIB, make_study

from harness.config import ROOT
from harness.plugins.articles.article import every, find
from harness.plugins.articles.claims import Judgement, Verdict, times
from harness.plugins.articles.forest import LOOKS, UNITS, forest
from harness.plugins.articles.merged import merge
from harness.record import read_study
from harness.report import statistics


def test_verdicts_are_those_of_the_claims():
    records = make_study()
    for record in records:
        if record.cell.method == "qlora" and record.status == "ok":
            record.phases["train"].memory.allocated_peak = 4096 * MIB
    found = find("beyond_lora").merged([(records, None)]).places
    ratios = [v for v in found if v.claim.shown is times]
    panel = draw("verdicts", records)[0]
    assert panel.get_title("left").startswith("Beyond LoRA, ratios: ")
    assert panel.get_xscale() == "log"
    sentences = [re.sub(r" \([^)]*\)", "", verdict.claim.text) for verdict in ratios]
    assert [text.get_text().replace("\n", " ") for text in panel.texts] == sentences
    labels = [tick.get_text() for axes in panel.get_figure().axes for tick in axes.get_xticklabels(which="both")]
    assert [float(label.replace("−", "-")) for label in labels if label]
    assert points(panel) == [(v.judgement.effect.value, y) for y, v in enumerate(ratios)]
    order = legend(panel)
    assert order == ["supported", "refuted", "not decided"]
    bars = [bar.lines[0] for bar in panel.containers if hasattr(bar, "lines")]
    drawn = [(line.get_marker(), line.get_markerfacecolor()) for line in bars]
    handles = panel.get_figure().legends[0].legend_handles
    looks = [(line.get_marker(), line.get_markerfacecolor()) for line in handles]
    assert [order[looks.index(look)] for look in drawn] == [v.judgement.decision for v in ratios]
    assert {v.judgement.decision for v in ratios} == set(order)  # or the test would hold little


def test_a_claim_has_its_place_only_if_it_is_judged_in_several():
    claims = find("beyond_lora").claims
    lora, dora = (claims[name] for name in ("lora-memory", "dora-memory"))
    judgement = Judgement("supported", statistics.Interval(0.5, 0.4, 0.6))
    found = [Verdict(lora, ("study", "model", data), judgement) for data in ("gsm8k", "facts")]
    found.append(Verdict(dora, ("study", "model", "facts"), judgement))
    panel = forest({"Article": merge(found)}).figure.axes[0]
    said = ["LoRA reduces memory drastically: facts", "gsm8k", "DoRA uses as much memory as LoRA"]
    assert [text.get_text() for text in panel.texts] == said


def test_merged_verdicts_are_one_effect_a_claim():
    claim = find("beyond_lora").claims["lora-memory"]
    at = {"a": Judgement("supported", statistics.Interval(0.2, 0.1, 0.3), range=(0, 0.5))}
    at["b"] = Judgement("refuted", statistics.Interval(0.6, 0.55, 0.7), range=(0, 0.5))
    verdicts = merge(Verdict(claim, (study, "model", "data"), judgement) for study, judgement in at.items())
    panel = forest({"Article": verdicts}, merged=True).figure.axes[0]
    assert points(panel) == [(0.6, 0)]
    assert legend(panel)[2] == "depends"


def test_ticks_of_learning_rates_are_short():
    judgement = Judgement("supported", statistics.Interval(1e-4, 2e-5, 1e-3))
    found = [Verdict(find("beyond_lora").claims["lr-full"], ("study", "model", "gsm8k"), judgement)]
    panel = forest({"Article": merge(found)}).figure.axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["2e-5", "5e-5", "1e-4", "2e-4", "5e-4", "1e-3"]


@pytest.mark.parametrize("decision", ["too small to matter", "depends"])
def test_a_rare_verdict_is_in_the_legend_where_a_claim_has_it(decision):
    claim = find("beyond_lora").claims["dora-task"]
    effect = statistics.Interval(0.0, -0.005, 0.005)
    judgement = Judgement(decision, effect, range=(0.01, math.inf), small=(-0.01, 0.01))
    panel = forest({"Article": merge([Verdict(claim, ("study", "model", "gsm8k"), judgement)])}).figure.axes[0]
    assert legend(panel) == [d for d in LOOKS if d in ("supported", "refuted", "not decided", decision)]
    claimed, small = panel.patches
    assert (small.get_x(), small.get_x() + small.get_width()) == panel.get_xlim()  # the axis ends within both bounds
    assert claimed.get_width() == 0


def test_every_claim_has_a_unit_that_can_be_drawn():
    shown = {claim.shown for article in every() for claim in article.claims.values()}
    assert shown <= set(UNITS), "else a study that estimates its effect has no picture"


def test_a_verdict_stands_beside_what_is_claimed():
    """Supported: the interval lies in the grey; refuted: beside it."""
    records, _ = read_study(ROOT / "results" / "reference" / "smollm2")
    found = find("beyond_lora").merged([(records, None)]).places
    panel = draw("verdicts", records)[0]
    ratios = [v for v in found if v.judgement.effect and v.claim.shown is times]
    grey = {round(bar.get_y() + 0.4): bar for bars in panel.containers if not hasattr(bars, "lines") for bar in bars}
    checked = set()
    for y, verdict in enumerate(ratios):
        if verdict.judgement.range and y in grey:
            begin, end = grey[y].get_x(), grey[y].get_x() + grey[y].get_width()
            effect, decision = verdict.judgement.effect, verdict.judgement.decision
            if decision == "supported":
                assert begin <= effect.low <= effect.high <= end
                checked.add(decision)
            elif decision == "refuted":
                assert effect.high < begin or effect.low > end
                checked.add(decision)
    assert checked == {"supported", "refuted"}
