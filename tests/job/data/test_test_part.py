"""The part that is held out for the test: its records stay in it, and none is trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_helpers import composed

from harness.errors import UserError
from harness.job.data import sources

LOCAL = ("model=tiny", "data=local", "data.path=mine.jsonl")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(count: int) -> list[dict]:
    return [{"question": f"{i}?", "answer": f"{i}."} for i in range(count)]


def split(rows: list[dict], *overrides: str) -> dict[str, list[dict]]:
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sources.splits(composed(*LOCAL, *overrides).settings.data, None)


def test_a_file_has_three_parts_without_a_common_record():
    found = split(rows(400))
    assert {part: round(len(items) / 40) for part, items in found.items()} == {"train": 8, "validation": 1, "test": 1}
    assert sorted(json.dumps(item) for items in found.values() for item in items) == sorted(map(json.dumps, rows(400)))
    assert split(rows(400), "data.test_share=0.3")["validation"] == found["validation"]
    assert "test" not in split(rows(400), "data.test_share=0")


QUESTIONS = st.lists(st.tuples(st.text(max_size=8), st.text(min_size=1, max_size=4)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(QUESTIONS, QUESTIONS)
def test_no_record_moves_as_the_file_grows(first, more):
    def parts(pairs) -> dict[str, str]:
        """Of each question, the part that it is in; all answers to it are in one."""
        shares = sources.HeldOutShares("x", validation=0.1, test=0.2)
        found = sources._held_out([(q, {"question": q, "answer": a}) for q, a in [*pairs, *SURE]], shares)
        where = {(item["question"], part) for part, items in found.items() for item in items}
        assert len(where) == len(dict(where))
        return dict(where)

    before, after = parts(first), parts([*more, *reversed(first)])
    assert before.items() <= after.items()


SURE = [(f"{i}", "") for i in range(60)]  # so that no part is empty


def test_the_first_items_of_the_validation_are_of_all_topics_of_a_sorted_file():
    found = split([{"question": f"{topic} {i}?", "answer": f"{i}."} for topic in "abcd" for i in range(500)])
    of_topic = Counter(item["question"][0] for item in found["validation"][:64])
    assert min(of_topic[topic] for topic in "abcd") >= 6
    labels = [{"question": f"{topic} {i}?", "answer": topic} for topic in "abcd" for i in range(250)]
    first = split(labels, "data.answers=classify")["validation"][:64]
    assert min(Counter(item["answer"] for item in first).values()) >= 6


def test_a_conversation_that_is_logged_after_each_answer_is_in_one_part():
    def turns(chat: int, number: int) -> list[dict]:
        pairs = [[("user", f"{chat}, {i}?"), ("assistant", f"{chat}.{i}.")] for i in range(number)]
        return [{"role": role, "content": text} for pair in pairs for role, text in pair]

    logged = [{"messages": turns(chat, number)} for chat in range(60) for number in (3, 1, 2, 4)]
    found = split(logged)
    parts = {part: {item["messages"][0]["content"] for item in items} for part, items in found.items()}
    assert all(len(items) == 4 * len(parts[part]) for part, items in found.items())
    assert not parts["train"] & (parts["validation"] | parts["test"])


def test_a_long_conversation_is_normalised_a_few_times_and_not_once_per_answer(monkeypatch):
    """Also where its turns end in a number or begin with a dash, which together are a minus."""
    words, lengths = [f"Turn {i}, - 5\n- {i}" for i in range(60)], []
    turns = [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate(words)]
    items = [{"messages": turns}, {"messages": turns[:4]}, {"messages": turns[4:]}]
    once = sources.normalised
    monkeypatch.setattr(sources, "normalised", lambda text: (lengths.append(len(text)), once(text))[1])
    openings = sources._openings(items)
    assert openings == [once("\n".join(part)) for part in (words[:3], words[:3], words[4:59])]
    assert sum(lengths) < 4 * sum(len(turn["content"]) for item in items for turn in item["messages"])


def test_conversations_that_ask_the_same_are_in_one_part():
    chats = [
        {
            "messages": [
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": f"Hello {i // 2}."},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": f"{i}."},
                {"role": "user", "content": f"Thanks {i}."},
            ]
        }
        for i in range(200)
    ]
    found = split(chats, "data.columns.messages=messages")
    asked = [{item["messages"][1]["content"] for item in items} for items in found.values()]
    assert sum(map(len, asked)) == len(set.union(*asked)) == 100


def test_options_do_not_decide_the_part():
    def parts(options):
        mine = [{"question": f"{i}?", "answer": "a", "from": options} for i in range(100)]
        found = split(mine, "data.columns.options=from")
        return {part: [item["question"] for item in items] for part, items in found.items()}

    assert parts(["a", "or b"]) == parts(["a", "or c"])


def test_noise_and_a_limit_leave_the_test_as_it_is():
    plain, other = split(rows(100)), split(rows(100), "data.limit=20", "data.noise=0.5")
    assert plain["test"] == other["test"]
    assert len(other["train"]) == 20


@pytest.mark.parametrize(
    ("count", "overrides", "said"),
    [
        (4, [], "validation has none"),
        (
            100,
            ["data.test_share=0.0001"],
            r"0\.0001 held out, test has none; data\.test_share=0 trains",
        ),
        (100, ["data.test_share=1"], r"data\.test_share must be at least 0 and below 1, got 1\.$"),
        (100, ["data.test_share=0.95"], r"of 0\.1 and 0\.95 held out, train has none"),
        (100, ["data.answers=some"], r"data\.answers=some is unknown\. There is: auto, choice, classify, exact, text"),
        (
            100,
            ["data=wordmath", "data.path=null", "data.test_share=0.1"],
            r"data\.test_share=0\.1 requires data in columns",
        ),
    ],
)
def test_what_can_not_be_held_out_is_refused(count, overrides, said):
    with pytest.raises(UserError, match=said):
        split(rows(count), *overrides)


def test_no_part_is_empty_by_chance():
    """Of 20 texts 2 are expected in each part that is held out; by their hashes alone one of eight files had none."""
    for file in range(100):
        held_out = sources._held_out([(f"{file} {i}", {}) for i in range(20)], sources.HeldOutShares("f", 0.1, 0.1))
        assert all(held_out.values())
