"""Which ranks of a method tie at the number of rows that it was trained on.

    "With 1,200 rows, ranks 4 to 64 of lora tie on word problems, and rank 1 is worse. Differences of up to 4 points
    between ranks that tie are possible."

Each rank is taken at its own best setting, by seeds that took part in choosing it: fresh seeds are of one rank alone.
They are compared by the score that decides between methods, or by validation loss where no score is tested or all are
at one end of it. Adapters on other layers are no other rank: of several kinds the one with the most ranks is looked at.
Nothing is said of ranks with one seed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import units
from harness.grouping import grouped
from harness.record import Record
from harness.report.answer.advice import headline
from harness.report.answer.needed import item_supply
from harness.report.answer.words import ScoreWords
from harness.report.headline import FORGOTTEN
from harness.report.pairwise import Contest, contests
from harness.report.rank_losses import RankedLosses
from harness.report.select import Choice, Place, select
from harness.report.training_rows import training_rows

BY_LOSS = "by validation loss"
OF_RANK = ("r", "lora_alpha")  # settings of an adapter that follow its rank


@dataclass(frozen=True)
class RankTies:
    """What is known of the ranks of one method in one place.

    tied: those that are not told from the best one, itself included; ascending. worse: the others. by: the score, or
    BY_LOSS. most: how far apart those that tie may be, in words; empty of one. size: the same as a number, of one `by`.
    unknown: ranks that were tried and did not finish with two seeds, or lack the score with one.
    """

    method: str
    tied: tuple[int, ...]
    worse: tuple[int, ...]
    by: str
    most: str
    size: float
    unknown: tuple[int, ...] = ()


def rank_sentences(records: Sequence[Record], folder: Path | None, place: Place) -> str | None:
    """One or two sentences on the ranks of all methods of a place; None if no method has two ranks with two seeds."""
    unconfirmed = [r for r in records if (r.study, r.cell.model, r.cell.data) == place and not r.confirmation]
    ranked = {
        method: _ranked(unconfirmed, method) for method in dict.fromkeys(record.cell.method for record in unconfirmed)
    }
    by_method = {method: choices for method, (choices, _) in ranked.items() if len(choices) > 1}
    summaries = {method: _ties(unconfirmed, folder, choices) for method, choices in by_method.items()}
    ties = [
        replace(each, unknown=(*ranked[method][1], *each.unknown))
        for method, each in summaries.items()
        if each is not None
    ]
    if not ties:
        return None
    rows = {training_rows(unconfirmed[choice.index[0]]) for choices in by_method.values() for choice in choices}
    count = rows.pop() if len(rows) == 1 else None
    return _sentences(ties, f"With {units.plural(count, 'row')}, " if count else "")


def _ranked(records: Sequence[Record], method: str) -> tuple[list[Choice], tuple[int, ...]]:
    """The best setting of each rank of a method with two seeds, of its kind of adapter with the most ranks; and the
    other ranks that were tried of that kind."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if record.cell.method == method and record.cell.rank is not None:
            adapt = record.cell.settings.method.adapt or {}
            kinds[json.dumps({k: v for k, v in adapt.items() if k not in OF_RANK}, sort_keys=True)].append(i)
    most: list[Choice] = []
    others: tuple[int, ...] = ()
    for index in kinds.values():
        best = select([records[i] for i in index], ("method", "rank"))
        choices = [replace(c, index=tuple(index[i] for i in c.index)) for c in best if len(c.index) > 1]
        if len(choices) > len(most):
            ranks = {records[i].cell.rank or 0 for i in index}
            most, others = choices, tuple(sorted(ranks - {_rank_of(choice) for choice in choices}))
    return most, others


def _ties(records: Sequence[Record], folder: Path | None, choices: Sequence[Choice]) -> RankTies | None:
    contest = headline(contests(records, folder, choices), choices[0].place)
    if contest is not None and _tells(contest, records):
        return _by_score(contest, choices)
    return _by_loss({_rank_of(choice): [records[i] for i in choice.index] for choice in choices}, choices[0].method)


def _tells(contest: Contest, records: Sequence[Record]) -> bool:
    """Whether the score is of what was trained, all ranks are tested by it, and they are not all at one end of it."""
    standings = contest.standings
    if contest.score in FORGOTTEN or any(s.letters is None for s in standings) or len(contest.paired) > 1:
        return False
    supply = item_supply(records[standings[0].choice.index[0]], contest.score)
    return len(standings) > 1 and not (ScoreWords(contest).shares and supply.end([s.value for s in standings]))


def _by_score(contest: Contest, choices: Sequence[Choice]) -> RankTies:
    words = ScoreWords(contest)
    ranks = {choice.label: _rank_of(choice) for choice in choices}
    best = contest.standings[0].choice.label
    tied = [best, *contest.tied(best)]
    gaps = [gap for pair in itertools.combinations(tied, 2) if (gap := contest.difference(*pair))]
    size = max((end for gap in gaps for end in (gap.high, -gap.low)), default=0.0)
    scored = {standing.choice.label for standing in contest.standings}
    worse = sorted(ranks[label] for label in scored - {*tied})
    most = words.points(size, math.ceil) if len(tied) > 1 else ""
    unknown = tuple(rank for label, rank in ranks.items() if label not in scored)
    equal = tuple(sorted(ranks[label] for label in tied))
    return RankTies(choices[0].method, equal, tuple(worse), f"on {words.task}", most, size, unknown)


def _by_loss(by_rank: Mapping[int, Sequence[Record]], method: str) -> RankTies | None:
    """Each rank against the one with the least loss, which luck may have made so: corrected for all pairs."""
    losses = RankedLosses.from_records(by_rank)
    if losses is None:
        return None
    pairs = math.comb(len(losses.ranks), 2)
    ends = {rank: losses.penalty(rank, losses.best).among(pairs) for rank in losses.ranks if rank != losses.best}
    worse = tuple(rank for rank, end in ends.items() if end.low > 1)
    tied = tuple(rank for rank in losses.ranks if rank not in worse)
    between = [losses.penalty(*pair).among(1) for pair in itertools.combinations(tied, 2)]
    size = max((max(end.high, 1 / end.low) - 1 for end in between), default=0.0)
    most = f"{math.ceil(100 * size)}% of the loss" if between else ""
    return RankTies(method, tied, worse, BY_LOSS, most, size)


def _rank_of(choice: Choice) -> int:
    """Of a choice that has one."""
    return choice.rank or 0


def _sentences(ties: Sequence[RankTies], opening: str) -> str:
    alike = grouped(((each.tied, each.worse, each.by, each.unknown), each.method) for each in ties)
    text = opening + "; ".join(_clause(*key, methods) for key, methods in alike.items())
    return " ".join([f"{text[0].upper()}{text[1:]}.", *_possible(ties)])


def _clause(tied: Sequence[int], worse: Sequence[int], by: str, unknown: Sequence[int], methods: Sequence[str]) -> str:
    """Ranks 4 to 64 of lora and dora tie on word problems, and rank 1 is worse"""
    of = f"of {units.listed(methods)}"
    if len(tied) == 1:
        return f"rank {tied[0]} {of} is better than {units.listed(map(str, worse))} {by}"
    every = sorted([*tied, *worse, *unknown])
    first, last = every.index(tied[0]), every.index(tied[-1])
    run = len(tied) > 2 and every[first : last + 1] == list(tied)
    named = f"{tied[0]} to {tied[-1]}" if run else units.listed(map(str, tied))
    clause = f"ranks {named} {of} tie {by}"
    if not worse:
        return clause
    verb = "rank {} is" if len(worse) == 1 else "ranks {} are"
    return f"{clause}, and {verb.format(units.listed(map(str, worse)))} worse"


def _possible(ties: Sequence[RankTies]) -> Iterator[str]:
    """The largest difference that ranks may have that tie, by each score."""
    by_score = grouped((each.by, each) for each in ties if each.most)
    most = [max(each, key=lambda one: one.size).most for each in by_score.values()]
    if most:
        yield f"Differences of up to {units.listed(most)} between ranks that tie are possible."
