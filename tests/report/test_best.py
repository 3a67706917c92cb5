"""The table that is read first, and the standings beneath it: intervals, ties, and what can't be concluded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from records import MIB, make_answered, make_record, make_score, make_study, measured
from rendered import HOSTILE, Tags, caption, row, rows

from harness.record import LossPoint, ValidationPoint, read_study, write
from harness.report import statistics
from harness.report.pairwise import contests, items
from harness.report.power import Assumptions, assumptions, describe, items_needed, power, seed_sd
from harness.report.select import UNVALIDATED, select
from harness.report.tables.best import SURVEY, best, tables
from harness.report.tables.formats import document

independent = statistics.Answers.independent
SCORE = "gsm8k/exact_match/strict-match"
HEADER = "gsm8k, exact match, strict format (%)"
ITEMS = 400


def leave(folder, record, values, score=None, **columns):
    """Gives `record` the score that `values` mean, and lays them beside it as `harness.job.evaluate.scoring` would."""
    score = score or make_score(n=len(values))
    score.value = float(np.mean(values))
    score.stderr = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    record.scores = [score]
    table = pd.DataFrame(
        {
            "task": score.task,
            "subject": score.task,
            "item": range(len(values)),
            "hash": "0",
            "filter": score.filter,
            "metric": score.metric,
            "value": values,
            "prediction": "1",
            "target": "1",
        }
        | columns
    )
    folder.mkdir(parents=True, exist_ok=True)
    write(record, folder / f"{record.cell.name}.json")
    # Items in another order, which is not to matter
    table.sample(frac=1, random_state=0).to_parquet(folder / f"{record.cell.name}.items.parquet", index=False)
    return record


def answers(share, seed, items=ITEMS):
    """Right and wrong answers: easy items are got right by all."""
    difficulty = np.random.default_rng(0).random(items)
    noise = np.random.default_rng([seed, int(1000 * share)]).normal(0, 0.05, items)
    return (difficulty + noise < share).astype(float)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "demo"


@pytest.fixture
def study(folder):
    """Base; LoRA and DoRA alike and far better, at two rates and three seeds; full in between."""
    records = [leave(folder, make_record("base"), answers(0.2, 0))]
    for method, share in (("lora", 0.6), ("dora", 0.605), ("full", 0.4)):
        for lr, loss in ((1e-4, 1.3), (2e-4, 1.2)):
            for seed in range(3):
                record = make_record(method, lr=lr, seed=seed)
                record.validation = [ValidationPoint(50, 20_000, loss + 0.01 * seed)]
                record.train.tokens_per_second_steady *= 1 + 0.01 * seed
                worse = 0.3 if lr == 1e-4 else 0
                records.append(leave(folder, record, answers(share - worse, 1 + seed)))
    return records


# Standings


def test_items_are_in_order_and_of_all_seeds(folder, study):
    records = [record for record in study if record.cell.method == "lora" and record.cell.lr == 2e-4]
    values, which = items(folder, records[::-1], SCORE)
    assert values.values.tolist() == [answers(0.6, seed).tolist() for seed in (1, 2, 3)]
    assert values.seeds == (0, 1, 2)
    assert which[:3] == (5, "3.0", (("gsm8k", ITEMS),))
    assert which == items(folder, records[:1], SCORE)[1]
    assert items(folder, [*records, make_record("lora", seed=9)], SCORE) is None
    assert items(folder, [*records, make_record("lora", seed=9, scores=[])], SCORE) is None
    leave(folder, records[0], answers(0.6, 1)[:-1])
    assert items(folder, records, SCORE) is None


def test_the_caption_says_whether_seeds_are_paired(folder):
    for seeds, said in ((2, "paired by item; Student's t"), (9, "paired by item and seed; Student's t")):
        records = [
            leave(folder, make_record(method, 16, 32.0, 2e-4, seed=seed), answers(0.5, seed))
            for method in ("lora", "dora")
            for seed in range(seeds)
        ]
        assert said in caption(best(records, folder))


def test_methods_that_can_not_be_told_apart_share_a_letter(folder, study):
    (contest,) = contests(study, folder)
    letters = {standing.choice.label: standing.letters for standing in contest.standings}
    assert letters["lora"] == letters["dora"] == "a"
    assert (letters["full"], letters["base"]) == ("b", "c")
    assert contest.one_seed == []
    assert len(contest.differences) == len(contest.corrected) == 6
    assert [standing.value for standing in contest.standings] == sorted(
        (s.value for s in contest.standings), reverse=True
    )
    gap = contest.differences["lora", "full"]
    assert gap.low < 0.2 < gap.high
    assert gap.p <= contest.corrected["lora", "full"] < 0.05


def test_intervals_are_those_of_the_items(folder, study):
    (contest,) = contests(study, folder)
    lora = next(standing for standing in contest.standings if standing.choice.label == "lora")
    sample = np.stack([answers(0.6, seed) for seed in (1, 2, 3)])
    assert lora.value == pytest.approx(sample.mean())
    alone = statistics.mean_intervals([independent(sample)])[0]
    assert lora.interval == pytest.approx(alone, abs=0.02)  # the spread of three methods' seeds is shrunk


def test_the_lowest_comes_first_where_lower_is_better(folder):
    fields = {"metric": "loss", "higher_is_better": False, "n": 50}
    records = [
        leave(folder, make_record(method), np.linspace(0, 1, 50) + more, make_score(**fields))
        for method, more in (("lora", 0.5), ("full", 0.0))
    ]
    (contest,) = contests(records, folder)
    assert [standing.choice.label for standing in contest.standings] == ["full", "lora"]
    assert contest.differences["full", "lora"].value == pytest.approx(-0.5)


def test_other_items_are_not_compared(folder, study):
    other = leave(folder, make_record("qlora"), answers(0.6, 1, 300))
    (contest,) = contests([*study, other], folder)
    standing = next(standing for standing in contest.standings if standing.choice.label == "qlora")
    assert standing.letters is None
    assert standing.interval.low < standing.value < standing.interval.high
    assert not any("qlora" in pair for pair in contest.differences)
    assert "No letter, as items are missing or differ from those of other methods: qlora." in caption(
        best([*study, other], folder)
    )


def test_that_the_best_one_was_not_compared_is_not_said_of_all(folder, study):
    other = leave(folder, make_record("qlora"), answers(0.95, 1, 300))
    text = caption(best([*study, other], folder))
    assert "qlora has the best score, but was not compared, as its items are missing or differ." in text
    assert "no difference is tested" not in text


def test_settings_can_be_compared_by_rank(folder):
    records = []
    for rank in (8, 16):
        for seed in range(2):
            records.append(leave(folder, make_record("lora", rank, 2.0 * rank, 2e-4, seed), answers(0.02 * rank, seed)))
    choices = select(records, by=("method", "rank"))
    (contest,) = contests(records, folder, choices)
    assert [standing.choice.label for standing in contest.standings] == ["lora 16", "lora 8"]
    assert ("lora 16", "lora 8") in contest.differences


# The table


def test_each_method_stands_in_its_best_setting(folder, study):
    table = best(study, folder)
    assert [cells[0] for cells in table.rows] == ["base", "full", "lora", "dora"]
    lora = row(table, "lora")
    assert lora["Setting"] == "lr=2e-4 †"
    assert (lora["Tries"], lora["Seeds"]) == ("2", "3")
    (contest,) = contests(study, folder)
    interval = next(standing for standing in contest.standings if standing.choice.label == "lora").interval
    value, low, high = (f"{100 * end:.1f}" for end in interval)
    assert lora[HEADER] == f"{value} ({low}–{high}) a"
    assert lora["Validation loss"] == "1.210 (1.185–1.235)"  # t(2) = 4.303 · 0.01 / √3 = 0.0248
    assert lora["Peak train memory"] == "1.00 GiB (0.50×, 0.49–0.51)"
    assert row(table, "full")["Tokens/s"].startswith("404 (0.80×, 0.7")
    assert row(table, "base")["Setting"] == "–"
    assert row(table, "base")["Seeds"] == "–"


def test_the_caption_tells_what_can_be_said(folder, study):
    text = caption(best(study, folder))
    assert "gsm8k, exact match, strict format: dora and lora tie." in text
    assert "tie. Significantly worse than dora: full and base." in text
    assert "95% intervals over seeds and items" in text
    assert "studentized range, correction for 3 pairs, and apart for 3 with untuned models" in text
    assert "has the least validation loss, mean over seeds" in text
    assert (
        "† Best value at the edge of its grid; a wider grid may be better: full lr=0.0002 is the highest of 2" in text
    )
    assert "Single seed" not in text


def test_the_caption_says_what_to_do(folder, study):
    table = best(study, folder)
    text = caption(table)
    assert table.answer[0].startswith("lora and dora tie on gsm8k (")
    assert "(1.00 GiB; dora 1.10 GiB)" in table.answer[0]
    assert table.answer[0].endswith(" points better than base; significantly worse than dora: full.")
    assert "The best of several tries looks better than it is" in text
    shares = [row(table, method)["Best (expected rank)"] for method in ("base", "full", "lora", "dora")]
    assert shares[:2] == ["< 1% (4.0)", "< 1% (3.0)"]
    assert all("%" in share for share in shares)


def test_one_seed_gives_no_advice_and_no_win(folder, study):
    records = [record for record in study if record.cell.seed in (None, 0)]
    text = caption(best(records, folder))
    assert "seed=0,1,2" in text
    assert "this compares trained models, not methods" in text
    assert "one seed can't tell by how much" in text


def test_of_many_methods_each_is_compared_with_the_best(folder):
    """Letters of 40 methods read "pqrtuvwxyza'"."""
    records = []
    for i in range(40):
        share = 0.7 if i % 2 else 0.3
        records.append(leave(folder, make_record(f"m{i:02}", lr=1e-4), answers(share, i)))
    (contest,) = contests(records, folder)
    assert len(contest.corrected) == 39
    assert {standing.letters for standing in contest.standings[:20]} == {"a", "ab"}
    assert {standing.letters for standing in contest.standings[20:]} == {"b"}
    table = best(records, folder)
    assert [cells[0] for cells in table.rows] == [standing.choice.label for standing in contest.standings]
    text = caption(table)
    assert "Of more than 10 methods each is tested against the best one alone" in text
    assert "correction for 39 pairs" in text


def test_a_missing_value_among_the_items_compares_nothing(folder, study):
    record = next(r for r in study if r.cell.method == "lora" and r.cell.lr == 2e-4)
    path = folder / f"{record.cell.name}.items.parquet"
    table = pd.read_parquet(path)
    table.loc[3, "value"] = np.nan
    table.to_parquet(path, index=False)
    (contest,) = contests(study, folder)
    lora = next(s for s in contest.standings if s.choice.label == "lora")
    assert lora.letters is None
    assert all(np.isfinite([s.value, s.interval.low, s.interval.high]).all() for s in contest.standings)
    assert "nan" not in document(tables(study, folder), "md")


def test_items_of_a_template_count_as_a_group(folder):
    """Two methods that differ on whole templates alone: told apart if items counted one by one."""
    records, place = [], np.repeat(np.arange(12), 40)
    draw = np.random.default_rng(2)
    for method in ("lora", "dora"):
        taste = draw.normal(0, 0.25, 12)[place]
        for seed in range(3):
            values = (draw.random(480) < np.clip(0.5 + taste, 0, 1)).astype(float)
            columns = {"cluster": [f"t{i}" for i in place]}
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), values, **columns))
    (contest,) = contests(records, folder)
    assert contest.clusters == 12
    (gap,) = contest.differences.values()
    items_alone = [independent(items(folder, records[at : at + 3], SCORE)[0].values) for at in (0, 3)]
    assert gap.error > 2 * statistics.differences(items_alone)[0, 1].error
    assert "Items come in groups (subjects, passages or templates: 12)" in caption(best(records, folder))


def test_another_metric_of_a_task_is_shown_and_not_tested(folder):
    records = []
    for method, share in (("lora", 0.7), ("full", 0.3)):
        for seed in range(2):
            record = leave(folder, make_record(method, lr=1e-4, seed=seed), answers(share, seed))
            strict = record.scores[0]
            flexible = make_score(n=ITEMS, filter="flexible-extract")
            path = folder / f"{record.cell.name}.items.parquet"
            table = pd.read_parquet(path)
            pd.concat([table, table.assign(filter="flexible-extract")]).to_parquet(path, index=False)
            flexible.value, flexible.stderr = strict.value, strict.stderr
            record.scores = [strict, flexible]
            records.append(record)
    held = {contest.score: contest for contest in contests(records, folder)}
    assert {name.rpartition("/")[2]: contest.primary for name, contest in held.items()} == {
        "strict-match": False,
        "flexible-extract": True,  # what its data set trains for
    }
    assert {len(contest.corrected) for contest in held.values()} == {0, 1}


def test_two_seeds_are_said_to_be_few(folder, study):
    text = caption(best([record for record in study if record.cell.seed != 2], folder))
    assert "Two seeds" in text


def test_one_seed_says_nothing_of_methods(folder, study):
    records = [record for record in study if record.cell.seed in (None, 0)]
    text = caption(best(records, folder))
    assert "95% intervals over items" in text
    assert "(p ≥ 0.05, paired by item; McNemar's exact test, studentized" in text
    assert "Single seed: intervals and letters exclude seed-to-seed variance." in text


def test_the_caption_names_the_test_that_was_used(folder):
    bits = make_score(n=60, task="plain_text", metric="bits_per_byte", filter="none", higher_is_better=False)
    values = {method: np.random.default_rng(i).random(60) for i, method in enumerate(("lora", "dora"))}
    records = [leave(folder, make_record(method), found, replace(bits)) for method, found in values.items()]
    assert "(p ≥ 0.05, paired by item; Student's t, studentized" in caption(best(records, folder))


def test_the_luck_of_several_tries_is_in_the_unit_of_the_score(folder):
    bits = make_score(n=60, task="plain_text", metric="bits_per_byte", filter="none", higher_is_better=False)
    records = []
    for lr in (1e-4, 2e-4):
        for seed in range(3):
            values = 0.9 + 0.05 * seed + np.random.default_rng(seed).normal(0, 0.01, 60)
            records.append(leave(folder, make_record("lora", lr=lr, seed=seed), values, replace(bits)))
    text = caption(best(records, folder))
    assert "luck: by at most 0.017 bits per byte in plain text (lora, best of 2)" in text


def test_a_single_cell_has_a_table_that_says_what_it_lacks(folder):
    record = leave(folder, make_record("lora"), answers(0.5, 0))
    record.validation = []
    table = best([record], folder)
    assert len(table.rows) == 1
    text = caption(table)
    assert "only lora has this score" in text
    assert "Each method had one setting; another one may suit it better." in text
    assert "Single seed" in text
    assert "No finished base row" in "\n".join(line for shown in tables([record], folder) for line in shown.caption)


def test_without_validation_nothing_is_chosen(folder):
    records = [make_record("lora", lr=lr) for lr in (1e-4, 2e-4)]
    for record in records:
        record.validation = []
    table = best([*records, make_record("full", lr=1e-4, scores=[make_score(0.3)])], folder)
    assert [(cells["Method"], cells["Setting"]) for cells in rows(table)] == [
        *(("full", "lr=1e-4"), ("lora", "lr=1e-4"), ("lora", "lr=2e-4")),
    ]
    assert f"lora: no setting chosen, {UNVALIDATED}." in caption(table)
    assert "Each setting of lora stands by itself. The best of several looks better than it is." in caption(table)
    assert row(table, "full")["Peak train memory"].endswith("(1.00×)")
    assert row(table, "lora", "lr=1e-4")["Peak train memory"].endswith("(0.50×)")
    assert row(table, "full")["Tokens/s"].endswith("0"), "of several settings of lora none stands for it"


def test_failed_tries_are_told():
    table = best(make_study(), None)
    assert row(table, "qlora")["Tries"] == "2 (1 oom)"
    assert row(table, "qlora")["Setting"] == "r=16 α=32 lr=2e-4 †"  # the lower of two ranks
    assert "items are missing or too few, so no difference is tested" in caption(table)
    assert row(table, "lora")[HEADER] == "23.0 (17.5–29.2)"  # Jeffreys' of 197 items: 0.23 · 0.77 / 0.03²


def test_small_shares_without_items_have_exact_intervals():
    """An imported 0.2% of 1,319 showed −0.1–0.4, and an imported 0.0 showed 0.0–0.0."""
    records = []
    for method, right in (("lora", 3), ("full", 0)):
        share = right / 1319
        error = (share * (1 - share) / 1318) ** 0.5
        records.append(make_record(method, scores=[make_score(share, error, n=1319)]))
    shown, every = tables(records, None)
    assert [row(shown, method)[HEADER] for method in ("lora", "full")] == ["0.2 (0.1–0.6)", "0.0 (0.0–0.2)"]
    assert [row(every, method)[HEADER] for method in ("lora", "full")] == ["0.2 ± 0.1", "0.0 ± 0.1"]


def test_subjects_that_count_alike_do_so_in_every_comparison(folder):
    """Subjects of 4, 12, 12 and 12 items, of which LoRA answers all, 0, 3 and 6, and full 0, 6, 6 and 6."""
    sizes, records = [4, 12, 12, 12], []
    for method, rights in (("lora", [4, 0, 3, 6]), ("full", [0, 6, 6, 6])):
        values = [float(i < right) for size, right in zip(sizes, rights, strict=True) for i in range(size)]
        score = make_score(n=40, by_subject=True)
        record = leave(folder, make_record(method), values, score, subject=np.repeat([*"abcd"], sizes))
        score.value = float(np.mean(np.divide(rights, sizes)))
        records.append(record)
    (contest,) = contests(records, folder)
    means = {s.choice.label: s.interval.value for s in contest.standings}
    assert means == {"lora": pytest.approx(1.75 / 4), "full": pytest.approx(1.5 / 4)}
    (gap,) = contest.differences.values()
    gaps = [1.0, -0.5, -0.25, 0.0]
    assert gap.value == pytest.approx(np.mean(gaps))
    assert gap.error == pytest.approx(np.std(gaps, ddof=1) / 2, rel=0.1)


def test_speed_of_one_seed_has_no_interval():
    records = [make_record("lora"), make_record("full")]
    for record, seconds in zip(records, (1.0, 2.0), strict=True):
        train = record.train
        train.step_seconds = [seconds * (1 + 0.1 * (i % 3)) for i in range(50)]
        train.loss = [LossPoint(i + 1, 400 * (i + 1), 1.0, 1e-4, 1.0) for i in range(50)]
        train.tokens_per_second_steady = 400 / (1.1 * seconds)
    assert row(best(records, None), "full")["Tokens/s"] == "182 (0.50×)", "steps of a run are no repeats of it"


def test_the_setting_that_was_chosen_is_marked_among_all(folder, study):
    shown = tables(study, folder)[1]
    settings = [(r[shown.columns.index("Method")], r[shown.columns.index("Setting")]) for r in shown.rows]
    assert ("lora", "lr=2e-4 *") in settings
    assert ("lora", "lr=1e-4") in settings
    assert ("base", "–") in settings
    assert shown.data.groupby(["method", "lr"])["chosen"].all().to_dict()["lora", 2e-4]
    assert shown.data["chosen"].sum() == 10
    assert "* marks the setting with the least validation loss of its method." in caption(shown)
    assert len(tables(study, folder, ["method"])) == 1


@pytest.mark.parametrize("fmt", ["md", "csv", "html", "latex"])
def test_tables_of_anything_render(fmt, folder, study):
    bare = make_record("lora", status="failed", environment={})
    bare.parameters, bare.phases, bare.failure = None, {}, None
    hostile = [measured(make_record(name, study=HOSTILE[0], scores=[make_score(task=HOSTILE[0])])) for name in HOSTILE]
    for records in ([], [bare], study, hostile, [*study, make_record("lora", model="other")]):
        text = document(tables(records, folder), fmt)
        assert text.endswith("\n")
        assert "U+2020" not in text
        if fmt == "html":
            tags = Tags()
            tags.feed(text)
            assert tags.open == []
            assert "script" not in [tag for tag, _ in tags.tags]
            assert text.count("<!DOCTYPE html>") == 1


def test_the_command_shows_both(inside, folder, study):
    run = inside("table", "--study", "demo")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.index("**demo: best settings**") < run.stdout.index("**demo**")


# Power


@pytest.mark.parametrize(("seeds", "effect"), [(5, 0.06), (10, 0.045)])
def test_power_is_the_share_of_simulated_studies_that_find_it(seeds, effect):
    given, n = Assumptions(0.5, 0.02, 0.6, 0.4), 300
    draw, hits = np.random.default_rng(0), 0
    own, rest = (0.25 * 0.2) ** 0.5, (0.25 * 0.4) ** 0.5
    for _ in range(500):
        item = draw.normal(0, (0.25 * 0.4) ** 0.5, n)
        pair = [
            mean
            + draw.normal(0, given.seed_sd, (seeds, 1))
            + item
            + draw.normal(0, own, n)
            + draw.normal(0, rest, (seeds, n))
            for mean in (effect, 0)
        ]
        samples = [independent(np.asarray(v, dtype=float))._replace(seeds=tuple(range(seeds))) for v in pair]
        hits += statistics.differences(samples)[0, 1].p < 0.05
    assert hits / 500 == pytest.approx(power(effect, seeds, n, noise_model=given), abs=0.06)


@pytest.mark.long
@pytest.mark.parametrize(("methods", "seeds", "effect"), [(2, 3, 0.09), (6, 3, 0.085), (6, 3, 0.12), (12, 2, 0.1)])
def test_power_of_many_methods_pools_the_spread_of_all(methods, seeds, effect):
    """It pooled the spread of two, and promised 30% where the tests find 76%. One of the methods is the best."""
    given, n = Assumptions(0.5, 0.02, 0.6, 0.4), 300
    draw, hits = np.random.default_rng(0), 0.0
    for _ in range(300):
        item = draw.normal(0, (0.25 * 0.4) ** 0.5, n)
        samples = [
            independent(
                mean
                + draw.normal(0, given.seed_sd, (seeds, 1))
                + item
                + draw.normal(0, (0.25 * 0.2) ** 0.5, n)
                + draw.normal(0, (0.25 * 0.4) ** 0.5, (seeds, n))
            )._replace(seeds=tuple(range(seeds)))
            for mean in (effect, *[0.0] * (methods - 1))
        ]
        best = samples[0].values.mean()
        samples.sort(key=lambda sample: -sample.values.mean())
        p, freedom = np.ones((2, methods, methods))
        for pair, gap in statistics.differences(samples).items():
            p[pair], freedom[pair] = gap.p, gap.freedom
        (corrected,) = statistics.stepwise([statistics.Family(p, freedom, methods <= 10)])
        hits += np.mean(corrected[0, 1:] < 0.05) if samples[0].values.mean() == best else 0.0
    assert hits / 300 == pytest.approx(power(effect, seeds, n, methods, given), abs=0.05)


@pytest.mark.parametrize(("accuracy", "n", "effect"), [(0.5, 40, 0.3), (0.05, 300, 0.05), (0.5, 1_319, 0.03)])
def test_power_of_one_seed_is_that_of_mcnemars_test(accuracy, n, effect):
    """Simulated by latent normal variables, whose correlation gives answers the assumed one."""
    given, draw, hits = Assumptions(accuracy), np.random.default_rng(0), 0
    right = (max(0.0, accuracy - effect / 2), max(0.0, accuracy - effect / 2) + effect)
    both = np.clip(right[0] * right[1] + 0.5 * np.prod([(p * (1 - p)) ** 0.5 for p in right]), 0, right[0])
    chances = [both, right[0] - both, right[1] - both, 1 - right[0] - right[1] + both]
    for _ in range(600):
        outcome = draw.choice(4, n, p=chances)
        pair = [np.isin(outcome, (0, 2))[None].astype(float), np.isin(outcome, (0, 1))[None].astype(float)]
        hits += statistics.differences([independent(np.asarray(v, dtype=float)) for v in pair])[0, 1].p < 0.05
    assert hits / 600 == pytest.approx(power(effect, 1, n, noise_model=given), abs=0.06)


@pytest.mark.parametrize("effect", [0.06, 0.1, 0.2, 0.3, 0.9])
def test_the_search_for_items_ends(effect):
    """It looked at the same number again and again where two neighbours have one geometric mean."""
    needed = items_needed(effect, 3)
    assert needed is None or power(effect, 3, needed) >= 0.8


def test_spread_between_seeds_is_pooled_before_it_is_cut_at_zero():
    """Cut at zero by method, a true 0 read 2 points: chance alone puts half of the methods above it."""
    draw, sds, covered = np.random.default_rng(1), [], 0
    for _ in range(200):
        difficulty = draw.random(60)
        samples = [(draw.random((3, 60)) < difficulty).astype(float) for _ in range(6)]
        levels = [statistics.seed_level(independent(sample)) for sample in samples]
        sd, low, high = seed_sd(*(3 * np.mean([getattr(v, k) for v in levels]) for k in ("variance", "rest")), 12)
        sds.append(sd)
        covered += low == 0.0
        assert low <= sd <= high
    assert np.median(sds) < 0.01
    assert covered / 200 > 0.93


def test_the_interval_of_the_spread_between_seeds_covers_it():
    draw, true, noise = np.random.default_rng(2), 0.02, 0.25 / 400
    observed = (true**2 + noise) * draw.chisquare(12, 4_000) / 12
    found = [seed_sd(value, noise, 12) for value in observed]
    assert np.mean([low <= true <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.01)


@pytest.mark.long
def test_smaller_effects_and_fewer_seeds_take_more_items():
    assert power(0.05, 10, items_needed(0.05, 10)) == pytest.approx(0.8, abs=0.01)
    assert items_needed(0.02, 10) > items_needed(0.05, 10)
    assert items_needed(0.05, 5) > items_needed(0.05, 10)
    assert items_needed(0.05, 10, 6) > items_needed(0.05, 10)
    assert items_needed(0.001, 3) is None


def test_a_study_tells_what_its_noise_is_made_of(folder, study):
    given, said = assumptions(study, folder)
    right = [answers(share, 1 + seed).mean() for share in (0.6, 0.605, 0.4) for seed in range(3)]
    assert given.accuracy == pytest.approx(np.mean(right))
    assert 0.6 < given.between_methods < given.between_seeds < 1
    assert 0 <= given.seed_sd < 0.03
    assert said[0] == "Measured by gsm8k, exact match, strict format."
    assert said[1].startswith("Standard deviation between seeds: ")
    assert said[1].endswith(", from 9 trained models of 3 methods.")
    given, said = assumptions([record for record in study if record.cell.seed == 0], folder)
    assert given.seed_sd == Assumptions().seed_sd
    assert "The study has one seed per method: the variance between seeds is assumed." in said


def test_the_interval_of_a_proportion_lies_between_0_and_1(folder):
    """Of ROUGE-L Student's t alone would begin below 0."""
    score = make_score(task="held_out", metric="rougeL", filter="none", n=8)
    records = [leave(folder, make_record("lora"), [0.0] * 7 + [0.4], score)]
    (contest,) = contests(records, folder, select(records))
    assert contest.standings[0].interval.low == 0 < contest.standings[0].value < contest.standings[0].interval.high
    assert "5.0 (0.0–16.8)" in document([best(records, folder)], "md")


def test_a_margin_of_rewards_is_no_proportion(folder):
    score = make_score(task="rewards", metric="margin", filter="none", n=8)
    table = best([leave(folder, make_record("lora"), [-0.1] * 4 + [0.2] * 4, score)], folder)
    (column,) = (column for column in table.columns if column.startswith("rewards"))
    assert column == "rewards, margin"
    assert row(table, "lora")[column].startswith("0.05000 (-0.0")
    assert " to 0.1" in row(table, "lora")[column]


@pytest.fixture
def of_three_scores(folder):
    """Records of two methods on MMLU, and on GSM8K in the strict format and as it is tested, in this order."""
    of_gsm8k = [("gsm8k", "exact_match", each) for each in ("strict-match", "flexible-extract")]
    for method, share in (("lora", 0.3), ("full", 0.5)):
        record, parts = make_record(method, lr=1e-4, seed=0), []
        for i, (task, metric, answer_filter) in enumerate([("mmlu", "acc", "none"), *of_gsm8k]):
            score = make_score(task=task, metric=metric, filter=answer_filter)
            leave(folder, record, answers(share + 0.1 * i, seed=i), score)
            parts.append((record.scores[0], pd.read_parquet(folder / f"{record.cell.name}.items.parquet")))
        record.scores = [score for score, _ in parts]
        pd.concat([items for _, items in parts]).to_parquet(folder / f"{record.cell.name}.items.parquet", index=False)
        write(record, folder / f"{record.cell.name}.json")
    return read_study(folder)[0]


def test_the_noise_is_that_of_what_was_trained(folder, of_three_scores):
    """Not of the first task, nor of the task's strict format, in which the untuned model is never right."""
    noise, said = assumptions(of_three_scores, folder)
    assert said[0] == "Measured by gsm8k, exact match."
    assert noise.accuracy == pytest.approx(np.mean([answers(share + 0.2, seed=2) for share in (0.3, 0.5)]))


def test_the_tested_score_of_what_was_trained_is_the_first(folder, of_three_scores):
    """A narrow terminal has room for no other."""
    expected = ["gsm8k, exact match (%)", "gsm8k, exact match, strict format (%)", "mmlu, accuracy (%)"]
    for table in tables(of_three_scores, folder):
        assert [column for column in table.columns if "(%)" in column] == expected


def test_items_of_a_group_count_as_fewer(folder):
    """Answers to the five items of a template are all right or all wrong, so that they tell as much as one."""
    draw, records = np.random.default_rng(0), []
    templates = np.repeat(np.arange(80), 5)
    for method, share in (("lora", 0.6), ("full", 0.5)):
        for seed in range(2):
            values = (draw.random(80) < share).astype(float)[templates]
            records.append(
                leave(folder, make_record(method, lr=1e-4, seed=seed), values, cluster=[f"t{i}" for i in templates])
            )
    given, said = assumptions(records, folder)
    assert given.design == pytest.approx(5, rel=0.05)
    assert "5.1 of them tell as much as one independent item" in said[-1]
    five, one = replace(given, design=5.0), replace(given, design=1.0)
    for seeds in (1, 3):
        assert power(0.1, seeds, 1_000, noise_model=five) == power(0.1, seeds, 200, noise_model=one)


def test_what_seeds_change_group_by_group_is_no_spread_of_seeds(folder):
    """A seed is better at some subjects and worse at others: more subjects average that out, as more seeds do."""
    draw, records, subjects = np.random.default_rng(0), [], np.repeat(np.arange(40), 20)
    for method in ("lora", "full", "dora", "galore"):
        for seed in range(5):
            values = (draw.random(800) < 0.5 + draw.choice([-0.3, 0.3], 40)[subjects]).astype(float)
            record = make_record(method, lr=1e-4, seed=seed)
            records.append(leave(folder, record, values, cluster=[f"s{i:02}" for i in subjects]))
    given, said = assumptions(records, folder)
    assert given.design > 5
    assert given.seed_sd < 0.01, "if items were independent: 0.045"
    assert "95% interval 0 to" in said[1]


def test_more_seeds_are_advised_than_those_that_take_most_items():
    """With the fewest seeds that would do at all, 18, a difference takes 50,491 items."""
    noise_model = Assumptions(0.5, seed_sd=0.02)
    assert items_needed(0.02, 18, 2, noise_model) > 10 * items_needed(0.02, 23, 2, noise_model)
    said = "it takes 18 seeds at least, and with 23 of them 4,506 items per model, to tell two methods apart."
    assert said in describe(0.02, 3, noise_model)


@pytest.mark.long
def test_power_on_the_command_line(inside, folder, study):
    run = inside("power", "--effect", "0.05", "--seeds", "4")
    assert (run.returncode, run.stderr) == (0, "")
    assert f"{items_needed(0.05, 4):,} items per model with 4 seeds, to tell two methods apart." in run.stdout
    assert "|     4 * |" in run.stdout
    run = inside("power", "--effect", "0.01", "--seeds", "2")
    assert "no number of items is enough with 2 seeds; it takes " in run.stdout
    run = inside("power", "--effect", "0.05", "--seeds", "3", "--study", "demo")
    assert "Measured by gsm8k, exact match, strict format." in run.stdout
    for arguments in (["--effect", "5", "--seeds", "3"], ["--effect", "0.1", "--seeds", "0"], ["--seeds", "3"]):
        run = inside("power", *arguments)
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr.startswith("error: ")
        assert run.stderr.count("\n") == 1


def test_memory_of_seeds_that_differ_has_an_interval():
    records = [make_record(method, lr=1e-4, seed=seed) for method in ("full", "lora") for seed in range(3)]
    for record in records:
        record.phases["train"].memory.allocated_peak += record.cell.seed * MIB
    assert row(best(records, None), "lora")["Peak train memory"] == "1.00 GiB (0.50×, 0.49–0.51)"


# Models as they are


def test_where_nothing_was_tuned_models_stand_side_by_side():
    here, there = measured(make_record("base")), make_answered()
    survey, every = tables([here, there], None)
    assert (survey.title, every.title) == ("demo: models as they are", "demo")
    assert survey.columns[:3] == ["Model", "Method", "Asked by"]
    assert row(survey, "base") == {
        "Model": "smollm2-135m",
        "Method": "base",
        "Asked by": "–",
        HEADER: "18.0 ± 3.0",
        HEADER.replace("gsm8k", "gsm8k (chat)"): "–",
        "Peak memory": "609 MiB",  # 513 of weights, 96 of activations
        "Tokens/s written": "800",  # 8 × 64 tokens in 0.64 s
        "Price read / written": "–",
        "Spent": "–",
        "Status": "ok",
    }
    assert row(survey, "api") == {
        "Model": "far-away",
        "Method": "api",
        "Asked by": "chat",
        HEADER: "–",
        HEADER.replace("gsm8k", "gsm8k (chat)"): "40.0 ± 3.0",
        "Peak memory": "–",
        "Tokens/s written": "25.0",  # 10,000 in 400 s
        "Price read / written": "$0.50 / $1.50",
        "Spent": "$0.040",
        "Status": "ok",
    }
    assert "All cells of local models ran with device type cuda" in caption(survey)
    assert "a different measurement, not comparable" in caption(survey)
    assert len(survey.columns) == len(SURVEY) + 1  # two scores


def test_with_a_tuned_row_the_best_settings_come_first():
    assert tables([make_record("base"), make_record("lora")], None)[0].title == "demo: best settings"


def test_a_chat_is_compared_with_no_other_scores():
    """Even of a model that goes by the same name, asked the same items."""
    base, chatted, sure = make_record("base"), make_answered(name="smollm2-135m"), make_answered("completions")
    sure.cell.model = "smollm2-135m"
    every = tables([base, chatted, sure], None)[1]
    texts = [cell for cells in every.rows for cell in cells if "(+" in cell]
    assert texts == ["40.0 ± 3.0 (+22.0)"], "the completions', which are the same measurement"
