"""What all published studies on SmolLM2-135M together decide of each article's claims.

`make publish` renders blocks of README.md and docs/, a picture and a file of verdicts with these functions.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from harness import units
from harness.config import ROOT
from harness.plugins.articles import meanings
from harness.plugins.articles.article import effect_text, every, find, interval_text, tally
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, TOO_SMALL
from harness.plugins.articles.designed import DECIDED_BY
from harness.plugins.articles.forest import forest
from harness.plugins.articles.merged import ArticleVerdicts, MergedVerdict
from harness.plugins.articles.published_figures import FOLDER, published_figures
from harness.plugins.articles.published_forest import published_forest
from harness.plugins.articles.published_rules import PublishedVerdict
from harness.plugins.articles.published_tables import effect_table, sizes_text, sources_text, verdict_table
from harness.plugins.articles.verdict_tables import claim_lines, claim_tables, not_judged_text, studies_text
from harness.record import Record, read_study, studies
from harness.report.tables.entries import ABSENT
from harness.report.tables.formats import document

RESULTS = ROOT / "results"
REFERENCE = RESULTS / "reference"
MODEL = "smollm2-135m"  # and what is made of it, as smollm2-135m-instruct
OURS = "135M"  # weights of it

HEADLINE = {"beyond_lora": ("qlora-memory", "dora-task", "rank-capacity", "lr-ratio")}  # memory, method, rank, rate


@functools.cache  # of each article the same
def published() -> list[tuple[list[Record], Path]]:
    """The published studies on `MODEL`: of each its records and folder."""
    folders = [REFERENCE / name for name in studies(REFERENCE)]
    recorded = [(read_study(folder)[0], folder) for folder in folders]
    return [(records, folder) for records, folder in recorded if records and records[0].cell.model.startswith(MODEL)]


@functools.cache  # table, list and picture show the same
def verdicts(article: str) -> ArticleVerdicts:
    """The verdicts on an article's claims over all published studies; none of an article without `DECIDED_BY`."""
    if article not in DECIDED_BY:
        return ArticleVerdicts([], [])
    return find(article).merged(published())


def table(article: str) -> str:
    """These verdicts in Markdown: a table with a row a claim, and one with a row for each place."""
    whole, judged = find(article), verdicts(article)
    if not judged.judged:
        return f"No study that decides a claim of “{whole.title}” has run yet.\n"
    first, *others = claim_tables(whole, judged)
    first = replace(first, title=f"“{whole.title}” on SmolLM2-135M: {tally(judged.judged)}")
    return document([first, *others], "md")


def summary(article: str) -> str:
    """How many claims we take the article for, and these in words with their effects, by verdict, as a list.

    Without how the words are measured, which stands in brackets, unless two claims would read alike.
    """
    heads = {
        SUPPORTED: "Supported",
        REFUTED: "Refuted",
        TOO_SMALL: "Too small to matter",
        DEPENDS: "Depends on the setting",
        OPEN: "Not decided",
    }
    judged = verdicts(article)
    texts = Counter(map(_without_brackets, judged.judged))
    lines = [_split(article), ""]
    for decision, head in heads.items():
        alike = [merged for merged in judged.judged if merged.decision == decision]
        lines += [f"- **{head}**"] if alike else []
        lines += [_line(merged, whole=texts[_without_brackets(merged)] > 1) for merged in alike]
    lines += [f"- **Not judged**, since cells are missing: {not_judged_text(judged)}"] if judged.not_judged else []
    return "\n".join(lines) + "\n"


def headline(article: str) -> str:
    """How many claims have which verdict, and those of `HEADLINE` in words: what a reader asks first."""
    judged = verdicts(article)
    by_name = {merged.claim.name: merged for merged in judged.judged}
    missing = f", {len(judged.not_judged)} not judged" if judged.not_judged else ""
    lines = [f"{_split(article)} Verdicts: {tally(judged.judged)}{missing}. Four of them:", ""]
    for merged in (by_name[name] for name in HEADLINE[article]):
        lines.append(f"- {_without_brackets(merged)}: **{merged.decision}**, {effect_text(merged)}.")
    return "\n".join(lines) + "\n"


def _split(article: str) -> str:
    """What the article is split into: a sentence, since it numbers no claims itself."""
    claims = find(article).claims
    larger = sum(claim.least_model > 0 for claim in claims.values())
    rest = f", and {larger} that need a larger one" if larger else ""
    return f"We split the article into {len(claims) - larger} claims that records of this model can decide{rest}."


def _line(merged: MergedVerdict, whole: bool) -> str:
    """The claim, without what is in brackets unless `whole`, its effect, and over which studies it is the verdict."""
    text = merged.claim.text if whole else _without_brackets(merged)
    on = f"on {units.listed(merged.depends_on)}, " if merged.depends_on else ""
    return f"    - {text}: {effect_text(merged)}, {on}{studies_text(merged)}"


def _without_brackets(merged: MergedVerdict) -> str:
    return re.sub(r" \([^)]*\)", "", merged.claim.text)


def others(article: str) -> str:
    """A row a claim: what the article says, what we measured, and what others did."""
    ours = {merged.claim.name: merged for merged in verdicts(article).judged}
    theirs = {verdict.claim.name: verdict for verdict in others_verdicts(article)}
    rows = []
    for name, claim in find(article).claims.items():
        merged, verdict = ours.get(name), theirs.get(name)
        measured = ABSENT if merged is None else f"**{merged.decision}** {effect_text(merged)}"
        rows.append([name, claim.text, measured, ABSENT if verdict is None else _of_others(verdict)])
    headers = ["Claim", "The article says", f"We measured ({OURS})", "Others measured"]
    return tabulate(rows, headers, "pipe", disable_numparse=True) + "\n"


def _of_others(verdict: PublishedVerdict) -> str:
    """**depends** 0.606× (0.395× to 0.928×), 6 sources, 3.2 to 8B"""
    if verdict.judgement.effect is None:
        return ABSENT
    effect = interval_text(verdict.judgement.effect, verdict.claim.shown)
    return ", ".join([f"**{verdict.decision}** {effect}", sources_text(verdict), sizes_text(verdict)])


def published_results(article: str) -> str:
    """The verdicts of others' published results, and the effect of each source, in Markdown."""
    judged = others_verdicts(article)
    figures = published_figures(RESULTS / FOLDER)
    first = verdict_table(find(article), judged)
    whys = [f"{v.claim.name}: {v.judgement.why}." for v in judged if v.judgement.effect and v.judgement.why]
    return document([replace(first, caption=[*first.caption[:-1], *whys]), effect_table(judged, figures, True)], "md")


def published_picture() -> str:
    """The effects that others published, as SVG."""
    figure = published_forest(others_verdicts("beyond_lora"))
    if figure is None:
        raise ValueError("There is nothing to draw of others' results.")
    return figure.svg()


@functools.cache  # tables and picture show the same
def others_verdicts(article: str) -> list[PublishedVerdict]:
    """The verdicts of the published figures that others measured."""
    return find(article).judged_by_others(published_figures(RESULTS / FOLDER))


def claims(article: str) -> str:
    """The claims of an article, each with the sweep that decides it, or why it can't be decided."""
    rows = [
        (name, claim.text, f"`{by}`" if (by := DECIDED_BY[article][name]).startswith("study_") else by)
        for name, claim in find(article).claims.items()
    ]
    return tabulate(rows, ["Claim", "In words", "Decided by"], "pipe", disable_numparse=True) + "\n"


def said(article: str) -> str:
    """What an article says in each claim, with what is measured, the bound and the limits, as a list."""
    return meanings.said(find(article).claims)


def article_table(study: str) -> str:
    """The table of "Beyond LoRA", measured in results/STUDY, in Markdown."""
    article = find("beyond_lora")
    if article.table is None:
        raise ValueError(f"{article.name} has no table.")
    return document([article.table(_records(study), RESULTS / study)], "md")


def judged_study(study: str) -> str:
    """A line a claim of "Beyond LoRA": its verdict by results/STUDY alone, in Markdown."""
    article = find("beyond_lora")
    return document([claim_lines(article, article.merged([(_records(study), RESULTS / study)]))], "md")


def verdicts_of_smollm2() -> str:
    """The verdicts of one study on the claims of "Beyond LoRA", in Markdown."""
    study, article = "reference/smollm2", find("beyond_lora")
    return document(claim_tables(article, article.merged([(_records(study), RESULTS / study)])), "md")


def picture() -> str:
    """What the studies together decided, as SVG."""
    of_articles = {article.title: verdicts(article.name) for article in every()}
    figure = forest({title: judged for title, judged in of_articles.items() if judged.judged}, merged=True)
    if figure is None:
        raise ValueError("There is nothing to draw of the verdicts.")
    return figure.svg()


def _records(study: str) -> list[Record]:
    """The records of a published study; raises if there are none or one is bad."""
    records, problems = read_study(RESULTS / study)
    if problems or not records:
        raise ValueError(f"results/{study} must hold good records, got {problems or 'none'}.")
    return records
