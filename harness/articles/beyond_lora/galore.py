"""Claims on GaLore: it trains all weights, and it learns new knowledge best."""

from __future__ import annotations

from harness.articles.beyond_lora.methods import TUNED
from harness.articles.rules import gain, ratio
from harness.report import statistics
from harness.report.claims import OPEN, REFUTED, SUPPORTED, Claims, Judgement, lacking, names, points, times
from harness.report.evidence import Evidence
from harness.report.headline import LEARNED
from harness.report.statistics import ALPHA

CLAIMS = Claims()
FACTS = ("facts", "facts_short")  # data sets on invented worlds, which no model can know from pretraining


@CLAIMS.claim(
    "galore-weights",
    "GaLore trains all weights (as full fine-tuning does)",
    "sweep method=full,galore train.max_steps=1 eval.tasks=[] infer.repeats=0 study=sizes",
    times,
)
def galore_weights(at: Evidence) -> Judgement:
    return ratio(at, "galore", "full", "trainable", 1 - 1e-9, 1 + 1e-9, exact=True)


@CLAIMS.claim(
    "galore-facts",
    "GaLore is best for wholly new knowledge (better than full fine-tuning, LoRA, QLoRA and DoRA on facts of an "
    "invented world)",
    "sweep facts",
    points,
)
def galore_facts(at: Evidence) -> Judgement:
    """Supported if GaLore beats each method (p corrected by Holm); refuted if it does not gain over one of them."""
    chosen = at.choices()
    if at.data not in FACTS:
        return lacking("cell trained on facts")
    if missing := [method for method in TUNED if (method,) not in chosen]:
        return lacking(*missing)
    gains = {m: gain(at, [chosen["galore",]], [chosen[m,]], LEARNED[at.data]) for m in TUNED if m != "galore"}
    for judgement in gains.values():
        if judgement.effect is None:
            return judgement
    rival = min(gains.values(), key=lambda judgement: judgement.effect.value)
    samples = [at.sample([chosen[m,]], LEARNED[at.data])[0] for m in ("galore", *gains)]
    p = statistics.holm([statistics.differences([samples[0], other])[0, 1].p for other in samples[1:]])
    decisions = [judgement.decision for judgement in gains.values()]
    beats_all = set(decisions) == {SUPPORTED} and p.max() < ALPHA
    decision = SUPPORTED if beats_all else REFUTED if REFUTED in decisions else OPEN
    seeds = min(judgement.seeds for judgement in gains.values())
    why = "" if decision != OPEN else rival.why or "Not significant for all methods after correction"
    return Judgement(decision, rival.effect, seeds, rival.items, names([*gains.values()]), why)
