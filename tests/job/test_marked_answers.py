"""Single answers, each marked as good or bad: their data, KTO's cells on them, predictions and scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from job_helpers import composed, no_peak, prepared, run_here, tiny  # noqa: F401
from layouts import LAYOUTS

from harness.errors import UserError
from harness.job import pairs as pair_phases
from harness.job import prepared_inputs
from harness.job.data import encoding, sources
from harness.job.evaluate.held_out import bits, rewards
from harness.job.measure.live_memory import LiveBytes
from harness.job.predict import examples, prediction
from harness.job.training import objectives
from harness.record import Kinds
from harness.settings import TrainSettings
from harness.validate import check

ROWS = [
    {
        "prompt": f"{'Tell me. ' * (i % 3)}What is {i} + {i}?",
        "completion": f"It is {2 * i + (i % 3 == 0)}." + " I am sure." * (i % 3),
        "label": i % 3 != 0,
    }
    for i in range(60)
]
MARKED = (
    *("model=tiny", "rank=4", "train.precision=fp32", "train.max_steps=4", "train.batch_size=2", "lr=0.01"),
    *("train.validation_items=6", "infer.repeats=0", "eval.batch_size=4", "eval.tasks=[held_out]"),
    *("data=local_marked", "data.path=marked.jsonl", "data.test_share=0.3", "train.objective=kto"),
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(ROWS)


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=full"))


def write(rows: list[dict]) -> None:
    Path("marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def splits(*overrides: str) -> dict[str, list[dict]]:
    return sources.splits(composed(*MARKED, *overrides).settings.data, None)


# Data


def test_each_answer_keeps_its_mark():
    items = [item for part in splits().values() for item in part]
    assert len(items) == 60
    assert {"question": ROWS[6]["prompt"], "answer": ROWS[6]["completion"], "mark": "bad"} in items
    assert {"question": ROWS[7]["prompt"], "answer": ROWS[7]["completion"], "mark": "good"} in items


FIRST = r"In line 1: Each answer of marked\.jsonl must be marked"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": True}, r"All answers of marked\.jsonl are marked as good; train\.objective=kto requires good and "),
        ({"label": False}, r"All answers of marked\.jsonl are marked as bad; "),
        ({"label": None}, rf"{FIRST} true or false in its column 'label', got None"),
        ({"label": 1}, rf"{FIRST} true or false in its column 'label', got 1\."),
        ({"label": "billing"}, rf"{FIRST} .* got 'billing'\."),
    ],
)
def test_marks_that_are_none_are_refused(change, said):
    write([row | change for row in ROWS])
    with pytest.raises(UserError, match=f"^{said}"):
        splits()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.objective=sft",), r"data=local_marked has single .* requires train\.objective=kto, got sft\."),
        (("train.objective=dpo",), r"data=local_marked has single .* requires train\.objective=kto, got dpo\."),
        (("train.batch_size=1",), r"train\.objective=kto can't be combined with train\.batch_size=1: "),
        (("data=gsm8k", "data.path=null"), r"train\.objective=kto requires pairs .* got data=gsm8k\."),
    ],
)
def test_settings_that_marked_answers_can_not_have_are_refused(compose, overrides, said):
    with pytest.raises(UserError, match=f"^{said}") as refusal:
        check(compose("data=local_marked", "train.objective=kto", *overrides))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("answers", ["exact", "text", "classify", "choice"])
def test_bad_answers_are_not_scored_as_right_ones(answers):
    settings = composed(*MARKED, f"data.answers={answers}").settings
    with pytest.raises(UserError, match=rf"^data\.answers={answers} can't be combined with data\.columns\.mark"):
        prepared_inputs.own_task(settings.eval, settings.data, None)


def test_a_plan_of_an_untuned_model_has_the_batches_of_its_run():
    """KTO joins an answer that would be alone to the batch before."""
    cell = composed(*MARKED, "method=base", "train.validation_items=3")
    items = prepared_inputs.inputs_of(cell.settings, None).held_out
    batches = objectives.pairwise(cell.settings.train.validated()).parts(encoding.compared(items), 2)
    assert [len(batch) for batch in batches] == [3]
    assert examples.draw(cell, None).steps == [batches]


def test_bad_answers_are_no_examples_and_initialise_no_adapter():
    inputs = prepared_inputs.inputs_of(composed(*MARKED, "eval.num_fewshot=5", "method=lora").settings, None)
    bad = {row["completion"] for row in ROWS if not row["label"]}
    shown = list(inputs.tasks.leaves["held_out"].fewshot_docs())
    assert len(shown) == 5
    assert bad.isdisjoint(doc["answer"] for doc in shown)
    drawn = [item for step in inputs.steps for micro in step for item in micro]
    good = sum(item.good for item in drawn)
    assert 0 < good < len(drawn)
    assert sum(len(batch.input_ids) for batch in inputs.samples(torch.device("cpu"), 3)) == good


def test_a_model_that_only_writes_is_refused():
    settings = composed(*MARKED).settings
    with pytest.raises(UserError, match=r"data=local_marked requires log-probabilities"):
        prepared_inputs.own_task(settings.eval, settings.data, None, likelihoods=False)


def test_the_likelihood_of_bad_answers_is_no_score():
    assert bits.of_good_answer({"mark": "bad", "answer": "No."}, [(-3.0, False)]) == {}
    good = {"mark": "good", "answer": "1234"}
    assert bits.of_good_answer(good, [(-4 * math.log(2), False)]) == {"bits_per_byte": 1.0}


# The objective


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_answers_one_by_one_have_the_loss_of_pairs(bench, layout):
    """As long as the model has no divergence from its base, which pairs estimate over other mismatched answers."""
    items = [{"question": f"{i} + {i}", "answer": f"{2 * i}", "rejected": f"It is {i}."} for i in range(4)]
    pairs = encoding.encode_all(bench.tokenizer, items, "Q: {question}\nA:", 512, pairs=True)
    answers = [each for pair in pairs for each in zip(pair.sequences, pair.signs, strict=True)]
    singles = [encoding.MarkedAnswer(answer, sign > 0) for answer, sign in answers]
    objective = objectives.pairwise(TrainSettings(objective="kto", preference_beta=0.5))
    objective.reference = {id(each.answer): -20.0 for each in singles}
    mismatched = [*objective.mismatched(pairs), *objective.mismatched(singles)]
    objective.reference |= {id(each): 0.0 for other in mismatched for each in other.sequences}
    batch, other = objective.batch(layout, singles), objective.batch(layout, pairs)
    assert (objective.weight(batch), objective.weight(other)) == (8, 4)
    with torch.no_grad():
        single, both = objective.summed(bench.net, batch) / 8, objective.summed(bench.net, other) / 4
    assert float(single) == pytest.approx(float(both), rel=1e-5)
    assert float(single) != pytest.approx(0.5, rel=1e-3)


def test_rewards_are_right_by_their_signs():
    given = [rewards.ItemRewards((reward,), (sign,)) for reward, sign in ((0.5, 1), (-0.25, 1), (-1.0, -1))]
    means = rewards.means(given)
    assert (means.chosen, means.rejected, means.margin) == (0.125, -1.0, 1.125)
    assert means.accuracy == pytest.approx(2 / 3)
    assert [each.margin for each in given] == [0.5, -0.25, 1.0]
    alone = rewards.means(given[:2])
    assert (alone.rejected, alone.margin, alone.accuracy) == (None, None, 0.5)


# From the file to the record


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "base"])
def test_a_cell_is_trained_predicted_and_scored(tmp_path, monkeypatch, method):
    refer, counted = pair_phases.refer_to, []

    def counting(cell, objective, base):
        with LiveBytes(torch.device("cpu")) as live:
            refer(cell, objective, base)
        counted.append(live.flops)

    monkeypatch.setattr(pair_phases, "refer_to", counting)
    lr = "lr=0.0005" if method == "full" else "lr=0.01"
    cell = composed(*MARKED, f"method={method}", "eval.limit=12", lr)
    record = run_here(tmp_path / "out", cell)
    assert record.status == "ok", record.failure
    assert (record.own_data.good, record.cell.settings.loss_term) == (40, "answer")
    tested = splits()["test"]
    items = pd.read_parquet(next((tmp_path / "out").glob("*.items.parquet")))
    bits = items[items.task == "held_out"]
    sampled = prepared_inputs.tasks(cell.settings.eval, cell.settings.data, None).sample["held_out"]
    good = [number for number in sampled if tested[number]["mark"] == "good"]
    assert bits.item.tolist() == good
    assert 0 < len(good) < len(sampled) == 12
    predicted = prediction.Predictor(None, "fp32").predict(cell, None)
    assert Kinds(**predicted["peak"]) == record.probe.peak
    assert [predicted["reference_flops"]] == pytest.approx(counted, rel=0.05)  # attention depends on lengths
    if method == "base":
        assert record.validation[0].loss == pytest.approx(0.5, rel=1e-4)
        assert {score.task for score in record.scores} == {"held_out"}
        return
    assert record.train.loss[0].loss == pytest.approx(0.5, rel=1e-3)
    assert list(record.phases)[:5] == ["load", "refer", "adapt", "probe", "train"]
    per_token = record.probe.flops_per_token + record.probe.recomputed_flops_per_token
    assert predicted["flops"] == pytest.approx(per_token * record.train.tokens.padded)
    assert predicted["shape"]["raw"] == record.train.tokens.raw
    assert predicted["shape"]["sequences"] == 2
    means = record.validation[-1].rewards
    assert means.margin == pytest.approx(means.chosen - means.rejected)
    scores = {score.metric: score for score in record.scores if score.task == "rewards"}
    assert scores.keys() == {"accuracy", "margin"}
    for metric, score in scores.items():
        rows = items[(items.task == "rewards") & (items.metric == metric)]
        assert rows.item.tolist() == sampled
        assert rows.target.tolist() == [tested[number]["mark"] for number in sampled]
        assert rows.hash.nunique() == 12
        assert (score.n, score.value) == (12, pytest.approx(rows.value.mean()))
        assert score.stderr == pytest.approx(rows.value.sem())
    margins = items[(items.task == "rewards") & (items.metric == "margin")]
    signs = [1 if target == "good" else -1 for target in margins.target]
    signed = [sign * float(reward) for sign, reward in zip(signs, margins.prediction, strict=True)]
    assert margins.value.tolist() == pytest.approx(signed, rel=1e-3)
    hashes = dict(zip(margins.item, margins.hash, strict=True))
    assert bits.hash.tolist() == [hashes[number] for number in good]  # as lm-eval has them


@pytest.mark.slow
def test_answers_to_one_prompt_are_one_group(tmp_path):
    write([ROWS[i // 4 * 4] | ROWS[i] | {"prompt": ROWS[i // 4 * 4]["prompt"]} for i in range(60)])
    record = run_here(tmp_path / "out", composed(*MARKED, "method=lora"))
    assert record.status == "ok", record.failure
    (score,) = (score for score in record.scores if (score.task, score.metric) == ("rewards", "margin"))
    assert score.clusters * 4 == score.n


@pytest.mark.long
@pytest.mark.slow
def test_long_training_tells_good_answers_from_bad_ones(tmp_path):
    write([row | {"completion": "Yes." if row["label"] else "No."} for row in ROWS])
    record = run_here(tmp_path / "out", composed(*MARKED, "method=lora", "train.max_steps=20", "train.batch_size=4"))
    means, point = record.validation[-1].rewards, record.validation[-1]
    assert (means.chosen > 0 > means.rejected, means.accuracy, point.loss < 0.5) == (True, 1.0, True)
    (accuracy,) = (score for score in record.scores if (score.task, score.metric) == ("rewards", "accuracy"))
    assert accuracy.value == 1
