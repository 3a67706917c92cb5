"""Requests that a model has no room for are counted, whatever answers them: also zero of them is a count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import composed, no_peak, run_here  # noqa: F401
from serving import LogProbabilities
from test_api_cells import ask, cell

from harness.plugins.api.job import lm_eval_model

SMALL = (
    *("model=tiny", "data=local", "data.path=mine.jsonl", "train.max_length=256", "train.max_steps=1"),
    *("train.batch_size=2", "infer.repeats=0", "eval.tasks=[held_out]", "train.precision=fp32", "eval.limit=3"),
    "train.validation_items=2",
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {i}? " + "Really? " * 30, "answer": "It is so, I think."} for i in range(60)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.long
def test_both_ways_of_scoring_count_the_same(tmp_path):
    """An answer as text takes two requests: the answer is written, and its log-likelihood is computed."""
    settings = ("data.answers=text", "eval.num_fewshot=40")
    records = [
        run_here(tmp_path / switch, composed(*SMALL, *settings, f"speedups={switch}")) for switch in ("auto", "off")
    ]
    assert [record.status for record in records] == ["ok", "ok"]
    assert [record.truncated_requests for record in records] == [6, 6]
    whole = run_here(tmp_path / "whole", composed(*SMALL, "speedups=off", "data.answers=text"))
    assert whole.truncated_requests == 0


@pytest.mark.parametrize(("room", "cut"), [(100, 6), (100_000, 0)])
def test_requests_to_an_api_are_counted(room, cut, tmp_path, monkeypatch):
    """room: tokens that the model's tokenizer says it has."""
    rows = [
        {"question": f"What is {i}? " + "Really? " * 30, "answer": "yes", "options": ["yes", "no"]} for i in range(60)
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = lm_eval_model._tokenized
    monkeypatch.setattr(lm_eval_model, "_tokenized", lambda name: form(name) | {"max_length": room})
    asked = ("data.columns.options=options", "model.tokenizer=embedded:tiny", "eval.tasks=[held_out]", "eval.limit=3")
    with LogProbabilities() as site:
        record = ask(tmp_path / "api", cell(site.base_url, *SMALL[1:3], *asked))
    assert record.status == "ok", record.failure
    assert record.truncated_requests == cut
