"""Records that are longer than train.max_length: refused before anything runs, cut or left out, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import composed, run_here
from records import make_record

from harness.errors import UserError
from harness.job import preflight, prepared_inputs
from harness.job.predict import examples
from harness.record import Lengths
from harness.report.lint import findings

SMALL = (
    *("model=tiny", "data=local", "data.path=mine.jsonl", "train.max_length=64", "train.max_steps=40"),
    *("train.batch_size=2", "infer.repeats=0", "eval.tasks=[]", "train.precision=fp32"),
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {i}?", "answer": "It is so. " * (40 if i < 12 else 1)} for i in range(60)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_long_records_are_refused_before_any_is_drawn():
    """Also if a cell of so few steps would not draw one."""
    cell = composed(*SMALL, "train.max_steps=1", "train.batch_size=1")
    said = (
        r"train\.max_length=64 is too short for \d+ of 5\d records, the longest of \d+ tokens in mine\.jsonl, "
        r"line \d+; .* data\.too_long=cut"
    )
    with pytest.raises(UserError, match=said):
        preflight.check([cell], None)
    with pytest.raises(UserError, match=said):
        examples.draw(cell, None)
    with pytest.raises(UserError, match=said):
        prepared_inputs.inputs_of(cell.settings, None)


@pytest.mark.parametrize("rule", ["cut", "drop"])
def test_long_records_are_cut_or_left_out_and_counted(rule, tmp_path):
    cell = composed(*SMALL, f"data.too_long={rule}")
    inputs = prepared_inputs.inputs_of(cell.settings, None)
    drawn = [example for step in inputs.steps for batch in step for example in batch]
    assert max(len(example.ids) for example in drawn) == 64 if rule == "cut" else inputs.longest < 64
    cut = {tuple(example.ids) for example in drawn if example.cut}
    assert inputs.lengths.cut == len(cut) == (len(cut) if rule == "cut" else 0)
    assert (inputs.lengths.dropped > 5) == (rule == "drop")
    (note,) = preflight.check([cell], None)[1:]
    assert "train.max_length=64 tokens" in note
    assert [said.partition(":")[0] for said in inputs.notes[1:]] == [note.partition(":")[0]]
    record = run_here(tmp_path / "out", composed(*SMALL, f"data.too_long={rule}", "train.max_steps=2"))
    assert record.status == "ok"
    assert record.lengths.dropped == inputs.lengths.dropped
    assert record.own_data.records == 60


def test_the_rule_is_part_of_a_cell_and_changes_no_other():
    ids = {composed(*SMALL, *more).id for more in ([], ["data.too_long=cut"], ["data.too_long=drop"])}
    assert len(ids) == 3
    assert composed("model=tiny", "data=gsm8k").settings.data.length_rule == "cut"
    assert composed(*SMALL).settings.data.length_rule == "error"


def test_truncated_requests_are_counted_and_told(tmp_path):
    """As with more examples than the model has room for."""
    rows = [{"question": f"What is {i}? " + "Really? " * 30, "answer": "It is so."} for i in range(60)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ("train.max_length=256", "train.max_steps=1", "eval.tasks=[held_out]", "eval.num_fewshot=40")
    record = run_here(tmp_path / "out", composed(*SMALL, *overrides, "eval.limit=2", "train.validation_items=2"))
    assert record.status == "ok", record.failure
    assert record.truncated_requests >= 2
    told = [finding.sentence for finding in findings([record]) if finding.rule == "too long"]
    assert any("requests were cut at their beginning" in sentence for sentence in told)


def test_lint_tells_of_cut_records():
    record = make_record()
    record.lengths = Lengths(records=10, cut=3, dropped=0)
    (told,) = [finding for finding in findings([record]) if finding.rule == "too long"]
    assert told.sentence.startswith("3 training records were cut at train.max_length")
