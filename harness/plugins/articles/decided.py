"""Which published study decides each claim on SmolLM2-135M, and what it decided, as far as the studies have run.

`make publish` renders blocks of README.md and docs/, a picture and a file of verdicts with these functions.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from tabulate import tabulate

from harness.config import ROOT
from harness.plugins.articles import meanings
from harness.plugins.articles.article import effect_text, every, find, tally
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, TOO_SMALL, Claims, Verdict
from harness.plugins.articles.forest import forest
from harness.record import Record, read_study
from harness.report.tables.formats import document

RESULTS = ROOT / "results"
REFERENCE = RESULTS / "reference"

AT_CHANCE = "not decided: MMLU is at chance at 135M (25%), so nothing can be lost or won there"
DECIDED_BY = {
    "beyond_lora": {
        "lora-parameters": "study_memory",
        "lora-memory": "study_memory",
        "qlora-memory": "study_memory",
        "dora-memory": "study_memory",
        "adapters-galore-memory": "study_memory",
        "galore-memory": "study_memory",
        "galore-states": "study_memory",
        "memory-order": "study_memory",
        "dora-parameters": "study_memory",
        "galore-weights": "study_memory",
        "dora-training": "study_speed",
        "dora-stability": "study_speed",
        "dora-convergence": "smollm2",
        "dora-serving": "study_speed",
        "dora-task": "study_skill",
        "dora-full": "study_skill",
        "forgetting-text": "study_skill",
        "lora-numerical": "study_skill",
        "lora-niche": "study_facts",
        "lr-adapters": "study_lr",
        "lr-full": "study_lr",
        "lr-ratio": "study_lr",
        "rank-capacity": "study_rank_fresh",
        "low-rank-spread": "study_stability",
        "low-rank-divergence": "study_stability",
        "alpha-r": "study_alpha_fresh",
        "alpha-4r": "study_alpha",
        "alpha-rank": "not decided: no study has two ranks, each with alpha = 2r and with one alpha for both",
        "galore-facts": "study_facts",
        "dora-mmlu": AT_CHANCE,
        "forgetting-mmlu": AT_CHANCE,
        "forgetting-reasoning": "not decided: a model of 135M solves no problem of GSM8K, so nothing can be lost there",
        "forgetting-format": "not decided: no study asks IFEval",
    },
    "lora_without_regret": {
        "rank-capacity": "study_rank",
        "lr-ratio": "study_lr",
        "lr-rank": "study_lr",
        "layers-rank": "study_targets",
        "layers-parameters": "study_targets",
        "batch-penalty": "study_batch",
    },
}
"""Of each article's claims, the sweep that decides it on SmolLM2-135M, or why none does; of articles that have such."""


@functools.cache  # table, list and picture show the same
def verdicts(article: str) -> list[Verdict]:
    """The verdicts on an article's claims, each from the study that decides it; of studies that have run, in the
    article's order."""
    whole, every_verdict, decided_by = find(article), [], DECIDED_BY.get(article, {})
    for study in sorted(set(decided_by.values())):
        records, _ = read_study(REFERENCE / study)
        if records:
            of_study = {
                name: replace(claim, run=f"sweep {study}")
                for name, claim in whole.claims.items()
                if decided_by[name] == study
            }
            every_verdict += replace(whole, claims=Claims(of_study)).verdicts(records, REFERENCE / study)
    return sorted(every_verdict, key=lambda verdict: list(whole.claims).index(verdict.claim.name))


def table(article: str) -> str:
    """These verdicts as one table in Markdown."""
    whole, judged = find(article), verdicts(article)
    if not judged:
        return f"No study that decides a claim of “{whole.title}” has run yet.\n"
    one_table = replace(whole.verdict_table(judged), title=f"“{whole.title}” on SmolLM2-135M: {tally(judged)}")
    return document([one_table], "md").replace("python -m harness ", "harness ")


def summary(article: str) -> str:
    """The claims in words and their effects, by verdict, as a list."""
    heads = {
        SUPPORTED: "Supported",
        REFUTED: "Refuted",
        TOO_SMALL: "Too small to matter",
        DEPENDS: "Depends on the setting",
        OPEN: "Not decided",
    }
    lines = []
    for decision, head in heads.items():
        alike = [verdict for verdict in verdicts(article) if verdict.judgement.decision == decision]
        lines += [f"- **{head}**"] if alike else []
        lines += [f"    - {verdict.claim.text}: {effect_text(verdict)}" for verdict in alike]
    return "\n".join(lines) + "\n"


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


def verdicts_of_smollm2() -> str:
    """The verdicts of one study on the claims of "Beyond LoRA", in Markdown."""
    study, article = "reference/smollm2", find("beyond_lora")
    return document([article.verdict_table(article.verdicts(_records(study), RESULTS / study))], "md")


def picture() -> str:
    """What the studies together decided, as SVG."""
    of_articles = {article.title: verdicts(article.name) for article in every()}
    figure = forest({title: judged for title, judged in of_articles.items() if judged})
    if figure is None:
        raise ValueError("There is nothing to draw of the verdicts.")
    return figure.svg()


def _records(study: str) -> list[Record]:
    """The records of a published study; raises if there are none or one is bad."""
    records, problems = read_study(RESULTS / study)
    if problems or not records:
        raise ValueError(f"results/{study} must hold good records, got {problems or 'none'}.")
    return records
