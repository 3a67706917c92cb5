"""data.path takes files of all kinds as they lie there: packed, in other encodings, in folders, in an index."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_helpers import composed

from harness import data_files
from harness.errors import UserError
from harness.job.data import files, options, sources, turns

ROWS = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}"} for i in range(60)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_zstd(name: str) -> None:
    with pa.output_stream(name, compression="zstd") as out:
        out.write(LINES.encode())


def write_folder(name: str) -> None:
    Path(name).mkdir()
    Path(name, "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:30]))
    pq.write_table(pa.Table.from_pylist(ROWS[30:]), Path(name, "b.parquet"))


def write_packed_parquet(name: str) -> None:
    with gzip.open(name, "wb") as out:
        pq.write_table(pa.Table.from_pylist(ROWS), out)


KINDS = {
    "a.jsonl.gz": lambda name: Path(name).write_bytes(gzip.compress(LINES.encode())),
    "a.jsonl.zst": write_zstd,
    "a.parquet.gz": write_packed_parquet,
    "saved": lambda name: datasets.Dataset.from_list(ROWS).save_to_disk(name),
    "splits": lambda name: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(name),
    "folder": write_folder,
}


@pytest.mark.parametrize("name", KINDS)
def test_packed_files_and_folders_are_read(name):
    KINDS[name](name)
    settings = composed("model=tiny", "data=local", f"data.path={name}").settings.data
    splits = sources.splits(settings, None)
    assert sorted((item for part in splits.values() for item in part), key=str) == sorted(ROWS, key=str)
    first = data_files.digest(name, None)
    assert sources.file_fingerprint(settings, None) == {"file": first}
    state = sources.data_state(settings, None)
    for file in data_files.behind(Path(name)):
        file.write_bytes(file.read_bytes() + b"\n")
    assert data_files.digest(name, None) != first
    assert sources.data_state(settings, None) != state


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ('question;answer\r\n"Größe, ja; gut?";10,5\r\n'.encode("cp1252"), ["cp1252", "delimiter ';'"]),
        ("question,answer\nGröße; ja?,10\n".encode(), []),
        ("\ufeffquestion\tanswer\nGröße, ja?\t10\n".encode(), ["delimiter '\\t'"]),
        ('question|answer\n"Größe\n|\n?"|10\n'.encode("utf-16"), ["utf-16", "delimiter '|'"]),
    ],
)
def test_the_encoding_and_the_delimiter_of_a_table_are_found(content, notes):
    Path("a.csv").write_bytes(content)
    table = files.read("a.csv")
    assert [*table.rows[0]] == ["question", "answer"]
    assert table.rows[0]["question"].startswith("Größe")
    assert table.notes == notes


def test_a_row_with_more_fields_than_the_header_is_refused():
    Path("a.csv").write_text("question,answer\na,b\nc,d,e\n")
    with pytest.raises(UserError, match="line 3 has more fields than the header"):
        files.read("a.csv")


ASKED = [{"role": "user", "content": "a"}]
PREFERRED = [{"role": "assistant", "content": "b"}]
TALK = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize(
    ("name", "content", "settings", "said"),
    [
        ("a.jsonl", f"{TALK}\n\n{TALK.replace('user', 'me')}\n", "data=local", r"^In line 3: .* got the role 'me'\."),
        ("a.json", f"[{TALK}, {TALK.replace('user', 'me')}]", "data=local", r"^In record 2: .* got the role 'me'\."),
        ("a.jsonl", '{"question": "a", "answer": "b"}\n\n[1]\n', "data=local", r"^In line 3: .* object of columns\."),
        (
            "a.csv",
            'prompt,completion,label\n"a\nb",c,true\n,,\nd,e,perhaps\n',
            "data=local_marked train.objective=kto",
            r"^In line 5: .* got 'perhaps'\.",
        ),
        (
            "a.jsonl",
            '{"question": "a", "answer": ""}\n{"question": "a", "answer": "x", "options": ["x", "y"]}\n'
            '{"question": "b", "answer": "z", "options": ["x", "y"]}\n',
            "data=local data.columns.options=options",
            r'^In line 3: .* got "z" for the options \["x", "y"\]\.',
        ),
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b", "history": []}\n{"instruction": "a", "output": "b", "history": [1]}\n',
            "data=local",
            r"^In line 2: .* got 1\.",
        ),
    ],
)
def test_a_row_that_is_refused_is_named_by_its_place_in_the_file(name, content, settings, said):
    Path(name).write_text(content)
    data = composed("model=tiny", *settings.split(), f"data.path={name}").settings.data
    with pytest.raises(UserError, match=said):
        sources.own_data(data, None)


def test_a_row_of_a_folder_is_named_by_its_file_and_its_place_there():
    Path("data").mkdir()
    Path("data/a.jsonl").write_text(f"{TALK}\n{TALK}\n")
    Path("data/b.jsonl").write_text(f"\n{TALK}\n{TALK.replace('user', 'me')}\n")
    data = composed("model=tiny", "data=local", "data.path=data").settings.data
    with pytest.raises(UserError, match=r"^In b\.jsonl, line 3: .* got the role 'me'\.$"):
        sources.own_data(data, None)


@pytest.mark.parametrize(
    ("row", "without"),
    [
        ({"prompt": ASKED}, "completion"),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}}, "rejected"),
        (
            {"input": {"messages": [{"role": "user", "content": "a"}]}, "preferred_output": PREFERRED},
            "non_preferred_output",
        ),
    ],
)
def test_a_record_without_an_answer_in_a_format_of_others_is_left_out(row, without):
    """Not a KeyError, of which the job would only say the column's name."""
    answer = [{"role": "assistant", "content": "c"}] if without != "rejected" else {"from": "gpt", "value": "c"}
    whole = (
        row
        | {without: answer}
        | ({"preferred_output": [{"role": "assistant", "content": "b"}]} if "input" in row else {})
    )
    Path("a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (whole, row)))
    kind = "local" if without == "completion" else "local_preference"
    data = composed("model=tiny", f"data={kind}", "data.path=a.jsonl").settings.data
    own = sources.own_data(data, None)
    assert (own.records, own.without_answer) == (2, 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.jsonl", "can't be read as jsonl: line 2 is nested"), ("a.json", "can't be read as json: it is nested")],
)
def test_data_that_are_nested_too_deeply_are_refused(name, said):
    # Beyond what any Python's reader of JSON admits: 3.14's admits 20,000 levels.
    Path(name).write_text('{"question": "a", "answer": "b"}\n' * name.endswith("l") + "[" * 100_000)
    with pytest.raises(UserError, match=rf"{said} too deeply\."):
        files.read(name)


def test_tools_that_are_nested_too_deeply_are_refused():
    with pytest.raises(UserError, match="The tools and calls of x must be JSON"):
        turns.tools_of("[" * 3000, "x")
    with pytest.raises(UserError, match="The options of x must be lists"):
        options.listed("[" * 3000, "x")


def test_an_index_that_is_nested_too_deeply_is_none():
    Path("dataset_info.json").write_text("[" * 3000)
    assert data_files.entry(Path("dataset_info.json")) is None


def test_files_of_a_folder_that_are_not_read_are_named():
    write_folder("folder")
    Path("folder/README.md").write_text("x")
    settings = composed("model=tiny", "data=local", "data.path=folder").settings.data
    assert sources.own_data(settings, None).sentence.endswith("60 records; not used: README.md.")
    Path("other").mkdir()
    Path("other/page.html").write_text("x")
    with pytest.raises(UserError, match=r"folder data\.path=other has no file with one of the suffixes \.jsonl"):
        files.read("other")


INDEX = {
    "plain": {"file_name": "plain.json", "columns": {"prompt": "q", "response": "a"}},
    "talks": {
        "file_name": "talks.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "system": "about"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"},
    },
    "far": {"hf_hub_url": "someone/something"},
}


def test_an_index_of_llama_factory_names_files():
    Path("index").mkdir()
    Path("index/dataset_info.json").write_text(json.dumps(INDEX))
    Path("index/plain.json").write_text(json.dumps([{"q": row["question"], "a": row["answer"]} for row in ROWS]))
    talks = [
        {"talk": [{"who": "me", "says": row["question"]}, {"who": "it", "says": row["answer"]}], "about": "Count."}
        for row in ROWS
    ]
    Path("index/talks.json").write_text(json.dumps(talks))
    for path in ("index", "index/dataset_info.json"):
        with pytest.raises(UserError, match=r"is an index of files; name one as .*/NAME: plain, talks, far"):
            files.read(path)
    with pytest.raises(UserError, match=r"far of .* is not a file here but someone/something"):
        files.read("index/dataset_info.json/far")
    with pytest.raises(UserError, match=r"is unknown\. Did you mean plain\?"):
        files.read("index/dataset_info.json/plein")
    cell = composed("model=tiny", "data=local", "data.path=index/dataset_info.json/talks")
    assert cell.data == "talks"
    item = sources.splits(cell.settings.data, None)["train"][0]
    assert [turn["role"] for turn in item["messages"]] == ["system", "user", "assistant"]
    settings = composed("model=tiny", "data=local", "data.path=index/dataset_info.json/plain").settings.data
    assert sources.own_data(settings, None).sentence == "index/dataset_info.json/plain is read as Alpaca: 60 records."


@pytest.mark.parametrize("file_name", ["../secret.json", "/etc/hostname", "link.json"])
def test_an_index_names_no_file_outside_its_folder(file_name):
    Path("index").mkdir()
    Path("secret.json").write_text(json.dumps(ROWS))
    Path("index/link.json").symlink_to(Path("secret.json").absolute())
    Path("index/dataset_info.json").write_text(json.dumps({"mine": {"file_name": file_name}}))
    with pytest.raises(
        UserError, match=r"file_name of mine in .* must lie below the folder of the index, got"
    ) as error:
        files.read("index")
    assert ("a link to elsewhere" in str(error.value)) == (file_name == "link.json")
    with pytest.raises(UserError, match="must lie below"):
        data_files.digest("index", None)


def test_a_hub_id_is_one_of_which_nothing_is_here():
    assert data_files.names_hub("someone/something", Path("."))
    Path("someone").mkdir()
    assert not data_files.names_hub("someone/something", Path("."))
    assert not data_files.names_hub("something", Path("."))


@pytest.mark.parametrize("path", ["-o/something", "someone/-something", "--help/x", ".hidden/x", "someone/.."])
def test_a_hub_id_is_no_option_and_no_hidden_folder(path):
    assert not data_files.names_hub(path, Path("."))


# Other languages

CHINESE = [{"question": f"{i} 加 {i} 等于多少？", "answer": f"答案是{2 * i}\u2028。"} for i in range(5)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_in_utf_8_and_utf_16(encoding):
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in CHINESE)
    Path("a.jsonl").write_bytes(lines.encode(encoding))
    Path("a.json").write_bytes(json.dumps(CHINESE, ensure_ascii=False).encode(encoding))
    assert files.read("a.jsonl").rows == files.read("a.json").rows == CHINESE


@pytest.mark.parametrize(("name", "place"), [("a.jsonl", "line 2"), ("a.json", "a text")])
def test_half_of_a_character_is_refused(name, place):
    rows = [{"question": "\U0001f600", "answer": "a"}, {"question": "q", "answer": {"deep": ["cut \ud83d"]}}]
    Path(name).write_text(json.dumps(rows) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"{name} .*: {place} has half of a character, \\ud83d, .*; remove it\."):
        files.read(name)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "小明有三个苹果"),
        ("big5", "小明有三個蘋果"),
        ("euc-kr", "사과가 세 개 있다"),
        ("shift_jis", "リンゴが三つあります"),
        ("cp1251", "У Маши три яблока"),
        ("cp1256", "لديه ثلاث تفاحات"),
    ],
)
def test_a_table_of_another_alphabet_is_not_taken_for_cp1252(encoding, text):
    Path("a.csv").write_bytes(f"question,answer\n{text},{text}\n".encode(encoding))
    with pytest.raises(UserError, match=r"a\.csv is not UTF-8; save it as UTF-8"):
        files.read("a.csv")


def test_a_tables_fields_may_hold_what_ends_lines_elsewhere():
    Path("a.csv").write_text("question;answer\n" + "a\u2028b\x85c;d\n" * 3, encoding="utf-8", newline="")
    assert files.read("a.csv").rows == [{"question": "a\u2028b\x85c", "answer": "d"}] * 3


@pytest.mark.parametrize("typed", ["réponse", "re\u0301ponse"])
@pytest.mark.parametrize("written", ["réponse", "re\u0301ponse"])
def test_columns_are_found_however_their_accents_are_written(typed, written):
    Path("a.jsonl").write_text(LINES.replace("answer", written), encoding="utf-8")
    splits = sources.from_file("a.jsonl", {"question": "question", "answer": typed}, test_share=0.1)
    assert {item["answer"] for part in splits.values() for item in part} == {row["answer"] for row in ROWS}
