"""What stands before all else: which method to take, what the others cost, and the command that decides the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from markupsafe import escape
from plans import make_plan
from records import make_record, make_score
from scipy import stats
from test_best import answers, leave

from harness import read, terminal
from harness.cli.sweep import _answer as sweep_answer
from harness.config import ROOT
from harness.record import add_plans, note_command, noted_commands, read_study, studies
from harness.report.answer import answer
from harness.report.answer.next_run import with_seeds
from harness.report.pages.page import render
from harness.report.pairwise import MOST_PAIRED, contests
from harness.report.tables import screen
from harness.report.tables.best import best, tables
from harness.report.tables.formats import document, one_line
from harness.report.tables.frames import chosen_of

REFERENCE = ROOT / "results" / "reference"
ONE_SEED = "One seed is not enough to choose between methods."
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


def test_a_method_is_taken_and_the_others_are_told_by_what_they_cost(folder):
    """Of lora (1 GiB), qlora (half of it) and full (twice of it), all better than base."""
    records = trained(folder, {"base": 0.2, "lora": 0.61, "qlora": 0.5, "full": 0.4, "dora": 0.608})
    (text,) = best(records, folder).answer
    assert text.startswith("Take lora lr=1e-4: 61% (59–63) on gsm8k at 1.00 GiB, 39 to 43 points better than base.")
    assert "qlora saves 50% of the memory and loses 10 to 12 points." in text
    assert "Within 2 points of it: dora." in text
    assert text.endswith("Significantly worse: full.")


def test_what_a_method_can_be_better_by_holds_for_all_pairs_together(folder):
    """The bound is that of Student's t at 5% / the number of pairs, of which the report has three."""
    draw = np.random.default_rng(1)
    records = []
    for method, share in (("lora", 0.62), ("dora", 0.6), ("full", 0.3)):
        for seed in range(3):
            values = (draw.random(1500) < share).astype(float)
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), values))
    (contest,) = contests(records, folder)
    gap = contest.differences["lora", "dora"]
    half = stats.t.ppf(1 - 0.05 / 3 / 2, gap.freedom) * gap.error
    lines = best(records, folder).answer
    assert f"dora is not better than lora by more than {math.ceil(100 * (half - gap.value))} point" in lines[0]
    assert lines[0].startswith("Take lora" if half - gap.value <= 0.05 else "lora lr=1e-4 scored highest")
    assert lines[1].startswith("Undecided: lora against dora. To decide on dora, about ")


def test_a_cheaper_method_that_is_not_decided_loses_at_most_so_much(folder):
    records = []
    for method, share in (("dora", 0.6), ("qlora", 0.58)):
        for seed in range(3):
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), answers(share, 1 + seed)))
    (contest,) = contests(records, folder)
    gap = contest.differences["dora", "qlora"]
    assert gap.low < 0 < gap.high, "not decided"
    most = math.ceil(100 * gap.high)  # one pair: the interval as it is
    assert f"qlora saves 55% of the memory and loses at most {most} points." in best(records, folder).answer[0]


def test_nothing_is_taken_that_is_not_better_than_the_base(folder):
    text = " ".join(best(trained(folder, {"base": 0.5, "lora": 0.5, "full": 0.3}), folder).answer)
    assert "Take" not in text
    assert "It is not shown to be better than base." in text
    text = " ".join(best(trained(folder, {"base": 0.7, "lora": 0.5, "full": 0.3}), folder).answer)
    assert "Take" not in text
    assert "Untuned, base is significantly better." in text


def test_one_seed_says_what_is_true_of_its_runs_and_how_to_decide(folder):
    records = trained(folder, {"base": 0.2, "lora": 0.61, "qlora": 0.5, "dora": 0.6}, seeds=1)
    note_command(folder, ["sweep", "quickstart", "study=demo", "seed=0"])
    said, left = best(records, folder).answer
    assert said.startswith("Of these single runs, lora lr=1e-4 scored highest: 61% (59–63) on gsm8k at 1.00 GiB.")
    assert "qlora saves 50% of the memory and scored 11 points lower." in said
    assert "On these items dora, qlora and base scored significantly lower." in said
    assert "Take" not in said
    assert left == f"{ONE_SEED} To decide: `harness sweep quickstart study=demo seed=0,1,2`."


def test_of_many_methods_the_first_are_named_and_the_others_counted(folder):
    near, worse = {f"m{i}": 0.608 - i / 4000 for i in range(8)}, {f"w{i}": 0.4 for i in range(6)}
    shares = {"base": 0.2, "lora": 0.61} | near | worse
    said, *_ = best(trained(folder, shares), folder).answer
    assert "Within 2 points of it: m0, m1, m2, m3, m4 and 3 more." in said
    assert "Significantly worse: w0, w1, w2, w3, w4 and w5." in said


def test_of_one_method_there_is_nothing_to_choose(folder):
    records = trained(folder, {"base": 0.2, "lora": 0.6})
    (text,) = best(records, folder).answer
    assert text == "lora lr=1e-4: 60% (58–62) on gsm8k at 1.00 GiB, 38 to 42 points better than base."
    (text,) = best(trained(folder, {"base": 0.2, "lora": 0.6}, seeds=1), folder).answer
    assert text.startswith("A single run: lora lr=1e-4: 60%")


def test_without_items_no_difference_is_told():
    records = [make_record("lora", scores=[make_score(0.5, 0.03)]), make_record("full", scores=[make_score(0.6, 0.03)])]
    (text,) = best(records, None).answer
    assert text.startswith("full scored highest: 60% (54–66) on gsm8k at 2.00 GiB. Answers to single items are missing")


def test_without_scores_costs_are_told_and_nothing_is_recommended():
    records = [make_record(method, scores=[]) for method in ("lora", "qlora", "full")]
    assert best(records, None).answer == [
        "No score is recorded, so none of the methods is recommended. full has the lowest validation loss (1.235), "
        "qlora needs the least memory (512 MiB), lora is the fastest (500 tokens/s)."
    ]


def test_none_of_equal_scores_is_the_highest(folder):
    (said, _) = best(trained(folder, {"full": 0.5, "qlora": 0.5}, seeds=1), folder).answer
    assert said.startswith("Of these single runs, full and qlora scored the same: 50% (48–52) on gsm8k. ")
    records = [make_record(method, scores=[make_score(0.0, 0.0)]) for method in ("full", "qlora")]
    (said,) = best(records, None).answer
    assert said.startswith("full and qlora scored the same: 0.0% (0.0–1.2) on gsm8k. ")


def test_untuned_models_alone_are_no_methods(folder):
    untuned = trained(folder, {"base": 0.2, "base_nf4": 0.1})
    (text,) = best([*untuned, make_record("lora", scores=[])], folder).answer
    assert text.startswith("No tuned model is scored. base scored highest: 20.2% (18.5–22.0) on gsm8k.")
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
    assert said.startswith("Of these single runs, lora lr=1e-4 scored highest: 61% (59–63) on gsm8k")
    assert "On these items full and lora lr=2e-4 scored significantly lower." in said
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
    assert text.startswith("Take lora")
    assert "Not compared, as items are missing or differ: full and galore." in text


def test_a_score_that_is_better_when_lower_is_told_in_its_unit(folder):
    records = []
    for method, level in (("lora", 0.9), ("full", 1.1)):
        for seed in range(3):
            values = level + np.random.default_rng([seed, int(10 * level)]).normal(0, 0.01, 200)
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), values, make_score(n=200, **BITS)))
    (text,) = best(records, folder).answer
    assert text.startswith("Take lora lr=1e-4: 0.899 bits per byte (0.89")
    assert text.endswith("Significantly worse: full.")
    records = [replace(record, cell=replace(record.cell, seed=0)) for record in records if record.cell.seed == 0]
    assert "Of these single runs, lora lr=1e-4 scored lowest: 0.900 bits per byte (" in best(records, folder).answer[0]


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
    assert lines[4:] == [f"{ONE_SEED} To decide: repeat its sweep with seed=0,1,2."]


def test_a_method_of_one_seed_is_not_judged_beside_those_of_several(folder):
    records = trained(folder, {"lora": 0.6, "full": 0.3})
    records += trained(folder, {"qlora": 0.2}, seeds=1)
    said, left = best(records, folder).answer
    assert "qlora" not in said
    assert "Take" not in said
    assert left.startswith("Undecided: lora against qlora.")


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
        (["sweep", "lr", "data.prompt=`x`"], [0], "repeat its sweep with seed=0,1,2"),
        (["run", "method=lora"], [0], "repeat its sweep with seed=0,1,2"),
    ],
)
def test_the_command_is_the_study_s_own_with_more_seeds(folder, typed, seeds, expected):
    note_command(folder, typed)
    assert with_seeds([make_record("lora", seed=seed) for seed in seeds], folder, 3) == expected


def test_confirming_seeds_become_more_of_them(folder):
    note_command(folder, ["sweep", "tune", "--confirm", "2", "study=demo"])
    records = [make_record("lora", seed=seed) for seed in (0, 1, 2)]
    for record in records[1:]:
        record.confirmation = True
    assert with_seeds(records, folder, 5) == "`harness sweep tune study=demo --confirm 5`"


def test_what_decides_a_planned_study_is_planned_too(folder):
    """More seeds of it would be exploratory."""
    note_command(folder, ["sweep", "tune", "--confirm", "2", "study=demo", "lr=1e-3"])
    records = [make_record("lora", seed=seed) for seed in (0, 1, 2)]
    add_plans(folder, [make_plan(records[:1], [1, 2])])
    assert with_seeds(records[:1], folder, 5) == "`harness sweep tune study=demo lr=1e-3 --confirm 5`"
    for record in records[1:]:
        record.confirmation = True
    assert with_seeds(records, folder, 5) == "`harness sweep tune lr=1e-3 study=demo_fresh --confirm 5`"
    (folder / "commands.txt").unlink()
    assert with_seeds(records, folder, 5) == "repeat its sweep with study=demo_fresh --confirm 5"


def test_commands_that_differ_in_their_seeds_alone_are_said_once(tmp_path):
    for seeds in ([], ["seed=0"], ["seed=1,2"], ["lr=1e-3"]):
        note_command(tmp_path, ["sweep", "quickstart", *seeds])
    said = "`harness sweep quickstart seed=0,1 && harness sweep quickstart lr=1e-3 seed=0,1`"
    assert with_seeds([make_record("lora")], tmp_path, 2) == said


def test_many_seeds_are_a_range_that_hydra_reads(folder):
    from harness.sweep.app.grid import grid

    note_command(folder, ["sweep", "quickstart"])
    assert with_seeds([make_record("lora")], folder, 30) == "`harness sweep quickstart 'seed=range(0,30)'`"
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
    assert said.startswith("Of these single runs")
    assert left.startswith(f"{ONE_SEED} To decide: ")


def test_in_a_terminal_it_is_set_apart_and_its_command_stands_alone(folder):
    note_command(folder, ["sweep", "quickstart", *(f"train.setting_{i}={i}" for i in range(9))])
    table = best(trained(folder, {"lora": 0.6, "full": 0.4}, seeds=1), folder)
    lines = terminal.lines(*screen.view([table], 60), width=60)
    assert lines[0] == ""
    assert lines[1].startswith("▌ Of these single runs")
    (command,) = [line for line in lines if "harness sweep" in line]
    assert command.startswith("    harness sweep quickstart train.setting_0=0 ")
    assert command.endswith("seed=0,1,2")
    assert lines.index("demo: best settings") == lines.index(command) + 2


def test_published_experiments_have_an_answer():
    study = REFERENCE / "peft_llama_3_2_3b"
    records, _ = read_study(study)
    (text,) = tables(records, study)[0].answer
    assert text.startswith("Best score: lily r=140 ")
    assert ": 52.6 (49.1–56.1) at 23.86 GiB. Significantly worse: 36 of the other 65 experiments. Least memory" in text
    (place,) = answer(records, study).places.values()
    assert [standing.choice.method for standing in place.best[:3]] == ["lily", "lora", "hira"]
    assert len(place.best) == 66 - 36
    first = chosen_of(answer(records, study)).iloc[0]
    assert f"{100 * first['value']:.1f} ({100 * first['low']:.1f}–{100 * first['high']:.1f})" == "52.6 (49.1–56.1)"


@pytest.mark.slow
@pytest.mark.parametrize("name", studies(REFERENCE))
def test_all_that_shows_a_study_answers_the_same(name):
    """The table, the report (which `view` serves), the end of a sweep and the Python API; with one row for each."""
    folder = REFERENCE / name
    records, _ = read_study(folder)
    study = read(folder)
    shown = tables(records, folder)
    (place, *_) = answer(records, folder).places.values()
    assert study.answer == list(shown[0].answer) == sweep_answer(folder)
    for best_one in place.best[:1]:
        assert best_one.choice.described in study.answer[0]
    said = one_line(study.answer[0]).split("`")[0]
    page = render(records, folder)
    assert f'<p class="answer">{escape(said)}' in page
    assert page.index(str(escape(said))) < page.index('<section id="best">')
    assert len(study.best()) == len(study.table()) == len(shown[0].rows)
    assert f'<caption id="best-table-caption">{shown[0].title}</caption>' in page
