"""Mapped data: files of all formats, the hub sets' own columns, limits, wrong answers, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_helpers import composed, run_here
from transformers import AutoTokenizer

from harness.errors import UserError
from harness.job import preflight
from harness.job.data import columns, encoding, files, preferences, sources
from harness.job.models import embedded
from harness.settings import DataSettings

ROWS = [{"problem": f"What is {i} + {i}?", "solution": f"It is {2 * i}", "topic": "sums"} for i in range(60)]
COLUMNS = ("data=local", "data.columns.question=problem", "data.columns.answer=solution")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """One works in a folder of one's own; nothing is kept in the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.folder("tiny"))


def write(name: str, rows: list[dict] = ROWS) -> str:
    file, columns = Path(name), list(rows[0]) if rows else ["problem", "solution"]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix in (".csv", ".tsv"):
        with file.open("w", newline="") as out:
            table = csv.DictWriter(out, columns, delimiter="\t" if file.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    else:
        text = json.dumps(rows) if file.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        file.write_text(text)
    return name


def settings(*overrides: str) -> DataSettings:
    return composed("model=tiny", *overrides).settings.data


def local(path: str, *overrides: str) -> dict[str, list[encoding.Item]]:
    return sources.splits(settings(*COLUMNS, f"data.path={path}", *overrides), None)


# Files


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_file_of_any_kind_is_read_by_its_columns(kind):
    found = local(write(f"mine.{kind}"))
    items = found["train"] + found["validation"] + found["test"]
    expected = [{"question": row["problem"], "answer": row["solution"]} for row in ROWS]
    assert sorted(items, key=str) == sorted(expected, key=str)
    assert 1 <= len(found["validation"]) <= 15  # a tenth


def test_a_prompt_of_its_own_takes_fields_of_its_own(tokenizer):
    path = write("mine.jsonl")
    found = settings(
        *(*COLUMNS, f"data.path={path}", "+data.columns.topic=topic", "data.prompt='{topic}: {question}\nA:'")
    )
    item = sources.splits(found, None)["train"][0]
    (example,) = encoding.encoder(tokenizer, found, 512)([item])
    assert tokenizer.decode(example.ids[: example.prompt]) == f"sums: {item['question']}\nA:"


def test_a_file_is_a_data_set_of_its_name_wherever_it_is_named_from(tmp_path):
    write("mine.jsonl")
    relative, absolute = (
        composed("model=tiny", *COLUMNS, f"data.path={path}") for path in ("mine.jsonl", tmp_path / "mine.jsonl")
    )
    assert relative.id == absolute.id
    assert relative.data == "mine.jsonl"
    below = composed("model=tiny", *COLUMNS, f"data.path={tmp_path / 'mine.jsonl'}", f"data_root={tmp_path}")
    assert below.id == relative.id
    assert sources.splits(below.settings.data, str(tmp_path)) == sources.splits(relative.settings.data, None)


def test_a_local_file_is_trained_on_from_load_to_record(tmp_path):
    overrides = (
        "train.max_steps=2",
        "train.batch_size=2",
        "train.validation_items=2",
        "infer.repeats=0",
        "rank=4",
        "eval.tasks=[]",
    )
    cell = composed("model=tiny", *COLUMNS, f"data.path={write('mine.csv')}", *overrides, "train.precision=fp32")
    record = run_here(tmp_path / "out", cell)
    assert (record.status, record.cell.data) == ("ok", "mine.csv")
    write("mine.csv", [row | {"solution": "No."} for row in ROWS])
    changed = run_here(tmp_path / "out", cell)
    assert changed.fingerprints["data"] != record.fingerprints["data"]


# The hub's data sets, in their own columns

HUB = {
    "alpaca": (
        "tatsu-lab/alpaca",
        [
            {"instruction": f"Name {i} animals.", "input": "big" * (i % 2), "output": "Cow.", "text": "…"}
            for i in range(200)
        ],
    ),
    "commonsense": (
        "zwhe99/commonsense_170k",
        [
            {"instruction": f"Is {i} odd?", "input": "", "output": "the correct answer is true", "answer": "true"}
            for i in range(200)
        ],
    ),
    "metamath": (
        "meta-math/MetaMathQA",
        [
            {"query": f"{i}?", "response": "1", "original_question": f"{i // 2}?", "type": "GSM_AnsAug"}
            for i in range(400)
        ],
    ),
    "no_robots": (
        "HuggingFaceH4/no_robots",
        [
            {
                "prompt": f"Greet {i}.",
                "prompt_id": f"{i:x}",
                "messages": [{"role": "user", "content": f"Greet {i}."}, {"role": "assistant", "content": "Hello."}],
                "category": "Chat",
            }
            for i in range(200)
        ],
    ),
}


def of_hub(name: str, rows: list[dict] | None = None) -> dict[str, list[encoding.Item]]:
    path, own = HUB[name]
    folder = Path("hub", path)
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (own if rows is None else rows)))
    return sources.splits(settings(f"data={name}"), "hub")


@pytest.mark.parametrize("name", HUB)
def test_a_hub_data_set_is_mapped_by_its_own_columns(name):
    found = of_hub(name)
    assert sum(map(len, found.values())) == len(HUB[name][1])
    assert found["validation"]
    assert ("test" in found) == (name in ("alpaca", "no_robots"))
    expected = {"alpaca": {"instruction", "input", "answer"}, "commonsense": {"instruction", "answer"}}
    fields = expected.get(name, {"messages"} if name == "no_robots" else {"question", "answer"})
    assert {frozenset(item) for item in found["train"]} == {frozenset(fields)}


def test_alpacas_two_prompts_are_for_records_with_and_without_input(tokenizer):
    encode = encoding.encoder(tokenizer, settings("data=alpaca"), 512)
    items = [{"instruction": "Sort.", "input": given, "answer": "1 2"} for given in ("2 1", "")]
    (full, bare) = (tokenizer.decode(e.ids[: e.prompt]) for e in encode(items))
    assert full.endswith("request.\n\n### Instruction:\nSort.\n\n### Input:\n2 1\n\n### Response:")
    assert bare.endswith("request.\n\n### Instruction:\nSort.\n\n### Response:")
    assert "further context" in full
    assert "further context" not in bare


# How much, and how good

ITEMS = [{"question": f"{i}?", "answer": f"It is {i}"} for i in range(100)]


def test_a_smaller_limit_takes_some_of_a_larger_ones():
    few, more = columns.limited(ITEMS, 10), columns.limited(ITEMS, 50)
    assert (len(few), len(more), columns.limited(ITEMS, None)) == (10, 50, ITEMS)
    assert [item for item in more if item in few] == few
    assert few != ITEMS[:10]
    with pytest.raises(UserError, match=r"data\.limit must be at most 100, .* got 101"):
        columns.limited(ITEMS, 101)


def test_a_share_of_the_answers_is_another_items():
    some, more = columns.noisy(ITEMS, 0.1), columns.noisy(ITEMS, 0.3)
    wrong = [[i for i, (a, b) in enumerate(zip(ITEMS, noisy, strict=True)) if a != b] for noisy in (some, more)]
    assert [len(found) for found in wrong] == [10, 30]
    assert set(wrong[0]) < set(wrong[1])
    assert [some[i] for i in wrong[0]] == [more[i] for i in wrong[0]]
    assert all(more[i]["question"] == ITEMS[i]["question"] for i in wrong[1])
    assert {item["answer"] for item in more} <= {item["answer"] for item in ITEMS}
    assert columns.noisy(ITEMS, 0) == ITEMS


def test_an_answer_that_ends_alike_is_no_wrong_one():
    two = [{"question": f"{i}?", "answer": f"{'So' * i} #### {i % 2}"} for i in range(20)]
    noisy = columns.noisy(two, 1.0)
    assert all(a["answer"].split()[-1] != b["answer"].split()[-1] for a, b in zip(two, noisy, strict=True))
    with pytest.raises(UserError, match=r"data\.noise requires answers with different last words"):
        columns.noisy([{"question": "?", "answer": "Yes"}] * 4, 0.5)


def test_noise_is_of_training_alone_and_the_same_for_every_method():
    small = ("data=wordmath_short", "data.load.train=50", "+data.load.validation=8")
    clean, noisy = (sources.splits(settings(*small, *more), None) for more in ([], ["data.noise=0.2"]))
    assert noisy["validation"] == clean["validation"]
    assert sum(a != b for a, b in zip(clean["train"], noisy["train"], strict=True)) == 10
    assert settings(*small, "method=lora", "data.noise=0.2") == settings(*small, "method=full", "data.noise=0.2")
    few = sources.splits(settings(*small, "data.limit=5"), None)
    assert (len(few["train"]), len(few["validation"])) == (5, 8)


def test_noise_replaces_the_last_answer_of_a_conversation():
    chats = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}]}
        for i in range(10)
    ]
    noisy = columns.noisy(chats, 1.0)
    assert all(a["messages"][0] == b["messages"][0] for a, b in zip(chats, noisy, strict=True))
    assert all(a["messages"][1]["content"] != b["messages"][1]["content"] for a, b in zip(chats, noisy, strict=True))


# What is refused


def refused(said: str, rows: list[dict], *overrides: str, name: str = "mine.jsonl") -> None:
    with pytest.raises(UserError, match=said) as told:
        local(write(name, rows), *overrides)
    assert "\n" not in str(told.value)


def test_a_missing_column_is_named_with_those_there_are():
    refused(
        r"mine\.jsonl has no column 'rationale'; it has: problem, solution, topic\.",
        ROWS,
        "data.columns.answer=rationale",
    )


def test_a_prompt_that_asks_for_more_is_refused():
    refused(
        r"\{topic\} of data\.prompt must be mapped to a column; mapped are: question, answer",
        ROWS,
        "data.prompt='{topic}'",
    )


@pytest.mark.parametrize("prompt", ["{question:>9000000000}", "{question!r:3}"])
def test_a_prompt_with_more_than_names_in_braces_is_refused(prompt):
    refused(r"Fields of data\.prompt must be names alone, as \{question\}, got", ROWS, f"data.prompt='{prompt}'")


def test_a_prompt_with_a_brace_of_its_own_is_refused():
    refused(r"data\.prompt must have fields as \{question\}, got '\{question'", ROWS, "data.prompt='{question'")


@pytest.mark.parametrize("name", ["mine.parquet", "mine.jsonl"])
def test_a_missing_number_is_no_answer(name):
    """As pandas writes a gap in a column of numbers."""
    rows = [row | {"solution": math.nan if i < 3 else float(i)} for i, row in enumerate(ROWS)]
    settings = composed("model=tiny", *COLUMNS, f"data.path={write(name, rows)}").settings.data
    splits = sources.splits(settings, None)
    answers = [item["answer"] for part in splits.values() for item in part]
    assert len(answers) == len(ROWS) - 3
    assert "nan" not in answers
    assert "3 without an answer" in sources.own_data(settings, None).sentence


def test_missing_pairs_and_conversations_are_no_answers():
    pair = {"chosen": "a", "rejected": math.nan, "prompt": "p"}
    assert preferences.paired(pair, {name: name for name in pair}, "x") is None
    rows = [{"talk": math.nan}, {"talk": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    mapped = columns.mapped_rows(rows, ["talk"], {"messages": "talk"}, None, "x")
    assert (len(mapped.items), mapped.without_answer) == (1, 1)


def test_bytes_are_read_as_utf_8_and_others_are_refused():
    rows = [{name: text.encode() for name, text in row.items()} for row in ROWS]
    settings = composed("model=tiny", *COLUMNS, f"data.path={write('mine.parquet', rows)}").settings.data
    assert sources.splits(settings, None)["train"][0]["answer"].startswith("It is ")
    refused(
        r"Texts must be UTF-8, got the bytes b'\\xff'",
        [row | {"solution": b"\xff"} for row in ROWS],
        name="mine.parquet",
    )


def test_two_columns_of_one_name_are_refused():
    Path("mine.csv").write_text("problem,solution,solution\na,b,c\n")
    with pytest.raises(UserError, match=r"mine\.csv can't be read as csv: 2 columns are called 'solution'"):
        files.read("mine.csv")


def test_a_file_without_records_is_refused():
    refused(r"mine\.csv has no records", [], name="mine.csv")


def test_a_file_without_answers_is_refused():
    refused(
        r"None of the 60 records of mine\.jsonl has an answer in the column 'solution'",
        [r | {"solution": ""} for r in ROWS],
    )
    found = local(path := write("some.jsonl", [*ROWS, {"problem": "?", "solution": None}]))
    assert sum(map(len, found.values())) == 60
    own = sources.own_data(settings(*COLUMNS, f"data.path={path}"), None)
    assert "61 records; left out: 1 without an answer; not used: topic." in own.sentence


def test_a_conversation_without_the_assistant_is_refused():
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}]} for i in range(20)]
    refused(r"None of the 20 records of mine\.jsonl has an assistant turn", rows, "data.columns.messages=messages")


def test_messages_that_are_none_are_refused():
    refused(r"messages of \S+ must be lists of turns", [{"messages": "Hi"}], "data.columns.messages=messages")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine.jsonl", "{", r"data\.path=mine\.jsonl can't be read as jsonl"),
        ("mine.jsonl", '{"a": 1}\n{"a" 2}\n', r"can't be read as jsonl: line 2, column 6: Expecting ':' delimiter\.$"),
        ("mine.json", "3", r"data\.path=mine\.json must hold a list of records"),
        ("mine.parquet", "x", r"data\.path=mine\.parquet can't be read as parquet"),
        ("mine.xlsx", "", r"data\.path must have one of the suffixes \.jsonl, \.json, \.csv.*, got mine\.xlsx"),
        (None, None, r"data\.path must be a file or folder below data_root, or the working folder, got mine\.jsonl"),
    ],
)
def test_a_file_that_is_none_is_refused(name, text, said):
    if name:
        Path(name).write_text(text)
    with pytest.raises(UserError, match=said):
        local(name or "mine.jsonl")


def test_a_file_too_small_to_hold_out_from_is_refused():
    refused(
        r"mine\.jsonl has too few different records: with a share of 0\.1 and 0\.1 held out, \w+ has none", ROWS[:1]
    )


def test_without_a_path_it_is_asked_for():
    with pytest.raises(UserError, match=r"data=local requires data\.path=FILE"):
        sources.splits(settings("data=local"), None)


def test_a_sweep_is_refused_before_anything_is_launched():
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}"}]}
        for i in range(40)
    ]
    cell = composed("model=tiny", "data=local", f"data.path={write('c.jsonl', rows)}", "data.columns.messages=messages")
    with pytest.raises(UserError, match="chat template"):
        preflight.check([cell], None)
