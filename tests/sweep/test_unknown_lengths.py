"""Lengths that are not known are said before the table, with what hangs on them; a file that is here is counted."""

from __future__ import annotations

import dataclasses
import json

import pytest
from command_line import assert_refused
from job_helpers import composed
from omegaconf import OmegaConf

from harness.job.predict import examples
from harness.sweep import plan_view
from harness.sweep.app import messages
from harness.sweep.estimates.times import Times
from harness.sweep.planner import Plan, Planned

PLAN = ("plan", "model=qwen3_1_7b", "--device", "h100")


@pytest.fixture
def tickets(tmp_path, monkeypatch):
    """450 rows of 100 characters each, answers of 40."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{i:05d}" * 20, "answer": "again" * 8} for i in range(450)]
    path = tmp_path / "tickets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first_lines(run):
    assert run.returncode == 0, run.stderr
    return " ".join(run.stdout.partition("\ncell ")[0].split())


def test_a_file_is_counted_by_its_characters(tickets):
    cell = composed("model=qwen3_1_7b", "method=lora", "data=local", f"data.path={tickets}", "train.max_steps=3")
    assert examples.draw(cell, None) is None, "the tokenizer is not here"
    drawn = examples.draw_by_characters(cell, None)
    lengths = {len(each.ids) for step in drawn.steps for batch in step for each in batch}
    assert max(lengths) < 60, "about 100 / 4 + 40 / 4, with what the template adds"
    assert min(lengths) > 35


def test_what_is_longer_by_that_estimate_is_not_refused(tickets):
    cell = composed("model=qwen3_1_7b", "method=lora", "data=local", f"data.path={tickets}", "train.max_length=36")
    drawn = examples.draw_by_characters(cell, None)
    assert {len(each.ids) for step in drawn.steps for batch in step for each in batch} == {36}


def test_conversations_are_counted_too(tickets):
    asked, said = ([{"role": role, "content": f"{i:05d}" * 80} for i in range(100)] for role in ("user", "assistant"))
    rows = [{"messages": [*turns]} for turns in zip(asked, said, strict=True)]
    tickets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cell = composed("model=qwen3_1_7b", "method=lora", "data=local", f"data.path={tickets}", "train.max_steps=1")
    drawn = examples.draw_by_characters(cell, None)
    assert 200 < len(drawn.steps[0][0][0].ids) < 240


@pytest.mark.long
@pytest.mark.slow
def test_a_row_that_can_not_be_read_is_refused_though_the_tokenizer_is_not_here(tickets, harness):
    tickets.write_text(tickets.read_text() + '{"question": broken}\n')
    run = harness(*PLAN, "method=lora", "data=local", "data.path=tickets.jsonl")
    assert run.returncode == 2
    assert_refused(run.stderr.splitlines()[-1] + "\n", "tickets.jsonl", "line 451")


def test_scoring_is_said_to_come_on_top(tmp_path):
    shape = {"steps": 10, "raw": 1000, "lengths": "characters", "sequences": 1, "tokens": 8, "real": True}
    figures = {"peak": {"weights": 2**30}, "needed": 2**30, "trainable": 1, "flops": 1e12, "reference_flops": 0.0}
    figures |= {"shape": shape, "precision": "bf16"}
    cells = [composed(f"method={method}", "eval.tasks=[gsm8k,mmlu]") for method in ("lora", "dora")]
    plan = Plan([Planned(cell.name, cell, figures) for cell in cells], 8 * 2**30, {}, "cuda")
    times = Times(tmp_path, {}, "cuda", throughput=10)
    assert plan_view._time(plan, times)[0].endswith("in all, scoring aside.")
    (note,) = [note for note in plan_view.time_notes(plan, times) if "come on top" in note]
    assert "the scoring of gsm8k, mmlu come on top" in note


def test_the_dtype_of_a_model_that_is_named_by_its_path_alone_is_said():
    config = OmegaConf.create({"model": {"path": "ORG/8B", "dtype": "float32"}})
    said = "ORG/8B is loaded in float32, as the default model; model.dtype=bfloat16 takes half the memory."
    assert messages.dtype_note(["model.path=ORG/8B", "rank=8"], config) == said
    assert messages.dtype_note(["model.path=ORG/8B", "model.dtype=float32"], config) is None
    assert messages.dtype_note(["model=tiny"], config) is None


@pytest.mark.long
@pytest.mark.slow
def test_lengths_of_a_hub_data_set_are_said_first(harness):
    said = first_lines(harness(*PLAN, "method=lora", "data=gsm8k"))
    assert "The lengths of gsm8k are not known here, so each sequence counts train.max_length=512 tokens" in said
    assert "If the mean is a quarter of that to all of it, training takes " in said


@pytest.mark.long
@pytest.mark.slow
def test_a_missing_tokenizer_is_said_first(harness, tickets):
    mine = ("data=local", f"data.path={tickets}", "train.max_length=2048")
    said = first_lines(harness(*PLAN, "method=lora,full", *mine))
    assert "is not on this machine, so times count 4 characters of tickets.jsonl as a token" in said
    assert "At 3 to 5 characters a token, training takes " in said
    assert said.endswith(" in all.")


@pytest.mark.long
@pytest.mark.slow
def test_advice_says_it_of_the_fastest_before_its_table(harness):
    run = harness(*PLAN, "method=lora,full", "data=gsm8k", "--advise")
    assert run.returncode == 0, run.stderr
    said = " ".join(run.stdout.partition("\nmethod ")[0].split())
    assert "of gsm8k are not known here" in said
    assert "training takes " in said
    assert not said.endswith("in all.")


@pytest.mark.long
def test_epochs_of_rows_that_are_not_here_have_no_time(harness):
    run = harness(*PLAN, "method=lora", "data=alpaca", "train.max_steps=null", "train.epochs=1")
    assert "train.epochs counts the rows of alpaca, which are not on this machine" in first_lines(run)
    assert "Time: unknown without records" not in run.stdout, "that is not why"


def test_only_cells_that_fit_count_in_that_time(tmp_path):
    def planned(method, gib):
        peak = {"resident": gib * 2**30, "gradients": 0, "activations": 0}
        shape = {"steps": 10, "raw": 1000, "lengths": "characters"}
        prediction = {
            "peak": peak,
            "needed": gib * 2**30,
            "trainable": 10,
            "flops": 1e12,
            "reference_flops": 0.0,
            "shape": shape,
        }
        return Planned(method, composed(f"method={method}"), prediction)

    plan = Plan([planned("lora", 2), planned("dora", 2), planned("full", 20)], 8 * 2**30, {}, "cuda")
    times = Times(tmp_path, {}, "cuda", throughput=10)
    (said,) = plan_view.unknown_lengths(plan, times)
    assert said.endswith("At 3 to 5 characters a token, training takes 3 to 4 min in all."), "two cells of 80 to 133 s"
    (said,) = plan_view.unknown_lengths(dataclasses.replace(plan, points=plan.points[2:]), times)
    assert said.endswith("tokens a sequence, the most."), "no time of what can't run"
