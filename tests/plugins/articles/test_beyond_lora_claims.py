"""The rules behind the article's claims: each on made records that support it, refute it and leave it open."""

from __future__ import annotations

import io
import math
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from judged_study import JudgedStudy, N
from records import MIB, make_record, measured

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.articles.apart import distinctions, parts_of
from harness.plugins.articles.article import effect_text, every
from harness.plugins.articles.beyond_lora import ARTICLE
from harness.plugins.articles.beyond_lora.methods import TUNED
from harness.plugins.articles.claims import (
    DEPENDS,
    OPEN,
    REFUTED,
    STRADDLES,
    SUPPORTED,
    TOO_SMALL,
    Bounds,
    Judgement,
    Verdict,
    enough_seeds,
    excluding_seeds,
    judged,
)
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.merged import merge
from harness.plugins.articles.rules import BETTER, hold_all
from harness.plugins.articles.verdict_tables import claim_table, claim_tables
from harness.record import Kinds, LossPoint, SmallerBatches, note_command, read_study, write
from harness.report.answer.next_run import seed_list
from harness.report.select import UNVALIDATED
from harness.report.statistics import Interval
from harness.report.tables.formats import render
from harness.sweep.app.grid import points

CLAIMS = ARTICLE.claims


@pytest.fixture
def study(tmp_path):
    return JudgedStudy(tmp_path, CLAIMS)


def memory(record, mib, states=100):
    """`record`, with a peak of `mib` MiB, of which `states` are the optimizer's."""
    record.probe = replace(measured(record).probe, peak=Kinds((mib - states) * MIB, 0, 0, states * MIB, 0))
    record.phases["train"].memory.allocated_peak = mib * MIB


def memories(study, **mib):
    for method, size in mib.items():
        memory(study.add(method), size)


# Decisions


@pytest.mark.parametrize(
    ("effect", "limits", "seeds"),
    [
        (Interval(20, 10, 40), (3, 30), 6),  # 1 + (log 2 / log 1.5)² × 2
        (Interval(40, 20, 80), (3, 30), 12),
        (Interval(20, 10, math.inf), (3, 30), None),
        (Interval(20, 10, math.inf), (30, math.inf), None),
        (Interval(45, 20, math.inf), (3, 30), 9),  # its upper end does not matter
        (Interval(31, 20, 80), (3, 30), 358),  # near to the limit
        (Interval(0.02, -0.02, 0.06), (0.0, math.inf), 8),
        (Interval(20, math.nan, math.nan), (3, 30), None),
        (Interval(10, 9, 11), (3, 30), None),  # decided
    ],
)
def test_seeds_that_are_enough_if_the_effect_stays(effect, limits, seeds):
    judgement = judged(lambda comparisons: effect, Bounds(*limits, ratio=limits[0] > 0), 2, ())
    assert enough_seeds(judgement) == seeds


@pytest.mark.parametrize(
    ("of_items", "seeds"),
    [(0.0, 8), (0.15, 17), (0.25, 599), (0.26, math.inf)],  # the half must shrink to one half: its square to a quarter
)
def test_seeds_that_are_enough_for_a_score_whose_error_is_of_items_too(of_items, seeds):
    effect = Interval(0.0201, -0.0199, 0.0601)
    judgement = judged(lambda comparisons: effect, Bounds(low=0.0), 2, (), of_items=of_items)
    assert enough_seeds(judgement) == seeds
    assert enough_seeds(replace(judgement, seeds=1)) is None
    assert enough_seeds(replace(judgement, by_seeds=False)) is None


def test_fewer_seeds_show_that_a_claim_does_not_hold_than_decide_whether_the_effect_matters():
    """DoRA is behind by 0.7 points: that it is a point better is soon excluded, that it is a point worse is not."""
    judgement = judged(lambda comparisons: Interval(-0.007, -0.066, 0.051), BETTER, 5, (), items=1000, of_items=0.01)
    assert enough_seeds(judgement) == math.inf
    assert excluding_seeds(judgement) == 66
    assert excluding_seeds(replace(judgement, effect=Interval(0.02, -0.04, 0.08))) is None
    claim = Verdict(CLAIMS["dora-task"], ("s", "m", "d"), judgement)
    caption = " ".join(claim_table(ARTICLE, merge([claim])).caption)
    assert "data.test_share" in caption
    assert "no number of seeds is enough, if the effect stays; 66 seeds would show that it does not hold" in caption


@pytest.mark.parametrize(
    ("scores", "why", "remedy"),
    [
        ((0.0, 0.01), "Both score below 2%: the items are too hard to tell them apart", "with easier items"),
        ((1.0, 0.99), "Both score above 98%: the items are too easy to tell them apart", "with harder items"),
    ],
)
def test_a_test_at_its_end_is_not_mended_by_seeds(study, scores, why, remedy):
    for method, score in zip(("lora", "dora"), scores, strict=True):
        study.seeds(method, 16, 3, gsm8k=score)
    judgement = study.judgement("dora-task")
    assert (judgement.decision, judgement.why, judgement.remedy) == (OPEN, why, remedy)
    assert enough_seeds(judgement) is None
    (verdict,) = (v for v in ARTICLE.verdicts(study.records, study.folder) if v.claim.name == "dora-task")
    shown = claim_table(ARTICLE, merge([verdict])).caption
    assert f"dora-task: {why}. To decide it, run `harness sweep rank` {remedy}." in shown


def test_of_few_items_one_answer_is_more_than_the_bound(study, monkeypatch):
    monkeypatch.setattr("judged_study.N", 37)
    for method, score in (("lora", 0.5), ("dora", 0.55)):
        study.seeds(method, 16, 3, gsm8k=score)
    judgement = study.judgement("dora-task")
    assert judgement.items == 37
    assert "data.test_share" in judgement.remedy
    assert enough_seeds(judgement) is None


@pytest.mark.parametrize(("sway", "least", "most"), [(0.1, 0.0, 0.1), (0.0, 0.8, 1.0)])
def test_a_judged_score_says_how_much_of_its_error_is_of_items(study, sway, least, most):
    """Where seeds differ by 10 points it is of seeds; where they do not, it is of the items."""
    for seed in range(3):
        study.add("lora", 16, seed, gsm8k=0.5 + sway * (seed - 1))
        study.add("dora", 16, seed, gsm8k=0.52 - sway * (seed - 1))
    assert least <= study.judgement("dora-task").of_items <= most


@pytest.mark.parametrize(("fresh", "asked"), [(False, "seed={}"), (True, "--confirm {}")])
def test_more_seeds_are_asked_for_as_those_were_that_a_verdict_rests_on(study, fresh, asked):
    """Scores that sway by 5 points from seed to seed, and differ by 6."""
    for method, score in (("full", 0.5), ("dora", 0.56)):
        for seed in range(3):
            sway = 0.05 * (seed - 1) * (1 if method == "full" else -1)
            study.add(method, seed=seed, gsm8k=score + sway).confirmation = fresh
    note_command(study.folder, ["sweep", "mine", "study=demo"])
    (verdict,) = (v for v in ARTICLE.verdicts(study.records, study.folder) if v.claim.name == "dora-full")
    needed = int(enough_seeds(verdict.judgement))
    assert verdict.fresh == fresh
    more = asked.format(needed if fresh else seed_list(range(needed)))
    own = f"run `harness sweep mine study=demo {shlex.quote(more) if not fresh else more}` ({needed} seeds"
    assert own in " ".join(claim_table(ARTICLE, merge([verdict])).caption)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("embedded:smollm2-135m-instruct", ""),
        ("Qwen/Qwen3-1.7B-Base", " model=qwen3_1_7b"),
        ("mine/model", " model.path=mine/model model.dtype=float32"),
        ("x; touch y", " 'model.path=x; touch y' model.dtype=float32"),
    ],
)
def test_what_a_claim_lacks_is_run_on_the_model_of_the_records(study, path, words):
    for method in ("full", "dora"):
        record = study.add(method, seed=0, gsm8k=0.5)
        model = replace(record.cell.settings.model, path=path, dtype="float32")
        record.cell = replace(record.cell, settings=replace(record.cell.settings, model=model))
    verdicts = {v.claim.name: v for v in ARTICLE.verdicts(study.records, study.folder)}
    assert verdicts["dora-full"].command == f"harness sweep lr{words}"
    assert verdicts["alpha-r"].command == f"harness sweep alpha{words}"


def test_an_open_claim_on_models_that_are_too_small_is_run_on_another_one(study):
    for method in ("lora", "dora"):
        for seed in range(2):
            study.add(method, 16, seed, mmlu=0.5)
    (verdict,) = (v for v in ARTICLE.verdicts(study.records, study.folder) if v.claim.name == "dora-mmlu")
    assert verdict.judgement.why == "Needs ≥ 1B"
    assert verdict.command.endswith(" model=MODEL")


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.2, 0.1, 0.3), SUPPORTED), ((0.2, -0.1, 0.3), OPEN), ((-0.2, -0.3, -0.1), REFUTED), ((0, -1, 1), OPEN)],
)
def test_a_verdict_takes_the_whole_interval(interval, expected):
    assert Bounds(low=0).judge(Interval(*interval)) == expected
    assert Bounds(high=0).judge(Interval(*(-np.array(interval)[[0, 2, 1]]))) == expected


def test_between_two_bounds():
    bounds = Bounds(0.9, 1.1)
    assert bounds.judge(Interval(1, 0.95, 1.05)) == SUPPORTED
    assert bounds.judge(Interval(1.3, 1.2, 1.4)) == REFUTED
    assert bounds.judge(Interval(0.5, 0.4, 0.6)) == REFUTED
    assert bounds.judge(Interval(1, 0.85, 1.05)) == OPEN


@pytest.mark.parametrize(
    ("low", "high", "expected", "why"),
    [
        (0.011, 0.03, SUPPORTED, ""),
        (-0.03, -0.011, REFUTED, ""),
        (-0.009, 0.009, TOO_SMALL, ""),
        (0.001, 0.003, TOO_SMALL, ""),
        (-0.02, 0.02, OPEN, STRADDLES),
        (0.005, 0.02, OPEN, "Better, but perhaps by less than 1 point"),
        (-0.005, 0.02, OPEN, "Surely not worse by 1 point, perhaps better"),
        (-0.02, -0.005, OPEN, "Worse, but perhaps by less than 1 point"),
        (-0.02, 0.005, OPEN, "Surely not better by 1 point, perhaps worse"),
    ],
)
def test_one_bound_holds_on_both_sides(low, high, expected, why):
    judgement = judged(lambda comparisons: Interval((low + high) / 2, low, high), BETTER, 3, ())
    assert (judgement.decision, judgement.why) == (expected, why)


def test_no_effect_gives_two_opposite_verdicts():
    """A true half a point is too small to matter, however well it is known."""
    halves = np.geomspace(1e-4, 0.1, 50)
    verdicts = {BETTER.judge(Interval(0.005, 0.005 - half, 0.005 + half)) for half in halves}
    assert verdicts == {TOO_SMALL, OPEN}


def test_an_unknown_end_decides_nothing():
    assert Bounds(0, 1).judge(Interval(5, np.nan, np.nan)) == OPEN
    assert BETTER.judge(Interval(0.5, np.nan, np.nan)) == OPEN


# Claims of several parts


def part(low, high, width=1.0, bounds=BETTER):
    """A part of a claim whose interval is `width` times as long on each side among several."""
    middle = (low + high) / 2

    def intervals(comparisons):
        half = (high - low) / 2 * (width if comparisons > 1 else 1)
        return Interval(middle, middle - half, middle + half)

    return judged(intervals, bounds, 3, (f"{low}",))


@pytest.mark.parametrize(
    ("parts", "expected", "why"),
    [
        ([part(0.02, 0.04), part(0.03, 0.05)], SUPPORTED, ""),
        ([part(0.011, 0.04, 2), part(0.03, 0.05, 2)], SUPPORTED, ""),  # all must hold: each by its own interval
        ([part(0.02, 0.04), part(-0.05, -0.03)], REFUTED, "Refuted by 1"),
        ([part(0.02, 0.04), part(-0.03, -0.011, 2)], OPEN, "1: refuted"),  # any may fail: corrected
        ([part(0.02, 0.04), part(-0.005, 0.005)], TOO_SMALL, "Too small of 1"),
        ([part(0.02, 0.04), part(-0.009, 0.009, 2)], OPEN, "1: too small to matter"),
        ([part(-0.02, 0.04), part(-0.005, 0.005)], OPEN, f"0: {STRADDLES}; 1: too small to matter"),
        ([part(-0.05, -0.03), part(-0.005, 0.005)], REFUTED, "Refuted by 0"),
    ],
)
def test_a_claim_of_several_parts(parts, expected, why):
    judgement = hold_all([(str(i), part) for i, part in enumerate(parts)])
    assert (judgement.decision, judgement.why) == (expected, why)
    assert len(judgement.records) == 2


def test_the_part_closest_to_contradicting_a_claim_is_shown(study):
    """Of ratios that should be below 1 it is the largest: a range that begins at 0 has no end there."""
    memories(study, qlora=126, lora=214, dora=300, galore=500, full=1000)
    judgement = study.judgement("qlora-memory")
    assert judgement.decision == SUPPORTED
    assert judgement.effect.value == pytest.approx(126 / 214)


# Exact: counts and bytes


def adapter(rank, targets):
    adapt = {"r": rank, "target_modules": targets}
    return {"method": {"name": "lora", "load": {}, "adapt": adapt, "optim": {}}}


MEMORY = [
    ("lora-memory", {"lora": 400, "full": 1000}, SUPPORTED, 0.4),
    ("lora-memory", {"lora": 700, "full": 1000}, REFUTED, 0.7),
    ("lora-memory", {"lora": 400}, OPEN, None),
    ("dora-memory", {"dora": 420, "lora": 400}, SUPPORTED, 1.05),
    ("dora-memory", {"dora": 600, "lora": 400}, REFUTED, 1.5),
    ("dora-memory", {"dora": 600}, OPEN, None),
    ("galore-memory", {"galore": 600, "full": 1000}, SUPPORTED, 0.6),
    ("galore-memory", {"galore": 900, "full": 1000}, REFUTED, 0.9),
    ("galore-memory", {"galore": 900}, OPEN, None),
    ("adapters-galore-memory", {"lora": 400, "dora": 500, "galore": 600}, SUPPORTED, 5 / 6),
    ("adapters-galore-memory", {"lora": 400, "dora": 700, "galore": 600}, REFUTED, 7 / 6),
    ("adapters-galore-memory", {"lora": 400, "galore": 600}, OPEN, None),
    ("qlora-memory", {"qlora": 300, "lora": 400, "dora": 400, "galore": 600, "full": 900}, SUPPORTED, 0.75),
    ("qlora-memory", {"qlora": 500, "lora": 400, "dora": 600, "galore": 600, "full": 900}, REFUTED, 1.25),
    ("qlora-memory", {"qlora": 300, "lora": 400}, OPEN, None),
    ("memory-order", {"qlora": 300, "lora": 400, "dora": 400, "galore": 600, "full": 900}, SUPPORTED, 1.0),
    ("memory-order", {"qlora": 300, "lora": 400, "dora": 400, "galore": 1000, "full": 900}, REFUTED, 10 / 9),
    ("memory-order", {"qlora": 300, "lora": 400, "dora": 400, "galore": 600}, OPEN, None),
]


@pytest.mark.parametrize(("name", "mib", "expected", "effect"), MEMORY)
def test_memory(study, name, mib, expected, effect):
    memories(study, **mib)
    found = study.judgement(name)
    assert found.decision == expected
    if name != "memory-order":
        assert (found.effect and found.effect.value) == (effect and pytest.approx(effect))
    if expected != OPEN:
        assert set(found.records) == {record.cell.name for record in study.records}


@pytest.mark.parametrize(("states", "expected"), [(200, SUPPORTED), (400, REFUTED)])
def test_galore_states(study, states, expected):
    memory(study.add("full"), 1000, 500)
    memory(study.add("galore"), 1000, states)
    assert study.judgement("galore-states").decision == expected
    study.records.pop()
    assert study.judgement("galore-states").decision == OPEN


def test_what_holds_for_one_batch_shape_alone_depends_on_it(study):
    for size, checkpointing, mib in ((2, False, 400), (8, False, 700), (8, True, 450)):
        settings = {"train": {"batch_size": size, "gradient_checkpointing": checkpointing}}
        memory(study.add("lora", settings=settings), mib)
        memory(study.add("full", settings=settings), 1000)
    found = study.judgement("lora-memory")
    assert found.decision == DEPENDS
    checkpointed = "r=16, train.batch_size=8, train.gradient_checkpointing=true"
    assert (
        found.why == f"supported at r=16, train.batch_size=2 and at {checkpointed}; refuted at r=16, train.batch_size=8"
    )
    assert found.effect.value == pytest.approx(0.7)
    table = claim_table(ARTICLE, ARTICLE.merged([(study.records, study.folder)]))
    assert ", 1 dependent on the setting, " in table.title
    assert "These depend on the setting: lora-memory." in table.answer


def test_what_holds_at_one_setting_and_is_open_at_another_is_not_decided(study):
    for size, mib in ((2, 400), (8, 501)):
        settings = {"train": {"batch_size": size}}
        memory(study.add("lora", settings=settings), mib)
        memory(study.add("full", settings=settings), 1000)
    assert study.judgement("lora-memory").decision == OPEN


def test_of_many_settings_one_is_on_the_wrong_side_by_chance(study):
    """Eight ranks: seven surely use less than 1.1 times the memory; one more, but only by an interval of its own."""

    def ranks(last):
        for rank in (1, 2, 4, 8, 16, 32, 64, 128):
            memory(study.add("lora", rank=rank), 10_000)
            memory(study.add("dora", rank=rank), last if rank == 128 else 10_000)

    ranks(11_500)  # single runs are taken to differ by 1.5%: 1.103 to 1.199 times
    found = study.judgement("dora-memory")
    assert found.decision == OPEN
    assert found.why.endswith("refuted at r=128, train.batch_size=None; of 8 settings that may be chance")


def test_settings_by_other_hands_are_compared_as_they_are(study):
    for method, mib in (("lora", 300), ("full", 1000)):
        memory(study.add(method, settings={"train": {"schedule": "as usual"}}), mib)
    assert study.judgement("lora-memory").decision == SUPPORTED


def test_adapters_of_other_layers_are_not_compared(study):
    study.add("lora", settings=adapter(16, ["q_proj"]))
    study.add("dora", settings=adapter(16, ["q_proj", "v_proj"]))
    assert study.judgement("dora-parameters").effect is None


def test_weights_of_one_dtype_are_compared(study):
    """In two bytes LoRA takes less than QLoRA, whose base is packed and whose rest is in four."""
    others = ("full", "dora", "galore")
    for dtype, lora in (("float32", 900), ("bfloat16", 500)):
        settings = {"model": {"dtype": dtype}}
        memory(study.add("qlora", settings=settings), 600)
        memory(study.add("lora", settings=settings), lora)
        for method in others:
            memory(study.add(method, settings=settings), 1000)
    judged = study.judgement("qlora-memory")
    assert judged.decision == DEPENDS
    assert "supported at r=16, train.batch_size=None, model.dtype=float32" in judged.why
    parts = parts_of(judged, study.records, ("study", "tiny", "gsm8k"))
    (distinction,) = distinctions(parts)
    assert distinction.text == "dtype of weights (supported at float32, refuted at bfloat16)"


def test_a_claim_may_depend_on_how_adapted_layers_are_computed(study):
    parts = []
    for state, dora in (("on", 1010), ("off: speedups=off", 1400)):
        for method, mib in (("lora", 1000), ("dora", dora)):
            record = study.add(method, settings={"method": {"adapt": {"r": 16}}})
            memory(record, mib)
            record.environment["speedups"] = {f"fused_{method}": state}
        judgement = study.judgement("dora-memory")
        parts += parts_of(judgement, study.records, ("study", "tiny", "gsm8k"))
        study.records.clear()
    (distinction,) = distinctions(parts)
    assert distinction.text == "fused layers (supported at on, refuted at off)"


@pytest.mark.parametrize(("trainable", "expected"), [(5_000_000, SUPPORTED), (8_000_000, REFUTED), (None, OPEN)])
def test_dora_parameters(study, trainable, expected):
    study.add("lora")
    if trainable:
        record = study.add("dora")
        record.parameters = replace(record.parameters, trainable=trainable)
    assert study.judgement("dora-parameters").decision == expected


@pytest.mark.parametrize(("share", "expected"), [(1.0, SUPPORTED), (0.9, REFUTED), (None, OPEN)])
def test_galore_weights(study, share, expected):
    full = study.add("full")
    if share:
        record = study.add("galore")
        record.parameters = replace(full.parameters, trainable=int(share * full.parameters.trainable))
    assert study.judgement("galore-weights").decision == expected


# Speed


@pytest.mark.parametrize(
    ("slowdown", "runs", "expected"), [(1.3, 3, SUPPORTED), (2.0, 3, REFUTED), (0.8, 3, REFUTED), (1.3, 1, OPEN)]
)
def test_dora_training(study, slowdown, runs, expected):
    for seed in range(runs):
        for method, seconds in (("lora", 0.1), ("dora", 0.1 * slowdown)):
            record = study.add(method, seed=seed)
            record.train.step_seconds = [seconds * (1 + seed / 100)] * 50
    found = study.judgement("dora-training")
    assert (found.decision, found.seeds) == (expected, runs)
    assert found.effect.value == pytest.approx(slowdown)


def test_of_runs_in_a_row_more_are_needed_than_ran(study):
    """Five of each, of which those in a row count once: two units of one method and three of the other."""
    order = ["dora", "lora", "lora", "lora", "dora", "dora", "dora", "dora", "lora", "lora"]
    seeds = {"lora": 0, "dora": 0}
    for minute, method in enumerate(order):
        record = study.add(method, seed=seeds[method])
        record.started = f"2026-01-02T00:{minute:02d}:00+00:00"
        seconds = 0.1 * (1.45 if method == "dora" else 1) * (1 + minute / 50)
        record.train.step_seconds = [seconds] * 50
        seeds[method] += 1
    found = study.judgement("dora-training")
    assert (found.decision, found.seeds) == (OPEN, 5)
    assert enough_seeds(found) > 5


# Scores


@pytest.mark.parametrize(
    ("name", "task"),
    [("dora-task", "gsm8k"), ("dora-mmlu", "mmlu")],
)
@pytest.mark.parametrize(("dora", "seeds", "expected"), [(0.6, 3, SUPPORTED), (0.4, 3, REFUTED), (0.6, 1, OPEN)])
def test_dora_against_lora_at_equal_rank(study, name, task, dora, seeds, expected):
    for rank in (8, 16):
        study.seeds("lora", rank, seeds, **{task: 0.5})
        study.seeds("dora", rank, seeds, **{task: dora})
    study.seeds("dora", 64, seeds, **{task: 0.1})  # has no LoRA to be compared with
    for record in study.records:
        record.parameters = replace(record.parameters, total=2_000_000_000)  # MMLU needs a model above chance
    found = study.judgement(name)
    assert (found.decision, found.seeds, found.items) == (expected, seeds, N)
    assert found.effect.value == pytest.approx(dora - 0.5, abs=0.02)
    assert len(found.records) == 4 * seeds
    assert found.why == ("One seed" if seeds == 1 else "")


def test_fresh_seeds_of_dora_and_lora_are_compared_at_their_rank(study):
    """The seed that chose rank 16 of 8 and 16 has other items right, and takes no part."""
    for method, value in (("lora", 0.5), ("dora", 0.6)):
        for rank in (8, 16):
            study.add(method, rank, seed=0, gsm8k=0.5, loss=1.2 - rank / 100)
        for seed in (1, 2):
            study.add(method, 16, seed=seed, gsm8k=value, loss=1.04).confirmation = True
    found = study.judgement("dora-task")
    assert (found.decision, found.seeds, len(found.records)) == (SUPPORTED, 2, 4)


def test_ranks_are_compared_without_the_fresh_seeds_of_the_chosen_one(study):
    for rank, loss, value in ((8, 1.2, 0.5), (64, 1.0, 0.6)):
        study.seeds("lora", rank, 3, alpha=2 * rank, loss=loss, gsm8k=value)
    for seed in (3, 4):
        study.add("lora", 64, seed=seed, alpha=128, loss=1.0, gsm8k=0.1).confirmation = True
    found = study.judgement("rank-capacity")
    assert (found.decision, found.seeds, len(found.records)) == (SUPPORTED, 3, 6)


def test_a_tie_within_a_point_is_too_small_to_matter(study):
    study.seeds("lora", 16, 5, gsm8k=0.5)
    study.seeds("dora", 16, 5, gsm8k=0.5)
    assert study.judgement("dora-task").decision == TOO_SMALL
    table = claim_table(ARTICLE, ARTICLE.merged([(study.records, study.folder)]))
    assert ", 1 too small to matter, " in table.title
    assert [line.partition(": ")[2] for line in table.answer if "too small" in line] == ["dora-task."]


def test_the_better_rate_is_compared_and_test_scores_do_not_choose_it(study):
    study.seeds("lora", 16, gsm8k=0.5)
    study.seeds("dora", 16, gsm8k=0.6, lr=2e-4, loss=0.9)
    study.seeds("dora", 16, gsm8k=0.9, lr=1e-3, loss=1.1)
    found = study.judgement("dora-task")
    assert found.effect.value == pytest.approx(0.1, abs=0.02)
    assert all("lr0.0002" in name for name in found.records)


def test_without_items_scores_are_not_compared(study):
    study.seeds("lora", 16, gsm8k=0.5)
    study.seeds("dora", 16, gsm8k=0.6)
    for path in study.folder.glob("dora*.parquet"):
        path.unlink()
    found = study.judgement("dora-task")
    assert (found.decision, found.why) == (OPEN, "No gsm8k scores of the same items")
    assert all(v.judgement.items is None for v in ARTICLE.verdicts(study.records, None))


@pytest.mark.parametrize(("dora", "expected"), [(0.5, SUPPORTED), (0.4, REFUTED), (None, OPEN)])
def test_dora_full(study, dora, expected):
    study.seeds("full", gsm8k=0.5)
    if dora:
        study.seeds("dora", gsm8k=dora)
    assert study.judgement("dora-full").decision == expected


@pytest.mark.parametrize(
    ("high", "seeds", "expected"), [(0.6, 3, SUPPORTED), (0.4, 3, REFUTED), (0.5, 5, TOO_SMALL), (0.6, 1, OPEN)]
)
def test_rank_capacity(study, high, seeds, expected):
    for rank, value in {8: 0.5, 16: 0.5, 64: high, 128: high}.items():
        study.seeds("lora", rank, seeds, gsm8k=value)
    study.seeds("dora", 64, seeds, gsm8k=0.1)  # without a low rank
    found = study.judgement("rank-capacity")
    assert found.decision == expected
    assert len(found.records) == 4 * seeds


def test_one_step_problems_say_nothing_of_capacity(study):
    study.seeds("lora", 8, data="wordmath_short")
    study.seeds("lora", 64, data="wordmath_short")
    assert study.judgement("rank-capacity").decision == OPEN


# Seeds, divergence, learning rates


def test_without_a_second_seed_there_is_no_spread(study):
    study.add("lora", 2)
    study.add("lora", 16)
    assert study.judgement("low-rank-spread").why == "No variation between seeds to compare"


@pytest.mark.parametrize(
    ("diverged", "runs", "expected"), [(40, 60, SUPPORTED), (0, 60, OPEN), (1, 5, OPEN), (None, 60, OPEN)]
)
def test_low_rank_divergence(study, diverged, runs, expected):
    for seed in range(runs):
        study.add("lora", 16, seed)
        if diverged is not None:
            study.add("lora", 4, seed)
            if seed < diverged:
                study.records[-1].status = "diverged"
    study.add("lora", 4, 99, lr=1.0)  # at a rate that the others did not try
    study.records[-1].status = "diverged"
    found = study.judgement("low-rank-divergence")
    assert found.decision == expected
    if diverged is not None:
        assert found.effect.value == pytest.approx(diverged / runs)


@pytest.mark.parametrize(("ends", "share"), [(1.09, 0.0), (1.11, 1.0)])
def test_a_run_that_ends_a_tenth_above_its_first_loss_has_diverged(study, ends, share):
    for seed in range(3):
        study.add("lora", 16, seed, loss=0.5)
        low = study.add("lora", 4, seed, loss=2.0 * ends)
        low.train = replace(low.train, loss=[LossPoint(1, 100, 2.0, 2e-4, 1.0), LossPoint(2, 200, 9.0, 2e-4, 1.0)])
    assert study.judgement("low-rank-divergence").effect.value == share


def test_many_settings_of_which_none_diverges_decide_and_many_runs_of_one_do_not(study):
    """Runs of a setting may end alike, so a hundred of one setting tell of one."""
    for rank in (4, 16):
        for setting in range(100):
            study.add("lora", rank, 0, lr=1e-4 * (1 + setting / 50))
    found = study.judgement("low-rank-divergence")
    assert (found.decision, found.seeds) == (TOO_SMALL, 100)


def test_divergence_is_compared_at_equal_rates(study):
    """Simpson's paradox: ranks do not matter at either rate, but very low ranks ran mostly where runs diverge."""
    for lr, low, high in ((2e-4, 10, 90), (2e-2, 90, 10)):
        for rank, runs in ((4, low), (16, high)):
            for seed in range(runs):
                study.add("lora", rank, seed, lr=lr)
                if seed < runs * (0.9 if lr == 2e-2 else 0.1):
                    study.records[-1].status = "diverged"
    assert study.judgement("low-rank-divergence").effect.value == pytest.approx(0, abs=1e-9)


def test_divergence_is_compared_on_the_same_layers(study):
    for rank, layers, diverged in ((4, ["q_proj"], 0), (16, ["q_proj"], 0), (4, ["v_proj"], 9)):
        for seed in range(9):
            study.add("lora", rank, seed, settings=adapter(rank, layers))
            study.records[-1].status = "diverged" if seed < diverged else "ok"
    assert study.judgement("low-rank-divergence").effect.value == 0


def test_low_rank_divergence_interval(study):
    """56/70 against 48/80: 0.0524 to 0.3339 in Newcombe (1998), table II, method 10, example (a)."""
    for rank, diverged, runs in ((4, 56, 70), (16, 48, 80)):
        for seed in range(runs):
            study.add("lora", rank, seed)
            if seed < diverged:
                study.records[-1].status = "diverged"
    assert study.judgement("low-rank-divergence").effect == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def rates(study, methods, best, seeds=2, grid=(0.16, 0.4, 1, 2.5, 6.25)):
    """Losses that are least at `best` of a grid around it, a factor of 2.5 apart, and nowhere twice as high."""
    for method in methods:
        for seed in range(seeds):
            for factor in grid:
                study.add(method, None, seed, lr=best * factor, loss=1 + 0.5 * abs(np.log(factor)))


@pytest.mark.parametrize(
    ("name", "methods", "claimed", "higher"),
    [("lr-adapters", ("lora", "qlora", "dora"), 2e-4, SUPPORTED), ("lr-full", ("full",), 2e-5, REFUTED)],
)
def test_best_rates(study, name, methods, claimed, higher):
    rates(study, methods, claimed)
    found = study.judgement(name)
    assert (found.decision, found.seeds) == (SUPPORTED, 2)
    quarter = 2.5**0.25  # of a step
    assert found.effect == pytest.approx((claimed, claimed / quarter, claimed * quarter), rel=2e-3)
    study.records.clear()
    rates(study, methods, 10 * claimed)
    assert study.judgement(name).decision == higher
    study.records.clear()
    rates(study, methods, claimed / 10)
    assert study.judgement(name).decision == REFUTED
    study.records.clear()
    rates(study, methods, claimed / 3)
    assert study.judgement(name).why == "The interval includes both outcomes"
    study.records.clear()
    rates(study, methods, claimed, seeds=1)
    one = study.judgement(name)
    assert (one.decision, one.seeds) == (SUPPORTED, 1)
    assert one.effect.low < found.effect.low < found.effect.high < one.effect.high  # its losses count as varying by 10%


@pytest.mark.parametrize(
    ("name", "effect", "text"),
    [
        ("lr-full", Interval(6e-5, 0.0, math.inf), "6.0e-05 (0 to any)"),
        ("dora-full", Interval(-0.02, -0.25, 0.21), "−2.0 points (−25.0 to +21.0)"),
        ("lora-memory", Interval(0.5, 0.4, 0.6), "0.500× (0.400× to 0.600×)"),
        ("forgetting-text", Interval(0.134, 0.112, 0.155), "+0.134 bits per byte (+0.112 to +0.155)"),
        ("dora-full", Interval(-0.02, math.nan, math.nan), "−2.0 points"),
    ],
)
def test_an_effect_is_shown_with_its_unit_once(name, effect, text):
    assert effect_text(Verdict(CLAIMS[name], ("s", "m", "d"), Judgement(OPEN, effect))) == text


def test_a_best_rate_at_an_end_of_those_tried_decides_nothing(study):
    rates(study, ["full"], 2e-5, grid=(1, 2.5, 6.25))
    assert study.judgement("lr-full").why == "full's best rate is at an end of the rates tried"


@pytest.mark.parametrize(
    ("times", "expected"), [(10, SUPPORTED), (100, SUPPORTED), (3, OPEN), (1, TOO_SMALL), (0.1, REFUTED)]
)
def test_lr_ratio(study, times, expected):
    rates(study, ["full"], 2e-5)
    rates(study, ["lora", "qlora", "dora"], times * 2e-5)
    found = study.judgement("lr-ratio")
    assert found.decision == expected
    half = 2.5 ** (0.25 * 2**0.5)  # a quarter of a step of the grid, twice
    assert found.effect == pytest.approx((times, times / half, times * half), rel=1e-2)


def test_lr_ratio_without_full(study):
    rates(study, ["lora", "qlora", "dora"], 2e-4)
    assert study.judgement("lr-ratio").why == "No finished full"


# All of them


def test_there_is_a_rule_for_every_claim_and_each_says_what_decides_it():
    assert len(CLAIMS) >= 18
    assert all(claim.run.startswith("sweep ") for claim in CLAIMS.values())
    assert [shlex.join(shlex.split(claim.run)) for claim in CLAIMS.values()] == [claim.run for claim in CLAIMS.values()]


@pytest.mark.parametrize("run", sorted({claim.run for claim in CLAIMS.values()}))
def test_what_decides_a_claim_composes(compose, cell, tmp_path, run):
    _, *arguments = shlex.split(run.replace("DIR", str(tmp_path)))
    name = arguments.pop(0) if "=" not in arguments[0] else "config"
    params = compose("hydra/sweeper=grid", config=name, return_hydra_config=True).hydra.sweeper.params or {}
    composed = points([*(f"{key}={values}" for key, values in params.items()), *arguments])
    assert cell(*composed[0], config=name).id
    assert cell(*composed[-1], config=name).id


def test_claims_of_several_data_sets_stand_where_they_are_decided(study):
    for data in ("gsm8k", "facts"):
        memory(study.add("lora", data=data), 400)
        memory(study.add("full", data=data), 1000)
    found = [v for v in ARTICLE.verdicts(study.records, study.folder) if v.claim.name == "lora-memory"]
    assert [v.place[2] for v in found] == ["facts", "gsm8k"]
    assert ARTICLE.verdicts(study.records[::-1], study.folder) == ARTICLE.verdicts(study.records, study.folder)
    first, places = claim_tables(ARTICLE, ARTICLE.merged([(study.records, study.folder)]))
    assert places.columns[:2] == ["Claim", "Data"]
    names = [v.claim.name for v in ARTICLE.verdicts(study.records, study.folder) if v.judgement.effect is not None]
    assert all(names.count(name) == 2 for name in names)
    assert len(first.rows) == len(names) / 2
    assert len(places.rows) == len(names) - 2, "what is counted has no places"
    assert len(first.data) == len(CLAIMS) + len(places.rows) / 2


ON_ROWS = "rank_for_rows"  # its claims need numbers of rows, which this study has not: test_rank_for_rows.py has some


@pytest.mark.parametrize("article", [a for a in every() if a.name != ON_ROWS], ids=lambda article: article.name)
def test_every_judgement_can_be_judged_again_as_one_of_several(article):
    folder = ROOT / "results" / "reference" / "smollm2"
    verdicts = article.verdicts(read_study(folder)[0], folder)
    effects = [verdict.judgement for verdict in verdicts if verdict.judgement.effect]
    assert effects
    for judgement in effects:
        assert judgement.range is not None
        assert judgement.among(1) == judgement.decision
        assert judgement.among(10_000) in (judgement.decision, OPEN)


def test_a_place_that_leaves_a_claim_open_is_not_dropped_for_one_that_decides_it(study):
    for data, mib in (("gsm8k", 400), ("facts", 500)):
        memory(study.add("lora", data=data), mib)
        memory(study.add("full", data=data), 1000)
    found = [v for v in ARTICLE.verdicts(study.records, None) if v.claim.name == "lora-memory"]
    assert {v.place[2]: v.judgement.decision for v in found} == {"gsm8k": SUPPORTED, "facts": OPEN}


# What the linter knows


def machine(record, **changes):
    record.environment = record.environment | changes
    return record


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"device": {"type": "cpu"}}, "device"),
        ({"precision": "fp32"}, "precision"),
        ({"versions": {"torch": "2.12.0"}}, "torch"),
    ],
)
def test_runs_under_other_conditions_decide_nothing(study, changes, fact):
    for seed in range(3):
        for method, mib in (("lora", 400), ("dora", 900)):
            record = study.add(method, seed=seed, gsm8k=0.9 if method == "dora" else 0.5)
            memory(record, mib)
            if method == "dora":
                record.train.step_seconds = [9.0] * 50
                machine(record, **changes)
    for name in ("dora-memory", "dora-training"):
        found = study.judgement(name)
        assert found.decision == OPEN
        assert fact in found.why
    assert (study.judgement("dora-task").decision == OPEN) == (fact != "device")


def test_smaller_micro_batches_after_a_shortage_are_another_setting(study):
    memory(study.add("lora"), 700)
    record = study.add("full")
    memory(record, 1000)
    record.smaller_batches = SmallerBatches(1, 4, [])
    found = study.judgement("lora-memory")
    assert (found.decision, found.why) == (OPEN, "No runs of lora and full with equal batches and settings")


def timed(study, order, slow=(), resumed=(), beside=False):
    """Runs in this order, each (method, seed); those at `slow` places take twice as long."""
    for i, (method, seed) in enumerate(order):
        record = study.add(method, seed=seed)
        record.started = f"2026-01-02T00:{i if beside else 3 * i:02d}:00+00:00"  # each takes two minutes
        machine(record, boot="b", device={"type": "cpu", "id": "0"})
        seconds = (0.13 if method == "dora" else 0.1) * (1 + seed / 100) * (2 if i in slow else 1)
        record.train.step_seconds = [seconds] * 50
        record.train.resumed_at = [20] if i in resumed else []


def test_cells_in_order_of_methods_do_not_decide_speed(study):
    timed(study, [(method, seed) for method in ("lora", "dora") for seed in range(3)])
    assert study.judgement("dora-training").why == "Cells of a method ran one after another"


def test_cells_in_order_of_seeds_decide_speed(study):
    timed(study, [(method, seed) for seed in range(3) for method in ("lora", "dora")])
    found = study.judgement("dora-training")
    assert (found.decision, found.seeds) == (SUPPORTED, 3)
    assert found.why.startswith("Measured at r=16")


def test_cells_beside_others_do_not_decide_speed(study):
    timed(study, [(method, seed) for seed in range(3) for method in ("lora", "dora")], beside=True)
    assert study.judgement("dora-training").why == "All 6 runs overlapped with others or were resumed"


def test_resumed_cells_are_left_out_of_speed(study):
    timed(study, [(method, seed) for seed in range(4) for method in ("lora", "dora")], slow=(1,), resumed=(1,))
    found = study.judgement("dora-training")
    assert found.decision == SUPPORTED
    assert found.effect.value == pytest.approx(1.3, rel=0.02)


def test_sweep_lr_can_support_the_ratio_of_rates(study, compose):
    """Its grid, with best rates ten times apart and a noise of 0.02."""
    params = compose("hydra/sweeper=grid", config="lr", return_hydra_config=True).hydra.sweeper.params
    grid = [float(rate) for rate in params["lr"].split(",")]
    draw = np.random.default_rng(0)
    for method, best in (("full", 6e-5), ("lora", 6e-4), ("qlora", 6e-4), ("dora", 6e-4)):
        for lr in grid:
            for seed in range(2):
                loss = 1 + 0.1 * np.log(lr / best) ** 2 + draw.normal(0, 0.02)
                study.add(method, None, seed, lr=lr, loss=loss)
    assert study.judgement("lr-ratio").decision == SUPPORTED


def test_records_without_anything_decide_nothing():
    assert ARTICLE.verdicts([], None) == []
    failed = [make_record(method, 16, 32.0, 2e-4, status="failed") for method in ("lora", "dora", "full")]
    found = ARTICLE.verdicts(failed, None)
    assert {v.judgement.decision for v in found} == {OPEN}
    assert all(v.judgement.why for v in found)
    assert len(render(claim_table(ARTICLE, merge(found)), "md").splitlines()) > len(CLAIMS)


def test_records_without_validation_are_not_said_to_be_missing(study):
    for method in ("lora", "dora"):
        for lr in (1e-4, 2e-4):
            study.add(method, lr=lr, gsm8k=0.5).validation = []
    why = study.judgement("dora-task").why
    assert why == f"No setting of lora 16 is chosen: {UNVALIDATED}"


def test_imported_records_may_know_no_axes():
    bare = [make_record(method, settings={"train": {}}) for method in TUNED]
    for record in bare:
        record.validation, record.probe, record.train = [], None, None
    assert {v.judgement.decision for v in ARTICLE.verdicts(bare, None) if "weights" in v.claim.name} == {SUPPORTED}


def test_the_command_renders_the_committed_studies(capsys):
    assert main(["claims", "--long", "--study", "reference/quickstart", "--results-dir", str(ROOT / "results")]) == 0
    out = capsys.readouterr().out
    assert all(f"\n- {name}: " in out for name in CLAIMS)
    assert "harness sweep rank" in out


def test_the_verdicts_of_the_committed_quickstart():
    folder = ROOT / "results" / "reference" / "quickstart"
    found = {v.claim.name: v.judgement.decision for v in ARTICLE.verdicts(read_study(folder)[0], folder)}
    assert {name for name, decision in found.items() if decision == SUPPORTED} == {
        *("lora-parameters", "dora-parameters", "dora-serving", "qlora-memory", "galore-states", "galore-weights"),
        "adapters-galore-memory",
    }
    # So small a model's activations take more than its weights do.
    assert {n for n, decision in found.items() if decision == REFUTED} == {"lora-memory", "galore-memory"}


def test_csv_names_the_records(study, tmp_path, capsys):
    memories(study, lora=400, full=1000)
    for record in study.records:
        write(record, tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    assert main(["claims", "--results-dir", str(tmp_path / "results"), "--format", "csv"]) == 0
    data = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("claim")
    assert data.loc["lora-memory", "records"].split() == [record.cell.name for record in study.records]
    assert data.loc["lora-memory", "decision"] == SUPPORTED


def test_no_claim_is_decided_by_two_instruments():
    """The peak of CUDA's allocator, and a count of live tensors on a CPU."""
    full, lora, cpu = (measured(make_record(method)) for method in ("full", "lora", "full"))
    cpu.environment = cpu.environment | {"device": {"type": "cpu", "name": None, "matmul_flops_per_second": 4e12}}
    judgement = CLAIMS["lora-memory"].rule(Evidence([cpu, lora], None))
    assert (judgement.decision, judgement.effect) == (OPEN, None)
    assert "device type" in judgement.why
    same = CLAIMS["lora-memory"].rule(Evidence([full, lora], None))
    assert same.effect.value == pytest.approx(0.5)
