"""Evaluation items that were trained on are found by words in a row, recorded and told."""

from __future__ import annotations

import json

import pytest
from job_helpers import composed, tiny
from records import make_record

from harness.job import prepared_inputs
from harness.job.data import contamination
from harness.job.evaluate import scoring
from harness.record import Contamination
from harness.report import lint

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


@pytest.mark.parametrize(
    ("trained", "item", "shared"),
    [
        (LONG, f"Before, {LONG.upper()}! After.", 1),  # whatever stands around them, and between
        (LONG, LONG.replace("eight", "8"), 0),  # no 13 in a row
        (f"so {LONG.partition(' nine')[0]} it is", LONG.partition(" nine")[0], 1),  # a short item, all of it
        (LONG.partition(" nine")[0], LONG, 0),  # 8 of a long one's words
    ],
)
def test_an_item_is_found_by_thirteen_words_or_all_that_it_has(trained, item, shared):
    counts = contamination.trained_on([item], ["Nothing."], ["Nothing.", trained])
    assert counts == Contamination(13, 1, 1, shared, same=0, near=0)


CHINESE = "小明一共有三个苹果，他又买了两个，现在一共有多少个？"
THAI = "สวัสดีครับผมชื่อสมชายและผมมาจากเชียงใหม่"
HINDI = "एक दो तीन चार पाँच छह सात आठ नौ दस ग्यारह बारह तेरह"


@pytest.mark.parametrize(
    ("trained", "item", "shared", "near"),
    [
        (f"前面的话。{CHINESE}后面的话。" * 2, f"问题是{CHINESE}", 1, 1),
        (f"มี{THAI}", THAI, 1, 1),
        (CHINESE.replace("苹果", "橙子"), CHINESE, 1, 1),
        ("小明有苹果。小红没有。天气很好。我们明天去公园。", CHINESE, 0, 0),
        (HINDI.replace("आठ", "नहीं"), HINDI, 0, 0),  # vowel signs end no word: 7 and 5 words in a row
    ],
)
def test_words_of_other_scripts_are_found(trained, item, shared, near):
    counts = contamination.trained_on([item], [trained], [trained])
    assert (counts.shared, counts.near) == (shared, near)


def test_an_item_of_few_words_is_not_looked_for_inside_others():
    texts = ["What is it? This."]
    assert contamination.trained_on(["What is it?", LONG], ["No."], texts) == Contamination(13, 2, 2, 0, same=0, near=0)


@pytest.mark.long
def test_test_questions_among_what_is_trained_on_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asking = ("model=tiny", "eval=wordmath_short", "eval.limit=6", "train.batch_size=16", "train.max_steps=8")
    asked = scoring.Tasks(composed(*asking).settings.eval, None).texts()["wordmath_short"]
    assert len(asked) == 6
    assert all(text.startswith("Question: ") and text.endswith("\nAnswer:") for text in asked)
    questions = [text.removeprefix("Question: ").removesuffix("\nAnswer:") for text in asked]
    for name, leaked in (("clean", []), ("leaky", questions[:4])):
        rows = [{"question": f"And what is {i} times {i}?", "answer": str(i * i)} for i in range(80)]
        rows += [{"question": question, "answer": "1"} for question in leaked for _ in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data=local", "data.test_share=0")
    clean, leaky = (
        prepared_inputs.inputs_of(composed(*asking, *own, f"data.path={name}.jsonl").settings, None).contamination
        for name in ("clean", "leaky")
    )
    assert clean == {"wordmath_short": Contamination(13, 6, 6, 0, same=0, near=0)}
    assert 3 <= leaky["wordmath_short"].shared <= 4  # a question may have been held out
    assert leaky["wordmath_short"].same == leaky["wordmath_short"].shared


def test_an_untuned_model_has_no_contamination():
    assert prepared_inputs.inputs_of(tiny("method=base").settings, None).contamination == {}


def test_choices_are_looked_for_where_they_are_what_is_asked():
    settings = composed("model=tiny", "data=facts", "eval=facts", "eval.limit=3").settings
    texts = scoring.Tasks(settings.eval, None).texts()["facts"]
    assert len(texts) == 3
    assert all("Answer:" in text for text in texts)


def test_the_linter_tells_which_cells_trained_on_how_many():
    records = [make_record(method, seed=0) for method in ("lora", "dora", "full")]
    for record, shared in zip(records, (2, 3, 0), strict=True):
        record.contamination = {"gsm8k": Contamination(13, 200, 190, shared)}
    (finding,) = [found for found in lint.findings(records) if found.rule == "contamination"]
    assert finding.sentence == (
        "2 to 3 of 200 items of gsm8k share a 13-gram with the training data, in lora and dora: possible "
        "contamination, or a common template."
    )
    assert finding.cells == tuple(record.cell.name for record in records[:2])
