"""Training on problems that a model wrote, and what they may share with an evaluation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from job_helpers import composed, run_here
from scripted import problem

from harness.errors import UserError
from harness.job.data import batching, contamination, encoding, synthetic
from harness.settings import TrainSettings, plain

# Likeness


def test_texts_are_alike_by_their_runs_of_words():
    known = contamination.Texts(["Tom has three red apples and eats one.", "A bus holds forty people."])
    assert known.nearest("tom has THREE red apples, and eats one") == 1
    assert known.nearest("Tom has three red apples and buys one.") == pytest.approx(4 / 8)
    assert known.nearest("Nothing of the sort is here.") == 0
    assert known.nearest("") == 0


def test_thirteen_shared_words_are_an_overlap():
    words = [f"w{i}" for i in range(20)]
    evaluation = contamination.Evaluation([" ".join(words), "short and sweet"])
    assert evaluation.overlaps("before " + " ".join(words[:13]) + " after that all else is of another kind " * 3)
    assert not evaluation.overlaps("before " + " ".join(words[:12]) + " after that all else is of another kind " * 3)
    assert evaluation.overlaps("this one is short and sweet as well")
    assert not contamination.Evaluation([]).overlaps("anything")


# Training on it


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def test_problems_from_one_seed_stay_in_one_split(tmp_path):
    items = [{"question": f"q{i}", "answer": "a", "provenance": {"seeds": [str(i % 50)]}} for i in range(1000)]
    write(tmp_path / "x.jsonl", items)
    splits = synthetic.load(str(tmp_path / "x.jsonl"))
    held = {int(item["question"][1:]) % 50 for item in splits["validation"]}
    assert 0 < len(held) < 10
    assert not held & {int(item["question"][1:]) % 50 for item in splits["train"]}
    assert splits["train"][0].keys() == {"question", "answer"}


def test_mixed_has_its_share_of_real_problems_and_their_validation(tmp_path):
    write(tmp_path / "x.jsonl", [{"question": f"made {i}", "answer": "a"} for i in range(30)])
    real = {"load": {"train": [{"question": f"real {i}", "answer": "a"} for i in range(100)], "validation": ["v"]}}
    splits = synthetic.load(str(tmp_path / "x.jsonl"), 0.25, real)
    kinds = [item["question"].split()[0] for item in splits["train"]]
    assert (kinds.count("made"), kinds.count("real")) == (30, 90)
    assert kinds != sorted(kinds)
    assert splits["validation"] == ["v"]
    assert synthetic.load(str(tmp_path / "x.jsonl"), 0.25, real) == splits
    for share, of, said in (
        (0.2, real, "fewer"),
        (0.5, None, "data.load.real"),
        (0.0, real, "share"),
        (2.0, real, "share"),
    ):
        with pytest.raises(UserError, match=said):
            synthetic.load(str(tmp_path / "x.jsonl"), share, of)


def test_a_file_that_is_none_is_named_with_its_line(tmp_path):
    with pytest.raises(UserError, match="harness synthesize"):
        synthetic.load(str(tmp_path / "absent.jsonl"))
    (tmp_path / "x.jsonl").write_text('{"question": "q", "answer": "a"}\n\n{"question": 5}\n')
    with pytest.raises(UserError, match="line 3"):
        synthetic.load(str(tmp_path / "x.jsonl"))


def test_a_budget_of_tokens_ends_training_with_the_step_that_reaches_it():
    lengths = [10, 20, 30, 40]
    items = [{"question": str(n), "answer": ""} for n in lengths]

    def encode(some):
        return [encoding.Example([0] * int(item["question"]), 1) for item in some]

    train = TrainSettings(batch_size=1, grad_accum=2, max_steps=10, bucketing=1)
    whole = batching.scheduled(items, train, 0, encode)
    tokens = [sum(len(e.ids) for batch in step for e in batch) for step in whole]
    cut = batching.scheduled(items, replace(train, max_tokens=120), 0, encode)
    assert cut == whole[: len(cut)]
    assert sum(tokens[: len(cut)]) >= 120 > sum(tokens[: len(cut) - 1])
    with pytest.raises(UserError, match="max_tokens"):
        batching.scheduled(items, replace(train, max_tokens=sum(tokens) + 1), 0, encode)


def test_neither_a_path_nor_a_budget_that_is_not_given_is_part_of_a_cell():
    cell = composed("method=lora")
    assert plain(cell.settings.data).keys() == {"name", "load", "prompt"}
    assert "max_tokens" not in plain(cell.settings.train)
    assert composed("train.max_tokens=100").settings.train.max_tokens == 100
    assert composed("data=synthetic", "data.path=mine.jsonl").settings.data.load["file"] == "mine.jsonl"


@pytest.mark.long
@pytest.mark.slow
def test_a_cell_is_trained_on_what_was_made_as_on_real_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "synthetic.jsonl", [json.loads(problem(i)) for i in range(12)])
    small = ["model=tiny", "rank=4", "train.max_steps=20", "train.max_tokens=400", "train.batch_size=2"]
    small += ["train.precision=fp32", "train.validation_items=4", "eval.tasks=[]", "infer.repeats=0"]
    records = {
        name: run_here(tmp_path / name, composed(f"data={name}", *small))
        for name in ("wordmath_short", "synthetic_mixed")
    }
    for record in records.values():
        assert record.status == "ok", record.failure
        assert 400 <= record.train.tokens.raw < 600
        assert record.train.steps == len(record.train.loss) < 20
        assert record.train.loss[-1].lr < record.train.loss[record.train.steps // 2].lr, "the schedule ends there too"
    assert len({record.train.batches for record in records.values()}) == 2
