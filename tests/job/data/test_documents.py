"""Continued pretraining on one's own texts: what is read, split, cut into blocks, trained on and scored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from job_helpers import composed, no_peak, run_here  # noqa: F401
from lm_eval.utils import get_rolling_token_windows

from harness.errors import UserError
from harness.job import preflight, prepared_inputs
from harness.job.data import documents, sources
from harness.job.evaluate import scoring
from harness.job.evaluate.cut_requests import CutRequests
from harness.job.models import loading
from harness.job.predict import examples
from harness.score_names import score_label

SMALL = (
    *("model=tiny", "data=text", "data.path=docs", "train.max_length=32", "train.max_steps=2", "train.batch_size=2"),
    *("train.precision=fp32", "infer.repeats=0", "eval.tasks=[held_out]"),
)
WORDS = ("tree", "river", "stone", "light", "cloud", "garden", "window", "bread", "letter", "music", "silver", "winter")


def text(number: int) -> str:
    """A document of its own, of 8 words, 23 words, or 120 words."""
    words = [WORDS[(number * 7 + at * (number + 1)) % len(WORDS)] for at in range((8, 23, 120)[number % 3])]
    return f"Document {number}: {' '.join(words)}."


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for number in range(40):
        Path("docs", f"{number:02}.{'md' if number % 2 else 'txt'}").write_text(text(number))


def parts(*overrides: str) -> dict[str, list[str]]:
    of = sources.splits(composed(*SMALL, *overrides).settings.data, None)
    return {name: [item["text"] for item in items] for name, items in of.items()}


def test_a_folder_of_texts_is_split_by_document():
    of = parts()
    assert {name: len(texts) for name, texts in of.items()} == {"train": 32, "validation": 4, "test": 4}
    assert sorted(one for texts in of.values() for one in texts) == sorted(map(text, range(40)))
    own = sources.own_data(composed(*SMALL).settings.data, None)
    assert own.sentence == "docs is read as text: 40 documents."


def test_copies_of_a_document_are_in_one_part():
    for number in range(40):
        Path("docs", f"copy-{number:02}.txt").write_text(f"  {text(number).upper()}\n")
    of = parts()
    assert sum(map(len, of.values())) == 80
    for texts in of.values():
        plain = [" ".join(one.lower().split()) for one in texts]
        assert all(plain.count(one) == 2 for one in plain)


def test_three_documents_are_enough():
    for file in list(Path("docs").iterdir())[3:]:
        file.unlink()
    assert {name: len(texts) for name, texts in parts().items()} == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.parquet"])
def test_a_column_of_texts_is_read_whatever_its_name(name):
    import pandas as pd

    table = pd.DataFrame({"content": [*map(text, range(40)), "", "  "]})
    write = {
        "jsonl": lambda: table.to_json(name, orient="records", lines=True),
        "csv": lambda: table.to_csv(name, index=False),
    }
    write.get(name.partition(".")[2], lambda: table.to_parquet(name))()
    cell = composed(*SMALL, f"data.path={name}")
    assert sum(map(len, sources.splits(cell.settings.data, None).values())) == 40
    said = sources.own_data(cell.settings.data, None).sentence
    assert said.startswith(f"{name} is read as text: 4")
    if name != "mine.csv":  # which pandas reads without its empty lines
        assert said.endswith("left out: 2 without text.")
    with pytest.raises(UserError, match=rf"{name} has texts alone; data=text pretrains on them"):
        sources.splits(composed("model=tiny", "data=local", f"data.path={name}").settings.data, None)


def test_one_of_several_columns_is_named():
    rows = [{"body": text(number), "url": f"https://example.org/{number}"} for number in range(12)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"has no column 'text'; it has: body, url; write data\.columns\.text=COLUMN"):
        parts("data.path=mine.jsonl")
    assert sum(map(len, parts("data.path=mine.jsonl", "data.columns.text=body").values())) == 12
    own = sources.own_data(composed(*SMALL, "data.path=mine.jsonl", "data.columns.text=body").settings.data, None)
    assert own.sentence == "mine.jsonl is read as text: 12 documents; not used: url."


def test_texts_beside_records_are_not_read_as_records():
    """Such as the card of a data set."""
    Path("set").mkdir()
    Path("set/README.md").write_text("A card.")
    rows = [{"question": f"What is {i}?", "answer": f"It is {i} as ever."} for i in range(60)]
    Path("set/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = sources.own_data(composed("model=tiny", "data=local", "data.path=set").settings.data, None)
    assert own.sentence == "set is read as questions and answers: 60 records; not used: README.md."


def test_blocks_hold_every_token_once():
    cell = composed(*SMALL)
    tokenizer = loading.tokenizer(cell.settings.model)
    items = [{"text": one} for one in parts()["train"]]
    blocks = documents.blocks(items, tokenizer, 32)
    stream = [token for block in blocks for token in block["block"]]
    assert stream == [
        token for item in items for token in [*tokenizer(item["text"])["input_ids"], tokenizer.eos_token_id]
    ]
    assert {len(block["block"]) for block in blocks[:-1]} == {32}
    assert documents.texts_of(blocks) == [item["text"] for item in items]
    for block in blocks:
        read = tokenizer.decode(block["block"])
        assert all(f"Document {i}:" in "".join(block["documents"]) for i in range(40) if f"Document {i}:" in read)
    inputs = prepared_inputs.inputs_of(cell.settings, None)
    drawn = [example for step in inputs.steps for batch in step for example in batch]
    assert all(len(example.supervised) == len(example.ids) - 1 for example in drawn)
    plan = examples.draw(cell, None)
    assert [[len(e.ids) for b in step for e in b] for step in plan.steps] == [
        [len(e.ids) for b in step for e in b] for step in inputs.steps
    ]


@pytest.mark.parametrize("size", [2, 3, 7, 1000])
def test_blocks_of_any_size_hold_every_token(size):
    tokenizer = loading.tokenizer(composed(*SMALL).settings.model)
    items = [{"text": text(number)} for number in range(5)]
    blocks = documents.blocks(items, tokenizer, size)
    tokens = sum(len(tokenizer(item["text"])["input_ids"]) + 1 for item in items)
    held = sum(len(block["block"]) for block in blocks)
    assert tokens - 1 <= held <= tokens  # a last block of one token would predict nothing


@pytest.mark.parametrize("speedups", [True, False])
def test_the_score_is_the_loss_per_byte_of_whole_documents(speedups):
    """Each token once: a window reads 32 tokens, the first of which is the last one of the window before."""
    cell = composed(*SMALL)
    net, tokenizer = loading.load(cell, torch.device("cpu")), loading.tokenizer(cell.settings.model)
    tasks = prepared_inputs.tasks(cell.settings.eval, cell.settings.data, None)
    cut: list[CutRequests] = []
    (score,), items, _ = scoring.score(net, tokenizer, tasks, 4, None, speedups=speedups, tell_cut=cut.append)
    losses = []
    for one in parts()["test"]:
        ids, nats, predicted = tokenizer(one)["input_ids"], 0.0, 0
        prefix = tokenizer.bos_token_id or tokenizer.eos_token_id
        for read, wanted in get_rolling_token_windows(ids, prefix, 32, 1):
            assert len(read) <= 32
            with torch.inference_mode():
                logits = net(torch.tensor([read])).logits[0].log_softmax(-1)
            nats -= sum(float(logits[at - len(wanted), token]) for at, token in enumerate(wanted))
            predicted += len(wanted)
        assert predicted == len(ids)
        losses.append(nats / math.log(2) / len(one.encode()))
    assert max(len(tokenizer(one)["input_ids"]) for one in parts()["test"]) > 2 * 32
    assert items["value"].tolist() == pytest.approx(losses, rel=1e-4)
    assert (score.task, score.metric, score.n, score.higher_is_better) == ("held_out", "bits_per_byte", 4, False)
    assert score_label("held_out", "bits_per_byte", "none") == "held-out data, bits per byte"
    assert [(one.requests, one.answers) for one in cut] == [(0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["base", "full", "lora", "qlora", "dora", "galore", "prefix_tuning"])
def test_every_method_trains_on_documents(method, tmp_path):
    record = run_here(tmp_path / "out", composed(*SMALL, f"method={method}"))
    assert record.status == "ok", record.failure
    assert record.own_data.documents
    assert record.fingerprints["file"].startswith("sha256:")
    assert [score.metric for score in record.scores] == ["bits_per_byte"]
    if method != "base":
        assert record.lengths.cut == 0
        assert record.contamination["held_out"].same == 0


def test_documents_that_were_trained_on_are_counted(tmp_path):
    """A document in other letters is a copy; one that shares a sentence shares a 13-gram."""
    (tested, *_) = parts()["test"]
    Path("docs", "like.txt").write_text(f"As was said: {tested} So it was.")
    record = run_here(tmp_path / "out", composed(*SMALL, "train.epochs=1", "train.max_steps=null"))
    assert record.contamination["held_out"].shared >= (len(tested.split()) >= 13)


def test_preflight_says_what_is_scored_and_how():
    assert preflight.check([composed(*SMALL)], None) == [
        "docs is read as text: 40 documents.",
        "held_out: 4 documents, scored by bits per byte in windows of 32 tokens.",
    ]
    with pytest.raises(UserError, match=r"eval\.num_fewshot=2 can't be combined with data=text, which asks nothing"):
        preflight.check([composed(*SMALL, "eval.num_fewshot=2")], None)
