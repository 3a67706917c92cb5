"""Articles whose claims are judged on recorded studies: found by folder, none known by name.

An article is a package `harness/plugins/articles/NAME` whose attribute `ARTICLE` is an `Article`.

    article = find("beyond_lora")
    print(render(article.verdict_table(article.verdicts(records, folder)), "md"))
"""

from __future__ import annotations

import importlib
import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import units
from harness.errors import one_of
from harness.plugins.articles.claims import (
    DEPENDS,
    MOST_SEEDS,
    OPEN,
    REFUTED,
    SUPPORTED,
    TOO_SMALL,
    Claim,
    Judgement,
    Verdict,
    enough_seeds,
)
from harness.plugins.articles.evidence import Evidence
from harness.record import Record
from harness.report.answer.next_run import listed
from harness.report.items.answered import Items
from harness.report.statistics import Interval
from harness.report.tables.entries import ABSENT
from harness.report.tables.table import Table

if TYPE_CHECKING:
    from harness.report.figures.study_results import StudyResults

FOLDER = Path(__file__).resolve().parent
PLACE = ("Study", "Model", "Data")


@dataclass(frozen=True)
class Article:
    """An article's claims, and optionally its comparison table filled with measurements.

    name: of its folder. title, source: what to call it, and who published it where. caption: sentences below its
    verdicts. table: makes its table from records and the folder of their study (None: no scores are compared).
    """

    name: str
    title: str
    source: str
    claims: Mapping[str, Claim]
    caption: Sequence[str]
    table: Callable[[Sequence[Record], Path | None], Table] | None = None

    def verdicts(self, records: Sequence[Record], folder: Items | None) -> list[Verdict]:
        """The verdicts on each claim: one for each place with an effect, else the one with the most evidence.

        A place that leaves a claim open stands beside one that decides it: dropping it would pick what suits.

        records: usually of one study, in any order. folder: of the study, where the items are; None compares no scores.
        """
        places = defaultdict(list)
        for record in records:
            places[record.study, record.cell.model, record.cell.data].append(record)
        evidence = {place: Evidence(places[place], folder) for place in sorted(places, key=str)}
        fresh = {record.cell.name for record in records if record.confirmation}
        verdicts = []
        for claim in self.claims.values():
            judged = {place: claim.rule(at) for place, at in evidence.items()}
            each = [Verdict(claim, at, found, not fresh.isdisjoint(found.records)) for at, found in judged.items()]
            estimated = [verdict for verdict in each if verdict.judgement.effect is not None]
            verdicts += estimated or sorted(each, key=_lack)[:1]
        return verdicts

    def verdict_table(self, verdicts: Sequence[Verdict]) -> Table:
        """The verdicts as a table; `data` has a row each with unrounded numbers and the names of the records."""
        places = {name: [verdict.place[i] for verdict in verdicts] for i, name in enumerate(PLACE)}
        columns = {name: texts for name, texts in places.items() if len(set(texts)) > 1}
        columns |= {
            "Claim": [verdict.claim.name for verdict in verdicts],
            "Verdict": [verdict.judgement.decision for verdict in verdicts],
            "Effect": [effect_text(verdict) for verdict in verdicts],
            "n": [_size(verdict.judgement) for verdict in verdicts],
            "Records": [str(len(verdict.judgement.records)) for verdict in verdicts],
        }
        studies = ", ".join(sorted(set(places["Study"])))
        remarks = [v for v in verdicts if v.judgement.why and v.judgement.decision != OPEN]
        open_ = [v for v in verdicts if v.judgement.decision == OPEN]
        return Table(
            title=f"{studies}: claims of “{self.title}”: {tally(verdicts)}",
            columns=list(columns),
            rows=[list(row) for row in zip(*columns.values(), strict=True)],
            caption=[
                *(f"{claim.name}: {claim.text}." for claim in dict.fromkeys(v.claim for v in verdicts)),
                *(f"{_where(v, columns)}: {v.judgement.why}." for v in remarks),
                *(f"{_where(v, columns)}: {v.judgement.why}. To decide it, run {_deciding(v)}." for v in open_),
                f"Source: {self.source}.",
                *self.caption,
                "--format csv names the records.",
            ],
            data=pd.DataFrame([_data(verdict) for verdict in verdicts]),
            answer=list(_answer(verdicts, columns)),
        )


def names() -> list[str]:
    """The names of all articles: the packages in this folder."""
    return sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))


def find(name: str) -> Article:
    """The article of the folder `name`; UserError for an unknown one."""
    one_of("article", name, names())
    return importlib.import_module(f"harness.plugins.articles.{name}").ARTICLE


def every() -> list[Article]:
    """All articles, sorted by name."""
    return [find(name) for name in names()]


def judged_articles(study: StudyResults) -> list[tuple[Article, list[Verdict]]]:
    """The articles of whose claims the records estimate an effect, with the verdicts on all of their claims."""
    judged = [(article, article.verdicts(study.rows.records, study.folder)) for article in every()]
    return [(article, verdicts) for article, verdicts in judged if any(v.judgement.effect for v in verdicts)]


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims are supported, refuted and not decided, and how many have each rarer verdict."""
    counts = Counter(verdict.judgement.decision for verdict in verdicts)
    rare = {TOO_SMALL: TOO_SMALL, DEPENDS: "dependent on the setting"}
    parts = [f"{counts[decision]} {decision}" for decision in (SUPPORTED, REFUTED)]
    parts += [f"{counts[decision]} {words}" for decision, words in rare.items() if counts[decision]]
    return ", ".join([*parts, f"{counts[OPEN]} {OPEN}"])


def command(claim: Claim) -> str:
    """The command that runs the cells which decide `claim`."""
    return f"python -m harness {claim.run}"


def to_decide(verdict: Verdict) -> str:
    """`command`, with as many seeds as are enough where that is a number that can be run."""
    typed, seeds = command(verdict.claim), enough_seeds(verdict.judgement)
    if seeds is None or seeds > MOST_SEEDS:
        return typed
    more = f"--confirm {seeds}" if verdict.fresh else shlex.quote(f"seed={listed(range(int(seeds)))}")
    return f"{typed} {more}"


def effect_text(verdict: Verdict) -> str:
    """The effect, with its 95% interval if it is known; the unit stands once."""
    effect, shown = verdict.judgement.effect, verdict.claim.shown
    if effect is None:
        return ABSENT
    if math.isnan(effect.low) or effect.low == effect.high:
        return shown(effect.value)
    low, high = (("any" if math.isinf(end) else shown(end).partition(" ")[0]) for end in effect[1:])
    return f"{shown(effect.value)} ({low} to {high})"


def _deciding(verdict: Verdict) -> str:
    """The command, with as many seeds as are enough where that can be told."""
    typed, seeds = to_decide(verdict), enough_seeds(verdict.judgement)
    if seeds is None:
        return f"`{typed}`"
    if math.isinf(seeds):
        return f"`{typed}` with more items (`eval.limit`): no number of seeds is enough, if the effect stays"
    if seeds > MOST_SEEDS:
        return f"`{typed}` with more than {MOST_SEEDS} seeds, if the effect stays"
    return f"`{typed}` ({seeds} seeds, if the effect stays)"


def _answer(verdicts: Sequence[Verdict], columns: Mapping[str, list[str]]) -> Iterator[str]:
    """Which claims hold here and which do not, by their names; with the places if that is not so in all."""
    places = defaultdict(list)
    for verdict in verdicts:
        places[verdict.claim.name, verdict.judgement.decision].append(_where(verdict, columns).partition(" of ")[2])
    judged = Counter(verdict.claim.name for verdict in verdicts)
    answers = {
        SUPPORTED: "These claims hold",
        REFUTED: "These do not hold",
        TOO_SMALL: "Too small to matter is the effect of these",
        DEPENDS: "These hold at some settings and not at others",
    }
    for decision, said in answers.items():
        names = [
            name if len(where) == judged[name] else f"{name} ({', '.join(where)})"
            for (name, found), where in places.items()
            if found == decision
        ]
        if names:
            yield f"{said}: {', '.join(names)}."
    if open_ := sum(verdict.judgement.decision == OPEN for verdict in verdicts):
        yield f"Not decided: {open_} of {len(verdicts)}. Below the table is the command that would decide each."


def _lack(verdict: Verdict) -> tuple[bool, bool]:
    return verdict.judgement.effect is None, not verdict.judgement.records


def _size(judgement: Judgement) -> str:
    parts = [] if judgement.seeds is None else [f"{judgement.seeds}"]
    return " × ".join(parts + ([] if judgement.items is None else [units.plural(judgement.items, "item")])) or ABSENT


def _where(verdict: Verdict, columns: Mapping[str, list[str]]) -> str:
    """The claim's name, with its place if the table has several."""
    shown = [name for name, column in zip(verdict.place, PLACE, strict=True) if column in columns]
    return " ".join([verdict.claim.name, *(["of"] if shown else []), *shown])


def _data(verdict: Verdict) -> dict[str, Any]:
    study, model, data = verdict.place
    values = asdict(verdict.judgement) | {"records": " ".join(verdict.judgement.records)}
    effect = verdict.judgement.effect or Interval(math.nan, math.nan, math.nan)
    for name in ("effect", "range", "small", "ratio", "corrected"):  # the last is a function
        del values[name]
    place = {"study": study, "model": model, "data": data}
    claim = {"claim": verdict.claim.name, "text": verdict.claim.text, "run": command(verdict.claim)}
    return claim | place | {"effect": effect.value, "low": effect.low, "high": effect.high} | values
