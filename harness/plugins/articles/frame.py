"""The verdicts on the claims of articles as a data frame, for `RecordedStudy.claims`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.plugins.articles.article import Article, effect_text, every, find, to_decide
from harness.plugins.articles.claims import OPEN, Verdict
from harness.record import Record

CLAIMS = ["article", "claim", "text", "study", "model", "data", "verdict", "effect", "low", "high", "shown"]
CLAIMS += ["seeds", "items", "records", "plan", "reason", "command"]
CLAIM_KINDS = {
    "shown": "object",
    "command": "object",
    **dict.fromkeys(("effect", "low", "high"), "float64"),
    **dict.fromkeys(("seeds", "items"), "Int64"),
}


def claims(article: str | None) -> Callable[[Sequence[Record], Path], pd.DataFrame]:
    """What makes the data frame of a study's records and folder; of one article or, if None, of all.

    Raises UserError if there is no such article.
    """
    judged = [find(article)] if article else every()

    def verdicts(records: Sequence[Record], folder: Path) -> pd.DataFrame:
        rows = [_claim(of, verdict) for of in judged for verdict in of.verdicts(records, folder)]
        return pd.DataFrame(rows, columns=CLAIMS).astype(CLAIM_KINDS)  # also columns of nulls alone

    return verdicts


def _claim(article: Article, verdict: Verdict) -> dict[str, Any]:
    judgement = verdict.judgement
    effect = judgement.effect
    study, model, data = verdict.place
    return {
        "article": article.name,
        "claim": verdict.claim.name,
        "text": verdict.claim.text,
        "study": study,
        "model": model,
        "data": data,
        "verdict": verdict.decision,
        "effect": effect.value if effect else None,
        "low": effect.low if effect else None,
        "high": effect.high if effect else None,
        "shown": effect_text(verdict) if effect else None,
        "seeds": judgement.seeds,
        "items": judgement.items,
        "records": len(judgement.records),
        "plan": verdict.plan.word,
        "reason": verdict.plan.why if verdict.plan.word == "interim" else judgement.why,
        "command": to_decide(verdict) if judgement.decision == OPEN else None,
    }
