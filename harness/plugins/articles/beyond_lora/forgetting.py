"""Claims on what tuning forgets."""

from __future__ import annotations

from dataclasses import replace

from harness.plugins.articles.beyond_lora.methods import TUNED
from harness.plugins.articles.claims import OPEN, Bounds, Claims, Judgement, bits_per_byte, points, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import Gain, any_gain, scored_gain
from harness.report.headline import MMLU, PLAIN_TEXT

CLAIMS = Claims()


def _forgotten(at: Evidence, score: str, least: float, lower_is_better: bool) -> Judgement:
    """The judgement on the claim that the method which loses most against the base loses at least `least`.

    Supported if one method surely loses more, by intervals that are corrected for the number of methods, since any may;
    refuted if every method surely loses less (`any_gain`).
    """
    chosen = at.choices()
    methods = [method for method in TUNED if (method,) in chosen]
    if ("base",) not in chosen or not methods:
        return unchosen(at, ("base", *TUNED), [], "base", "tuned method")
    losses: dict[str, Gain] = {}
    bounds = Bounds(low=least)
    for method in methods:
        before, after = [chosen["base",]], [chosen[method,]]
        ones, others = (after, before) if lower_is_better else (before, after)
        loss = scored_gain(at, ones, others, score, bounds)
        if isinstance(loss, Judgement):
            return loss
        losses[method] = loss
    judgement = any_gain(list(losses.values()), bounds)
    worst = max(losses, key=lambda method: losses[method].intervals(1).value)
    return judgement if judgement.decision == OPEN else replace(judgement, why=f"{worst} loses most")


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
