"""Claims on GaLore: it trains all weights, and it learns new knowledge best."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.plugins.articles.beyond_lora.methods import TUNED
from harness.plugins.articles.claims import (
    OPEN,
    REFUTED,
    SUPPORTED,
    Claims,
    Judgement,
    fewest_seeds,
    lacking,
    names,
    points,
    times,
    unchosen,
)
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import NO_GAIN, STRADDLES, Gain, counted, scored_gain
from harness.report import statistics
from harness.report.headline import LEARNED
from harness.report.statistics import ALPHA

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
    "invented world; refuted if it is less than 1 point better than one of them)",
    "sweep facts",
    points,
)
def galore_facts(at: Evidence) -> Judgement:
    """Supported if GaLore beats each method: each test alone, since all must hold (Berger, 1982).

    Refuted if it surely gains less than a point over one of them, corrected by Holm, since any of four may fail.
    """
    chosen = at.choices()
    if at.data not in FACTS:
        return lacking("cell trained on facts")
    if missing := [method for method in TUNED if (method,) not in chosen]:
        return unchosen(at, missing, [], *missing)
    score, rivals = LEARNED[at.data], [method for method in TUNED if method != "galore"]
    gains: list[Gain] = []
    for rival in rivals:
        found = scored_gain(at, [chosen["galore",]], [chosen[rival,]], score)
        if isinstance(found, Judgement):
            return found
        gains.append(found)
    judged = [gain.judgement for gain in gains]
    least = min(gains, key=lambda gain: gain.effect.value)
    below = statistics.holm([gain.difference.p_below(NO_GAIN) for gain in gains])
    fair = not any(j.decision == OPEN and j.why != STRADDLES for j in judged)
    decision = OPEN
    if fair and all(judgement.decision == SUPPORTED for judgement in judged):
        decision = SUPPORTED
    elif fair and below.min() < ALPHA / 2:
        decision = REFUTED
    seeds = fewest_seeds(judged)
    why = "" if decision != OPEN else next((j.why for j in judged if j.why not in ("", STRADDLES)), STRADDLES)
    shown = least.judgement
    return replace(shown, decision=decision, seeds=seeds, records=names(judged), why=why, range=(0.0, math.inf))
