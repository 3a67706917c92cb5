"""Claims on what tuning forgets."""

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
    bits_per_byte,
    fewest_seeds,
    judge,
    names,
    points,
    unchosen,
)
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import Gain, scored_gain
from harness.report import statistics
from harness.report.headline import MMLU, PLAIN_TEXT
from harness.report.statistics import ALPHA

CLAIMS = Claims()


def _forgotten(at: Evidence, score: str, least: float, lower_is_better: bool) -> Judgement:
    """The judgement on the claim that the method which loses most against the base loses at least `least`.

    Supported if one method surely loses more than `least`, corrected by Holm over the methods, since any may; refuted
    if every method surely loses less: each test alone, since all must hold (Berger, 1982).
    """
    chosen = at.choices()
    methods = [method for method in TUNED if (method,) in chosen]
    if ("base",) not in chosen or not methods:
        return unchosen(at, ("base", *TUNED), [], "base", "tuned method")
    losses: dict[str, Gain] = {}
    for method in methods:
        before, after = [chosen["base",]], [chosen[method,]]
        ones, others = (after, before) if lower_is_better else (before, after)
        loss = scored_gain(at, ones, others, score, lambda effect: judge(effect, low=least))
        if isinstance(loss, Judgement):
            return loss
        losses[method] = loss
    above = statistics.holm([loss.difference.p_above(least) for loss in losses.values()])
    corrected = dict(zip(methods, above, strict=True))
    worst = max(losses, key=lambda method: losses[method].effect.value)
    judgements = [loss.judgement for loss in losses.values()]
    decision = OPEN
    if any(loss.judgement.decision == SUPPORTED and corrected[method] < ALPHA / 2 for method, loss in losses.items()):
        decision = SUPPORTED
    elif all(judgement.decision == REFUTED for judgement in judgements):
        decision = REFUTED
    shown = losses[worst].judgement
    why = f"{worst} loses most" if decision != OPEN else shown.why or f"{worst}: not significant after correction"
    seeds, used = fewest_seeds(judgements), names(judgements)
    return replace(shown, decision=decision, seeds=seeds, records=used, why=why, range=(least, math.inf))


@CLAIMS.claim(
    "forgetting-mmlu",
    "Tuning forgets catastrophically (the method that forgets most loses at least 2 points of the base's MMLU)",
    "sweep forgetting data_root=DIR",
    points,
)
def forgetting_mmlu(at: Evidence) -> Judgement:
    return _forgotten(at, MMLU, 0.02, lower_is_better=False)


@CLAIMS.claim(
    "forgetting-text",
    "Tuning forgets catastrophically (the method that forgets most needs at least 0.05 bits per byte more on plain "
    "English text)",
    "sweep forgetting 'eval.tasks=[wordmath,plain_text]'",
    bits_per_byte,
)
def forgetting_text(at: Evidence) -> Judgement:
    return _forgotten(at, PLAIN_TEXT, 0.05, lower_is_better=True)
