"""Claims on what tuning forgets: a claim for each kind of ability that is kept or lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.plugins.articles.beyond_lora.methods import TUNED
from harness.plugins.articles.claims import OPEN, Bounds, Judgement, lacking, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import Gain, any_gain, scored_gain
from harness.report.frame import score_name
from harness.report.headline import LEARNED, MMLU, PLAIN_TEXT, base_of
from harness.report.lint.training import never_renewed

REASONING = tuple(LEARNED[data] for data in ("gsm8k", "wordmath", "wordmath_short"))
FORMAT = "ifeval/prompt_level_strict_acc/none"


def _forgotten(at: Evidence, score: str, least: float, lower_is_better: bool = False) -> Judgement:
    """The judgement on the claim that the method which loses most against its base loses at least `least`.

    Supported if one method surely loses more, by intervals that are corrected for the number of methods, since any may;
    refuted if every method surely loses less (`any_gain`). Left out are methods whose quantised base is not there, as
    what quantising costs is not forgotten, and GaLore that never renewed its projection.
    """
    chosen = at.choices()
    if ("base",) not in chosen or not any((method,) in chosen for method in TUNED):
        return unchosen(at, ("base", *TUNED), [], "base", "tuned method")
    losses: dict[str, Gain] = {}
    bounds, left_out = Bounds(low=least), []
    for method in TUNED:
        if (method,) not in chosen:
            continue
        base = base_of(at.chosen(chosen[method,])[0])
        if (base,) not in chosen or any(map(never_renewed, at.chosen(chosen[method,]))):
            left_out.append(method)
            continue
        before, after = [chosen[base,]], [chosen[method,]]
        ones, others = (after, before) if lower_is_better else (before, after)
        loss = scored_gain(at, ones, others, score, bounds)
        if isinstance(loss, Judgement):
            return loss
        losses[method] = loss
    if not losses:
        return lacking("tuned method with its base")
    judgement = any_gain(list(losses.values()), bounds)
    without = f"; without {' and '.join(left_out)}" if left_out else ""
    if judgement.decision == OPEN:
        return replace(judgement, why=judgement.why + without)
    worst = max(losses, key=lambda method: losses[method].intervals(1).value)
    return replace(judgement, why=f"{worst} loses most{without}")


def _untrained(at: Evidence, scores: Sequence[str]) -> str | None:
    """The first of `scores` that the records have and their data do not train for."""
    recorded = {score_name(score) for record in at.records for score in record.scores}
    return next((score for score in scores if score in recorded and score != at.learned), None)


def forgetting_mmlu(at: Evidence) -> Judgement:
    return _forgotten(at, MMLU, 0.02)


def forgetting_reasoning(at: Evidence) -> Judgement:
    score = _untrained(at, REASONING)
    return _forgotten(at, score, 0.02) if score else lacking("cell scored in a reasoning task that was not trained")


def forgetting_format(at: Evidence) -> Judgement:
    return _forgotten(at, FORMAT, 0.02)


def forgetting_text(at: Evidence) -> Judgement:
    return _forgotten(at, PLAIN_TEXT, 0.05, lower_is_better=True)
