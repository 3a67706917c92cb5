"""Files of other trainers go in as they are: read by their columns, with nothing left out unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import composed
from transformers import AutoTokenizer

from harness.errors import UserError
from harness.job.data import encoding, sources
from harness.job.models import embedded

ASKED = [(f"What is {a} plus {b}?", f"It is {a + b}.") for a in range(10) for b in range(6)]
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}
CALL = {"name": "add", "arguments": {"a": 1}}
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tokenizer(template: str):
    found = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    found.chat_template = template
    return found


def read(rows: list[dict], *overrides: str, data: str = "local"):
    """The first item of a file of `rows`, and the sentence on it."""
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = composed("model=tiny", f"data={data}", "data.path=mine.jsonl", *overrides).settings.data
    splits = sources.splits(settings, None)
    assert sum(map(len, splits.values())) == len(rows)
    return splits["train"][0], sources.own_data(settings, None).sentence


def turns(item: dict) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in item["messages"]]


def test_alpaca_is_asked_with_its_input():
    rows = [{"instruction": "Add.", "input": q, "output": a, "text": q} for q, a in ASKED]
    item, sentence = read(rows)
    assert item["question"].startswith("Add.\nWhat is ")
    assert item["answer"].startswith("It is ")
    assert sentence == "mine.jsonl is read as Alpaca: 60 records; not used: text."


def test_alpaca_with_a_system_prompt_or_a_history_is_a_conversation():
    rows = [
        {"instruction": q, "input": "", "output": a, "system": "You count.", "history": [["Hi", "Hello"]]}
        for q, a in ASKED
    ]
    item, sentence = read(rows)
    assert turns(item)[:3] == [("system", "You count."), ("user", "Hi"), ("assistant", "Hello")]
    assert [role for role, _ in turns(item)[3:]] == ["user", "assistant"]
    assert sentence == "mine.jsonl is read as Alpaca: 60 conversations, system prompts and earlier turns kept."


def sharegpt(**columns) -> list[dict]:
    return [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} | columns for q, a in ASKED]


@pytest.mark.parametrize("named", [[], ["data.columns.messages=conversations"]])
def test_the_system_column_of_sharegpt_is_kept(named):
    item, sentence = read(sharegpt(system="You count.", id=1), *named)
    assert turns(item)[0] == ("system", "You count.")
    assert sentence == "mine.jsonl is read as ShareGPT: 60 conversations, system prompts kept; not used: id."


def test_a_system_prompt_in_two_places_is_refused():
    rows = sharegpt(system="You count.")
    rows[3]["conversations"].insert(0, {"from": "system", "value": "You sing."})
    with pytest.raises(UserError, match="system prompts in its column 'system' and in its turns"):
        read(rows)


def called(form: str) -> list[dict]:
    """Conversations with a call and its result."""
    if form == "sharegpt":
        said = [{"from": "function_call", "value": json.dumps(CALL)}, {"from": "observation", "value": "12"}]
        return [
            {
                "conversations": [{"from": "human", "value": q}, *said, {"from": "gpt", "value": a}],
                "tools": json.dumps([ADD]),
            }
            for q, a in ASKED
        ]
    call = {"id": "c1", "type": "function", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}
    said = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
    ]
    return [
        {
            "messages": [{"role": "user", "content": q}, *said, {"role": "assistant", "content": a}],
            "tools": [{"type": "function", "function": ADD}],
        }
        for q, a in ASKED
    ]


@pytest.mark.parametrize("form", ["sharegpt", "openai"])
def test_calls_of_tools_are_trained_on_and_their_results_are_not(form):
    item, sentence = read(called(form))
    assert item["tools"] == [{"type": "function", "function": ADD}]
    assert sentence.endswith("60 conversations, tools and tool calls kept.")
    of = tokenizer(TEMPLATE)
    (example,) = encoding.encode_all(of, [item], "", 1024)
    whole, learned = of.decode(example.ids), of.decode([example.ids[at] for at in example.supervised])
    assert '"name": "add"' in whole
    assert learned.startswith('<tool_call>add {"a": 1}</tool_call><|im_end|>')
    assert "It is " in learned
    assert "12<|im_end|>" in whole
    assert "12<|im_end|>" not in learned
    with pytest.raises(UserError, match=r"have (tools|calls of tools), which the model's chat template does not write"):
        encoding.encode_all(tokenizer(WITHOUT_TOOLS), [item], "", 1024)


def test_a_template_that_leaves_out_the_system_prompt_is_refused():
    item, _ = read(sharegpt(system="You count."))
    silent = WITHOUT_TOOLS.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    with pytest.raises(UserError, match="leaves out turns of role system"):
        encoding.encode_all(tokenizer(silent), [item], "", 1024)


def test_fields_of_turns_and_images_are_not_lost_unseen():
    rows = sharegpt()
    rows[5]["conversations"][1]["score"] = 0.5
    assert read(rows)[1].endswith("not used: score of turns.")
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]
    answer = {"role": "assistant", "content": "It."}
    item, _ = read([{"messages": [{"role": "user", "content": [*parts, {"text": str(i)}]}, answer]} for i in range(60)])
    assert turns(item)[0][1].startswith("What is it?")
    with pytest.raises(UserError, match="has images in the turns of its column 'messages', in 60 of 60 records"):
        read([{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, answer]}] * 60)
    with pytest.raises(UserError, match="got the role 'narrator'"):
        read([{"messages": [{"role": "narrator", "content": "x"}, answer]}] * 60)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (lambda q, a: {"instruction": "Add.", "input": q, "chosen": a, "rejected": "No."}, "Alpaca's pairs"),
        (
            lambda q, a: {
                "conversations": [{"from": "human", "value": q}],
                "chosen": {"from": "gpt", "value": a},
                "rejected": {"from": "gpt", "value": "No."},
            },
            "ShareGPT's pairs",
        ),
        (
            lambda q, a: {
                "input": {"messages": [{"role": "user", "content": q}]},
                "preferred_output": [{"role": "assistant", "content": a}],
                "non_preferred_output": [{"role": "assistant", "content": "No."}],
            },
            "OpenAI's pairs",
        ),
        (lambda q, a: {"prompt": q, "chosen": a, "rejected": "No."}, "pairs of answers"),
    ],
)
def test_pairs_of_all_kinds_are_read(row, name):
    rows = [row(q, a) for q, a in ASKED]
    item, sentence = read(rows, "train.objective=dpo", data="local_preference")
    assert item["rejected"] == "No."
    assert sentence.startswith(f"mine.jsonl is read as {name}: 60 ")
    with pytest.raises(UserError, match="has pairs of answers; write data=local_preference"):
        read(rows)


MARKED = {
    "TRL's texts": lambda q, a, good: {"prompt": q, "completion": a, "label": good},
    "TRL's turns": lambda q, a, good: {
        "prompt": [{"role": "user", "content": q}],
        "completion": [{"role": "assistant", "content": a}],
        "label": good,
    },
    "ShareGPT": lambda q, a, good: {
        "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
        "kto_tag": str(good).lower(),
    },
    "OpenAI messages": lambda q, a, good: {
        "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
        "label": good,
    },
    "Alpaca": lambda q, a, good: {"instruction": q, "input": "", "output": a, "kto_tag": good},
}


@pytest.mark.parametrize("row", MARKED.values(), ids=MARKED)
def test_marked_answers_of_all_kinds_are_read_for_kto_alone(row):
    rows = [row(q, a, i % 3 > 0) for i, (q, a) in enumerate(ASKED)]
    item, sentence = read(rows, "train.objective=kto", data="local_marked")
    pair = (item["question"], item["answer"]) if "question" in item else tuple(text for _, text in turns(item))
    assert item["mark"] == {True: "good", False: "bad"}[ASKED.index(pair) % 3 > 0]
    assert sentence == "mine.jsonl is read as KTO: 60 answers, 40 of them good."
    for data in ("local", "local_preference"):
        with pytest.raises(UserError, match=r"is read as KTO: .* write data=local_marked") as told:
            read(rows, data=data)
        assert "\n" not in str(told.value)


def test_bad_answers_are_refused_whatever_columns_are_named():
    rows = [MARKED["TRL's texts"](q, a, i % 3 > 0) for i, (q, a) in enumerate(ASKED)]
    with pytest.raises(UserError, match="is read as KTO"):
        read(rows, "data.columns.question=prompt", "data.columns.answer=completion")


@pytest.mark.parametrize("labels", [("yes", "no"), (1, 0)])
def test_labels_that_are_no_marks_are_not_taken_for_them(labels):
    rows = [{"prompt": q, "completion": a, "label": labels[i % 2]} for i, (q, a) in enumerate(ASKED)]
    assert read(rows)[1] == "mine.jsonl is read as prompt and completion: 60 records; not used: label."
    with pytest.raises(UserError, match="must be marked true or false in its column 'label', got"):
        read(rows, "train.objective=kto", data="local_marked")


def test_a_mark_may_be_what_is_asked_for():
    rows = [{"completion": q, "label": i % 3 > 0} for i, (q, _) in enumerate(ASKED)]
    item, _ = read(rows, "data.columns.question=completion", "data.columns.answer=label")
    assert item["answer"] in ("True", "False")


def test_marks_may_have_columns_of_any_name():
    rows = [{"q": q, "said": a, "liked": i % 3 > 0} for i, (q, a) in enumerate(ASKED)]
    named = ("data.columns.question=q", "data.columns.answer=said", "data.columns.mark=liked", "train.objective=kto")
    item, sentence = read(rows, *named, data="local_marked")
    assert item.keys() == {"question", "answer", "mark"}
    assert sentence == "mine.jsonl is read as KTO: 60 answers, 40 of them good."
    rows = [{"talk": row["conversations"], "liked": i % 3 > 0} for i, row in enumerate(sharegpt())]
    item, _ = read(rows, "data.columns.messages=talk", *named[2:], data="local_marked")
    assert [role for role, _ in turns(item)] == ["user", "assistant"]


def test_a_file_without_marks_is_told_what_to_take():
    with pytest.raises(UserError, match=r"has no column 'label', .* write data\.columns\.mark=COLUMN, or data=local"):
        read([{"prompt": q, "completion": a} for q, a in ASKED], "train.objective=kto", data="local_marked")
    pairs = [{"prompt": q, "chosen": a, "rejected": "No."} for q, a in ASKED]
    with pytest.raises(UserError, match="has pairs of answers; write data=local_preference"):
        read(pairs, "train.objective=kto", data="local_marked")


def test_tables_and_llama_factorys_index_have_marks(tmp_path):
    lines = [f'"{q}","{a}",{i % 3 > 0}' for i, (q, a) in enumerate(ASKED)]
    Path("mine.csv").write_text("prompt,completion,label\n" + "\n".join(lines))
    talks = [{"messages": row["conversations"], "label": i % 3 > 0} for i, row in enumerate(sharegpt())]
    Path("talks.json").write_text(json.dumps(talks))
    columns = {"messages": "messages", "kto_tag": "label"}
    entry = {"file_name": "talks.json", "formatting": "sharegpt", "columns": columns}
    Path("dataset_info.json").write_text(json.dumps({"kto": entry}))
    for path in ("mine.csv", "dataset_info.json/kto"):
        marked = composed("model=tiny", "data=local_marked", f"data.path={path}", "train.objective=kto")
        settings = marked.settings.data
        assert sources.own_data(settings, None).good == 40


def test_texts_alone_are_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"mine\.jsonl has texts alone; data=text pretrains on them"):
        read([{"text": q} for q, _ in ASKED])


def test_prompts_and_completions_may_be_turns():
    rows = [{"prompt": q, "completion": a} for q, a in ASKED]
    assert read(rows)[1] == "mine.jsonl is read as prompt and completion: 60 records."
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in ASKED
    ]
    assert [role for role, _ in turns(read(rows)[0])] == ["user", "assistant"]


def test_a_column_beside_questions_and_answers_is_named():
    sentence = read([{"question": q, "answer": a, "system": "You count.", "empty": ""} for q, a in ASKED])[1]
    assert sentence == "mine.jsonl is read as questions and answers: 60 records; not used: system."


def test_records_without_a_question_are_left_out_and_many_are_refused():
    rows = [{"question": q, "answer": a} for q, a in ASKED]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": " ", "answer": "a"}]))
    settings = composed("model=tiny", "data=local", "data.path=mine.jsonl").settings.data
    assert "left out: 1 without a question" in sources.own_data(settings, None).sentence
    empty = [row | {"answer": None} for row in rows[:30]]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *empty]))
    with pytest.raises(UserError, match=r"30 without an answer, of 90 records; .* data\.drop_empty=true"):
        sources.splits(settings, None)
    dropping = composed("model=tiny", "data=local", "data.path=mine.jsonl", "data.drop_empty=true").settings.data
    assert sum(map(len, sources.splits(dropping, None).values())) == 60
    assert (
        composed("model=tiny", "data=local", "data.path=mine.jsonl").id
        != composed("model=tiny", "data=local", "data.path=mine.jsonl", "data.drop_empty=true").id
    )
