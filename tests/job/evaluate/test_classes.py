"""Answers that are labels: recognised, split label by label, scored by likelihood, and told class by class."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from job_helpers import composed, no_peak, prepared, run_request, tiny  # noqa: F401
from own_file import cell, tasks
from records import make_record
from sklearn.metrics import f1_score

from harness import record
from harness.errors import UserError
from harness.job import preflight, prepared_inputs
from harness.job.data import sources
from harness.job.data.labels import Labels, are_labels, labels_of
from harness.job.evaluate import rescoring, scoring
from harness.job.evaluate.held_out import classes, matching
from harness.record import ClassCounts
from harness.report import lint
from harness.report.answer import answer
from harness.report.pages import page
from harness.report.tables.classes import class_tables, confusion_tables
from harness.studies import verify

SIZES = {"billing": 90, "login": 40, "shipping": 17, "legal": 3}
TICKETS = [
    {"question": f"Ticket {i} on {label}, please", "answer": label}
    for i, label in enumerate(label for label, n in SIZES.items() for _ in range(n))
]
PROSE = [
    {
        "question": f"What of {i}?",
        "answer": f"Please restart the router, wait, and then call us at 555 {1000 + i}",
    }
    for i in range(60)
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=base"))


# What answers are labels


@pytest.mark.parametrize(
    ("answers", "setting", "labels"),
    [
        (["a", "b"] * 10, "auto", True),
        (["a", "b "] * 10, "classify", True),
        (["a", "b"] * 9, "auto", False),  # fewer than ten records each
        (["a", "b"] * 2, "classify", True),
        (["a"] * 20, "auto", False),
        ([str(i % 5) for i in range(50)], "auto", True),  # such as stars
        ([str(i % 21) for i in range(420)], "auto", False),  # such as sums
        (["a", "an answer that is so long that nobody would call it a label"] * 20, "auto", False),
        (["a", "b"] * 10, "exact", False),
    ],
)
def test_few_short_answers_that_many_records_have_are_labels(answers, setting, labels):
    assert are_labels([{"question": "?", "answer": text} for text in answers], setting) == labels


def test_options_and_pairs_are_no_labels():
    items = [{"question": "?", "answer": "ab"[i % 2], "options": ["a", "b"]} for i in range(40)]
    assert not are_labels(items, "auto")
    with pytest.raises(UserError, match=r"data\.answers=classify can't be combined with data\.columns\.options\."):
        are_labels(items, "classify")
    with pytest.raises(UserError, match=r"data\.answers=classify requires two or more different answers"):
        are_labels([{"question": "?", "answer": "a"}] * 9, "classify")


@pytest.mark.parametrize(
    ("rows", "overrides", "kind"),
    [
        (TICKETS, [], "classify"),
        (TICKETS, ["data.answers=exact"], "exact"),
        (PROSE, [], "text"),
        (PROSE, ["data.answers=exact"], "exact"),
        ([row | {"answer": f"{row['question']} is so much, and so\nThe answer is: 7"} for row in PROSE], [], "exact"),
    ],
)
def test_records_say_how_they_are_scored_and_one_line_says_it_too(rows, overrides, kind):
    own = tasks(rows, *overrides).leaves["held_out"]
    assert own.kind == kind
    read, line, *_ = preflight.check([cell(rows, *overrides)], None)
    assert "is read as questions and answers" in read
    assert line.startswith(f"held_out: {len(own.eval_docs)} answers")
    assert line.endswith(f"(data.answers={kind}).")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("We add 2 and 3, which are both small, and get\n#### 5", True),
        ("Since two and two are four the answer is: 4", True),
        ("Therefore 2 + 3 - 1 makes, as anyone can see, 2 + 3 - 1 = **4**", True),
        ("A long line of thought that goes on\n\n$12.50", True),
        (r"Both sides are halved, and so we get $\boxed{12}$.", True),
        ("Please restart the router and call us again at 555 1234", False),
        ("Your refund was sent on the third of May 2024.", False),
        ("Nothing ends here", False),
    ],
)
def test_prose_that_ends_in_a_number_is_no_result(text, result):
    assert matching.states_result(text) == result


# The split


def test_each_label_has_its_share_of_each_part_and_one_item_at_least():
    parts = sources.splits(cell(random.Random(0).sample(TICKETS, len(TICKETS))).settings.data, None)
    of = {name: Counter(item["answer"] for item in items) for name, items in parts.items()}
    assert of["test"] == of["validation"] == {"billing": 9, "login": 4, "shipping": 2, "legal": 1}
    assert sum(map(Counter.total, of.values())) == len(TICKETS)
    again = sources.splits(cell(TICKETS[::-1]).settings.data, None)  # whatever the order
    assert [{i["question"] for i in again[name]} for name in parts] == [
        {i["question"] for i in items} for items in parts.values()
    ]


def test_doubles_with_two_labels_are_in_one_part():
    rows = [row for ticket in TICKETS for row in (ticket, ticket | {"question": ticket["question"].upper() + " "})]
    rows += [TICKETS[0] | {"answer": "legal"}]
    parts = sources.splits(cell(rows).settings.data, None)
    questions = [{item["question"].strip().lower() for item in items} for items in parts.values()]
    assert sum(map(len, questions)) == len(set.union(*questions)) == len(TICKETS)


def test_a_label_of_a_single_record_is_told():
    rows = [*TICKETS, {"question": "Once", "answer": "press"}]
    assert "held_out has no record with the label press." in preflight.check([cell(rows)], None)


def test_a_label_that_begins_another_is_told():
    rows = [row | {"answer": row["answer"].replace("shipping", "login issue")} for row in TICKETS]
    assert preflight.check([cell(rows)], None)[2:] == [
        "The label login issue begins with the label login, which is therefore never less likely: rename one."
    ]


# Scores


@pytest.mark.long
def test_values_of_items_have_the_mean_and_the_error_of_macro_f1():
    draw = random.Random(0)
    names = ["a", "b", "c", "d"]
    true = [draw.choices(names[:3], [6, 3, 1])[0] for _ in range(400)]
    given = [name if draw.random() < 0.7 else draw.choice(names[:3]) for name in true]
    values = np.array(classes.macro_f1(true, given))
    assert values.mean() == pytest.approx(f1_score(true, given, average="macro"))
    again = []
    for _ in range(400):
        at = draw.choices(range(400), k=400)
        again.append(f1_score([true[i] for i in at], [given[i] for i in at], average="macro"))
    assert values.std(ddof=1) / 20 == pytest.approx(np.std(again), rel=0.15)
    assert np.mean(classes.macro_f1(["a", "b"], ["a", "d"])) == 0.5  # of the classes that there are


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("billing", "billing"),
        (" Billing. ", "billing"),
        ("The label is **login**.", "login"),
        ("billing or login", classes.NONE),
        ("a login issue", "login issue"),
        ("prebilling", classes.NONE),
        ("", classes.NONE),
    ],
)
def test_a_written_answer_names_one_label(text, label):
    labels = ["billing", "login", "login issue"] if label == "login issue" else ["billing", "login"]
    assert classes.written_label(text, labels) == label


def test_a_label_is_found_where_no_spaces_stand():
    assert classes.written_label("答案是不满意。", ["满意", "不满意"]) == "不满意"
    assert classes.written_label("हाँ जी", ["हा", "ना"]) == classes.NONE  # the vowel sign makes it another word


def test_scores_are_of_the_likeliest_label(bench):
    own = tasks(TICKETS)
    scores, items, _ = scoring.score(bench.net, bench.tokenizer, own, 4, None)
    assert [(s.metric, s.n) for s in scores] == [("acc", 16), ("acc_norm", 16), ("f1_macro", 16)]
    rows = items[items["metric"] == "f1_macro"]
    right = (rows["prediction"] == rows["target"]).mean()
    assert right == scores[0].value
    assert scores[2].value == pytest.approx(
        f1_score(rows["target"], rows["prediction"], average="macro", labels=sorted(SIZES), zero_division=0)
    )
    (counts,) = scoring.class_counts(own, items).values()
    assert counts.labels == ["billing", "legal", "login", "shipping"]
    assert counts.trained == [72, 1, 32, 13]
    assert [sum(row) for row in counts.counts] == [9, 1, 4, 2]
    assert sum(counts.counts[i][i] for i in range(4)) == right * 16


def test_doubles_in_the_test_part_count_as_one_in_standard_errors(bench):
    rows = [row for ticket in TICKETS for row in (ticket, ticket | {"question": ticket["question"].lower() + " "})]
    once, _, _ = scoring.score(bench.net, bench.tokenizer, tasks(TICKETS), 4, None)
    scores, _, _ = scoring.score(
        bench.net, bench.tokenizer, tasks([*rows, {"question": "A", "answer": "legal"}]), 4, None
    )
    assert [(s.clusters, s.n) for s in once] == [(None, 16)] * 3
    assert [(s.clusters, s.n) for s in scores] == [(16, 32)] * 3


def test_a_model_that_only_writes_is_told_the_labels():
    data = cell(TICKETS).settings.data
    own = prepared_inputs.own_task(cell(TICKETS).settings.eval, data, None, likelihoods=False)
    assert own.OUTPUT_TYPE == "generate_until"
    doc = own.eval_docs[0]
    assert doc["prompt"].startswith("Answer with one of these labels: billing, legal, login, shipping.\n\nQuestion: ")
    assert own.process_results(doc, [f"I think {doc['answer'].upper()}!"]) == {"acc": 1.0}
    assert own.process_results(doc, ["billing, legal"]) == {"acc": 0.0}


def test_conversations_are_classified_too(bench, monkeypatch):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    monkeypatch.setattr(bench.tokenizer, "chat_template", template)
    turns = [
        {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
        for row in TICKETS
    ]
    own = tasks(turns, "data.columns.messages=messages", "eval.limit=4")
    scores, _, _ = scoring.score(bench.net, bench.tokenizer, own, 4, None)
    assert [(s.metric, s.n) for s in scores] == [("acc", 4), ("acc_norm", 4), ("f1_macro", 4)]


# From the file to the report


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A tuned cell and its base, scored on labels; the folder one works in."""
    folder = tmp_path_factory.mktemp("classes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("lora", "base"):
            mine = cell(TICKETS, f"method={method}")
            path = folder / "results" / "own" / f"{mine.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            run_request(mine, "own", path, None, lambda event: None, save="adapter")
    return folder


@pytest.mark.long
def test_a_record_has_the_counts_and_scoring_again_keeps_them(recorded, monkeypatch):
    monkeypatch.chdir(recorded)
    for path in sorted((recorded / "results" / "own").glob("*.json")):
        first = record.read(path)
        assert [sum(row) for row in first.classes["held_out"].counts] == [9, 1, 4, 2]
        assert verify.check(path) == []
        rescoring.rescore(path, first.cell.settings.eval, None, lambda event: None)
        assert record.read(path).classes == first.classes


def test_the_page_has_a_row_of_the_majority_and_a_confusion_table(recorded):
    folder = recorded / "results" / "own"
    records, problems = record.read_study(folder)
    assert not problems
    html = page.render(records, folder)
    assert 'id="classes"' in html
    assert "always billing" in html
    assert html.count("took the items of held-out data for") == 2


def counted(method: str, counts: list[list[int]], trained: list[int]):
    made = make_record(method, seed=None if method == "base" else 0)
    made.classes = {"held_out": ClassCounts(["a", "b", "c"], trained, counts)}
    return made


def test_a_class_that_no_model_gets_right_and_one_without_items_are_told():
    records = [
        counted("base", [[10, 0, 0, 0], [8, 0, 2, 0], [0, 0, 0, 0]], [60, 30, 1]),
        counted("lora", [[9, 0, 1, 0], [9, 0, 0, 1], [0, 0, 0, 0]], [60, 30, 1]),
    ]
    (table,) = class_tables(answer(records, None))
    assert table.columns[3:] == ["a (n = 10): F1, recall", "b (n = 10): F1, recall", "c (n = 0): F1, recall"]
    assert table.rows == [
        ["always a", "50.0", "33.3", "67, 100", "0, 0", "–, –"],
        ["base", "50.0", "35.7", "71, 100", "0, 0", "–, –"],
        ["lora", "45.0", "32.1", "64, 90", "0, 0", "–, –"],
    ]
    assert "No test item is of the class c: no score says how well it is recognised." in table.caption
    assert "No model recognises any item of the class b." in table.caption
    of_base, of_lora = confusion_tables(answer(records, None))
    assert of_base.columns == ["True label", "a", "b", "c"]
    assert of_lora.columns == ["True label", "a", "b", "c", "(no label)"]
    assert of_lora.rows[1] == ["b", "9", "0", "0", "1"]
    sentences = [finding.sentence for finding in lint.findings(records) if finding.rule == "classes"]
    assert sentences == [
        "No cell recognises any item of the class b of held-out data (n = 10).",
        "No item of held-out data is of the class c: no score says how well it is recognised.",
    ]


def test_no_labels_no_tables():
    study = answer([make_record("lora"), make_record("base")], None)
    assert class_tables(study) == confusion_tables(study) == []


def test_labels_have_the_records_of_the_training_part():
    parts = {"train": [{"question": "?", "answer": "b "}], "test": [{"question": "?", "answer": "a"}]}
    assert labels_of(parts) == Labels(("a", "b"), (0, 1))
