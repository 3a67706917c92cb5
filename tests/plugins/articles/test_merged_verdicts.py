"""One verdict a claim over several places: what agrees, what differs, and what is open."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from scipy import special

from harness.plugins.articles.article import find
from harness.plugins.articles.claims import (
    DEPENDS,
    OPEN,
    REFUTED,
    SUPPORTED,
    TOO_SMALL,
    Bounds,
    Judgement,
    Part,
    Verdict,
    judged,
)
from harness.plugins.articles.designed import for_all_looks
from harness.plugins.articles.merged import merge, merged_decision, sure_somewhere, surely
from harness.plugins.articles.verdict_tables import remark, studies_text
from harness.report.planned import PlanState
from harness.report.statistics import ALPHA, Interval

CLAIM = find("beyond_lora").claims["lora-memory"]  # a ratio of at most half
MODEL, DATA = "smollm2", "wordmath"


def judgement(value, error=0.01):
    """Of a ratio with a normal error; corrected, its interval is wider."""

    def interval(places):
        half = NormalDist().inv_cdf(1 - 0.025 / places) * error  # two-sided, by Bonferroni
        return Interval(value, value - half, value + half)

    return judged(interval, Bounds(high=0.5, ratio=True), 3, ("cell",))


SURE, SUPPORTING, STRADDLING, REFUTING = (judgement(value) for value in (0.4, 0.479, 0.495, 0.521))


def places(*judgements, studies="abcdefgh", models=None, data=None):
    where = zip(
        studies, models or [MODEL] * len(judgements), data or [DATA] * len(judgements), judgements, strict=False
    )
    return [Verdict(CLAIM, (study, model, of), judged) for study, model, of, judged in where]


def merged(*judgements, **where):
    (verdict,) = merge(places(*judgements, **where)).judged
    return verdict


def test_the_judgements_are_what_the_tests_take_them_for():
    assert [j.decision for j in (SURE, SUPPORTING, STRADDLING, REFUTING)] == [SUPPORTED, SUPPORTED, OPEN, REFUTED]
    assert surely([SURE, SUPPORTING]) == [SUPPORTED, SUPPORTED], "by Holm's method the second is not corrected"
    assert surely([SUPPORTING, STRADDLING, STRADDLING]) == [OPEN, OPEN, OPEN]


def test_one_place_is_its_own_verdict():
    verdict = merged(SUPPORTING)
    assert verdict.judgement is SUPPORTING
    assert verdict.depends_on == ()


def test_places_that_all_agree_are_not_corrected():
    assert merged_decision([SUPPORTING] * 3) == SUPPORTED
    assert merged_decision([REFUTING] * 3) == REFUTED


def test_an_open_place_does_not_overrule_most_that_are_sure_and_is_named():
    verdict = merged(SURE, SURE, STRADDLING)
    assert verdict.judgement.decision == SUPPORTED
    assert verdict.judgement.why == "Supported in a, b; not decided in c"
    assert [one.place[0] for one in verdict.agreeing] == ["a", "b"]
    assert verdict.judgement.effect == SURE.effect, "one that is open shows nothing of what is decided"


@pytest.mark.parametrize("vague", [1, 4])
def test_one_sure_place_speaks_for_no_others(vague):
    verdict = merged(SURE, *[STRADDLING] * vague)
    assert verdict.judgement.decision == OPEN
    assert verdict.judgement.why.startswith("Supported in a; not decided in b")
    assert merged(judgement(0.6), *[STRADDLING] * vague).judgement.decision == REFUTED


def test_among_open_places_a_single_decision_may_be_chance():
    assert merged_decision([SUPPORTING, STRADDLING]) == OPEN
    why = merged(SUPPORTING, STRADDLING).judgement.why
    assert why == "Supported in a, which of 2 places may be chance; not decided in b"


def test_several_that_decide_alike_are_no_chance_though_none_is_sure():
    few, more = [SUPPORTING] * 2 + [STRADDLING] * 3, [SUPPORTING] * 3 + [STRADDLING]
    assert set(surely(few)) == set(surely(more)) == {OPEN}
    assert (sure_somewhere(few), sure_somewhere(more)) == (set(), {SUPPORTED})
    assert (merged_decision(few), merged_decision(more)) == (OPEN, SUPPORTED)
    assert merged_decision([judgement(0.6), *more]) == DEPENDS, "it fails in one, and it is no chance that 3 of 4 hold"


def test_one_counterexample_refutes_a_claim_and_one_example_does_not_support_it():
    refuted, sure = merged(judgement(0.6), SUPPORTING, STRADDLING, STRADDLING), judgement(0.6)
    assert refuted.judgement.decision == REFUTED
    assert refuted.judgement.effect == sure.effect
    assert refuted.judgement.why == (
        "Refuted in a; supported in b, which of 4 places may be chance; not decided in c, d"
    )
    opposed = merged(SURE, REFUTING, STRADDLING, STRADDLING)
    assert opposed.judgement.decision == OPEN
    assert opposed.judgement.why == (
        "Supported in a; refuted in b, which of 4 places may be chance; not decided in c, d"
    )


def test_a_place_that_has_both_but_not_surely_leaves_a_refuted_claim_refuted():
    mixed = replace(SUPPORTING, decision=DEPENDS, corrected=lambda places: DEPENDS if places < 3 else OPEN)
    refuting = [judgement(0.6)] * 2
    verdict = merged(*refuting, mixed, STRADDLING, STRADDLING)
    assert verdict.judgement.decision == REFUTED
    assert verdict.judgement.why.startswith("Refuted in a, b; mixed in c, which of 5 places may be chance;")
    assert merged(*refuting, mixed, STRADDLING).judgement.decision == DEPENDS, "of two places it is sure"


@pytest.mark.parametrize("others", [[], [STRADDLING], [SURE]], ids=len)
def test_decisions_that_surely_differ_mean_that_it_depends(others):
    refuting = judgement(0.6)
    verdict = merged(SURE, refuting, *others)
    assert verdict.judgement.decision == DEPENDS
    assert verdict.judgement.effect == refuting.effect
    assert verdict.judgement.why.startswith("Depends on study: supported in a")


def test_decisions_that_differ_by_chance_decide_nothing():
    assert merged_decision([SURE, REFUTING, STRADDLING]) == OPEN
    assert merged_decision([SURE, REFUTING]) == DEPENDS, "the second of two is not corrected once the first is sure"


def test_what_it_depends_on_is_what_tells_the_places_apart():
    refuting = judgement(0.6)
    assert merged(SURE, refuting, data=["facts", "wordmath"]).depends_on == ("data",)
    assert merged(SURE, refuting, models=["3b", "smollm2"]).depends_on == ("model",)
    assert merged(SURE, refuting, SURE, data=["facts", "facts", "wordmath"]).depends_on == ("data", "study")
    within = Judgement(DEPENDS, Interval(0.6, 0.59, 0.61), 3, None, ("cell",), "", (0.0, 0.5))
    assert merged(within, SURE).depends_on == ("setting",)
    assert merged(within).depends_on == ("setting",)
    assert merged(within, SURE, refuting, data=["a", "b", "c"]).depends_on == ("data",)


def test_a_setting_that_tells_apart_is_named_with_its_values():
    first, second = places(SURE, judgement(0.6))
    settings = [{"batch_size": frozenset({size}), "rank": frozenset({"8"})} for size in ("2", "16")]
    parts = [Part(SUPPORTED, settings[0]), Part(REFUTED, settings[1])]
    (verdict,) = merge([replace(first, parts=(parts[0],)), replace(second, parts=(parts[1],))]).judged
    assert verdict.depends_on == ("batch size",)
    assert verdict.judgement.why.startswith("Depends on batch size (")


def test_too_small_to_matter_is_a_decision_like_others():
    small = Judgement(TOO_SMALL, Interval(0.5, 0.49, 0.51), 3, None, ("cell",), "", (0.0, 0.5))
    assert merged_decision([small, small]) == TOO_SMALL
    assert merged_decision([small, small, STRADDLING]) == TOO_SMALL
    assert merged_decision([small, STRADDLING]) == OPEN
    assert merged_decision([small, SURE]) == DEPENDS


def test_the_effect_is_the_one_closest_to_another_decision():
    close, far = judgement(0.45), judgement(0.2)
    assert merged(far, close).judgement.effect == close.effect
    below, above = judgement(0.55), judgement(0.9)
    assert merged(above, below).judgement.effect == below.effect
    wide, narrow = judgement(0.5, 0.2), judgement(0.5, 0.1)
    assert merged(wide, narrow).judgement.effect == narrow.effect, "of open ones the one that tells most"


def test_the_effect_is_that_of_the_designed_study_if_it_decides_as_all_do():
    close, far, straddling, narrow = judgement(0.45), judgement(0.2), judgement(0.5, 0.2), judgement(0.5, 0.1)
    for judgements in ((close, far), (narrow, straddling)):
        (verdict,) = merge(places(*judgements), {CLAIM.name: "b"}).judged
        assert verdict.judgement.effect == judgements[1].effect
        assert verdict.place[0] == "b"
    (verdict,) = merge(places(far, close, STRADDLING), {CLAIM.name: "c"}).judged
    assert (verdict.decision, verdict.judgement.effect) == (SUPPORTED, close.effect)


def test_the_seeds_are_those_of_the_effect():
    few, many = judgement(0.45), replace(judgement(0.2), seeds=9)
    assert merged(few, many).judgement.seeds == 3
    (verdict,) = merge(places(few, many), {CLAIM.name: "b"}).judged
    assert verdict.judgement.seeds == 9


def test_a_place_that_cannot_test_the_claim_counts_for_nothing_but_is_listed():
    unknown = Judgement(OPEN, Interval(0.4, math.nan, math.nan), 1, None, ("cell",), "One seed", (0.0, 0.5))
    unfair = Judgement(OPEN, Interval(0.9, 0.8, 1.0), 3, None, ("cell",), "The runs differ in device", (0.0, 0.5))
    verdict = merged(SUPPORTING, unknown, unfair)
    assert verdict.judgement.decision == SUPPORTED
    assert verdict.judgement.why == "2 more places can't test it"
    assert [one.place[0] for one in verdict.places] == ["a", "b", "c"]
    assert verdict.studies == ["a"]
    assert merged(unknown, unknown).judgement.decision == OPEN
    assert merged(unknown, STRADDLING).judgement.effect == STRADDLING.effect


def test_a_verdict_is_as_planned_as_the_weakest_of_its_places():
    planned, interim = PlanState("planned"), PlanState("interim", "The plan has 2 of 3 cells")
    first, second = (replace(verdict, plan=planned) for verdict in places(SURE, SURE))
    (verdict,) = merge([first, second]).judged
    assert (verdict.plan.word, verdict.decision) == ("planned", SUPPORTED)
    (verdict,) = merge([first, replace(second, plan=interim)]).judged
    assert (verdict.plan, verdict.decision, verdict.judgement.decision) == (interim, OPEN, SUPPORTED)
    (verdict,) = merge([first, *places(SURE, studies="z")]).judged
    assert (verdict.plan.word, verdict.decision) == ("exploratory", SUPPORTED)


def test_only_places_that_could_be_judged_stand_behind_a_verdict():
    lacking = Judgement(OPEN, why="No finished full")
    verdicts = merge([*places(SURE, lacking), *places(lacking, studies="z")])
    assert [one.place[0] for one in verdicts.judged[0].places] == ["a"]
    assert verdicts.not_judged == []
    assert merge(places(lacking, Judgement(OPEN, records=("cell",), why="One seed"))).not_judged[0].judgement.records


def test_what_is_counted_on_a_models_shape_has_one_place_and_says_on_what():
    claim = find("beyond_lora").claims["lora-parameters"]
    each = [replace(verdict, claim=claim) for verdict in places(SURE, SURE, SURE)]
    (verdict,) = merge(each, {claim.name: "b"}).judged
    assert [one.place[0] for one in verdict.places] == ["b"]
    assert studies_text(verdict) == remark(verdict, one_study=True) == "counted on GPT-3 175B"


def test_the_designed_study_is_named_first():
    designed = {CLAIM.name: "c"}
    (verdict,) = merge(places(SURE, SURE, SURE, studies=["reference/a", "reference/b", "reference/c"]), designed).judged
    assert verdict.studies == ["reference/c", "reference/a", "reference/b"]
    assert verdict.judgement.records[0] == "reference/c/cell"


@pytest.mark.parametrize("alike", [0.0, 0.8])
@pytest.mark.parametrize("places", [2, 3, 5, 10])
def test_many_places_at_the_limit_are_rarely_decided(places, alike):
    """Each place errs on one side in 2.5%; without a correction 5 of them would in 12% and 10 in 22%.

    alike: the share of the errors' variance that all places have in common.
    """
    draw = np.random.default_rng(places)
    studies = 2000
    wrong = 0
    errors = (1 - alike) ** 0.5 * draw.normal(size=(studies, places)) + alike**0.5 * draw.normal(size=(studies, 1))
    for of_places in errors:
        wrong += merged_decision([judgement(0.5 + 0.01 * error) for error in of_places]) in (SUPPORTED, DEPENDS)
    assert wrong / studies < 0.035


@pytest.mark.parametrize(
    ("study", "claim", "decision"),
    [
        ("reference/study_targets", "layers-rank", OPEN),  # looked at three times
        ("reference/study_targets", "layers-parameters", OPEN),
        ("reference/study_targets", "another", SUPPORTED),
        ("study_targets", "layers-rank", SUPPORTED),  # another's, by the same sweep
    ],
)
def test_a_claim_that_was_looked_at_several_times_takes_wider_intervals(study, claim, decision):
    def interval(comparisons):
        half = 0.04 * special.stdtrit(30, 1 - ALPHA / comparisons / 2) / special.stdtrit(30, 1 - ALPHA / 2)
        return Interval(1.055, 1.055 - half, 1.055 + half)  # 1.015, and 1.009 at the level of each of three looks

    once = judged(interval, Bounds(low=1.01, ratio=True), 16, ("cell",))
    assert once.decision == SUPPORTED
    found = for_all_looks(once, study, claim)
    assert (found.decision, found.effect) == (decision, once.effect)
    assert found.among(1) == decision
    assert found.among(100) == OPEN
