"""Which ranks tie at the number of rows of a study: by a score, else by the validation loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from records import make_record, make_score
from test_best import leave

from harness.config import ROOT
from harness.record import Lengths, read_study
from harness.report.answer import answer

REFERENCE = ROOT / "results" / "reference"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "demo"


def record_of(rank, seed, loss, *, method="lora", rows=1200, targets="all-linear", lr=1e-4, scores=()):
    adapt = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
    settings = {"method": {"name": method, "adapt": adapt}}
    record = make_record(method, rank, 2 * rank, lr, seed, settings=settings, scores=list(scores))
    record.validation[-1].loss = loss
    record.lengths = Lengths(records=rows, cut=0, dropped=0)
    return record


def by_loss(losses, seeds=3, noise=0.002, **fields):
    """Records of each rank with its loss, which differs by `noise` from seed to seed."""
    draw = np.random.default_rng(0)
    return [
        record_of(rank, seed, loss * np.exp(noise * draw.normal()), **fields)
        for rank, loss in losses.items()
        for seed in range(seeds)
    ]


def by_score(folder, shares, items=2000, **fields):
    """Records of each rank and the share of items that it gets right; a few differ from seed to seed."""
    found = []
    for rank, share in shares.items():
        for seed in range(3):
            right = (np.arange(items) < share * items).astype(float)
            right[np.random.default_rng([rank, seed]).integers(0, items, 4)] = 1.0
            found.append(leave(folder, record_of(rank, seed, 1.0, scores=[make_score()], **fields), right))
    return found


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({4: 1.0, 16: 1.0, 64: 1.0}, "With 1,200 rows, ranks 4 to 64 of lora tie by validation loss."),
        (
            {1: 1.3, 4: 1.0, 16: 1.0, 64: 1.0},
            "With 1,200 rows, ranks 4 to 64 of lora tie by validation loss, and rank 1 is worse.",
        ),
        (
            {1: 1.3, 4: 1.0, 16: 1.2, 64: 1.0},
            "With 1,200 rows, ranks 4 and 64 of lora tie by validation loss, and ranks 1 and 16 are worse.",
        ),
        ({1: 1.3, 4: 1.2, 16: 1.0}, "With 1,200 rows, rank 16 of lora is better than 1 and 4 by validation loss."),
    ],
)
def test_ranks_tie_by_their_losses(losses, said):
    (line,) = answer(by_loss(losses), None).ranks
    assert line.startswith(said)
    assert ("Differences of up to 1% of the loss between ranks that tie are possible." in line) == ("tie" in said)


def test_a_rank_that_did_not_finish_is_not_within_a_range_that_ties():
    records = by_loss({4: 0.6, 16: 0.6, 32: 0.6, 64: 0.6})
    for record in records:
        if record.cell.rank == 16:
            record.status = "diverged"
    (line,) = answer(records, None).ranks
    assert "ranks 4, 32 and 64 of lora tie" in line


def test_what_seeds_leave_open_ties_and_the_line_says_how_far_apart_ranks_may_be():
    (line,) = answer(by_loss({1: 1.02, 64: 1.0}, noise=0.1), None).ranks
    assert line.startswith("With 1,200 rows, ranks 1 and 64 of lora tie by validation loss. Differences of up to ")


def test_ranks_tie_by_the_score_that_decides_between_methods(folder):
    records = by_score(folder, {1: 0.3, 4: 0.6, 16: 0.6, 64: 0.6})
    (line,) = answer(records, folder).ranks
    assert line.startswith(
        "With 1,200 rows, ranks 4 to 64 of lora tie on gsm8k, and rank 1 is worse. Differences of up"
    )
    assert line.endswith(" between ranks that tie are possible.")
    assert "point" in line


def test_a_rank_without_the_score_is_not_within_a_range_that_ties(folder):
    records = by_score(folder, {4: 0.6, 8: 0.3, 16: 0.6, 64: 0.6})
    next(record for record in records if record.cell.rank == 8).scores = []
    (line,) = answer(records, folder).ranks
    assert "ranks 4, 16 and 64 of lora tie on gsm8k." in line


def test_scores_at_an_end_do_not_show_a_tie(folder):
    records = by_score(folder, {1: 0.0, 64: 0.0}, items=40)
    for record in records:
        path = folder / f"{record.cell.name}.items.parquet"
        path.unlink()
        leave(folder, record, np.zeros(40))
        record.validation[-1].loss = 1.5 if record.cell.rank == 1 else 1.0
    (line,) = answer(records, folder).ranks
    assert "by validation loss" in line


def test_methods_that_say_the_same_share_a_clause():
    both = [
        *by_loss({4: 1.0, 64: 1.0}),
        *by_loss({4: 1.0, 64: 1.0}, method="dora"),
        *by_loss({4: 1.2, 64: 1.0}, method="qlora"),
    ]
    (line,) = answer(both, None).ranks
    assert "ranks 4 and 64 of lora and dora tie by validation loss; rank 64 of qlora is better than 4" in line


@pytest.mark.parametrize(
    "records",
    [
        by_loss({64: 1.0}),
        by_loss({4: 1.0, 64: 1.0}, seeds=1),
        [*by_loss({4: 1.0}), *by_loss({64: 1.0}, seeds=1)],
    ],
    ids=["one rank", "one seed", "one seed of one"],
)
def test_nothing_is_said_of_one_rank_or_one_seed(records):
    assert answer(records, None).ranks == []


def test_fresh_seeds_of_the_chosen_rank_take_no_part():
    """They are of one rank alone: its seeds are others than those of the other ranks."""
    records = by_loss({4: 1.0, 64: 1.0})
    fresh = [replace(record_of(64, seed, 9.0), confirmation=True) for seed in range(3, 8)]
    (line,) = answer([*records, *fresh], None).ranks
    assert "ranks 4 and 64 of lora tie" in line


def test_adapters_on_other_layers_are_no_other_rank():
    elsewhere = by_loss({128: 2.0}, targets=["v_proj"])
    (line,) = answer([*by_loss({4: 1.0, 64: 1.0}), *elsewhere], None).ranks
    assert "128" not in line


def test_each_rank_is_looked_at_at_its_best_rate():
    (line,) = answer([*by_loss({4: 1.0, 64: 1.0}), *by_loss({64: 2.0}, lr=1e-2)], None).ranks
    assert "ranks 4 and 64 of lora tie" in line


def test_rows_are_left_out_where_they_are_unknown_or_differ():
    unknown = by_loss({4: 1.0, 64: 1.0})
    for record in unknown:
        record.lengths = None
    differing = [*by_loss({4: 1.0}), *by_loss({64: 1.0}, rows=900)]
    for records in (unknown, differing):
        (line,) = answer(records, None).ranks
        assert line.startswith("Ranks 4 and 64 of lora tie by validation loss.")


def test_the_line_stands_in_the_answer_and_on_the_page(folder):
    records = by_loss({4: 1.0, 64: 1.0})
    (line,) = answer(records, None).ranks
    assert line in answer(records, None).sentences
    assert answer(records, None).advice[0] == line


def test_a_published_study_says_which_ranks_tie():
    study = REFERENCE / "study_rank_fresh"
    assert answer(read_study(study)[0], study).ranks == [
        "Ranks 16 to 128 of lora tie on word problems. "
        "Differences of up to 2 points between ranks that tie are possible."
    ]
