"""The rule of thumb on rank by rows, on synthetic records: supported, refuted, too small, not decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from records import make_record

from harness.plugins.articles.article import find
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, TOO_SMALL
from harness.plugins.articles.rank_for_rows.needed import needed_rank
from harness.record import Lengths
from harness.report.rank_losses import RankedLosses
from harness.report.statistics import of_losses
from harness.report.training_rows import training_rows

ARTICLE = find("rank_for_rows")
RANKS = (1, 4, 16, 64)
FLAT = dict.fromkeys(RANKS, 1.0)
STEEP = {1: 1.6, 4: 1.4, 16: 1.0, 64: 1.0}  # needs rank 16


def records_of(rows, losses, seeds=3, spread=0.001, *, noise=None, targets="all-linear", lr=1e-3, data="facts"):
    """Records of LoRA at each rank of `losses` (by rank), trained on `rows` rows; losses differ by `spread` a seed, or
    by what `noise` draws with this standard deviation."""
    draw = np.random.default_rng(rows)
    found = []
    for rank, loss in losses.items():
        for seed in range(seeds):
            adapt = {"r": rank, "target_modules": targets}
            settings = {
                "method": {"name": "lora", "adapt": adapt},
                "data": {"name": data, "limit": rows},
                "train": {"batch_size": 16, "max_steps": 500},
            }
            record = make_record("lora", rank, 32, lr, seed, data=f"{data} limit={rows}", settings=settings, scores=[])
            record.train = replace(record.train, steps=500)
            factor = np.exp(noise * draw.normal()) if noise else 1 + spread * seed
            record.validation[-1].loss = loss * factor
            found.append(record)
    return found


def judgement(records, name):
    """By the public function, over all numbers of rows of a study, in one place."""
    merged = ARTICLE.merged([(records, None)])
    verdicts = {verdict.claim.name: verdict.judgement for verdict in [*merged.judged, *merged.not_judged]}
    return verdicts[name]


@pytest.mark.parametrize(
    ("few", "many", "decision", "effect"),
    [
        (FLAT, STEEP, SUPPORTED, 16),
        (FLAT, FLAT, TOO_SMALL, 1),
        (STEEP, STEEP, TOO_SMALL, 1),
        (STEEP, FLAT, REFUTED, 1 / 16),
        (FLAT, {1: 1.2, 4: 1.0, 16: 1.0, 64: 1.0}, SUPPORTED, 4),
        ({1: 1.2, 4: 1.0, 16: 1.0, 64: 1.0}, FLAT, REFUTED, 1 / 4),
        (FLAT, {1: 1.09, 4: 1.0, 16: 1.0, 64: 1.0}, TOO_SMALL, 1),  # 9% is less than matters
        (FLAT, {1: 1.11, 4: 1.0, 16: 1.0, 64: 1.0}, SUPPORTED, 4),
    ],
)
def test_the_needed_rank_grows(few, many, decision, effect):
    found = judgement([*records_of(100, few), *records_of(6400, many)], "needed-rank-grows")
    assert (found.decision, found.effect.value) == (decision, effect)
    assert found.seeds == 3
    assert len(found.records) == 2 * 3 * len(RANKS)


def test_every_judgement_can_be_judged_again_as_one_of_several():
    records = [*records_of(100, FLAT, noise=0.01), *records_of(6400, STEEP, noise=0.01)]
    for name in ARTICLE.claims:
        found = judgement(records, name)
        assert found.among(1) == found.decision != OPEN
        assert found.among(10_000) in (found.decision, OPEN)


@pytest.mark.parametrize(("wrong", "noise"), [(FLAT, 0.06), (STEEP, 0.4)])
def test_what_seeds_leave_open_is_open(wrong, noise):
    """The interval holds ranks that some larger one may beat or not; its effect is still that of the means."""
    found = judgement([*records_of(100, FLAT), *records_of(6400, wrong, noise=noise)], "needed-rank-grows")
    assert found.decision == OPEN
    assert found.effect.low <= found.effect.value <= found.effect.high
    assert found.effect.low < found.effect.high


def test_the_fewest_and_the_most_rows_are_compared():
    between = [*records_of(400, STEEP), *records_of(1600, STEEP)]
    found = judgement([*records_of(100, FLAT), *between, *records_of(6400, FLAT)], "needed-rank-grows")
    assert (found.decision, found.effect.value) == (TOO_SMALL, 1)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "No finished lora at two ranks, with numbers of rows that span 16×"),
        ([(400, FLAT)], "No finished lora at two ranks, with numbers of rows that span 16×"),
        ([(6400, {1: 1.0, 16: 1.0})], "The ranks differ between 100 and 6,400 rows"),
    ],
)
def test_what_the_claim_lacks_is_named(records, why):
    more = [record for rows, losses in records for record in records_of(rows, losses)]
    found = judgement([*records_of(100, FLAT), *more], "needed-rank-grows")
    assert (found.decision, found.why, found.effect) == (OPEN, why, None)


@pytest.mark.parametrize("name", ["needed-rank-grows", "small-ranks-suffice", "rank-16-suffices"])
def test_one_seed_decides_nothing(name):
    found = judgement([*records_of(100, FLAT, seeds=1), *records_of(6400, STEEP, seeds=1)], name)
    assert (found.decision, found.why) == (OPEN, "One seed")


def test_each_rank_is_compared_at_its_best_rate_and_on_all_layers():
    worse = [*records_of(6400, {1: 3.0}, lr=1e-2), *records_of(6400, {64: 3.0}, lr=1e-2)]
    apart = records_of(6400, {1: 9.0}, targets=["v_proj"])
    found = judgement([*records_of(100, FLAT), *records_of(6400, FLAT), *worse, *apart], "needed-rank-grows")
    assert found.decision == TOO_SMALL
    assert not {record.cell.name for record in (*worse, *apart)} & {*found.records}


def test_losses_of_what_is_known_are_alike():
    """Twice as high a loss is no reason for a larger rank where both are below 0.05 nats per token."""
    known = {1: 0.04, 4: 0.02, 16: 0.02, 64: 0.01}
    found = judgement([*records_of(100, known), *records_of(6400, FLAT)], "needed-rank-grows")
    assert (found.decision, found.effect) == (TOO_SMALL, (1, 1, 1))


@pytest.mark.parametrize(
    ("loss", "name", "decision"),
    [
        (1.09, "small-ranks-suffice", SUPPORTED),
        (1.11, "small-ranks-suffice", REFUTED),
        (0.9, "small-ranks-suffice", SUPPORTED),
        (1.0, "rank-16-suffices", SUPPORTED),
    ],
)
def test_a_rank_suffices(loss, name, decision):
    found = judgement(records_of(1600, {1: 2.0, 4: loss, 16: 1.0, 64: 1.0}), name)
    assert (found.decision, found.seeds) == (decision, 3)
    assert found.effect.value == pytest.approx(loss if name.startswith("small") else 1.0)


def test_a_noisy_loss_leaves_open_whether_a_rank_suffices():
    found = judgement(records_of(1600, FLAT, noise=0.1), "small-ranks-suffice")
    assert (found.decision, found.why) == (OPEN, "The interval includes both outcomes")


def test_a_rank_that_suffices_at_few_rows_alone_depends_on_them():
    bad = {1: 1.5, 4: 1.5, 16: 1.0, 64: 1.0}
    found = judgement([*records_of(100, FLAT), *records_of(1600, bad)], "small-ranks-suffice")
    assert found.decision == DEPENDS
    assert found.why == "supported at 100 rows; refuted at 1,600 rows"


def test_more_rows_than_the_claim_is_on_are_left_out():
    bad = {1: 1.5, 4: 1.5, 16: 1.5, 64: 1.0}
    records = [*records_of(1600, FLAT), *records_of(1601, bad)]
    assert judgement(records, "small-ranks-suffice").decision == SUPPORTED
    assert judgement(records, "rank-16-suffices").decision == DEPENDS


def test_data_sets_are_places_of_their_own_and_numbers_of_rows_are_not():
    records = [
        record for rows in (100, 6400) for data in ("facts", "skill") for record in records_of(rows, FLAT, data=data)
    ]
    (grows, *_) = ARTICLE.merged([(records, None)]).judged
    assert [verdict.place for verdict in grows.places] == [
        ("demo", "smollm2-135m", data) for data in ("facts", "skill")
    ]


def needed(losses, comparisons=1, **keywords):
    return needed_rank(ranked(records_of(100, losses, **keywords)), comparisons)


def ranked(records):
    by_rank = {rank: [r for r in records if r.cell.rank == rank] for rank in {r.cell.rank for r in records}}
    return RankedLosses.from_records(by_rank)


@pytest.mark.parametrize(
    ("losses", "interval"),
    [
        (FLAT, (1, 1, 1)),
        (STEEP, (16, 16, 16)),
        ({1: 2.0, 4: 1.6, 16: 1.3, 64: 1.0}, (64, 64, 64)),
        ({1: 1.0, 4: 1.3, 16: 1.3, 64: 1.0}, (1, 1, 64)),  # 4 and 16 are beaten, so that no rank below 64 is sure
    ],
)
def test_the_needed_rank_is_the_smallest_that_no_larger_one_beats(losses, interval):
    assert needed(losses) == interval


def test_an_interval_of_more_comparisons_is_no_shorter():
    steep = {1: 1.25, 4: 1.15, 16: 1.0, 64: 1.0}
    one, many = (needed(steep, comparisons, noise=0.015) for comparisons in (1, 10_000))
    assert many.low <= one.low <= one.value <= one.high <= many.high
    assert (many.low, many.high) != (one.low, one.high)


EDGE = {1: 1.12, 4: 1.0, 16: 1.0, 64: 1.0}  # rank 1 is just not enough
INSIDE = {1: 1.09, 4: 1.0, 16: 1.0, 64: 1.0}
NOISE = {"alike": (0.04,) * 4, "erratic": (0.12, 0.03, 0.03, 0.03)}  # of each rank, by seed


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize(("losses", "truth"), [(FLAT, 1), (EDGE, 4), (INSIDE, 1), (STEEP, 16)])
def test_the_needed_rank_lies_in_its_interval_in_95_percent_of_studies(losses, truth, noise):
    """Of three seeds, with their spread in our records, and with one erratic rank."""
    draw, held, studies = np.random.default_rng(1), 0, 1000
    means = np.log([losses[rank] for rank in RANKS])[:, None]
    for _ in range(studies):
        logs = means + np.array(NOISE[noise])[:, None] * draw.normal(size=(4, 3)) + draw.normal(size=3)
        _, low, high = needed_rank(RankedLosses(RANKS, logs), 1)
        held += low <= truth <= high
    assert held / studies > 0.94


def test_a_penalty_is_that_of_its_own_seeds_where_nothing_else_is_known():
    records = [*records_of(100, {4: 1.2}, noise=0.1), *records_of(100, {64: 1.0})]
    one, other = (dict(enumerate(r.validation[-1].loss for r in records if r.cell.rank == rank)) for rank in (4, 64))
    expected = of_losses([one], [other])
    assert ranked(records).penalty(4, 64).among(1) == pytest.approx(expected.interval)


def test_other_ranks_tell_how_much_a_ratio_varies():
    """Two ranks that happen to be alike in three seeds are no surer than the others are."""
    records = [*records_of(100, {4: 1.0, 64: 1.0}), *records_of(100, {1: 1.0}, noise=0.1), *records_of(100, {16: 1.0})]
    alone = ranked([record for record in records if record.cell.rank in (4, 64)]).penalty(4, 64).among(1)
    assert (alone.low, alone.high) == pytest.approx((1, 1))
    low, high = ranked(records).penalty(4, 64).among(1)[1:]
    assert low < 0.97 < 1.03 < high


# Rows


def test_rows_are_those_that_training_read():
    (record,) = records_of(100, {1: 1.0}, seeds=1)
    assert training_rows(record) == 100
    record.train = replace(record.train, steps=2)
    assert training_rows(record) == 32
    record.lengths = Lengths(records=1200, cut=0, dropped=0)
    assert training_rows(record) == 1200
    assert training_rows(make_record("lora")) is None
    assert training_rows(make_record("base")) is None
