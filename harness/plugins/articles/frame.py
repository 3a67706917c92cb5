"""The verdicts on the claims of articles as a data frame, for `RecordedStudy.claims`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.plugins.articles.article import Article, effect_text, every, find
from harness.plugins.articles.claims import OPEN
from harness.plugins.articles.merged import JudgedClaim, MergedVerdict
from harness.plugins.articles.verdict_tables import NOT_JUDGED
from harness.record import Record

Studies = Sequence[tuple[Sequence[Record], Path]]

HEAD, PLACE = ["article", "claim", "text"], ["study", "model", "data"]
MERGED = ["depends_on", "studies", "places", "agreeing"]
VALUES = ["verdict", "effect", "low", "high", "shown", "seeds", "items", "records", "plan", "reason", "command"]
KINDS = {
    "shown": "object",
    "command": "object",
    "depends_on": "object",
    **dict.fromkeys(("effect", "low", "high"), "float64"),
    **dict.fromkeys(("seeds", "items", "places", "agreeing"), "Int64"),
}


def claims(article: str | None, long: bool) -> Callable[[Studies], pd.DataFrame]:
    """What makes the data frame of studies, each its records and folder; of one article or, if None, of all.

    long: a row for each place of a claim, not one a claim. Raises UserError if there is no such article.
    """
    articles = [find(article)] if article else every()
    columns = [*HEAD, *(PLACE if long else MERGED), *VALUES]

    def verdicts(studies: Studies) -> pd.DataFrame:
        rows = [row for one in articles for row in _rows(one, studies, long)]
        kinds = {name: kind for name, kind in KINDS.items() if name in columns}
        return pd.DataFrame(rows, columns=columns).astype(kinds)  # also columns of nulls alone

    return verdicts


def _rows(article: Article, studies: Studies, long: bool) -> list[dict[str, Any]]:
    """In the order of the article's claims."""
    verdicts = article.merged(studies)
    rows = [_not_judged(article, verdict) for verdict in verdicts.not_judged]
    if long:
        rows += [_place(verdict) | _values(article, verdict) for verdict in verdicts.places]
    else:
        rows += [_places(merged) | _values(article, merged) for merged in verdicts.judged]
    order = {name: i for i, name in enumerate(article.claims)}
    return sorted(rows, key=lambda row: order[row["claim"]])


def _not_judged(article: Article, verdict: JudgedClaim) -> dict[str, Any]:
    none = {"verdict": NOT_JUDGED, "studies": "", "places": 0, "agreeing": 0, "command": verdict.command}
    return _place(verdict) | _values(article, verdict) | none


def _place(verdict: JudgedClaim) -> dict[str, Any]:
    return dict(zip(PLACE, verdict.place, strict=True))


def _places(merged: MergedVerdict) -> dict[str, Any]:
    return {
        "depends_on": ", ".join(merged.depends_on) or None,
        "studies": ", ".join(merged.studies),
        "places": len(merged.counted),
        "agreeing": len(merged.agreeing),
    }


def _values(article: Article, verdict: JudgedClaim) -> dict[str, Any]:
    judgement = verdict.judgement
    effect = judgement.effect
    return {
        "article": article.name,
        "claim": verdict.claim.name,
        "text": verdict.claim.text,
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
        "command": verdict.command if verdict.decision == OPEN else None,
    }
