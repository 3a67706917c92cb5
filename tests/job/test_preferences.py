"""Pairs of a chosen and a rejected answer: their data, objectives, cells, predictions and scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from job_helpers import composed, no_peak, prepared, run_here, tiny  # noqa: F401
from layouts import LAYOUTS
from torch.nn.functional import cross_entropy, linear
from transformers import AutoTokenizer

from harness.errors import UserError
from harness.job import pairs as pair_phases
from harness.job.data import columns, encoding, sources
from harness.job.data.batching import Layout
from harness.job.measure.live_memory import LiveBytes
from harness.job.models import embedded
from harness.job.predict import prediction
from harness.job.training import loop, loss, objectives
from harness.record import Kinds
from harness.settings import TrainSettings, plain
from harness.validate import check

ROWS = [
    {
        "prompt": f"What is {i} + {i}?",
        "chosen": f"It is {2 * i}." + " I am sure." * (i % 3),
        "rejected": f"It is {2 * i + 1}." + " I guess." * (i % 4),
    }
    for i in range(60)
]
PAIRS = (
    *("model=tiny", "rank=4", "train.precision=fp32", "train.max_steps=4", "train.batch_size=2", "lr=0.01"),
    *("train.validation_items=4", "infer.repeats=0", "eval.tasks=[]", "eval.batch_size=4"),
    *("data=local_preference", "data.path=pairs.jsonl"),
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLUMNS = {name: name for name in ("prompt", "chosen", "rejected")}
COIN = math.log(2)  # DPO's loss of a model that is the base


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(ROWS)


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=full"))


def write(rows: list[dict], name: str = "pairs.jsonl") -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def items_of(*overrides: str, data_root: str | None = None) -> dict[str, list[dict]]:
    return sources.splits(composed(*PAIRS, *overrides).settings.data, data_root)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# Data


def test_a_file_of_texts_has_pairs_for_every_part():
    found = items_of()
    assert sum(map(len, found.values())) == 60
    assert all(found.values())
    assert {"prompt": ROWS[7]["prompt"], "answer": ROWS[7]["chosen"], "rejected": ROWS[7]["rejected"]} in [
        item for part in found.values() for item in part
    ]


BEFORE = [turn("system", "Be short."), turn("user", "Hi.")]
FORMS = {"whole": ("Hi.", BEFORE, BEFORE), "after turns": (BEFORE, [], BEFORE), "after a text": ("Hi.", [], BEFORE[1:])}


@pytest.mark.parametrize("form", FORMS)
def test_conversations_may_repeat_the_prompt_or_not(form):
    prompt, repeated, before = FORMS[form]
    row = {name: [*repeated, turn("assistant", name)] for name in ("chosen", "rejected")} | {"prompt": prompt}
    ((key, item),) = columns.mapped([row], row, COLUMNS, None, "a file")
    assert item == {"messages": [*before, turn("assistant", "chosen")], "rejected": "rejected"}
    assert key == json.dumps({"messages": before})  # all answers to a question are held out together


def test_ultrafeedback_is_mapped_by_its_own_columns():
    rows = [
        {
            "prompt": f"Greet {i}.",
            "chosen": [turn("user", f"Greet {i}."), turn("assistant", "Hello.")],
            "rejected": [turn("user", f"Greet {i}."), turn("assistant", "No.")],
            "score_chosen": 8.0,
        }
        for i in range(200)
    ]
    folder = Path("hub/HuggingFaceH4/ultrafeedback_binarized/data")
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "train_prefs-00000-of-00001.parquet")
    pd.DataFrame(rows[:2]).to_parquet(folder / "test_prefs-00000-of-00001.parquet")
    cell = composed("data=ultrafeedback", "train.objective=dpo")
    found = sources.splits(cell.settings.data, "hub")
    assert sum(map(len, found.values())) == 200
    assert all(found.values())
    assert {(item["messages"][1]["content"], item["rejected"]) for item in found["train"]} == {("Hello.", "No.")}
    assert (cell.settings.eval.tasks, cell.data) == (["held_out"], "ultrafeedback dpo=0.1")


def test_records_without_two_different_answers_are_left_out():
    write([*ROWS, ROWS[0] | {"rejected": ROWS[0]["chosen"] + " "}, ROWS[1] | {"chosen": ""}])
    assert sum(map(len, items_of().values())) == 60
    own = sources.own_data(composed(*PAIRS).settings.data, None)
    assert (
        own.sentence
        == "pairs.jsonl is read as pairs of answers: 62 records; left out: 2 without two different answers."
    )
    write([row | {"rejected": None} for row in ROWS])
    with pytest.raises(UserError, match=r"None of the 60 records of pairs\.jsonl has two different answers\."):
        items_of()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"chosen": [turn("assistant", "Yes.")]},
            r"Both answers of pairs\.jsonl must be texts, or both conversations\.",
        ),
        (
            {
                "chosen": [turn("user", "Hi."), turn("assistant", "Yes.")],
                "rejected": [turn("user", "Ho."), turn("assistant", "No.")],
            },
            r"Chosen and rejected conversations of pairs\.jsonl must differ in their last turn alone, an answer\.",
        ),
        (
            {"chosen": [turn("user", "Hi.")], "rejected": [turn("user", "Ho.")]},
            r"Chosen and rejected conversations of pairs\.jsonl must differ in their last turn alone, an answer\.",
        ),
    ],
)
def test_pairs_that_are_none_are_refused(change, said):
    write([row | change for row in ROWS])
    with pytest.raises(UserError, match=f"^In line 1: {said}$"):
        items_of()


def test_the_loss_of_a_conversation_is_on_its_last_turn():
    of = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    of.chat_template = CHATML
    turns = [
        turn("user", "1 + 1?"),
        turn("assistant", "It is 2."),
        turn("user", "2 + 2?"),
        turn("assistant", "It is 4."),
    ]
    (pair,) = encoding.encode_all(of, [{"messages": turns, "rejected": "Ask her."}], "", 512, pairs=True)
    said = [of.decode([each.ids[at] for at in each.supervised]) for each in pair.sequences]
    assert said == ["It is 4.<|im_end|>", "Ask her.<|im_end|>"]
    assert pair.chosen.ids[: pair.chosen.prompt] == pair.rejected.ids[: pair.rejected.prompt]
    assert "It is 2." in of.decode(pair.rejected.ids)
    with pytest.raises(UserError, match=r"leaves no token of the answer in 1 of 1"):
        encoding.encode_all(of, [{"messages": turns, "rejected": "No."}], "", pair.chosen.prompt, pairs=True)


# What is refused


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.objective=ppo",), r"train\.objective=ppo is unknown\. Did you mean ipo\? There is: sft, dpo, ipo, "),
        (("train.objective=dpo", "train.preference_beta=0"), r"train\.preference_beta must be positive, got 0\."),
        (("train.preference_beta=0.5",), r"train\.preference_beta=0\.5 requires an objective of pairs, such as "),
        (("train.preference_margin=1",), r"train\.preference_margin=1 requires train\.objective=simpo or cpo_simpo\."),
        (
            ("train.objective=kto", "train.batch_size=1"),
            r"train\.objective=kto can't be combined with train\.batch_size=1: it pairs prompts with other prompts' ",
        ),
        (
            ("train.objective=kto", "train.validation_items=1"),
            r"train\.objective=kto can't be combined with train\.validation_items=1: it pairs prompts with other ",
        ),
        (
            ("train.objective=orpo_trl", "train.batch_size=auto", "train.global_batch=8"),
            r"train\.objective=orpo_trl can't be combined with train\.batch_size=auto: its loss depends on the pairs ",
        ),
        (
            ("train.objective=kto", "retry.on_oom=true"),
            r"train\.objective=kto can't be combined with retry\.on_oom=true: its loss depends on the pairs of a ",
        ),
        (
            ("train.objective=dpo", "data=gsm8k"),
            r"train\.objective=dpo requires pairs of a chosen and a rejected answer, such as .*, got data=gsm8k\.",
        ),
        (
            ("train.objective=orpo", "train.loss_on=all"),
            r"train\.objective=orpo can't be combined with train\.loss_on=all: its loss compares answers\.",
        ),
        (
            ("train.objective=dpo", "train.packing=true"),
            r"train\.objective=dpo can't be combined with train\.packing=true: the answers of a pair",
        ),
        (("train.objective=dpo", "data.noise=0.1"), r"train\.objective=dpo can't be combined with data\.noise=0\.1: "),
        (("train.objective=dpo", "train.devices=2"), r"train\.objective=dpo can't be combined with train\.devices=2: "),
        (("train.objective=dpo", "train.nodes=2"), r"train\.objective=dpo can't be combined with train\.nodes=2: "),
    ],
)
def test_settings_that_an_objective_can_not_have_are_refused(compose, overrides, said):
    with pytest.raises(UserError, match=f"^{said}") as told:
        check(compose("data=local_preference", *overrides))
    assert "\n" not in str(told.value)


def test_each_answer_needs_the_others_column():
    with pytest.raises(UserError, match=r"data\.columns\.rejected requires data\.columns\.chosen"):
        columns.mapped(
            ROWS, ROWS[0], {"question": "prompt", "answer": "chosen", "rejected": "rejected"}, None, "a file"
        )


# Cells


def test_objectives_are_places_of_their_own(cell):
    """Within which settings are chosen and methods compared: losses of several objectives are not of one kind."""
    cells = [
        cell("data=local_preference", "data.path=a.jsonl", *more)
        for more in ([], ["train.objective=dpo"], ["train.objective=dpo", "train.preference_beta=0.5"])
    ]
    assert [each.data for each in cells] == ["a.jsonl", "a.jsonl dpo=0.1", "a.jsonl dpo=0.5"]
    assert len({each.id for each in cells}) == 3
    assert "objective" not in plain(cells[0].settings)["train"]
    assert "preference_beta" not in plain(cells[0].settings)["train"]
    bases = [cell("data=local_preference", "method=base", *more) for more in ([], ["train.objective=orpo"])]
    assert bases[0].id != bases[1].id  # their validation losses are others


# Objectives


def log_sums(net: torch.nn.Module, sequences: list[encoding.Example]) -> torch.Tensor:
    """The log-probability of each answer, from all logits of one sequence after another."""
    found = []
    for each in sequences:
        logs = net(input_ids=torch.tensor([each.ids])).logits[0].float().log_softmax(-1)
        found.append(sum(logs[at - 1, each.ids[at]] for at in each.supervised))
    return torch.stack(found)


def pairs_of(tokenizer, count: int = 3) -> list[encoding.Pair]:
    items = [{"question": r["prompt"], "answer": r["chosen"], "rejected": r["rejected"]} for r in ROWS[:count]]
    return encoding.encode_all(tokenizer, items, "Q: {question}\nA:", 512, pairs=True)


def objective(name: str, beta: float = 0.1) -> objectives.PairObjective:
    return objectives.objective_of(TrainSettings(objective=name, preference_beta=beta))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [None, 4 * 4 * 37])
def test_losses_by_token_and_their_gradients_are_those_of_all_logits(size, biased):
    torch.manual_seed(0)
    weight, hidden, bias = torch.randn(37, 8), torch.randn(23, 8), torch.randn(37) if biased else None
    targets, scales = torch.randint(0, 37, (23,)), torch.randn(23)
    targets[::3] = -100
    given = [tensor for tensor in (weight, hidden, bias) if tensor is not None]

    def taken(losses) -> list[torch.Tensor]:
        for tensor in given:
            tensor.requires_grad_().grad = None
        (losses() * scales).sum().backward()
        return [losses().detach(), *(tensor.grad for tensor in given)]

    def by_logits() -> torch.Tensor:
        return cross_entropy(linear(hidden, weight, bias), targets, ignore_index=-100, reduction="none")

    found = taken(lambda: loss.chunked(weight, hidden, targets, bias, size=size, by_token=True))
    for a, b in zip(found, taken(by_logits), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dpo", "orpo"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_gives_the_papers_loss_and_its_gradient(bench, name, layout):
    pairs, beta = pairs_of(bench.tokenizer), 0.5
    of = objective(name, beta)
    of.reference = {id(pair.chosen): -20.0 - i for i, pair in enumerate(pairs)}
    of.reference |= {id(pair.rejected): -21.0 + i for i, pair in enumerate(pairs)}
    batch = of.batch(layout, pairs)
    assert of.weight(batch) == 3
    trained = [p for p in bench.net.parameters() if p.requires_grad]
    found = of.summed(bench.net, batch)
    gradients = torch.autograd.grad(found, trained, allow_unused=True)
    with loss.enabled(bench.net):
        chunked = of.summed(bench.net, batch)
        again = torch.autograd.grad(chunked, trained, allow_unused=True)

    expected = torch.zeros(())
    for i, pair in enumerate(pairs):
        chosen, rejected = log_sums(bench.net, pair.sequences)
        if name == "dpo":
            expected = expected - torch.log(torch.sigmoid(beta * ((chosen + 20 + i) - (rejected + 21 - i))))
            continue
        p, q = (torch.exp(x / len(e.supervised)) for x, e in zip((chosen, rejected), pair.sequences, strict=True))
        odds = (p / (1 - p)) / (q / (1 - q))
        expected = expected - torch.log(p) - beta * torch.log(torch.sigmoid(torch.log(odds)))
    truth = torch.autograd.grad(expected, trained, allow_unused=True)
    for value, others in ((found, gradients), (chunked, again)):
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        for a, b in zip(others, truth, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-7


def test_the_base_is_what_dpo_refers_to(bench):
    pairs, of = pairs_of(bench.tokenizer, 5), objective("dpo")
    head = bench.net.get_output_embeddings()
    of.refer_to(bench.net, [pairs, pairs], 2, Layout(flat=True), Accelerator())
    assert bench.net.get_output_embeddings() is head
    with torch.no_grad():
        for pair in pairs:
            taken = [of.reference[id(each)] for each in pair.sequences]
            assert taken == pytest.approx(log_sums(bench.net, pair.sequences).tolist(), rel=1e-5)
        value = loop.answer_loss(bench.net, of.batches(Layout(flat=True), pairs, 2), bench.accelerator, of)
    assert value == pytest.approx(COIN, rel=1e-5)


def test_odds_are_finite_where_an_answer_is_certain():
    logs = torch.tensor([0.0, -1e-9, -1e-3, -1.0, -50.0], requires_grad=True)
    found = objectives.log_complement(logs)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logs.grad).all()
    assert found[2:].tolist() == pytest.approx([math.log(-math.expm1(x)) for x in (-1e-3, -1.0, -50.0)], rel=1e-5)


def test_a_guess_is_told_from_what_was_learned():
    assert objective("dpo").of_a_guess(100) == math.inf
    assert objective("orpo", 0.5).of_a_guess(100) == pytest.approx(math.log(100) + 0.5 * COIN)
    assert objectives.objective_of(TrainSettings()).of_a_guess(100) == math.log(100)


# From the file to the record


@pytest.mark.parametrize("method", ["full", "lora", "pissa", "galore", "qlora", "prompt_tuning"])
def test_dpo_begins_at_the_base_whatever_the_method(tmp_path, method):
    lr = "lr=0.0005" if method in ("full", "galore") else "lr=0.01"
    record = run_here(tmp_path / "out", composed(*PAIRS, f"method={method}", "train.objective=dpo", lr))
    assert record.status == "ok", record.failure
    first = record.train.loss[0].loss
    if method == "prompt_tuning":  # its new tokens change the model before the first step
        assert first != pytest.approx(COIN, rel=1e-3)
    else:
        assert first == pytest.approx(COIN, rel=2e-3)
        assert record.validation[-1].loss < COIN
    assert list(record.phases)[:5] == ["load", "refer", "adapt", "probe", "train"]
    assert record.held_out is None


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A LoRA cell of each objective, and its items."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(ROWS)
        out = {}
        for name in ("sft", "dpo", "orpo"):
            more = ("eval.tasks=[held_out]", "data.test_share=0.3", f"train.objective={name}")
            record = run_here(folder / name, composed(*PAIRS, *more, "method=lora", "train.max_steps=8"))
            assert record.status == "ok", record.failure
            (path,) = (folder / name).glob("*.items.parquet")
            out[name] = record, pd.read_parquet(path)
    return out


@pytest.mark.long
def test_every_objective_scores_which_answer_is_likelier(tuned):
    for record, items in tuned.values():
        likelier = {score.metric: score for score in record.scores if score.task == "held_out"}
        assert likelier.keys() == {"acc", "acc_norm"}
        assert likelier["acc"].n == len(items[(items.task == "held_out") & (items.metric == "acc")]) > 5
        assert likelier["acc"].stderr is not None


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_rewards_are_scores_of_the_same_items(tuned, name):
    record, items = tuned[name]
    scores = {score.metric: score for score in record.scores if score.task == "rewards"}
    assert scores.keys() == {"accuracy", "margin"}
    of = {metric: items[(items.task == "rewards") & (items.metric == metric)] for metric in scores}
    like = items[(items.task == "held_out") & (items.metric == "acc")]
    for metric, score in scores.items():
        assert of[metric]["hash"].tolist() == like["hash"].tolist()
        assert (score.n, score.value) == (len(like), pytest.approx(of[metric].value.mean()))
        assert score.stderr == pytest.approx(of[metric].value.sem())
    assert [value > 0 for value in of["margin"].value] == [value == 1 for value in of["accuracy"].value]
    assert list(record.phases)[-2:] == ["reward", "score"]
    assert "rewards" not in {score.task for score in tuned["sft"][0].scores}


def test_training_widens_the_margin_of_held_out_pairs(tuned):
    record, _ = tuned["dpo"]
    (margin,) = (score for score in record.scores if (score.task, score.metric) == ("rewards", "margin"))
    assert margin.value > 2 * margin.stderr > 0
    assert record.validation[-1].loss < COIN


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_the_untuned_base_has_the_objectives_loss(tmp_path, name):
    record = run_here(tmp_path / "out", composed(*PAIRS, "method=base", f"train.objective={name}"))
    assert record.status == "ok", record.failure
    assert (record.validation[0].loss == pytest.approx(COIN, rel=1e-5)) == (name == "dpo")


TESTED = ("eval.tasks=[held_out]", "data.test_share=0.3", "eval.limit=7")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "method", "more"),
    [("dpo", "full", ()), ("dpo", "lora", TESTED), ("orpo", "galore", ()), ("orpo", "base", ()), ("dpo", "qlora", ())],
)
def test_a_prediction_is_what_a_run_measures(tmp_path, monkeypatch, name, method, more):
    refer, counted = pair_phases.refer_to, []

    def counting(cell, objective, base):
        with LiveBytes(torch.device("cpu")) as live:
            refer(cell, objective, base)
        counted.append(live.flops)

    monkeypatch.setattr(pair_phases, "refer_to", counting)
    cell = composed(*PAIRS, f"method={method}", f"train.objective={name}", *more)
    measured = run_here(tmp_path / "out", cell)
    found = prediction.Predictor(None, "fp32").predict(cell, None)
    assert measured.status == "ok", measured.failure
    assert Kinds(**found["peak"]) == measured.probe.peak
    if measured.train:
        assert found["shape"]["raw"] == measured.train.tokens.raw
        per_token = measured.probe.flops_per_token + measured.probe.recomputed_flops_per_token
        assert found["flops"] == pytest.approx(per_token * measured.train.tokens.padded)
        assert measured.probe.recomputed_flops_per_token > 0  # of the head
    assert [found["reference_flops"]] == pytest.approx(counted, rel=0.1)  # of few pairs, whose lengths differ
    assert (found["reference_flops"] > 0) == (name == "dpo")
