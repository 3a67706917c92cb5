"""What tuning lost and won, item by item: counted by hand on few items, and whatever can't be compared is said."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from plans import make_plan, planned_record
from records import make_record, make_score
from rendered import caption

from harness.__main__ import main
from harness.config import ROOT
from harness.record import add_plans, read_study, write
from harness.report import statistics
from harness.report.figures.forgetting import lost_won
from harness.report.figures.study_results import StudyResults
from harness.report.forgetting import forgetting, tables
from harness.report.headline import BASES
from harness.report.headline import MMLU as MMLU_SCORE
from harness.report.items.changed import answer

MMLU = make_score(task="mmlu", metric="acc", filter="none", num_fewshot=0, n=6)
SUBJECTS = ["law"] * 4 + ["art"] * 2
BASE = [1, 1, 1, 0, 0, 1]


def leave(folder, record, values, score=MMLU, **columns):
    """`record` with the score that `values` mean and with its items beside it, as a job leaves them."""
    record.scores = [make_score(**(vars(score) | {"value": sum(values) / len(values)}))]
    items = {"task": score.task, "subject": SUBJECTS[: len(values)], "item": range(len(values)), "hash": "h"}
    items |= {"filter": score.filter, "metric": score.metric, "value": [float(value) for value in values]}
    # The choice 1 is right: a wrong answer is that of choice 0.
    items |= {"prediction": [f"[({-1.0 - v}, False), ({v - 2.0}, False)]" for v in values], "target": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(items | columns).to_parquet(folder / f"{record.cell.name}.items.parquet", index=False)
    write(record, folder / f"{record.cell.name}.json")
    return record


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "demo"


@pytest.fixture
def study(folder):
    """Base, and LoRA with two seeds: both lose item 0 of law, one item 1 as well, and one wins item 3."""
    return [
        leave(folder, make_record("base"), BASE),
        leave(folder, make_record("lora", 16, 32.0, 2e-4, 0), [0, 1, 1, 1, 0, 1]),
        leave(folder, make_record("lora", 16, 32.0, 2e-4, 1), [0, 0, 1, 0, 0, 1]),
    ]


def test_what_was_lost_and_won_is_counted_over_seeds_and_by_subject(study, folder):
    (found,) = forgetting(study, folder).comparisons
    assert (found.label, found.score, len(found.cells)) == ("lora", "mmlu/acc/none", 2)
    total = found.total
    assert (total.items, total.right, total.lost, total.won) == (6, 4, 1.5, 0.5)
    assert total.change.value == pytest.approx(-1 / 6)
    law, art = found.subjects["law"], found.subjects["art"]
    assert (law.items, law.right, law.lost, law.won) == (4, 3, 1.5, 0.5)
    assert (art.lost, art.won, art.change.value) == (0, 0, 0)


def test_the_interval_is_that_of_differences_paired_by_item(study, folder):
    (found,) = forgetting(study, folder).comparisons
    tuned = pd.DataFrame({"a": [0, 1, 1, 1, 0, 1], "b": [0, 0, 1, 0, 0, 1]}, dtype=float).T.to_numpy()
    base = pd.DataFrame([BASE], dtype=float).to_numpy()
    order = [4, 5, 0, 1, 2, 3]  # items are read by subject
    subjects = np.array([0, 0, 1, 1, 1, 1])  # are clusters
    sides = [statistics.Answers(values[:, order], subjects) for values in (tuned, base)]
    assert found.total.change == pytest.approx(statistics.differences(sides)[0, 1])
    assert found.total.change.low < -1 / 6 < found.total.change.high


def test_items_of_a_template_count_as_a_group(folder):
    """One subject of two templates: items of a template are lost together."""
    templates, lost = ["a"] * 3 + ["b"] * 3, [0, 0, 0, 1, 1, 1]
    for method, values in (("base", [1] * 6), ("lora", lost)):
        leave(folder, make_record(method), values, subject="mmlu", cluster=templates)
    found = forgetting(read_study(folder)[0], folder)
    (compared,) = found.comparisons
    sides = [statistics.Answers(np.array([v], dtype=float), np.array([0, 0, 0, 1, 1, 1])) for v in (lost, [1] * 6)]
    assert compared.total.change == statistics.differences(sides)[0, 1]
    assert compared.subjects["mmlu"].change == compared.total.change
    assert compared.clusters == 2
    said = "Items come in groups (subjects, passages or templates: 2); intervals and tests account for that."
    assert said in caption(tables(found, "demo", 3)[0])


def test_items_come_with_the_answers_and_those_that_most_seeds_lost_first(study, folder):
    (found,) = forgetting(study, folder).comparisons
    told = [(c.kind, c.subject, c.item, c.seeds, c.target, c.base, c.tuned) for c in found.changed]
    assert told == [
        ("lost", "law", 0, 2, "1", "1", ["0", "0"]),
        ("lost", "law", 1, 1, "1", "1", ["1", "0"]),
        ("won", "law", 3, 1, "1", "0", ["1", "0"]),
    ]


def test_many_comparisons_are_corrected_together(folder):
    records = [leave(folder, make_record("base"), [1, 1, 1, 1, 1, 1])]
    records += [leave(folder, make_record(method), [0] * 6) for method in ("lora", "dora", "full")]
    found = forgetting(records, folder).comparisons
    p = found[0].total.change.p
    assert p > 2 / 2**6  # more than McNemar's of six of six items, since two subjects tell less
    assert [c.total.corrected for c in found] == pytest.approx([min(1, 3 * p)] * 3)
    assert [t.corrected for t in found[0].subjects.values()] == pytest.approx(
        [0.5, 0.25]
    )  # of art 2 / 2**2, of law twice 2 / 2**4


def test_a_task_is_tested_by_the_score_that_its_table_tests(folder):
    """The base never answers in the strict format: that each method gains by it says nothing of what it knows."""
    for method, flexible in (("base", [1] * 6), ("lora", [0] * 6), ("dora", [0] * 6)):
        strict = [0] * 6 if method == "base" else [1] * 6
        by_filter = [("strict-match", strict), ("flexible-extract", flexible)]
        scores = [make_score(task="gsm8k", metric="exact_match", filter=name, n=6) for name, _ in by_filter]
        record = make_record(method, data="gsm8k")
        parts = []
        for score, (_, values) in zip(scores, by_filter, strict=True):
            leave(folder, record, values, score, prediction="['1']")
            parts.append(pd.read_parquet(folder / f"{record.cell.name}.items.parquet"))
        pd.concat(parts).to_parquet(folder / f"{record.cell.name}.items.parquet", index=False)
        record.scores = scores
        write(record, folder / f"{record.cell.name}.json")
    found = forgetting(read_study(folder)[0], folder)
    assert [(c.score.rpartition("/")[2], c.primary) for c in found.comparisons] == [
        ("strict-match", False),
        ("flexible-extract", True),
    ] * 2
    strict, flexible = found.comparisons[:2]
    assert strict.total.change.value == 1
    assert strict.total.corrected is None
    assert {tally.corrected for tally in strict.subjects.values()} == {None}
    assert flexible.total.corrected == pytest.approx(min(1, 2 * flexible.total.change.p))
    totals = tables(found, "demo", 3)[0]
    assert totals.answer == ["gsm8k, exact match: no significant change of lora and dora (−100.0 points)."]
    assert "Not tested, as another score of the same task is: gsm8k, exact match, strict format." in caption(totals)
    assert "by Holm for 2 comparisons" in caption(totals)


def test_a_score_that_can_not_be_compared_is_one_line_for_all_methods(folder):
    score = make_score(**(vars(MMLU) | {"higher_is_better": False}))
    for method in ("base", "lora", "dora"):
        leave(folder, make_record(method), BASE, score)
    assert forgetting(read_study(folder)[0], folder).left_out == [
        "mmlu, accuracy of lora and dora: it is not a score of right and wrong; `harness table` compares it."
    ]


def test_each_cell_can_be_compared_by_itself(study, folder):
    failed = make_record("dora", status="oom")
    found = forgetting([*study, failed], folder, each_cell=True)
    assert [(c.label, c.total.lost, c.total.won) for c in found.comparisons] == [
        (study[1].cell.name, 1, 1),
        (study[2].cell.name, 2, 0),
    ]
    assert found.left_out == [f"{failed.cell.name} is not compared: it ended as oom."]


def test_a_base_that_was_tuned_on_other_data_in_name_alone_will_do(folder):
    records = [leave(folder, make_record("base", data="wordmath"), BASE), leave(folder, make_record("lora"), BASE)]
    (found,) = forgetting(records, folder).comparisons
    assert found.base == records[0].cell.name


def test_a_quantised_method_is_held_against_the_quantised_base(folder):
    """Quantising loses item 0, tuning nothing."""
    four = {"method": {"name": "qlora", "load": {"quantization_config": {"load_in_4bit": True}}}}
    quantised = [0, 1, 1, 0, 0, 1]
    records = [
        leave(folder, make_record("base"), BASE),
        leave(folder, make_record("qlora", 16, 32.0, 2e-4, settings=four), quantised),
    ]
    (found,) = forgetting(records, folder).comparisons
    assert (found.base, found.total.lost) == (records[0].cell.name, 1)
    said = "Held against base, as the quantised base is missing: qlora (base_nf4). Quantising counts as loss."
    assert said in caption(tables(forgetting(records, folder), "demo", 3)[0])
    records.append(
        leave(folder, make_record("base_nf4", settings={"method": four["method"] | {"name": "base_nf4"}}), quantised)
    )
    found = {comparison.label: comparison for comparison in forgetting(records, folder).comparisons}
    assert (found["qlora"].base, found["qlora"].total.lost) == (records[2].cell.name, 0)
    assert (found["base_nf4"].base, found["base_nf4"].total.lost) == (records[0].cell.name, 1)
    said_now = caption(tables(forgetting(records, folder), "demo", 3)[0])
    assert said not in said_now
    other = f"Held against {records[2].cell.name}, the untuned model with weights of the same format: qlora."
    assert other in said_now


def alone(folder):
    return [leave(folder, make_record("lora"), BASE)]


def other_model(folder):
    return [leave(folder, make_record("base", model="other"), BASE), *alone(folder)]


def other_items(folder):
    return [leave(folder, make_record("base"), BASE, item=range(1, 7)), *alone(folder)]


def other_texts(folder):
    return [leave(folder, make_record("base"), BASE, hash="g"), *alone(folder)]


def other_shots(folder):
    score = make_score(**(vars(MMLU) | {"num_fewshot": 5}))
    return [leave(folder, make_record("base"), BASE, score), *alone(folder)]


def other_score(folder):
    score = make_score(**(vars(MMLU) | {"metric": "acc_norm"}))
    return [leave(folder, make_record("base"), BASE, score), *alone(folder)]


def no_shares(folder):
    return [leave(folder, make_record("base"), [0.5] * 6), *alone(folder)]


def losses(folder):
    score = make_score(**(vars(MMLU) | {"higher_is_better": False}))
    return [leave(folder, make_record(method), BASE, score) for method in ("base", "lora")]


def no_items(folder):
    records = [leave(folder, make_record("base"), BASE), *alone(folder)]
    (folder / f"{records[1].cell.name}.items.parquet").unlink()
    return records


def no_score(folder):
    records = [leave(folder, make_record("base"), BASE), *alone(folder)]
    records[1].scores = []
    return records


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (alone, "lora is not compared: the study has no finished base of smollm2-135m"),
        (other_model, "lora is not compared: the study has no finished base of smollm2-135m"),
        (other_items, "has other items, another number of shots"),
        (other_texts, "has other items, another number of shots"),
        (other_shots, "has other items, another number of shots"),
        (other_score, "mmlu, accuracy of lora: base has no such score"),
        (no_shares, "not a score of right and wrong"),
        (losses, "not a score of right and wrong"),
        (no_items, "the items of a cell are missing"),
        (no_score, "lora is not compared: it has no score"),
    ],
)
def test_what_can_not_be_compared_is_said(folder, make, said):
    found = forgetting(make(folder), folder)
    assert found.comparisons == []
    (sentence,) = found.left_out
    assert said in sentence
    assert sentence in caption(tables(found, "demo", 3)[0])


@pytest.mark.parametrize(
    ("prediction", "metric", "said"),
    [
        ("['18']", "exact_match", "18"),
        ("[(-5.8, False), (-2.3, True)]", "acc", "1"),
        ("[(-5.8, False), (-2.3, True)]", "acc_norm", "–"),  # by length, which is not kept
        ("['a', 'b']", "exact_match", "['a', 'b']"),
        ("not python", "acc", "not python"),
    ],
)
def test_answers_are_readable(prediction, metric, said):
    assert answer(prediction, metric) == said


def test_the_command_gives_tables_json_csv_and_a_figure(study, folder, tmp_path, capsys):
    where = ["--results-dir", str(folder.parent)]
    assert main(["forgetting", "demo", *where, "--items", "1"]) == 0
    text = capsys.readouterr().out
    assert (
        "| lora     | r=16 α=32 lr=2e-4 |       2 | mmlu, accuracy |       6 |            4 |    1.5 |   0.5 |" in text
    )
    assert text.splitlines()[2] == "mmlu, accuracy: no significant change of lora (−16.7 points)."
    assert "No item was lost or won in 1 other subject." in text
    assert "Up to 1 lost and 1 won" in text
    assert main(["forgetting", "demo", *where, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["demo"]["comparisons"]
    assert found["total"]["change"]["value"] == pytest.approx(-1 / 6)
    assert [item["item"] for item in found["changed"]] == [0, 1, 3]
    assert main(["forgetting", "--study", "demo", *where, "--format", "csv", "--out", str(tmp_path / "a.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "a.csv")) == 6, "an item and seed is a row"
    for name, begins in (("a.png", b"\x89PNG"), ("a.svg", b"<svg")):
        assert main(["forgetting", "demo", *where, "--figure", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(begins)
    for line, said in (("--figure a.gif", "a.gif"), ("--items -1", "--items"), ("nope", "nope")):
        assert main(["forgetting", *line.split(), *where]) == 2
        assert said in capsys.readouterr().err


def test_the_answer_says_who_forgets_and_who_gains():
    folder = ROOT / "results" / "reference" / "study_skill"
    first, *_ = tables(forgetting(read_study(folder)[0], folder), "study_skill", 1)
    gains = "dora, lora, galore, full and qlora gain (+49.3 to +62.4 points)"
    assert first.answer == [f"skill, solved: base_nf4 forgets (−13.4 points); {gains}."]


def test_before_a_plan_is_finished_that_is_said_first(folder):
    base, first, second = planned_record("base"), planned_record(seed=0), planned_record(seed=1)
    add_plans(folder, [make_plan([base, first, second])])
    records = [leave(folder, record, BASE) for record in (base, first)]
    begun, said = tables(forgetting(records, folder), "demo", 0)[0].answer
    assert begun.startswith("Interim, nothing is decided yet. The plan of ")
    records.append(leave(folder, second, BASE))
    assert tables(forgetting(records, folder), "demo", 0)[0].answer == [said]


def test_the_title_of_lost_and_won_items_names_who_loses(folder):
    """Not the one with the most lost items where each method wins more."""
    easy, law = np.arange(400), ["law"] * 400
    records = [leave(folder, make_record("base"), (easy < 200).astype(float), subject=law)]
    for seed in range(3):
        other = np.random.default_rng(seed).integers(0, 400, 8)
        for method, share in (("lora", 0.6), ("full", 0.3)):
            values = (easy < 400 * share).astype(float)
            values[other] = 1 - values[other]
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), values, subject=law))

    def title(of_these):
        drawn = lost_won(forgetting(of_these, folder))
        assert drawn is not None
        return drawn.figure.axes[0].get_title("left")

    assert title(records).endswith(": full loses")
    assert (
        title([r for r in records if r.cell.method != "full"]).replace("\n", " ").endswith("no method is shown to lose")
    )


def test_pages_and_figures_show_the_same_change_as_the_command():
    """QLoRA's is from the base in NF4, which knows less than the one that is not quantised."""
    folder = ROOT / "results" / "reference" / "gsm8k"
    records, _ = read_study(folder)
    study = StudyResults(records, folder)
    (place,) = study.places
    mmlu = study.aside(place, study.headline(place))
    tuned = [c for c in forgetting(records, folder).comparisons if c.label not in BASES.values()]
    shown = {c.label: c.total.change.value for c in tuned if c.score == MMLU_SCORE}
    assert len(shown) == 6
    assert {label: study.change(place, mmlu, label).value for label in shown} == pytest.approx(shown)
    assert shown["qlora"] < -0.03


def test_committed_records_are_compared_as_their_tables_have_it():
    folder = ROOT / "results" / "reference" / "quickstart"
    records, _ = read_study(folder)
    scores = {record.cell.method: record.scores[0].value for record in records}
    found = forgetting(records, folder)
    assert found.left_out == []
    assert {c.label: c.total.change.value for c in found.comparisons} == pytest.approx(
        {method: value - scores["base"] for method, value in scores.items() if method != "base"}
    )
