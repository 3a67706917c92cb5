"""Objectives of pairs in every layout of a batch, in bf16, and in cells from the file to the record."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from job_helpers import composed, prepared, run_here, tiny
from layouts import LAYOUTS

from harness.job import pairs as pair_phases
from harness.job.data import encoding
from harness.job.data.batching import Layout
from harness.job.measure.live_memory import LiveBytes
from harness.job.predict import prediction
from harness.job.training import loss, objectives
from harness.record import Kinds
from harness.settings import REFERRING, TrainSettings

NAMES = sorted(objectives.KINDS)
ROWS = [
    {
        "prompt": f"{'Tell me. ' * (i % 3)}What is {i} + {i}?",
        "chosen": f"It is {2 * i}." + " I am sure." * (i % 3),
        "rejected": f"It is {2 * i + 1}." + " I guess." * (i % 4),
    }
    for i in range(60)
]
PAIRS = (
    *("model=tiny", "rank=4", "train.precision=fp32", "train.max_steps=4", "train.batch_size=2", "lr=0.01"),
    *("train.validation_items=5", "infer.repeats=0", "eval.batch_size=4", "eval.tasks=[held_out]"),
    *("data=local_preference", "data.path=pairs.jsonl", "data.test_share=0.3", "eval.limit=8", "method=lora"),
)


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=full"))


@pytest.fixture(scope="module")
def pairs(bench) -> list[encoding.Pair]:
    items = [{"question": r["prompt"], "answer": r["chosen"], "rejected": r["rejected"]} for r in ROWS[:3]]
    return encoding.encode_all(bench.tokenizer, items, "Q: {question}\nA:", 512, pairs=True)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def objective(name: str) -> objectives.PairObjective:
    """That objective, of a base that gives every answer the log-probability -20."""
    of = objectives.pairwise(TrainSettings(objective=name, preference_beta=0.5, preference_margin=0.3))

    class Same(dict):
        def __missing__(self, key):
            return -20.0

    of.reference = Same()
    return of


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_gives_the_same_loss_gradient_and_rewards(bench, pairs, name):
    trained = [p for p in bench.net.parameters() if p.requires_grad]
    expected = None
    for layout in LAYOUTS.values():
        of = objective(name)
        batch = of.batch(layout, pairs)
        assert of.weight(batch) == 3
        for chunked in (False, True):
            with loss.enabled(bench.net) if chunked else torch.enable_grad():
                value = of.summed(bench.net, batch)
                gradients = torch.autograd.grad(value, trained, allow_unused=True)
                with torch.no_grad():
                    rewards = of.rewards(objectives.log_probabilities(bench.net, batch), batch)
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None))
            figures = [value.item(), norm, *rewards.flatten().tolist()]
            expected = expected or figures
            assert figures == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_supervised_tokens_are_those_of_the_loss(bench, pairs, name):
    batch = objective(name).batch(Layout(flat=False, pad=0), pairs)
    answers = sum(len(each.supervised) for pair in pairs for each in pair.sequences)
    prompts = sum(pair.chosen.prompt - 1 for pair in pairs) if name == "orpo_trl" else 0
    assert batch.supervised == answers + prompts


def test_an_estimate_of_the_divergence_leaves_the_gradient_in_bf16(bench, pairs):
    """A pass without gradients must not leave casts of the weights to the pass that has some."""
    of = objective("kto")
    batch = of.batch(Layout(flat=False, pad=0), pairs)
    trained = [p for p in bench.net.parameters() if p.requires_grad]
    with torch.autocast("cpu", torch.bfloat16):
        value = of.summed(bench.net, batch)
    gradients = torch.autograd.grad(value, trained, allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


def test_each_answer_is_mismatched_once_and_cut(pairs):
    of = objectives.KahnemanTversky(0.1, {}, max_length=20)
    sequences = [each for pair in of.mismatched(pairs) for each in pair.sequences]
    answers = [each for pair in pairs for each in pair.sequences]
    assert len(sequences) == len(answers)
    assert max(len(each.ids) for each in sequences) == 20
    whole = objectives.KahnemanTversky(0.1, {}).mismatched(pairs)
    texts = sorted(each.ids[each.prompt :] for pair in whole for each in pair.sequences)
    assert texts == sorted(each.ids[each.prompt :] for each in answers)
    for pair, own in zip(whole, pairs, strict=True):
        for mismatch, each in zip(pair.sequences, own.sequences, strict=True):
            assert mismatch.ids[: mismatch.prompt] == each.ids[: each.prompt]
            assert mismatch.ids[mismatch.prompt :] not in [e.ids[e.prompt :] for e in own.sequences]


@pytest.mark.parametrize("single", [False, True])
def test_no_item_is_left_alone_to_estimate_the_divergence_from_its_own_answer(bench, pairs, single):
    items = [encoding.MarkedAnswer(pair.chosen, good=True) for pair in pairs] if single else pairs
    of, layout = objective("kto"), Layout(flat=False, pad=0)
    assert [len(part) for part in of.parts([*items, *items, items[0]], 3)] == [3, 4]
    assert of.parts(items[:1], 2) == [items[:1]], "there is no other one"
    (whole,) = of.batches(layout, items, 2)
    assert torch.equal(whole.mismatched.input_ids, of.batch(layout, items).mismatched.input_ids)
    assert [len(part) for part in objective("dpo").parts(items, 2)] == [2, 1]


def test_the_base_is_asked_for_what_a_validation_takes(bench, pairs):
    """Of three items at two a batch, and their mismatched answers: the sequences of the one batch, and no others."""
    of = objectives.pairwise(TrainSettings(objective="kto", preference_beta=0.5))
    asked: list[list[list[encoding.Compared]]] = []
    cell = SimpleNamespace(
        inputs=SimpleNamespace(steps=[], held_out=pairs, rewarded=[], tokenizer=bench.tokenizer),
        **{"batch_size": 2, "settings": bench.cell.settings, "accelerator": bench.accelerator},
        **{"reporter": SimpleNamespace(enter=str), "meter": SimpleNamespace(window=nullcontext)},
    )
    refer_to = of.refer_to

    def asking(base, batches, *rest):
        asked.append(batches)
        refer_to(base, batches, *rest)

    of.refer_to = asking
    pair_phases.refer_to(cell, of, bench.net)
    assert asked == [[pairs]]
    held_out = pair_phases.validate(
        *(bench.net, pairs, of.batches(Layout(flat=False, pad=0), pairs, 2), of, bench.accelerator)
    )
    assert held_out.loss == pytest.approx(0.5), "the model is its base"


def test_the_silent_end_of_an_answer_moves_with_it():
    asked, answered = encoding.Example([1, 2, 3, 4, 5, 6], 4, ((5, 6),)), encoding.Example([7, 8, 9, 10], 2, ((3, 4),))
    mismatch = objectives.joined(asked, answered, None)
    assert (mismatch.ids, mismatch.supervised) == ([1, 2, 3, 4, 9, 10], [4])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("dpo", "orpo")])
def test_a_cell_is_trained_predicted_and_scored(folder, monkeypatch, name):
    refer, counted = pair_phases.refer_to, []

    def counting(cell, objective, base):
        with LiveBytes(torch.device("cpu")) as live:
            refer(cell, objective, base)
        counted.append(live.flops)

    monkeypatch.setattr(pair_phases, "refer_to", counting)
    made = composed(*PAIRS, f"train.objective={name}", "train.preference_margin=0.5" if "simpo" in name else "seed=0")
    record = run_here(folder / "out", made)
    assert record.status == "ok", record.failure
    begun = {"kto": 0.5, "ipo": 25.0, "simpo": math.log1p(math.exp(0.5))}
    if name in begun:
        assert record.train.loss[0].loss == pytest.approx(begun[name], rel=0.1)
    assert {score.metric for score in record.scores if score.task == "rewards"} == {"accuracy", "margin"}
    told = record.validation[-1].rewards
    assert told.margin == pytest.approx(told.chosen - told.rejected)
    assert 0 <= told.accuracy <= 1
    predicted = prediction.Predictor(None, "fp32").predict(made, None)
    assert Kinds(**predicted["peak"]) == record.probe.peak
    per_token = record.probe.flops_per_token + record.probe.recomputed_flops_per_token
    assert predicted["flops"] == pytest.approx(per_token * record.train.tokens.padded)
    assert [predicted["reference_flops"]] == pytest.approx(counted, rel=0.05)  # attention depends on lengths
    assert (predicted["reference_flops"] > 0) == (name in REFERRING)


def test_places_name_the_margin(cell):
    cells = [
        cell("data=local_preference", "data.path=a.jsonl", f"train.objective={name}", *more)
        for name, more in (("simpo", ()), ("simpo", ("train.preference_margin=1",)), ("ipo", ()))
    ]
    assert [each.data for each in cells] == [
        "a.jsonl simpo=0.1 margin=0.5",
        "a.jsonl simpo=0.1 margin=1",
        "a.jsonl ipo=0.1",
    ]
