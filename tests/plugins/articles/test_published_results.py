"""Claims on figures that others published: what is compared, how sources become a verdict, and which rows are read."""

from __future__ import annotations

import csv
import math
import re

import pytest

from harness.config import ROOT
from harness.errors import UserError
from harness.plugins.articles import decided
from harness.plugins.articles.article import every, find
from harness.plugins.articles.claims import Bounds
from harness.plugins.articles.published_figures import COLUMNS, published_figures
from harness.plugins.articles.published_forest import published_forest
from harness.plugins.articles.published_rules import Contrast, PublishedRule, pooled_deviation, published_verdicts
from harness.plugins.articles.published_tables import effect_table, verdict_table
from harness.plugins.articles.rules import BETTER

TABLES = ROOT / "results" / "published"
ROW = {
    **{
        "source": "A",
        "address": "https://example.org/a",
        "place": "table 1",
        "seen": "yes",
        "model": "M",
        "billions": 7,
    },
    **{"data": "D", "task": "GSM8K", "ability": "numerical", "trained": "yes", "metric": "score"},
}
CLAIM = find("beyond_lora").claims["lora-numerical"]
FULL_LORA = Contrast("full", "lora", BETTER, abilities=["numerical"])


def figures(tmp_path, *rows):
    """The figures of a table with these rows, each with what differs from ROW."""
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(ROW | row for row in rows)
    return published_figures(tmp_path)


def scored(method, value, error=0.4, runs=4, **more):
    own = {"error": error, "error_is": "sd", "runs": runs} if error else {}
    return {"method": method, "value": value} | own | more


def verdict(found, rule=FULL_LORA):
    rule = rule if isinstance(rule, PublishedRule) else PublishedRule({"": rule})
    (judged,) = published_verdicts({"lora-numerical": CLAIM}, {"lora-numerical": rule}, found)
    return judged


def test_sources_that_agree_support_a_claim(tmp_path):
    found = figures(
        tmp_path,
        *(
            scored(m, v, source=s)
            for s, gain in zip("ABC", (5, 5.5, 6), strict=True)
            for m, v in (("full", 50 + gain), ("lora", 50))
        ),
    )
    judged = verdict(found)
    assert judged.decision == "supported"
    assert judged.judgement.effect.value == pytest.approx(0.055, abs=1e-3)
    assert judged.sources == ["A", "B", "C"]
    error = judged.parts[0].votes[0].error
    assert error == pytest.approx(math.sqrt(2 * 0.004**2 / 4))


def test_a_mean_is_shown_without_the_source_that_moves_it_most(tmp_path):
    gains = {"A": 1.0, "B": 1.1, "C": 9.0}
    rows = [scored(m, 50 + (m == "full") * gain, source=s) for s, gain in gains.items() for m in ("full", "lora")]
    judged = verdict(figures(tmp_path, *rows))
    source, pooled = judged.part.without_the_furthest
    assert (source, pooled.sources) == ("C", 2)
    assert pooled.value == pytest.approx(0.0105, abs=1e-4)
    table = verdict_table(find("beyond_lora"), [judged], True)
    (line,) = [each for each in table.caption if "moves a mean most" in each]
    assert line.startswith("Without the source that moves a mean most: lora-numerical +1.1 points")
    assert line.endswith(" without C.")
    assert verdict(figures(tmp_path, *rows[:4])).part.without_the_furthest is None


def test_one_source_decides_nothing(tmp_path):
    judged = verdict(figures(tmp_path, scored("full", 60), scored("lora", 50)))
    assert (judged.decision, judged.judgement.why) == ("not decided", "One source")
    assert math.isnan(judged.judgement.effect.low)


def test_settings_that_surely_differ_make_it_depend(tmp_path):
    rows = [scored("full", v, source=s) for s, v in (("A", 60), ("B", 40), ("C", 60))]
    found = figures(tmp_path, *rows, *(scored("lora", 50, source=s) for s in "ABC"))
    judged = verdict(found)
    assert judged.decision == "depends"
    assert judged.judgement.why == "Refuted in B (M, D, GSM8K); supported in A (M, D, GSM8K)"
    borrowed = [row | {"error": "", "error_is": ""} for row in rows]
    found = figures(tmp_path, *borrowed, *(scored("lora", 50, source=s) for s in "ABC"))
    assert verdict(found).decision == "not decided"  # a borrowed error makes no setting sure


def test_a_source_has_one_vote_whatever_it_shows(tmp_path):
    models = [scored(m, v, model=f"M{i}") for i in range(4) for m, v in (("full", 56), ("lora", 50))]
    other = [scored(m, v, source="B") for m, v in (("full", 50), ("lora", 50))]
    judged = verdict(figures(tmp_path, *models, *other))
    assert judged.judgement.effect.value == pytest.approx(0.03, abs=1e-3)
    assert [len(vote.effects) for vote in judged.parts[0].votes] == [4, 1]


def test_lengths_of_a_run_are_one_effect_with_the_error_of_one(tmp_path):
    rows = [scored(m, v, length=f"{n} epochs") for n in (1, 2, 4) for m, v in (("full", 50 + n), ("lora", 50))]
    (vote,) = verdict(figures(tmp_path, *rows)).parts[0].votes
    assert len(vote.effects) == 1
    assert vote.value == pytest.approx(0.07 / 3)
    assert vote.error == pytest.approx(math.sqrt(2 * 0.004**2 / 4))


def test_an_adapter_stands_at_its_highest_rank_or_at_equal_ranks(tmp_path):
    rows = [scored("full", 60), scored("lora", 40, rank=8), scored("lora", 55, rank=64)]
    rows += [scored("dora", 50, rank=8), scored("dora", 90, rank=16), scored("dora", 57, rank=64)]
    found = figures(tmp_path, *rows)
    highest, equal = (
        verdict(found, c).parts[0].votes[0].value for c in (FULL_LORA, Contrast("dora", "lora", BETTER, ranks="equal"))
    )
    assert (highest, equal) == (pytest.approx(0.05), pytest.approx((0.10 + 0.02) / 2))
    unranked = figures(tmp_path, scored("dora", 60), scored("lora", 50))
    assert verdict(unranked, Contrast("dora", "lora", BETTER, ranks="equal")).parts[0].votes == ()
    ranks = Contrast("lora", "lora", BETTER, ranks="high and low")
    assert verdict(found, ranks).parts[0].votes[0].value == pytest.approx(0.15)


@pytest.mark.parametrize("other", [{"trained": "no"}, {"ability": "reasoning"}, {"ability": "average"}, {"data": "E"}])
def test_other_tasks_and_other_settings_are_not_compared(tmp_path, other):
    found = figures(tmp_path, scored("full", 60, **other), scored("lora", 50))
    assert verdict(found).judgement.why == "No published figures"


def test_a_missing_error_is_borrowed_from_all_repeats(tmp_path):
    repeats = [scored("x", 50, error=1.0, runs=3), scored("y", 50, error=2.0, runs=2)]
    found = figures(tmp_path, *repeats, scored("full", 60, error=None, runs=1), scored("lora", 50, error=None, runs=1))
    deviation = math.sqrt((2 * 1 + 1 * 4) / 3)
    assert pooled_deviation(found, "score") == pytest.approx(deviation)
    (effect,) = verdict(found).parts[0].effects
    assert effect.borrowed
    assert effect.error == pytest.approx(deviation / 100 * math.sqrt(2))
    without = figures(tmp_path, scored("full", 60, error=None), scored("lora", 50, error=None))
    assert verdict(without).parts[0].votes == ()  # there is none to borrow


def test_an_unstated_error_counts_as_that_of_the_mean(tmp_path):
    rows = [scored(m, v, error=1.0, runs=4) | {"error_is": "unstated"} for m, v in (("full", 60), ("lora", 50))]
    (effect,) = verdict(figures(tmp_path, *rows)).parts[0].effects
    assert effect.error == pytest.approx(0.01 * math.sqrt(2))


def test_peaks_of_memory_are_compared_as_ratios(tmp_path):
    cost = {"metric": "memory", "ability": "cost", "task": "training"}
    rows = [scored(m, v, error=None, source=s, **cost) for s in "ABC" for m, v in (("full", 40), ("lora", 10))]
    contrast = Contrast("lora", "full", Bounds(0, 0.5, ratio=True), "memory")
    judged = verdict(figures(tmp_path, *rows), contrast)
    assert judged.decision == "supported"
    assert judged.judgement.effect.value == pytest.approx(0.25)
    assert judged.parts[0].effects[0].error == pytest.approx(0.015 * math.sqrt(2))


def test_a_spread_is_the_ratio_of_deviations(tmp_path):
    rows = [scored("lora", 50, error=2.0), scored("dora", 50, error=1.0)]
    contrast = Contrast("lora", "dora", Bounds(low=1.4, small=(1 / 1.4, 1.4), ratio=True), compared="spread")
    (effect,) = verdict(figures(tmp_path, *rows), contrast).parts[0].effects
    assert effect.value == pytest.approx(math.log(2))
    assert effect.error == pytest.approx(math.sqrt(1 / 6 + 1 / 6))


def test_a_claim_of_all_parts_is_open_without_one_of_them_and_refuted_by_any(tmp_path):
    rows = [scored(m, v, source=s) for s in "ABC" for m, v in (("full", 60), ("lora", 50))]
    parts = {"full": FULL_LORA, "galore": Contrast("galore", "lora", BETTER)}
    judged = verdict(figures(tmp_path, *rows), PublishedRule(parts))
    assert judged.decision == "not decided"
    assert judged.judgement.why == "No published figures of galore; full: supported"
    parts = {"full": Contrast("lora", "full", BETTER), "galore": Contrast("galore", "lora", BETTER)}
    assert verdict(figures(tmp_path, *rows), PublishedRule(parts)).decision == "refuted"


def test_a_claim_of_any_part_needs_one_and_fails_by_all(tmp_path):
    rows = [scored(m, v, source=s, trained="no") for s in "ABC" for m, v in (("base", 60), ("full", 50), ("lora", 60))]
    bound = Bounds(low=0.02)
    parts = {m: Contrast("base", m, bound, abilities=["numerical"], trained=False) for m in ("full", "lora", "dora")}
    found = figures(tmp_path, *rows)
    judged = verdict(found, PublishedRule(parts, "any"))
    assert (judged.decision, judged.part.name) == ("supported", "full")
    kept = PublishedRule({m: parts[m] for m in ("lora", "dora")}, "any")
    assert verdict(found, kept).decision == "refuted"


def test_a_verdict_says_if_another_source_may_differ(tmp_path):
    gains = zip("ABCD", (4, 5, 9, 12), strict=True)
    found = figures(tmp_path, *(scored(m, v, source=s) for s, g in gains for m, v in (("full", 50 + g), ("lora", 50))))
    judged = verdict(found)
    assert judged.decision == "supported"
    assert judged.uncertain
    assert verdict_table(find("beyond_lora"), [judged]).rows[0][-1] == "another source may differ"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": ""}, "a.csv, line 2: source is required."),
        ({"address": "example.org"}, "a.csv, line 2: address must start with https://, got example.org."),
        ({"value": "n/a"}, "a.csv, line 2: value must be a number of at least 0, got n/a."),
        ({"value": "nan"}, "a.csv, line 2: value must be a number of at least 0, got nan."),
        ({"value": 101}, "a.csv, line 2: a score must be in percent, got 101."),
        ({"billions": 0.1}, "a.csv, line 2: billions must be at least 1, got 0.1."),
        ({"ability": "wit"}, "a.csv, line 2: ability must be one of numerical, knowledge, reasoning, "),
        ({"ability": "cost"}, "a.csv, line 2: ability is cost for memory and seconds alone, got cost."),
        ({"trained": "maybe"}, "a.csv, line 2: trained must be one of yes, no, got maybe."),
        ({"rank": "-8"}, "a.csv, line 2: rank must be a positive whole number, got -8."),
        ({"error": 0.5}, "a.csv, line 2: error and error_is require each other."),
        ({"error": 0.5, "error_is": "sd", "runs": 1}, "a.csv, line 2: error_is=sd requires at least 2 runs."),
        ({"error": 0, "error_is": "se"}, "a.csv, line 2: value and error must be positive, got 0."),
    ],
)
def test_a_bad_row_is_named_in_one_sentence(tmp_path, change, said):
    with pytest.raises(UserError, match=re.escape(said)):
        figures(tmp_path, {"method": "lora", "value": 50} | change)


def test_a_figure_stands_once_and_tables_have_all_columns(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv, line 3 must differ from line 2 in setting, method or rank\."):
        figures(tmp_path, scored("lora", 50), scored("lora", 51))
    (tmp_path / "a.csv").write_text("source,value\nA,1\n")
    with pytest.raises(UserError, match=r"a\.csv must have the columns source, address"):
        published_figures(tmp_path)
    (tmp_path / "a.csv").write_text(",".join(COLUMNS) + "\nA,1\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2 must have 20 cells\."):
        published_figures(tmp_path)
    with pytest.raises(UserError, match="There are no tables of published results in"):
        published_figures(tmp_path / "none")


def test_every_rule_is_of_a_claim():
    for article in every():
        assert article.published.keys() <= article.claims.keys()


def test_the_committed_tables_hold_what_their_sources_say():
    found = {(f.source, f.model, f.task, f.method, f.rank): f for f in published_figures(TABLES) if not f.length}
    lift = found["LIFT (ICML 2025)", "Llama-2-7B", "GSM8K", "lora", None]
    assert (lift.value, lift.error, lift.runs, lift.seen) == (47.02, 1.19, 4, "yes")
    loftq = found["LoftQ README", "Llama-3-8B", "GSM8K", "qlora", 64]
    assert (loftq.value, loftq.error, loftq.error_is, loftq.runs) == (67.4, 1.0, "unstated", None)
    assert found["ms-swift benchmark", "Qwen-7B-Chat", "GSM8K", "full", None].value == 34.3


def test_the_figure_has_a_panel_for_each_claim_with_sources():
    judged = decided.others_verdicts("beyond_lora")
    drawn = published_forest(judged)
    titles = [axes.get_title("left").partition(":")[0] for axes in drawn.figure.axes]
    assert titles == [v.claim.name for v in judged if len(v.parts) == 1 and len(v.part.votes) > 1]
    assert published_forest([]) is None


def test_tables_name_each_source_and_its_address():
    judged, found = decided.others_verdicts("beyond_lora"), published_figures(TABLES)
    table = effect_table(judged, found)
    assert {row[5] for row in table.rows} == {"own", "borrowed"}
    named = "\n".join(table.caption)
    assert all(source in named for verdict in judged for source in verdict.sources)
