"""Doubles of one's own records: they fall in one part, and what is in two parts all the same is counted and told."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_helpers import composed
from records import make_record

from harness.job import prepared_inputs
from harness.job.data import contamination, sources
from harness.job.data.normalising import normalised
from harness.record import Contamination
from harness.report import lint
from harness.report.answer import answer

LOCAL = ("model=tiny", "data=local", "data.path=mine.jsonl", "eval.tasks=[held_out]", "train.max_length=64")
TICKETS = [f"Ticket {i}: I can't log in, it’s broken" for i in range(150)]
LONG = "my parcel of the fourth of May has not arrived and the page of the carrier says that it was handed over"


def composed_with(rows: list[dict[str, str]], *overrides: str):
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return composed(*LOCAL, *overrides).settings


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("I can't log in", "i CAN’T log  in! ", True),
        ("Ｌｏｇｉｎ ﬁle", "login file", True),  # full-width letters and a ligature
        ("zero\u200bwidth", "zerowidth", True),
        ("- e-mail – lost", "E mail lost", True),
        ("What is 2+2?", "what is 2 + 2", True),
        ("What is 2 - 2?", "What is 2 − 2?", True),
        ("What is 2 * 2?", "What is 2 / 2?", False),
        ("What is 2 - 2?", "What is 2 2?", False),
        ("C++", "C#", False),
        ("?", "!", False),
        ("Grüße", "Gruße", False),
    ],
)
def test_texts_are_the_same_but_for_form(one, other, same):
    assert (normalised(one) == normalised(other)) == same


@pytest.mark.long
@given(st.text())
def test_a_normalised_text_stays_as_it_is(text):
    assert normalised(normalised(text)) == normalised(text)


def test_doubles_fall_in_one_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forms = [form for text in TICKETS for form in (text, f"{text} ", text.lower(), text.replace("’", "'"))]
    rows = [{"question": form, "answer": f"answer {i}"} for i, form in enumerate(forms)]
    settings = composed_with(random.Random(0).sample(rows, len(rows)), "train.max_steps=40", "train.batch_size=16")
    parts = sources.splits(settings.data, None)
    asked = [{normalised(item["question"]) for item in items} for items in parts.values()]
    assert [len(items) for items in parts.values()] == [4 * len(part) for part in asked]
    assert sum(map(len, asked)) == len(set.union(*asked)) == 150
    counts = prepared_inputs.inputs_of(settings, None).contamination["held_out"]
    assert (counts.looked_at, counts.shared, counts.same, counts.near) == (counts.items, 0, 0, 0)


def test_doubles_that_a_column_keeps_apart_are_counted(tmp_path, monkeypatch):
    """The column decides the part, so that one may say what belongs together; what it separates is found."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": text, "answer": "a", "id": f"{i}"} for i, text in enumerate(["I can't log in", "i cant"] * 60)]
    settings = composed_with(rows, "+data.load.held_out_by=id", "train.max_steps=20", "train.batch_size=16")
    counts = prepared_inputs.inputs_of(settings, None).contamination["held_out"]
    assert counts.same == counts.shared == counts.items > 5


def test_a_short_text_is_compared_whole():
    items = ["I can't log in", "No mail came"]
    counts = contamination.trained_on(items, ["i can’t log in ", "Lost."], ["i can’t log in \nlogin", "Lost.\nother"])
    assert counts == Contamination(words=13, items=2, looked_at=2, shared=1, same=1, near=0)
    longer = ["I can't log in today", "Lost."]
    assert contamination.trained_on(items, longer, longer).shared == 0


def test_a_short_text_is_found_within_the_prompt_of_a_task():
    items = [f"Question: {text}\nAnswer:" for text in ("What is red?", "What is blue?", "What is high?")]
    assert contamination.trained_on(items, ["what is BLUE", "who"], ["", ""]).same == 1


@pytest.mark.parametrize(
    ("trained", "near"),
    [
        (LONG.replace("fourth", "fifth"), 1),
        (LONG + " to me", 1),
        (LONG.replace("parcel", "box").replace("carrier", "post").replace("handed", "given"), 0),
        (LONG.upper() + "!", 0),  # the same one
        ("Another text of many words that says all that it has to say in words of its own and no other", 0),
    ],
)
def test_a_long_text_that_differs_in_a_few_words_is_a_near_duplicate(trained, near):
    assert contamination.trained_on([LONG, "No."], [trained], []).near == near


@pytest.mark.long
def test_near_duplicates_among_thousands_are_found():
    """MinHash may miss some, and so few that a count is not wrong by more than a percent."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(400)]
    items = [" ".join(draw.choices(words, k=30)) for _ in range(300)]
    changed = [" ".join(word if i != 15 else "other" for i, word in enumerate(item.split())) for item in items]
    others = [" ".join(draw.choices(words, k=30)) for _ in range(3000)]
    assert contamination.trained_on(items, [*others, *changed[:200]], []).near >= 198
    assert contamination.trained_on(items, others, []).near == 0


def test_it_is_told_first_and_by_the_linter_where_it_matters():
    records = [make_record(method, seed=0) for method in ("lora", "base")]
    records[0].contamination = {"held_out": Contamination(13, 44, 44, 40, same=40, near=2)}
    caution = answer(records, None).sentences[0]
    assert caution == (
        "Caution: 42 of 44 items of held-out data are questions or near-duplicates of the training data, so its scores "
        "show memory more than skill; remove them from one side."
    )
    sentences = [finding.sentence for finding in lint.findings(records) if finding.rule == "contamination"]
    assert sentences == [
        "40 of 44 items of held-out data are a training question, but for case, spaces and punctuation, in lora: the "
        "model may repeat what it was shown.",
        "2 of 44 items of held-out data are near-duplicates of a training question, in lora: possible contamination, "
        "or a common template.",
    ]
    records[0].contamination = {"held_out": Contamination(13, 44, 44, 44, same=0, near=4)}
    assert not [line for line in answer(records, None).sentences if line.startswith("Caution")]
    records[0].contamination = {"held_out": Contamination(13, 44, 44, 44, same=0, near=44)}
    caution = answer(records, None).sentences[0]
    assert "44 of 44 items of held-out data are worded almost as training questions, and none is one" in caution
