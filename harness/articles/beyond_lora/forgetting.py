"""Claims on what tuning forgets."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.articles.beyond_lora.methods import TUNED
from harness.articles.rules import scored_gain
from harness.report import statistics
from harness.report.claims import (
    OPEN,
    REFUTED,
    SUPPORTED,
    Claims,
    Judgement,
    bits_per_byte,
    judge,
    names,
    points,
    unchosen,
)
from harness.report.evidence import Evidence
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
    losses, above = {}, []
    for method in methods:
        sides = [[chosen["base",]], [chosen[method,]]]
        if lower_is_better:
            sides.reverse()
        judgement, lost = scored_gain(at, *sides, score, lambda effect: judge(effect, low=least))
        if judgement.effect is None:
            return judgement
        losses[method] = judgement
        above.append(lost.p_above(least))
    corrected = dict(zip(methods, statistics.holm(above), strict=True))
    worst = max(losses, key=lambda method: losses[method].effect.value)
    decision = OPEN
    if any(loss.decision == SUPPORTED and corrected[method] < ALPHA / 2 for method, loss in losses.items()):
        decision = SUPPORTED
    elif all(loss.decision == REFUTED for loss in losses.values()):
        decision = REFUTED
    shown = losses[worst]
    why = f"{worst} loses most" if decision != OPEN else shown.why or f"{worst}: not significant after correction"
    seeds = min(loss.seeds for loss in losses.values())
    used = names([*losses.values()])
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
