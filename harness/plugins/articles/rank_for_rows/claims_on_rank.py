"""Claims on the rank of LoRA by the number of rows to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.plugins.articles.claims import ONE_SEED, OPEN, Bounds, Judgement, judged, lacking
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.lora_without_regret.losses import on_all_layers
from harness.plugins.articles.rank_for_rows.needed import TIE, needed_rank
from harness.plugins.articles.rules import everywhere
from harness.record import Record, losses_by_seed
from harness.report.rank_losses import ByRank, RankedLosses
from harness.report.statistics import Interval
from harness.report.training_rows import training_rows

SPAN = 16  # times as many rows, between which the needed rank is compared
GROWS = 2.0  # a needed rank that is higher by less is the same: ranks are tried two to four times apart
GROWN = Bounds(low=GROWS, small=(1 / GROWS, GROWS), ratio=True, margin="a factor of 2", more="higher", less="lower")
ENOUGH = Bounds(low=0.0, high=TIE, ratio=True)
LARGE = 64  # a rank from which on more capacity was tried than the rule ever gives
SMALL, FEW = 4, 1_600
COMMON, MANY = 16, 10_000


def needed_rank_grows(at: Evidence) -> Judgement:
    """The needed rank at the most rows over that at the fewest."""
    by_rows = _by_rows(at)
    if not by_rows or max(by_rows) < SPAN * min(by_rows):
        return lacking(f"lora at two ranks, with numbers of rows that span {SPAN}×")
    fewest, most = min(by_rows), max(by_rows)
    if by_rows[fewest].keys() != by_rows[most].keys():
        return Judgement(OPEN, why=f"The ranks differ between {fewest:,} and {most:,} rows")
    few, many = (RankedLosses.from_records(by_rows[rows]) for rows in (fewest, most))
    if few is None or many is None:
        return _without_seeds([by_rows[fewest], by_rows[most]])

    def intervals(comparisons: float) -> Interval:
        """Both needed ranks lie in intervals that are corrected for their number, two."""
        below, above = needed_rank(few, 2 * comparisons), needed_rank(many, 2 * comparisons)
        return Interval(above.value / below.value, above.low / below.high, above.high / below.low)

    return judged(intervals, GROWN, min(few.seeds, many.seeds), (*few.records, *many.records))


def small_ranks_suffice(at: Evidence) -> Judgement:
    return _suffices(at, SMALL, FEW)


def rank_16_suffices(at: Evidence) -> Judgement:
    return _suffices(at, COMMON, MANY - 1)


def _suffices(at: Evidence, rank: int, most: int) -> Judgement:
    """The loss of `rank` over that of the largest rank, at each number of rows up to `most`."""
    by_rows = _by_rows(at)
    compared = [rows for rows, by_rank in by_rows.items() if rows <= most and rank in by_rank and max(by_rank) >= LARGE]
    if not compared:
        return lacking(f"lora at rank {rank} and at {LARGE} or above, up to {most:,} rows")
    return everywhere([(f"{rows:,} rows", _penalty(by_rows[rows], rank)) for rows in compared])


def _penalty(by_rank: ByRank, rank: int) -> Judgement:
    losses = RankedLosses.from_records(by_rank)
    if losses is None:
        return _without_seeds([by_rank])
    largest = max(by_rank)
    used = tuple(record.cell.name for each in (rank, largest) for record in by_rank[each])
    return judged(losses.penalty(rank, largest).among, ENOUGH, losses.seeds, used)


def _without_seeds(sides: Sequence[ByRank]) -> Judgement:
    """Of ranks that do not share two seeds with losses."""
    used = tuple(record.cell.name for side in sides for group in side.values() for record in group)
    seeds = min(len(losses_by_seed(group)) for side in sides for group in side.values())
    why = {0: "No validation losses", 1: ONE_SEED}.get(seeds, "The ranks do not share two seeds")
    return Judgement(OPEN, None, seeds, None, used, why)


def _by_rows(at: Evidence) -> dict[int, ByRank]:
    """By number of rows the records of LoRA on all layers at each rank, in its setting with the least loss; ascending.

    Without numbers of rows at which a single rank has one.
    """
    lora = at.where(lambda record: record.cell.method == "lora" and on_all_layers(record))
    counts = sorted({rows for record in lora.records if (rows := training_rows(record)) is not None})
    by_rows: dict[int, ByRank] = {}
    for rows in counts:
        part = lora.where(_of_rows(rows))
        by_rank = {key[1]: part.chosen(choice) for key, choice in part.choices("rank").items()}
        if len(by_rank) > 1:
            by_rows[rows] = by_rank
    return by_rows


def _of_rows(rows: int) -> Callable[[Record], bool]:
    return lambda record: training_rows(record) == rows
