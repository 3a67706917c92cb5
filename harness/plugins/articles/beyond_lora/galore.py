"""Claims on GaLore: it trains all weights, and it learns new knowledge better than low-rank methods."""

from __future__ import annotations

from dataclasses import replace

from harness.plugins.articles.beyond_lora.data_sets import FACTS, trained_on
from harness.plugins.articles.beyond_lora.methods import ADAPTERS
from harness.plugins.articles.claims import OPEN, Judgement, lacking, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import BETTER, counted, each_gain, scored_gain
from harness.report.headline import LEARNED
from harness.report.lint.training import never_renewed


def galore_weights(at: Evidence) -> Judgement:
    return counted(at, "galore", "full", "trainable", 1 - 1e-9, 1 + 1e-9)


def galore_facts(at: Evidence) -> Judgement:
    """The least of GaLore's gains over the low-rank methods: `each_gain`. Open if its projection was never renewed."""
    chosen = at.choices()
    if not trained_on(at, FACTS):
        return lacking("cell trained on facts")
    if missing := [method for method in ("galore", *ADAPTERS) if (method,) not in chosen]:
        return unchosen(at, missing, [], *missing)
    score, gains = LEARNED[at.data], []
    for rival in ADAPTERS:
        gained = scored_gain(at, [chosen["galore",]], [chosen[rival,]], score)
        if isinstance(gained, Judgement):
            return gained
        gains.append(gained)
    judgement = each_gain(gains, BETTER)
    if ran := next(filter(None, map(never_renewed, at.chosen(chosen["galore",]))), ""):
        why = f"GaLore's projection was never renewed: {ran}"
        return replace(judgement, decision=OPEN, why=why, by_seeds=False, corrected=None)
    return judgement
