"""The verdicts on an article's claims as tables: a line a claim, and all that is known of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from harness import units
from harness.grouping import grouped
from harness.plugins.articles import meanings
from harness.plugins.articles.article import Article, effect_text, tally
from harness.plugins.articles.claims import (
    DEPENDS,
    MORE_ITEMS,
    MOST_SEEDS,
    OPEN,
    REFUTED,
    SUPPORTED,
    TOO_SMALL,
    Judgement,
    Verdict,
    enough_seeds,
    excluding_seeds,
    needs,
)
from harness.plugins.articles.merged import ArticleVerdicts, JudgedClaim, MergedVerdict, place_label
from harness.report.planned import plan_lines
from harness.report.statistics import Interval
from harness.report.tables.entries import ABSENT
from harness.report.tables.table import Table

PLACE = ("Study", "Model", "Data")
NOT_JUDGED = "not judged"  # what stands for the verdict on a claim without an effect in any place
NAMED = 3  # settings beside a verdict that depends on them
SHORT = 20  # characters of a reason that fit beside a verdict


def claim_lines(article: Article, verdicts: ArticleVerdicts) -> Table:
    """A line a claim: verdict, effect and a remark in few words. `data` has a row each with unrounded numbers."""
    one_study = len({verdict.place[0] for verdict in verdicts.places}) < 2
    return Table(
        title=_title(article, verdicts),
        columns=["Claim", "Verdict", "Effect", "Remark"],
        rows=[
            [merged.claim.name, merged.decision, effect_text(merged), remark(merged, one_study)]
            for merged in verdicts.judged
        ],
        caption=[
            *_counted_not_judged(verdicts),
            *plan_lines((merged.claim.name, merged.plan) for merged in verdicts.judged),
            "`--long` has each claim in words, its records and what decides it.",
        ],
        data=pd.DataFrame([*map(_merged_data, verdicts.judged), *map(_not_judged_data, verdicts.not_judged)]),
    )


def claim_tables(article: Article, verdicts: ArticleVerdicts, explained: bool = False) -> list[Table]:
    """`claim_table`, and the verdict of each place where claims are judged in several."""
    several = [merged for merged in verdicts.judged if len(merged.places) > 1]
    return [claim_table(article, verdicts, explained), *([_place_table(several)] if several else [])]


def claim_table(article: Article, verdicts: ArticleVerdicts, explained: bool = False) -> Table:
    """A row a claim, with all claims in words, remarks, and the commands that decide what is not decided.

    explained: whether claims come with what their article says, what is measured, the bound and the limits.
    `data` has a row for each place of a claim, with unrounded numbers and the names of the records.
    """
    judged, not_judged = verdicts.judged, verdicts.not_judged
    open_ = [merged for merged in judged if _is_open(merged)]
    claims = [*(merged.claim for merged in judged), *(verdict.claim for verdict in not_judged)]
    return Table(
        title=_title(article, verdicts),
        columns=["Claim", "Verdict", "Plan", "Effect", "n", "Records", "Studies"],
        rows=[[*_row(merged), studies_text(merged)] for merged in judged],
        caption=[
            *(meanings.line(claim) if explained else f"{claim.name}: {claim.text}." for claim in claims),
            *(f"{m.claim.name}: {m.judgement.why}." for m in judged if m.judgement.why and m not in open_),
            *(f"{m.claim.name}: {m.judgement.why}. To decide it, run {_deciding(m)}." for m in open_),
            *(f"{v.claim.name}: not judged. {v.judgement.why}. Run `{v.command}`." for v in not_judged),
            *plan_lines((merged.claim.name, merged.plan) for merged in judged),
            f"Source: {article.source}.",
            *article.caption,
            "--format csv names the records.",
        ],
        data=pd.DataFrame([_data(verdict) for verdict in (*verdicts.places, *not_judged)]),
        answer=list(_answer(verdicts)),
    )


def remark(merged: MergedVerdict, one_study: bool) -> str:
    """What stands beside a verdict, in few words. one_study: whether the study need not be named."""
    return "; ".join(_remarks(merged, one_study)) or ABSENT


def studies_text(merged: MergedVerdict) -> str:
    """The one study behind the verdict, else how many (or how many places, where a study has several), and how many of
    these decide alike: "3 of 4 studies". If no study decides it, the model that it is counted on."""
    if merged.claim.counted_on:
        return f"counted on {merged.claim.counted_on}"
    places, agreeing = len(merged.counted), len(merged.agreeing)
    if places == 1:
        return merged.place[0].rpartition("/")[2]
    count = f"{places} {'studies' if len(merged.studies) == places else 'places'}"
    alike = merged.judgement.decision in (OPEN, DEPENDS) or agreeing == places
    return count if alike else f"{agreeing} of {count}"


def not_judged_text(verdicts: ArticleVerdicts) -> str:
    """The names of the claims that the records can't judge; empty if there are none."""
    return ", ".join(verdict.claim.name for verdict in verdicts.not_judged)


def _is_interim(merged: MergedVerdict) -> bool:
    """Whether cells of the study's plan are left, so that seeds and reasons of now are not the last word."""
    return merged.plan.word == "interim"


def _is_open(merged: MergedVerdict) -> bool:
    """Whether further cells must decide it. What is interim is decided by its plan, as a line of its own says."""
    return merged.judgement.decision == OPEN and not _is_interim(merged)


def _remarks(merged: MergedVerdict, one_study: bool) -> Iterator[str]:
    if merged.plan.word != "exploratory":
        yield merged.plan.word
    if merged.judgement.decision == OPEN and merged.claim.least_model and _all_too_small(merged):
        yield needs(merged.claim.least_model).replace("Needs", "needs")
    elif merged.depends_on:
        yield f"on {', '.join([*merged.depends_on[:NAMED], *(['…'] if merged.depends_on[NAMED:] else [])])}"
    elif len(merged.counted) > 1 or merged.claim.counted_on:
        yield studies_text(merged)
    elif _is_interim(merged):
        return
    elif merged.judgement.decision == OPEN and (seeds := enough_seeds(merged.judgement)) is not None:
        yield f"needs {_seeds_text(seeds)}"
    elif merged.judgement.decision == OPEN and len(merged.judgement.why) <= SHORT:
        yield merged.judgement.why
    elif not one_study:
        yield studies_text(merged)


def _all_too_small(merged: MergedVerdict) -> bool:
    """Whether every model lacks the ability that the claim is about."""
    return all(place.judgement.why == needs(merged.claim.least_model) for place in merged.places)


def _seeds_text(seeds: float) -> str:
    return "more items" if math.isinf(seeds) else f"{seeds:,} seeds"


def _title(article: Article, verdicts: ArticleVerdicts) -> str:
    studies = sorted({verdict.place[0] for verdict in (*verdicts.places, *verdicts.not_judged)})
    named = studies[0] if len(studies) == 1 else f"{len(studies)} studies"
    return f"{named}: claims of “{article.title}”: {tally(verdicts.judged)}"


def _counted_not_judged(verdicts: ArticleVerdicts) -> Iterator[str]:
    if verdicts.not_judged:
        count = units.plural(len(verdicts.not_judged), "claim")
        need = "needs" if len(verdicts.not_judged) == 1 else "need"
        yield f"Not judged: {count} {need} cells that are not there; `--long` names them."


def _place_table(several: Sequence[MergedVerdict]) -> Table:
    """The verdicts of each place on claims that are judged in several."""
    verdicts = [verdict for merged in several for verdict in merged.places]
    places = {name: [verdict.place[i] for verdict in verdicts] for i, name in enumerate(PLACE)}
    columns = {name: texts for name, texts in places.items() if len(set(texts)) > 1}
    rows = [_row(verdict) for verdict in verdicts]
    return Table(
        title="The same claims in each place",
        columns=["Claim", *columns, "Verdict", "Plan", "Effect", "n", "Records"],
        rows=[[row[0], *where, *row[1:]] for row, where in zip(rows, zip(*columns.values(), strict=True), strict=True)],
        caption=[
            f"{verdict.claim.name}, {place_label(verdict, merged.places)}: {verdict.judgement.why}."
            for merged in several
            for verdict in merged.places
            if verdict.judgement.why
        ],
        data=None,
    )


def _row(verdict: JudgedClaim) -> list[str]:
    judgement = verdict.judgement
    size, records = _size(judgement), str(len(judgement.records))
    decision = verdict.plan.shown(judgement.decision)
    return [verdict.claim.name, decision, verdict.plan.word, effect_text(verdict), size, records]


def _deciding(merged: MergedVerdict) -> str:
    """The command, and how many seeds are enough where that can be told."""
    run, seeds = merged.command, enough_seeds(merged.judgement)
    if seeds is None:
        return f"`{run}` {merged.judgement.remedy}".rstrip()
    fewer = excluding_seeds(merged.judgement)
    shows = "" if fewer is None or not fewer < seeds else f"; {fewer} seeds would show that it does not hold"
    if math.isinf(seeds):
        return f"`{run}` {MORE_ITEMS}: no number of seeds is enough, if the effect stays{shows}"
    if seeds > MOST_SEEDS:
        items = "" if merged.judgement.items is None else f", or {MORE_ITEMS.removeprefix('with ')}"
        return f"`{run}` with {seeds} seeds{items}, if the effect stays{shows}"
    return f"`{run}` ({seeds} seeds, if the effect stays)"


def _answer(verdicts: ArticleVerdicts) -> Iterator[str]:
    """Which claims hold and which do not, by their names."""
    names = grouped((merged.decision, merged.claim.name) for merged in verdicts.judged)
    answers = {
        SUPPORTED: "These claims hold",
        REFUTED: "These do not hold",
        TOO_SMALL: "The effects of these are too small to matter",
        DEPENDS: "These depend on the setting",
    }
    for decision, sentence in answers.items():
        if decision in names:
            yield f"{sentence}: {', '.join(names[decision])}."
    if open_ := len(names.get(OPEN, ())):
        how = (
            "the command that would decide each" if any(map(_is_open, verdicts.judged)) else "what is left of the plan"
        )
        yield f"Not decided: {open_} of {len(verdicts.judged)}. Below the table is {how}."
    if verdicts.not_judged:
        yield f"Not judged, since cells are missing: {not_judged_text(verdicts)}."


def _size(judgement: Judgement) -> str:
    parts = [] if judgement.seeds is None else [f"{judgement.seeds}"]
    return " × ".join(parts + ([] if judgement.items is None else [units.plural(judgement.items, "item")])) or ABSENT


def _merged_data(merged: MergedVerdict) -> dict[str, Any]:
    values = _data(merged)
    counts = {"places": len(merged.counted), "agreeing": len(merged.agreeing)}
    return {
        **{name: values[name] for name in ("claim", "text", "decision", "plan", "effect", "low", "high")},
        **{"depends_on": ", ".join(merged.depends_on), "studies": " ".join(merged.studies), **counts},
        **{name: values[name] for name in ("seeds", "items", "records", "why", "run")},
    }


def _not_judged_data(verdict: Verdict) -> dict[str, Any]:
    values = _data(verdict)
    return {name: values[name] for name in ("claim", "text", "why", "run")} | {
        "decision": NOT_JUDGED,
        "places": 0,
        "agreeing": 0,
    }


def _data(verdict: JudgedClaim) -> dict[str, Any]:
    study, model, data = verdict.place
    values = asdict(verdict.judgement) | {"records": " ".join(verdict.judgement.records)}
    effect = verdict.judgement.effect or Interval(math.nan, math.nan, math.nan)
    for name in ("effect", "range", "small", "ratio", "remedy", "parts", "corrected"):  # the last is a function
        del values[name]
    place = {"study": study, "model": model, "data": data}
    claim = {"claim": verdict.claim.name, "text": verdict.claim.text, "run": verdict.command}
    plan = {"plan": verdict.plan.word, "plan_why": verdict.plan.why}
    return claim | place | {"effect": effect.value, "low": effect.low, "high": effect.high} | values | plan
