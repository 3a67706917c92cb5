"""What stands before all else: which method to take, or which tie and what then, and what decides the rest."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from plans import make_plan, planned_record
from records import change, make_record, make_score
from scipy import stats
from test_best import leave

from harness import read, terminal
from harness.cli.sweep import _answer as sweep_answer
from harness.config import ROOT
from harness.record import (
    Memory,
    Phase,
    add_plans,
    note_command,
    noted_commands,
    read_study,
    repeated_sweeps,
    studies,
)
from harness.record.commands import VALUES
from harness.report.answer import answer
from harness.report.answer.advice import ahead
from harness.report.answer.contaminated import cautions
from harness.report.answer.needed import ItemSupply, item_supply, seeds_needed, times_as_many_items
from harness.report.answer.next_run import with_seeds
from harness.report.answer.place import by_cost
from harness.report.answer.words import ScoreWords
from harness.report.chosen import chosen
from harness.report.figures.accuracy import accuracy_memory
from harness.report.figures.messages import against_best
from harness.report.figures.study_results import StudyResults
from harness.report.frame import score_name
from harness.report.pages.page import render
from harness.report.pairwise import MOST_PAIRED, contests
from harness.report.statistics import ALPHA, Difference
from harness.report.statistics.ranges import range_quantile
from harness.report.tables import screen
from harness.report.tables.best import best, tables
from harness.report.tables.formats import document, one_line
from harness.report.tables.frames import chosen_of
from harness.validate import SETTINGS

REFERENCE = ROOT / "results" / "reference"
DIFFERENT = ["gsm8k", "peft_llama_3_2_3b", "quickstart", "smollm2", "study_rank"]  # in data, seeds and tasks
ONE_RATE = "At the one learning rate tried of each method, "
ONE_SEED = "No method is recommended: one seed compares trained models, not methods."
BITS = {"task": "plain_text", "metric": "bits_per_byte", "filter": "none", "higher_is_better": False}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "demo"


def rights(share, seed, items=2000):
    """Answers of which `share` are right, the easy items first: a few differ from seed to seed."""
    found = (np.arange(items) < share * items).astype(float)
    found[np.random.default_rng(seed).integers(0, items, 4)] = 1.0
    return found


def trained(folder, shares, seeds=3, **fields):
    """Records of methods in one setting each, by the share of items that they get right; a method without seed."""
    return [
        leave(
            folder, make_record(method, lr=None if "base" in method else 1e-4, seed=seed, **fields), rights(share, seed)
        )
        for method, share in shares.items()
        for seed in range(1 if "base" in method else seeds)
    ]


@pytest.mark.parametrize("other", [0.5, 0.795])
def test_fresh_seeds_that_diverged_are_said_and_the_others_compared(folder, other):
    records = trained(folder, {"lora": 0.8, "full": other}, seeds=4)
    for record in records:
        record.confirmation = record.cell.seed != 0
        if record.cell.method == "lora" and record.cell.seed == 1:
            record.status, record.scores = "diverged", []
    (text,) = answer(records, folder).sentences[:1]
    assert re.search(r"[Oo]f lora's 3 fresh seeds, 1 diverged", text)
    assert "lora" in text.split(".")[0]


def add_score(folder, record, values, score):
    """Gives a record of `leave` one more score, of other items."""
    score.value, path = float(values.mean()), folder / f"{record.cell.name}.items.parquet"
    record.scores.append(score)
    items = pd.DataFrame({"task": score.task, "subject": score.task, "item": range(len(values)), "hash": "0"})
    items = items.assign(filter=score.filter, metric=score.metric, value=values, prediction="1", target="1")
    pd.concat([pd.read_parquet(path), items]).to_parquet(path, index=False)


def test_a_method_is_taken_and_the_others_are_told_by_what_they_cost(folder):
    """Of lora (1 GiB), qlora (half of it) and full (twice of it), all better than base."""
    records = trained(folder, {"base": 0.2, "lora": 0.61, "qlora": 0.5, "full": 0.4})
    (text,) = best(records, folder).answer
    assert re.fullmatch(
        ONE_RATE + r"take lora lr=1e-4: at least \d+ points better than the rest on gsm8k\. "
        r"It scores 61% \(59–63\) at 1\.00 GiB\. "
        r"qlora saves 50% of the memory of lora and loses \d+ to \d+ points\.",
        text,
    )
    (place,) = answer(records, folder).places.values()
    assert (place.decision.take, place.decision.tied) == ("lora", ())


def test_a_loss_is_said_of_the_method_that_it_was_tested_against(folder):
    """dora has the highest score, but lora, which ties with it, needs less memory, and qlora the least."""
    records = trained(folder, {"base": 0.2, "lora": 0.606, "qlora": 0.5, "dora": 0.61})
    (text,) = best(records, folder).answer
    assert re.search(r"qlora saves 50% of the memory of lora and loses \d+ to \d+ points against dora\.$", text), text


def test_methods_within_the_margin_tie_everywhere(folder):
    """lora is surely a little worse than dora: half a point, of the same items at each seed."""
    records = trained(folder, {"base": 0.2, "lora": 0.604, "full": 0.4, "dora": 0.61})
    (text,) = best(records, folder).answer
    assert "lora and dora tie within 2 points" in text
    (contest,) = contests(records, folder)
    assert contest.corrected["dora", "lora"] < ALPHA
    assert contest.decision("lora") == "equivalent"
    assert "full and base are worse" in against_best(contest)
    assert ahead(contest, False).partition(": ")[2] == (
        "dora and lora tie. Significantly worse than dora: full and base. Equivalent to dora within ± 2 points: lora."
    )


def test_an_answer_begins_with_a_capital(folder):
    records = trained(folder, {"base": 0.6, "lora": 0.4})
    (text,) = best(records, folder).answer
    assert "Untuned, base is significantly better." in text


def test_methods_that_tie_stand_by_cost_and_what_to_take_under_a_limit_is_said(folder):
    """lora, of 0.2 points more, is first by its memory, not by its score."""
    records = trained(folder, {"base": 0.2, "lora": 0.61, "qlora": 0.5, "full": 0.4, "dora": 0.608})
    (text,) = best(records, folder).answer
    assert text.startswith(
        f"{ONE_RATE}lora and dora tie within 2 points on gsm8k (60.9 to 61.1%). "
        "Of these, lora needs the least memory (1.00 GiB; dora 1.10 GiB) and is the fastest (500 tokens/s; dora 350 "
        "tokens/s). "
    )
    assert re.search(
        r"Each is at least \d+ points better than base; qlora saves 50% of the memory of lora and loses \d+ to \d+ "
        r"points; significantly worse than lora: full\.$",
        text,
    )
    (place,) = answer(records, folder).places.values()
    assert place.decision.take is None
    assert place.decision.tied == ("dora", "lora")
    assert place.decision.under["memory"] == "lora"
    assert [standing.choice.label for standing in place.best] == ["lora", "dora"]


def test_before_a_plan_is_finished_the_answer_begins_with_that_and_asks_for_nothing_else(folder):
    shares = {"lora": 0.61, "full": 0.6}
    records = [leave(folder, planned_record(method), rights(share, 0)) for method, share in shares.items()]
    note_command(folder, ["sweep", "quickstart", "study=demo", "seed=0,1"])
    before = best(records, folder).answer
    assert before[-1].startswith("To compare methods, run about 3 seeds: ")
    add_plans(folder, [make_plan([*records, *(planned_record(method, seed=1) for method in shares)])])
    begun, said = best(records, folder).answer
    assert begun == (
        "Interim, nothing is decided yet. The plan of 2026-01-02 has 2 of 4 cells; the same command runs the rest."
    )
    assert said == before[0]
    assert not any("Interim" in line for line in best(records, folder).caption)
    (cell,) = chosen(records, folder).values()
    assert cell.answer == f"{begun} {said}"
    (title,) = messages(records, folder)
    assert title.startswith("Interim: Undecided. lora needs the least memory")


def messages(records, folder):
    """The titles of the panels of score against memory."""
    axes = accuracy_memory(StudyResults(records, folder)).figure.axes
    return [title for each in axes if (title := each.get_title("left") or each.get_title())]


def test_a_place_has_at_most_three_sentences(folder):
    records = trained(folder, {"base": 0.2, "lora": 0.61, "qlora": 0.5, "full": 0.4, "dora": 0.608})
    records.append(make_record("galore", status="oom"))
    (place,) = answer(records, folder).places.values()
    assert len(place.sentences) == 3
    assert place.sentences[-1].endswith("; no result: galore (1 oom).")


def test_of_methods_that_tie_the_one_that_forgets_least_is_named(folder):
    records = []
    for method, forgotten in (("lora", 1.0), ("full", 1.1)):
        for seed in range(3):
            record = leave(folder, make_record(method, lr=1e-4, seed=seed), rights(0.5, seed))
            values = forgotten + np.random.default_rng([seed, int(10 * forgotten)]).normal(0, 0.01, 200)
            add_score(folder, record, values, make_score(n=200, **BITS))
            records.append(record)
    said = " ".join(best(records, folder).answer)
    assert "Of these, lora needs the least memory (1.00 GiB; full 2.00 GiB), is the fastest (" in said
    assert ") and forgets least (plain text)." in said


def test_with_a_price_the_cheapest_run_is_named(folder):
    """dora, of the most memory, ran a quarter as long."""
    records = trained(folder, {"lora": 0.5, "dora": 0.5})
    for record in records:  # in turn, as runs of a method that follow each other are one
        dora = record.cell.method == "dora"
        record.seconds = (900.0 if dora else 3600.0) * (1 + 0.01 * record.cell.seed)
        record.started = f"2026-01-{1 + 2 * record.cell.seed + dora:02}T03:00:00+00:00"
    (text,) = tables(records, folder, price=2.0)[0].answer[:1]
    assert (
        ") and is the fastest (500 tokens/s; dora 350 tokens/s); dora is the cheapest ($0.51 a run; lora $2.02)."
        in text
    )
    assert "cheapest" not in tables(records, folder)[0].answer[0]


def test_ties_that_costs_do_not_decide_stand_by_name():
    assert by_cost({"lora": 101.0, "dora": 100.0, "full": 200.0, "bone": 101.5}) == ["bone", "dora", "lora", "full"]
    assert by_cost({"lora": None, "dora": 3.0, "full": 2.0}) == ["dora", "full", "lora"]


def test_how_far_apart_methods_may_be_is_the_end_of_their_interval(folder):
    """That all pairs are within the widest bound holds if it holds for the one that is farthest apart."""
    draw = np.random.default_rng(1)
    records = []
    for method, share in (("lora", 0.62), ("dora", 0.6), ("full", 0.3)):
        for seed in range(3):
            values = (draw.random(1500) < share).astype(float)
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), values))
    (contest,) = contests(records, folder)
    gap = contest.differences["lora", "dora"]
    half = stats.t.ppf(1 - 0.05 / 2, gap.freedom) * gap.error
    lines = best(records, folder).answer
    assert lines[0].startswith(f"{ONE_RATE}lora and dora tie on gsm8k (")
    most = math.ceil(100 * (half + gap.value))
    assert f"Differences of up to {most} points between them are possible" in lines[0]
    assert "; significantly worse than lora: full." in lines[0]
    assert lines[1].startswith("To tell dora from lora, ")


@pytest.mark.parametrize(
    ("base", "end"),
    [
        (0.61, "; none is shown to be better than base."),
        (0.6, "; only lora is shown to be better than base."),
        (0.7, "; untuned, base is significantly better."),
    ],
)
def test_of_one_seed_too_the_untuned_model_is_named(folder, base, end):
    records = trained(folder, {"base": base, "lora": 0.61, "dora": 0.6}, seeds=1)
    said = best(records, folder).answer[0]
    assert said.startswith(ONE_SEED)
    assert end in said


def test_nothing_is_taken_that_is_not_better_than_the_base(folder):
    records = trained(folder, {"base": 0.5, "lora": 0.5, "full": 0.3})
    text = " ".join(best(records, folder).answer)
    assert text.startswith(f"{ONE_RATE}no method is shown to be better than base on gsm8k; lora is at least ")
    (place,) = answer(records, folder).places.values()
    assert place.decision.take is None
    records = trained(folder, {"base": 0.7, "lora": 0.5, "full": 0.3})
    (text,) = best(records, folder).answer
    assert text.startswith(f"{ONE_RATE}take base, untuned: at least ")
    assert text.endswith(" points better than every method on gsm8k.")


def test_one_seed_says_what_is_true_of_its_runs_and_how_to_decide(folder):
    records = trained(folder, {"base": 0.2, "lora": 0.61, "qlora": 0.5, "dora": 0.6}, seeds=1)
    note_command(folder, ["sweep", "quickstart", "study=demo", "seed=0"])
    said, left = best(records, folder).answer
    assert said == (
        f"{ONE_SEED} Of these models lora and dora tie within 2 points on gsm8k (60.1 to 61.1%); "
        "qlora scored significantly lower than lora. "
        "qlora needs the least memory (512 MiB; the others at least 1.00 GiB)."
    )
    assert left == "To compare methods, run about 3 seeds: `harness sweep quickstart study=demo seed=0,1,2`."


def test_methods_with_a_single_learning_rate_are_named(folder):
    records = trained(folder, {"base": 0.2, "lora": 0.61, "full": 0.4})
    for seed in range(3):
        worse = make_record("lora", lr=1e-2, seed=seed)
        worse.validation[-1].loss *= 2
        records.append(leave(folder, worse, rights(0.3, seed)))
    table = best(records, folder)
    (text,) = table.answer
    assert text.startswith("At the one learning rate tried of full, take lora lr=1e-4: at least ")
    assert "One learning rate was tried of full; another one may suit it better." in table.caption


def test_of_many_methods_the_first_are_named_and_the_others_counted(folder):
    near, worse = {f"m{i}": 0.608 - i / 4000 for i in range(8)}, {f"w{i}": 0.4 for i in range(6)}
    shares = {"base": 0.2, "lora": 0.61} | near | worse
    said, *_ = best(trained(folder, shares), folder).answer
    assert said.startswith(f"{ONE_RATE}lora, m0, m1, m2, m3 and 4 more tie within 2 points on gsm8k (")
    assert " points better than base; significantly worse than lora: w0, w1, w2, w3, w4 and w5." in said


def test_of_one_method_there_is_nothing_to_choose(folder):
    records = trained(folder, {"base": 0.2, "lora": 0.6})
    (text,) = best(records, folder).answer
    assert text == "lora lr=1e-4: 60% (58–62) on gsm8k at 1.00 GiB, 38 to 42 points better than base."
    (text,) = best(trained(folder, {"base": 0.2, "lora": 0.6}, seeds=1), folder).answer
    assert text.startswith("A single run: lora lr=1e-4: 60%")


def test_without_items_no_difference_is_told():
    records = [make_record("lora", scores=[make_score(0.5, 0.03)]), make_record("full", scores=[make_score(0.6, 0.03)])]
    (text,) = best(records, None).answer
    assert text == (
        "No method is recommended: answers to single items are missing or too few to test a difference. "
        "lora and full scored 50 to 60% on gsm8k. lora needs the least memory (1.00 GiB; full 2.00 GiB)."
    )


def test_without_scores_costs_are_told_and_nothing_is_recommended():
    records = [make_record(method, scores=[]) for method in ("lora", "qlora", "full")]
    assert best(records, None).answer == [
        "No score is recorded, so none of the methods is recommended. "
        "qlora needs the least memory (512 MiB; the others at least 1.00 GiB)."
    ]


def test_memory_that_reads_the_same_decides_nothing():
    records = [make_record(method, scores=[]) for method in ("lora", "qlora")]

    def answer_with(*peaks):
        for record, peak in zip(records, peaks, strict=True):
            record.phases["train"] = Phase(60.0, Memory(peak, peak))
        return best(records, None).answer[0]

    assert "qlora needs the least memory (2 MiB; lora 3 MiB)." in answer_with(2_900_000, 2_100_000)
    assert "least memory" not in answer_with(2_500_000, 2_100_000)  # 2 MiB both


def test_none_of_equal_scores_is_the_highest(folder):
    (said, _) = best(trained(folder, {"full": 0.5, "qlora": 0.5}, seeds=1), folder).answer
    assert "Of these models qlora and full tie within 2 points on gsm8k (50.1%)." in said


@pytest.mark.parametrize(("share", "end", "wrong"), [(0.0, "floor", "right"), (1.0, "ceiling", "wrong")])
def test_scores_at_an_end_of_their_range_are_said_first_with_the_remedy(folder, share, end, wrong):
    records = trained(folder, {"lora": share, "full": share}, seeds=3)
    said, left = best(records, folder).answer
    kind = "easier" if end == "floor" else "harder"
    count = "at most 4" if end == "floor" else "none"
    assert said.startswith(
        f"No method is recommended: all models are at the {end} of gsm8k ({count} of 2,000 items {wrong})."
    )
    assert left == (
        f"To compare methods, use {kind} items, or more of them: a task with more than its 2,000; seeds will not help."
    )


def test_six_items_are_the_fewest_by_which_two_models_can_differ():
    """As 2 / 2^6 < 5% by McNemar's exact test."""
    assert ItemSupply(80, "").end([5 / 80, 0.0]) == ("floor", "at most 5 of 80 items right")
    assert ItemSupply(80, "").end([6 / 80, 0.0]) is None
    assert ItemSupply(80, "").end([1 - 5 / 80, 1.0]) == ("ceiling", "at most 5 of 80 items wrong")


@pytest.mark.parametrize(
    ("limit", "share", "expected"),
    [
        (2000, 0.0, "a larger `eval.limit` (2,000 now)"),
        (None, 0.1, "a larger `data.test_share` (0.1 now)"),
        (None, 0.0, "a task with more than its 2,000"),
    ],
)
def test_more_items_come_from_where_these_came_from(limit, share, expected):
    record = make_record("lora", scores=[make_score(0.5, n=2000, task="held_out")])
    settings = record.cell.settings
    settings = replace(
        settings, eval=replace(settings.eval, limit=limit), data=replace(settings.data, test_share=share)
    )
    record.cell = replace(record.cell, settings=settings)
    assert item_supply(record, score_name(record.scores[0])).more == expected


def test_seeds_do_not_lessen_what_items_add_and_items_not_what_seeds_add():
    """A difference of 4 points with an error of 3: 80% power requires one of 4 / 2.8."""
    gap = Difference(0.04, -0.02, 0.1, 0.2, 0.03, 9.0, items=0.0)
    needed = (0.03 / (0.04 / 2.8016)) ** 2
    assert seeds_needed(gap, 3, alone) == math.ceil(3 * needed)
    assert times_as_many_items(gap, 0.0, alone) == pytest.approx(needed, rel=1e-3)
    assert seeds_needed(gap._replace(items=0.9), 3, alone) is None
    assert times_as_many_items(gap, 0.9 * 0.03**2, alone) is None


def alone(freedom):
    """What two means must differ by whose error is known, in standard errors."""
    return 1.96


@pytest.mark.parametrize("methods", [2, 5])
def test_the_advised_seeds_find_the_difference_in_80_percent_of_studies(methods):
    """The best method against one that is as much worse as it looked, the others as good as the best one."""
    seeds = 3
    gap = Difference(0.04, -0.03, 0.11, 0.2, 0.03, freedom=methods * (seeds - 1), items=0.0)
    advised = seeds_needed(gap, seeds, lambda freedom: range_quantile(ALPHA, freedom, methods))
    draw, sd = np.random.default_rng(0), gap.error * (seeds / 2) ** 0.5
    truth = np.array([*[gap.value] * (methods - 1), 0.0])
    scores = truth[:, None] + sd * draw.standard_normal((4_000, methods, advised))
    spread = np.sqrt(scores.var(axis=2, ddof=1).mean(axis=1) * 2 / advised)
    distance = np.abs(scores.mean(axis=2)[:, 0] - scores.mean(axis=2)[:, -1]) / spread
    assert (distance > range_quantile(ALPHA, methods * (advised - 1), methods)).mean() == pytest.approx(0.8, abs=0.05)


def test_of_more_methods_that_tie_more_seeds_are_advised():
    """The best of many is picked by luck, too, so it must lead by more."""
    gap = Difference(0.04, -0.02, 0.1, 0.2, 0.03, 9.0, items=0.0)
    advised = [seeds_needed(gap, 3, lambda freedom, n=n: range_quantile(ALPHA, freedom, n)) for n in (2, 3, 6)]
    assert advised == sorted(set(advised))


def test_untuned_models_alone_are_no_methods(folder):
    untuned = trained(folder, {"base": 0.2, "base_nf4": 0.1})
    (text,) = best([*untuned, make_record("lora", scores=[])], folder).answer
    assert text == "No tuned model is scored on gsm8k. base scored highest: 20.2% (18.5–22.0) on gsm8k."
    assert answer(untuned, folder).sentences == answer([], folder).sentences == []
    assert not best(untuned, folder).answer


def unchosen(folder, shares):
    """`trained` with one seed and without validation losses, by method and rate: of several settings none is chosen."""
    records = [leave(folder, make_record(method, lr=lr), rights(share, 0)) for (method, lr), share in shares.items()]
    for record in records:
        record.validation = []
    return records


def test_a_method_without_a_choice_is_told_by_its_best_experiment(folder):
    records = unchosen(folder, {("lora", 1e-4): 0.61, ("lora", 2e-4): 0.3, ("full", 1e-4): 0.5})
    said, _ = best(records, folder).answer
    assert said == f"{ONE_SEED} Of these models lora lr=1e-4 scored significantly higher than the others on gsm8k."
    data = chosen_of(answer(records, folder))
    assert list(zip(data["method"], data["setting"], strict=True)) == [
        tuple(row[:2]) for row in best(records, folder).rows
    ]


def test_experiments_that_no_test_tells_apart_are_best_together(folder):
    records = unchosen(folder, {("lora", 1e-4): 0.61, ("lora", 2e-4): 0.61, ("full", 1e-4): 0.5})
    (place,) = answer(records, folder).places.values()
    assert [standing.choice.label for standing in place.best] == ["lora lr=1e-4", "lora lr=2e-4"]
    assert place.best[0].interval.low < place.best[0].value < place.best[0].interval.high


def test_of_very_many_experiments_those_beside_the_best_are_tested(folder):
    shares = {("lora", (i + 1) * 1e-5): 0.3 + 0.005 * i for i in range(MOST_PAIRED)}
    base = leave(folder, make_record("base", lr=None, seed=None), rights(0.99, 0))
    (contest,) = answer([base, *unchosen(folder, shares)], folder).contests
    best_one, tuned, *others = (standing.choice.label for standing in contest.standings)
    assert (best_one, len(others)) == ("base", MOST_PAIRED - 1)
    assert set(contest.differences) == {(first, label) for first in (best_one, tuned) for label in others} | {
        (best_one, tuned)
    }
    assert all(standing.rank is None for standing in contest.standings)


def test_a_method_without_a_result_is_named(folder):
    records = [*trained(folder, {"lora": 0.6, "dora": 0.3}), make_record("full", status="oom")]
    assert "No result: full (1 oom)." in best(records, folder).answer[0]


def test_methods_with_other_items_are_not_compared(folder):
    records = trained(folder, {"base": 0.2, "lora": 0.6, "dora": 0.3})
    for method in ("full", "galore"):
        for seed in range(3):
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), rights(0.9, seed, 300)))
    (text,) = best(records, folder).answer
    assert text.startswith(f"{ONE_RATE}of the methods that are compared, take lora")
    assert "Not compared, as items are missing or differ: full and galore, which scored higher." in text


def test_an_untuned_model_with_other_items_is_named(folder):
    records = [
        *trained(folder, {"lora": 0.6, "full": 0.4}),
        leave(folder, make_record("base"), rights(0.9, 0, 300)),
        leave(folder, make_record("base_nf4"), rights(0.1, 0, 300)),
    ]
    (text,) = best(records, folder).answer
    assert text.startswith(f"{ONE_RATE}of the methods that are compared, take lora lr=1e-4: at least ")
    assert text.endswith("Not compared, as items are missing or differ: base and base_nf4 (base scored higher).")


def test_of_an_untuned_model_that_was_scored_twice_the_most_items_are_taken(folder):
    few = make_record("base", settings={"eval": {"limit": 200}})
    records = [
        *trained(folder, {"lora": 0.6, "full": 0.4}),
        leave(folder, few, rights(0.9, 0, 200)),
        leave(folder, make_record("base"), rights(0.9, 0)),
    ]
    (text,) = best(records, folder).answer
    assert text.startswith(f"{ONE_RATE}take base, untuned: at least ")


def test_a_method_of_which_a_seed_lacks_the_score_is_named(folder):
    records = trained(folder, {"lora": 0.4, "qlora": 0.3, "full": 0.6})
    records[-1].scores = []
    (text,) = best(records, folder).answer
    assert text.startswith(f"{ONE_RATE}of the methods that are compared, take lora")
    assert text.endswith("; no score on gsm8k with every seed: full.")


def test_what_an_untuned_model_is_better_than_is_not_said_of_methods_that_are_not_judged(folder):
    judged = trained(folder, {"base": 0.5, "lora": 0.3, "qlora": 0.2})
    single = [*judged, *trained(folder, {"full": 0.8}, seeds=1)]
    text, doubt = best(single, folder).answer
    assert text.startswith(f"{ONE_RATE}of the methods with several seeds, take base, untuned: at least ")
    assert "better than all of them on gsm8k. Not judged, as of one seed: full." in text
    assert doubt.startswith("To compare all methods, run about 3 seeds: ")
    tied = [*trained(folder, {"base": 0.3, "lora": 0.3, "qlora": 0.2}), *trained(folder, {"full": 0.8}, seeds=1)]
    text, *_ = best(tied, folder).answer
    none = "none is shown to be better than base on gsm8k; lora is at least "
    assert text.startswith(f"{ONE_RATE}of the methods with several seeds, {none}")


def test_lucky_seeds_that_one_method_lacks_make_no_other_one_better(folder):
    """dora is four points better than lora with each seed that both have; lora has two lucky ones besides."""
    luck = [0.50, 0.505, 0.495, 0.65, 0.655]
    records = [leave(folder, make_record("lora", lr=1e-4, seed=s), rights(share, s)) for s, share in enumerate(luck)]
    for seed, share in enumerate(luck[:3]):
        records.append(leave(folder, make_record("dora", lr=1e-4, seed=seed), rights(share + 0.04, seed)))
    (contest,) = contests(records, folder)
    assert contest.differences["lora", "dora"].high < 0
    assert contest.corrected == {("lora", "dora"): 1.0}
    text, doubt = answer(records, folder).sentences
    assert text.startswith(f"{ONE_RATE}lora and dora tie on gsm8k")
    assert doubt == "To tell dora from lora, run about 5 seeds: repeat its sweep with seed=0,1,2,3,4."
    assert ahead(contest, several=False) == "gsm8k, exact match, strict format: lora and dora tie."
    drawn = accuracy_memory(StudyResults(records, folder))
    assert drawn is not None
    assert "tie" in drawn.figure.axes[0].get_title("left")


def test_one_end_is_said_of_the_models_that_are_compared(folder):
    """With the items of these: of 300 other ones dora gets most right."""
    records = trained(folder, {"lora": 0.0, "full": 0.0})
    for record in records:
        leave(folder, record, np.zeros(2000))
    for seed in range(3):
        records.append(leave(folder, make_record("dora", lr=1e-4, seed=seed), rights(0.9, seed, 300)))
    text, doubt = best(records, folder).answer
    assert "all that are compared are at the floor of gsm8k (none of 2,000 items right)" in text
    assert "a task with more than its 2,000" in doubt


def test_a_method_of_which_some_seeds_failed_has_results_and_is_left_out(folder):
    records = trained(folder, {"lora": 0.4, "full": 0.6}, seeds=4)
    records[-1].status, records[-1].scores = "failed", []
    text, *_ = best(records, folder).answer
    assert "ot judged, as no setting finished with every seed: full (1 failed of 4 cells)." in text
    assert "o result" not in text


def test_unequal_training_is_said_of_methods(folder):
    records = trained(folder, {"lora": 0.6, "full": 0.4})
    for record in records:
        if record.cell.method == "lora":
            record.train.steps = 500
    assert "Trained" not in best(records, folder).answer[0], "early stopping, for example"
    for record in records:
        change(record, train={"max_steps": record.train.steps})
    (text,) = best(records, folder).answer
    assert text.endswith("Trained unequally: full for 50 steps, lora for 500 steps.")


def test_a_figure_says_that_one_method_ties_with_the_untuned_model(folder):
    records = trained(folder, {"base": 0.6, "lora": 0.6, "full": 0.3})
    drawn = accuracy_memory(StudyResults(records, folder))
    assert drawn is not None
    assert drawn.figure.axes[0].get_title("left") == "base and lora tie"


def test_a_bound_in_a_unit_is_rounded_to_its_safe_side():
    contest = contests([make_record(scores=[make_score(0.9, **BITS)])], None)[0]
    words = ScoreWords(contest)
    assert words.at_least(0.0479) == "at least 0.047 bits per byte "
    assert words.points(0.0471, math.ceil) == "0.048 bits per byte"
    assert words.points(0.0995, math.ceil) == "0.10 bits per byte"
    assert words.points(0.0471) == "0.047 bits per byte"
    assert words.at_least(0.05) == "at least 0.050 bits per byte "


def test_a_score_that_is_better_when_lower_is_told_in_its_unit(folder):
    records = []
    for method, level in (("lora", 0.9), ("full", 1.1)):
        for seed in range(3):
            values = level + np.random.default_rng([seed, int(10 * level)]).normal(0, 0.01, 200)
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), values, make_score(n=200, **BITS)))
    (text,) = best(records, folder).answer
    assert text.startswith(
        f"{ONE_RATE}take lora lr=1e-4: at least 0.19 bits per byte better than the rest on plain text. "
    )
    assert "It scores 0.899 bits per byte (0.89" in text
    records = [replace(record, cell=replace(record.cell, seed=0)) for record in records if record.cell.seed == 0]
    assert (
        "Of these models lora scored significantly lower (better) than the others on plain text."
        in best(records, folder).answer[0]
    )


def test_each_place_has_a_line_and_what_stays_open_one(folder):
    records = [
        record
        for model in ("small", "large")
        for data in ("gsm8k", "facts")
        for record in trained(folder, {"lora": 0.6, "full": 0.4}, seeds=1, model=model, data=data)
    ]
    lines = best(records, folder).answer
    places = ["large/facts", "large/gsm8k", "small/facts", "small/gsm8k"]
    assert [line.partition(":")[0] for line in lines[:4]] == places
    assert lines[4:] == ["To compare methods, run about 3 seeds: repeat its sweep with seed=0,1,2."]


def test_a_method_of_one_seed_is_not_judged_beside_those_of_several(folder):
    records = trained(folder, {"lora": 0.6, "full": 0.3})
    records += trained(folder, {"qlora": 0.2}, seeds=1)
    said, left = best(records, folder).answer
    assert said.startswith(f"{ONE_RATE}of the methods with several seeds, take lora lr=1e-4: at least ")
    assert said.endswith("Not judged, as of one seed: qlora.")
    assert left == "To compare all methods, run about 3 seeds: repeat its sweep with seed=0,1,2."


# The command


@pytest.mark.parametrize(
    ("typed", "seeds", "expected"),
    [
        (["sweep", "quickstart"], [0], "`harness sweep quickstart seed=0,1,2`"),
        (["sweep", "seeds", "seed=0,1", "--fit"], [0, 1], "`harness sweep seeds --fit seed=0,1,2`"),
        (["sweep", "method=lora,dora", "seed=5"], [5], "`harness sweep method=lora,dora seed=0,1,5`"),
        (
            ["sweep", "lr", "++data.prompt='a b'"],
            [0],
            """`harness sweep lr '++data.prompt='"'"'a b'"'"'' seed=0,1,2`""",
        ),
        (
            ["sweep", "data=synthetic_mixed", "data@data.load.real=gsm8k", "data.load.subset=main"],
            [0],
            "`harness sweep data=synthetic_mixed data@data.load.real=gsm8k data.load.subset=main seed=0,1,2`",
        ),
        (["sweep", "lr", "data.prompt=`x`"], [0], "repeat its sweep with seed=0,1,2"),
        (["run", "method=lora"], [0], "repeat its sweep with seed=0,1,2"),
    ],
)
def test_the_command_is_the_study_s_own_with_more_seeds(folder, typed, seeds, expected):
    note_command(folder, typed)
    assert with_seeds([make_record("lora", seed=seed) for seed in seeds], folder, 3)[1] == expected


@pytest.mark.parametrize(
    "words",
    [
        ["-cd=theirs"],
        ["-cd", "theirs"],
        ["-cn", "theirs"],
        ["--config-dir=theirs"],
        ["--cfg=job"],
        ["hydra.searchpath=[file://theirs]"],
        ["hydra/sweeper=basic", "+point=theirs.json"],
        ["method=api", "model.base_url=https://theirs", "model.key_env=HF_TOKEN"],
        ["hydra/launcher=slurm", "hydra.launcher.setup=[touch mark]"],
        ["hydra.sweeper.params={model.key_env:HF_TOKEN}"],
        ["hydra.sweeper.params.model.key_env=HF_TOKEN"],
        ['hydra.sweeper.candidates=["lr=1e-3 model.key_env=HF_TOKEN"]'],
        ['hydra.sweeper.candidates=["lr=1e-3", "lr=1 model.base_url=x"]'],
        ["hydra.sweeper.candidates=[lr=1]"],
        ["eval.include_path=theirs"],
        ["eval.vllm_python=theirs"],
        ["eval.tasks=[theirs/task]"],
        ["eval.tasks=[task.yaml]"],
        ["eval.unsafe_code=true"],
        ["model.trust_remote_code=true"],
        ["model.use_safetensors=false"],
        ["model.path=https://theirs"],
        ["method=../../results/demo/theirs"],
        ["method.adapt._target_=os.system"],
        ["method.adapt.r=os.system"],
        ["data.load.path=theirs"],
        ["study=${oc.env:HF_TOKEN}"],
        ["theirs;", "touch", "mark"],
        ["lr=1e-3\x1b[2K"],
    ],
)
def test_a_command_of_a_copied_folder_that_can_name_code_or_a_key_is_not_shown(folder, words):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commands.txt").write_text(shlex.join(["harness", "sweep", "quickstart", *words]) + "\n")
    assert with_seeds([make_record("lora")], folder, 2)[1] == "repeat its sweep with seed=0,1"


@pytest.mark.parametrize("beside", ["harness sweep eval.unsafe_code=true", "# merged: harness sweep lr"])
def test_of_several_sweeps_all_are_shown_or_none(folder, beside):
    """Some of them alone would run another study."""
    note_command(folder, ["sweep", "quickstart"])
    with (folder / "commands.txt").open("a") as file:
        file.write(f"{beside}\n")
    assert with_seeds([make_record("lora")], folder, 2)[1] == "repeat its sweep with seed=0,1"


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("commands.txt")), ids=lambda path: path.parent.name)
def test_every_committed_command_is_shown(path):
    assert len(repeated_sweeps(path.parent, [])) == len(noted_commands(path.parent)) > 0


def test_settings_that_a_shown_command_may_not_have_are_few():
    """A new setting is shown only once it is among them, or among those that the words of a command may be."""
    hidden = {key for key in SETTINGS if not any(names.fullmatch(key) for names, _ in VALUES)}
    of_core = {key for key in hidden if not key.startswith("api.")}
    functions = {"method.load", "method.adapt", "method.init", "method.optim", "method.knobs", "data.load"}
    code = {"model.trust_remote_code", "model.use_safetensors", "eval.unsafe_code", "eval.include_path"}
    places = {"eval.vllm_python", "model.base_url", "model.key_env", "model.tokenizer", "model.architecture"}
    prices = {"model.price.read", "model.price.written"}
    assert of_core == functions | code | places | prices | {"method.incompatible", "confirmation"}


def test_confirming_seeds_become_more_of_them(folder):
    note_command(folder, ["sweep", "tune", "--confirm", "2", "study=demo"])
    records = [make_record("lora", seed=seed) for seed in (0, 1, 2)]
    for record in records[1:]:
        record.confirmation = True
    assert with_seeds(records, folder, 5)[1] == "`harness sweep tune study=demo --confirm 5`"


def test_what_decides_a_planned_study_is_planned_too(folder):
    """More seeds of it would be exploratory."""
    note_command(folder, ["sweep", "tune", "--confirm", "2", "study=demo", "lr=1e-3"])
    records = [make_record("lora", seed=seed) for seed in (0, 1, 2)]
    add_plans(folder, [make_plan(records[:1], [1, 2])])
    assert with_seeds(records[:1], folder, 5)[1] == "`harness sweep tune study=demo lr=1e-3 --confirm 5`"
    for record in records[1:]:
        record.confirmation = True
    assert with_seeds(records, folder, 5)[1] == "`harness sweep tune lr=1e-3 study=demo_fresh --confirm 5`"
    (folder / "commands.txt").unlink()
    assert with_seeds(records, folder, 5)[1] == "repeat its sweep with study=demo_fresh --confirm 5"


def test_commands_that_differ_in_their_seeds_alone_are_said_once(tmp_path):
    for seeds in ([], ["seed=0"], ["seed=1,2"], ["lr=1e-3"]):
        note_command(tmp_path, ["sweep", "quickstart", *seeds])
    said = "`harness sweep quickstart seed=0,1 && harness sweep quickstart lr=1e-3 seed=0,1`"
    assert with_seeds([make_record("lora")], tmp_path, 2)[1] == said


def test_many_seeds_are_a_range_that_hydra_reads(folder):
    from harness.sweep.app.grid import grid

    note_command(folder, ["sweep", "quickstart"])
    assert with_seeds([make_record("lora")], folder, 30)[1] == "`harness sweep quickstart 'seed=range(0,30)'`"
    assert grid(None, None, ["seed=range(0,30)"])[29] == ["seed=29"]


def test_a_command_is_noted_once_and_without_secrets(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_averylongsecret")
    for _ in range(2):
        note_command(folder, ["sweep", "quickstart", "model.path=hf_averylongsecret"])
    note_command(folder, ["sweep", "lr"])
    assert noted_commands(folder) == ["harness sweep quickstart model.path=***", "harness sweep lr"]
    assert noted_commands(folder / "none") == []


# Where it stands


def test_in_markdown_each_line_is_a_paragraph_before_the_table(folder):
    text = document([best(trained(folder, {"lora": 0.6, "full": 0.4}, seeds=1), folder)], "md")
    title, said, left, grid = text.split("\n\n")[:4]
    assert (title, grid[0]) == ("**demo: best settings**", "|")
    assert said.startswith(ONE_SEED)
    assert left.startswith("To compare methods, run about 3 seeds: ")


def test_in_a_terminal_it_is_set_apart_and_its_command_stands_alone(folder):
    note_command(folder, ["sweep", "quickstart", *(f"train.setting_{i}={i}" for i in range(9))])
    table = best(trained(folder, {"lora": 0.6, "full": 0.4}, seeds=1), folder)
    lines = terminal.lines(*screen.view([table], 60), width=60)
    assert lines[0] == ""
    assert lines[1].startswith("▌ No method is recommended: one seed compares trained")
    (command,) = [line for line in lines if "harness sweep" in line]
    assert command.startswith("    harness sweep quickstart train.setting_0=0 ")
    assert command.endswith("seed=0,1,2")
    assert lines.index("demo: best settings") == lines.index(command) + 2


def test_published_experiments_have_an_answer():
    study = REFERENCE / "peft_llama_3_2_3b"
    records, _ = read_study(study)
    (text,) = tables(records, study)[0].answer
    assert text.startswith("30 of 66 experiments tie on gsm8k (42.7 to 52.6%); 36 are significantly worse. bone r=64 ")
    assert "need the least memory (17.22 GiB to 17.66 GiB; the others at least 18.19 GiB)." in text
    (place,) = answer(records, study).places.values()
    assert [standing.choice.method for standing in place.best[:3]] == ["bone", "miss", "psoft"]
    assert len(place.best) == len(place.decision.tied) == 66 - 36
    first = chosen_of(answer(records, study)).iloc[0]
    assert f"{100 * first['value']:.1f} ({100 * first['low']:.1f}–{100 * first['high']:.1f})" == "52.6 (49.1–56.1)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.long) for name in studies(REFERENCE)],
)
def test_all_that_shows_a_study_answers_the_same(name):
    """The table, the report (which `view` serves), the end of a sweep and the Python API; with one row for each."""
    folder = REFERENCE / name
    records, _ = read_study(folder)
    study = read(folder)
    shown = tables(records, folder)
    (place, *_) = answer(records, folder).places.values()
    assert study.answer == list(shown[0].answer) == sweep_answer(folder)
    for best_one in place.best[:1]:
        assert best_one.choice.label in study.answer[len([*cautions(records)])]
    said = one_line(study.answer[0]).split("`")[0]
    page = render(records, folder)
    summary = page.partition('<div class="decision">')[2].partition("</div>")[0]
    assert escape(said).strip() in " ".join(re.sub("<[^>]*>", " ", summary).split()), "before all else"
    assert len(study.best()) == len(study.table()) == len(shown[0].rows)
    assert f'<caption id="best-table-caption">{shown[0].title}</caption>' in page
