"""Claims on GaLore: it trains all weights, and it learns new knowledge best."""

from __future__ import annotations

from harness.plugins.articles.beyond_lora.methods import TUNED
from harness.plugins.articles.claims import Claims, Judgement, lacking, points, times, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import BETTER, Gain, counted, each_gain, scored_gain
from harness.report.headline import LEARNED

CLAIMS = Claims()
FACTS = ("facts", "facts_short")  # data sets on invented worlds, which no model can know from pretraining


@CLAIMS.claim(
    "galore-weights",
    "GaLore trains all weights (as full fine-tuning does)",
    "sweep method=full,galore train.max_steps=1 'eval.tasks=[]' infer.repeats=0 study=sizes",
    times,
)
def galore_weights(at: Evidence) -> Judgement:
    return counted(at, "galore", "full", "trainable", 1 - 1e-9, 1 + 1e-9)


@CLAIMS.claim(
    "galore-facts",
    "GaLore is best for wholly new knowledge (better than full fine-tuning, LoRA, QLoRA and DoRA on facts of an "
    "invented world, by at least 1 point each)",
    "sweep facts",
    points,
)
def galore_facts(at: Evidence) -> Judgement:
    """The least of GaLore's gains over each other method: `each_gain`."""
    chosen = at.choices()
    if at.data not in FACTS:
        return lacking("cell trained on facts")
    if missing := [method for method in TUNED if (method,) not in chosen]:
        return unchosen(at, missing, [], *missing)
    score, rivals = LEARNED[at.data], [method for method in TUNED if method != "galore"]
    gains: list[Gain] = []
    for rival in rivals:
        gained = scored_gain(at, [chosen["galore",]], [chosen[rival,]], score)
        if isinstance(gained, Judgement):
            return gained
        gains.append(gained)
    return each_gain(gains, BETTER)
