"""The verdicts of others' published results as tables: a line a claim, and the effect in each setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from harness import units
from harness.plugins.articles import meanings
from harness.plugins.articles.article import Article, interval_text, tally_of
from harness.plugins.articles.published_figures import Figure
from harness.plugins.articles.published_rules import PublishedVerdict
from harness.report.statistics import Interval
from harness.report.tables.entries import ABSENT
from harness.report.tables.table import TEXT_COLUMNS, Table

UNCERTAIN = "another source may differ"
BORROWED = "Error: own, or borrowed from the runs of other figures. Each interval is of one row alone."
TEXTS = (*TEXT_COLUMNS, "Part", "Source", "Setting", "Error")


def verdict_table(article: Article, verdicts: Sequence[PublishedVerdict], explained: bool = False) -> Table:
    """A line a claim with figures: verdict, pooled effect, where one more source would be, and how sources differ.

    explained: whether claims come in words, with why they are open. `data` has a row for each part of a claim.
    """
    judged = [verdict for verdict in verdicts if verdict.judgement.effect is not None]
    unknown = [verdict.claim.name for verdict in verdicts if verdict.judgement.effect is None]
    counts = tally_of(verdict.decision for verdict in judged)
    without = list(filter(None, map(_without_one, judged)))
    return Table(
        title=f"Claims of “{article.title}” on others' published results: {counts}",
        columns=["Claim", "Verdict", "Effect", "Another source", "τ", "I²", "Sources", "Models", "Remark"],
        rows=[_row(verdict) for verdict in judged],
        caption=[
            "Effect: the mean over sources, with its 95% interval (random effects, Paule and Mandel, Hartung and "
            "Knapp). Another source: where one more source would lie, in 95% of cases. τ: how far sources truly "
            "differ, as a standard deviation (of ratios as a factor). I²: the share of variance that is no error. Of a "
            "claim of several parts, the part that is closest to contradicting it, and its sources.",
            *(meanings.line(verdict.claim) for verdict in judged if explained),
            *(f"{v.claim.name}: {v.judgement.why}." for v in judged if explained and v.judgement.why),
            *([f"Without the source that moves a mean most: {'; '.join(without)}."] if explained and without else []),
            *([f"Not judged, since no figures were collected: {', '.join(unknown)}."] if unknown else []),
            *([] if explained else ["`--long` has each claim in words, each setting's effect and the sources."]),
        ],
        data=pd.DataFrame([values for verdict in verdicts for values in _data(verdict)]),
        text_columns=TEXTS,
    )


def effect_table(verdicts: Sequence[PublishedVerdict], figures: Sequence[Figure], by_source: bool = False) -> Table:
    """A row for each setting in which a claim has an effect, or for each of its sources; and where these stand."""
    return Table(
        title="Effects by source" if by_source else "Effects in each setting",
        columns=["Claim", "Part", "Source", "Settings" if by_source else "Setting", "Effect", "Error"],
        rows=[row for verdict in verdicts for row in _effects(verdict, by_source)],
        caption=[BORROWED, *_addresses(verdicts, figures)],
        data=None,
        text_columns=TEXTS,
    )


def _addresses(verdicts: Sequence[PublishedVerdict], figures: Sequence[Figure]) -> list[str]:
    """Where the sources of the verdicts stand, and what was read in their place."""
    addresses = {figure.source: figure.address for figure in figures}
    copies = {figure.source: figure.seen for figure in figures if figure.seen != "yes"}
    used = sorted({source for verdict in verdicts for source in verdict.sources})
    return [f"{s}: {addresses[s]}" + (f" (read: {copies[s]})" if s in copies else "") + "." for s in used]


def sizes_text(verdict: PublishedVerdict) -> str:
    """3 to 8B, the sizes of the models of the part that is shown; the sign of a missing value without figures."""
    if verdict.part.billions is None:
        return ABSENT
    least, most = (units.significant(size, 2).removesuffix(".0") for size in verdict.part.billions)
    return f"{least}B" if least == most else f"{least} to {most}B"


def sources_text(verdict: PublishedVerdict) -> str:
    """The number of sources of the part that is shown."""
    return units.plural(len(verdict.part.votes), "source")


def _without_one(verdict: PublishedVerdict) -> str:
    """dora-task +0.7 points (−0.3 to +1.7) without DoRA repository; empty of fewer than three sources."""
    if (without := verdict.part.without_the_furthest) is None:
        return ""
    source, pooled = without
    effect = interval_text(verdict.part.in_unit(pooled.interval()), verdict.claim.shown)
    return f"{verdict.claim.name} {effect} without {source}"


def _row(verdict: PublishedVerdict) -> list[str]:
    pooled, text = verdict.part.pooled, verdict.claim.shown
    alone = pooled is None or pooled.sources < 2
    predicted = None if pooled is None else verdict.part.in_unit(pooled.prediction())
    return [
        verdict.claim.name,
        verdict.decision,
        interval_text(verdict.judgement.effect, text),
        ABSENT if predicted is None or math.isnan(predicted.low) else _ends(predicted, text),
        ABSENT if alone or pooled is None else _tau(verdict, pooled.tau),
        ABSENT if alone or pooled is None else f"{pooled.i_squared:.0%}",
        str(len(verdict.part.votes)),
        sizes_text(verdict),
        remark(verdict) or ABSENT,
    ]


def _ends(interval: Interval, text: Callable[[float], str]) -> str:
    low, high = (text(end).partition(" ")[0] for end in interval[1:])
    return f"{low} to {high}"


def _tau(verdict: PublishedVerdict, tau: float) -> str:
    """In the unit of the claim; of ratios the factor."""
    if verdict.part.contrast.bounds.ratio:
        return f"{units.significant(math.exp(tau), 3)}×"
    return f"{100 * tau:.1f} points"


def remark(verdict: PublishedVerdict) -> str:
    """The part that is shown, where there are several, and what limits the verdict; may be empty."""
    part = verdict.part.name if len(verdict.parts) > 1 else ""
    one = "one source" if len(verdict.part.votes) == 1 else ""
    return "; ".join(filter(None, [part, one, UNCERTAIN if verdict.uncertain else ""]))


def _effects(verdict: PublishedVerdict, by_source: bool) -> Iterator[list[str]]:
    for part in verdict.parts:
        name = part.name if len(verdict.parts) > 1 else ABSENT
        for vote in part.votes:
            each = [(effect.setting.label, effect, [effect]) for effect in vote.effects]
            for setting, measured, effects in [(str(len(each)), vote, vote.effects)] if by_source else each:
                interval = interval_text(part.in_unit(measured.interval()), verdict.claim.shown)
                errors = {"borrowed" if effect.borrowed else "own" for effect in effects}
                error = " and ".join(sorted(errors, reverse=True))
                yield [verdict.claim.name, name, vote.source, setting, interval, error]


def _data(verdict: PublishedVerdict) -> Iterator[dict[str, Any]]:
    for part in verdict.parts:
        nothing = Interval(math.nan, math.nan, math.nan)
        effect = nothing if part.pooled is None else part.in_unit(part.pooled.interval())
        predicted = nothing if part.pooled is None else part.in_unit(part.pooled.prediction())
        yield {
            "claim": verdict.claim.name,
            "text": verdict.claim.text,
            "decision": verdict.decision,
            "part": part.name,
            "part_decision": part.judgement.decision,
            **{"effect": effect.value, "low": effect.low, "high": effect.high},
            **{"predicted_low": predicted.low, "predicted_high": predicted.high},
            "tau": None if part.pooled is None else part.pooled.tau,
            "i_squared": None if part.pooled is None else part.pooled.i_squared,
            "settings": len(part.effects),
            "borrowed": sum(effect.borrowed for effect in part.effects),
            "sources": "; ".join(vote.source for vote in part.votes),
            "why": verdict.judgement.why,
        }
