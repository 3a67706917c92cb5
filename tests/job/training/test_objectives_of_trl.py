"""Our objectives against TRL's own trainers, on the same pairs or marked answers: losses, gradients' norms, rewards.

`make test-trl` runs them with the TRL of a venv of its own.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from job_helpers import composed, prepared, tiny

from harness.job.data import encoding, sources
from harness.job.data.batching import Layout
from harness.job.evaluate.held_out import rewards
from harness.job.training import loop, objectives
from harness.settings import REFERRING, TrainSettings

trl = pytest.importorskip("trl")
from datasets import Dataset  # noqa: E402

BETA, MARGIN = 0.3, 0.7
CLOSE = 1e-5
pytestmark = [pytest.mark.long, pytest.mark.slow]


def row(i: int) -> dict[str, str]:
    return {
        "prompt": f"Q: {'What is ' * i}{i} + {i}?\nA:",
        "chosen": f" It is {2 * i}." + " I am sure." * i,
        "rejected": f" It is {2 * i + 1}. I think.",
    }


ROWS = [row(i) for i in range(3)]
MARKED = [
    {"prompt": row(i)["prompt"], "completion": row(i)[kind], "label": kind == "chosen"}
    for i, kind in ((3, "chosen"), (2, "chosen"), (0, "rejected"), (1, "chosen"), (1, "rejected"))
]
SHARED = {"bf16": False, "use_cpu": True, "report_to": [], "disable_dropout": True, "max_length": 512}


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=full"))


@pytest.fixture(scope="module")
def net(bench) -> torch.nn.Module:
    """The model with weights that have moved, as training moves them."""
    torch.manual_seed(0)
    moved = copy.deepcopy(bench.net)
    with torch.no_grad():
        for p in moved.parameters():
            p += 0.02 * torch.randn_like(p)
    return moved


@pytest.fixture(scope="module")
def pairs(bench) -> list[encoding.Pair]:
    items = [
        {"question": row["prompt"], "answer": row["chosen"].strip(), "rejected": row["rejected"].strip()}
        for row in ROWS
    ]
    return encoding.encode_all(bench.tokenizer, items, "{question}", 512, pairs=True)


@pytest.fixture(scope="module")
def begun(bench, pairs) -> list[encoding.Pair]:
    """`pairs` after the token that TRL's CPO and ORPO put before a prompt, whether the tokenizer does so or not."""
    first = [bench.tokenizer.bos_token_id]
    return [
        encoding.Pair(*(encoding.Example(first + each.ids, each.prompt + 1) for each in pair.sequences))
        for pair in pairs
    ]


class Ours:
    """A step on `pairs`, or marked answers, by our objective `name`: its loss, its gradient's norm, and the rewards."""

    def __init__(self, name: str, net: torch.nn.Module, base: torch.nn.Module, pairs: list[encoding.Compared]):
        layout, accelerator = Layout(flat=False, pad=0), Accelerator(cpu=True)
        train = TrainSettings(objective=name, preference_beta=BETA, preference_margin=MARGIN, max_length=512)
        objective = objectives.pairwise(train)
        objective.refer_to(base, [pairs], 2, layout, accelerator)
        assert bool(objective.reference) == (name in REFERRING)
        batch = objective.batch(layout, pairs)
        net = copy.deepcopy(net).train()
        still = torch.optim.SGD(net.parameters(), lr=0)
        loss, norm = loop.take_step(net, still, [batch], None, accelerator, lambda part: None, objective)
        self.loss, self.norm = float(loss), float(norm)
        with torch.no_grad():
            self.rewards = objective.rewards(objectives.log_probabilities(net, batch), batch)
        self.means = rewards.means(rewards.of_items(pairs, self.rewards.tolist()))

    @property
    def metrics(self) -> dict[str, float]:
        """The rewards by the names of TRL's metrics."""
        return {
            "rewards/chosen": self.means.chosen,
            "rewards/rejected": self.means.rejected,
            "rewards/margins": self.means.margin,
            "rewards/accuracies": self.means.accuracy,
        }


def check(ours: Ours, model: torch.nn.Module, loss: torch.Tensor, metrics: dict[str, float]) -> None:
    """Hold `ours` against TRL's `loss`, of which `model` gets the gradients here, and `metrics`."""
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
    assert ours.loss == pytest.approx(float(loss), rel=CLOSE)
    assert ours.norm == pytest.approx(norm, rel=CLOSE)
    shared = ours.metrics.keys() & metrics.keys()
    assert len(shared) >= 3  # KTO's has no accuracies
    for name in shared:
        assert ours.metrics[name] == pytest.approx(float(metrics[name]), rel=CLOSE, abs=CLOSE), name


@pytest.mark.parametrize(("name", "kind"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_dpo_and_ipo_are_trls(bench, net, pairs, tmp_path, name, kind):
    model = copy.deepcopy(net)
    arguments = trl.DPOConfig(
        str(tmp_path), beta=BETA, loss_type=kind, per_device_train_batch_size=3, gradient_checkpointing=False, **SHARED
    )
    trainer = trl.DPOTrainer(
        *(model, copy.deepcopy(bench.net), arguments),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=bench.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(map(len, (pair.chosen.ids for pair in pairs))) == sorted(batch["attention_mask"][:3].sum(1).tolist())
    loss = trainer.compute_loss(model.train(), batch)
    metrics = {key: values[0] for key, values in trainer._metrics["train"].items()}
    check(Ours(name, net, bench.net, pairs), model, loss, metrics)


def test_kto_is_trls(bench, net, pairs, tmp_path):
    model = copy.deepcopy(net)
    arguments = trl.KTOConfig(
        str(tmp_path), beta=BETA, per_device_train_batch_size=6, gradient_checkpointing=False, **SHARED
    )
    trainer = trl.KTOTrainer(
        *(model, copy.deepcopy(bench.net), arguments),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=bench.tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    loss = trainer.compute_loss(model.train(), batch)
    metrics = {key: values[0] for key, values in trainer._metrics["train"].items()}
    assert metrics["kl"] > 0
    check(Ours("kto", net, bench.net, pairs), model, loss, metrics)


def test_kto_of_marked_answers_is_trls(bench, net, tmp_path, monkeypatch):
    """Of one file, in which more answers are good than bad."""
    monkeypatch.chdir(tmp_path)
    Path("marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MARKED))
    data = composed("data=local_marked", "data.path=marked.jsonl", "train.objective=kto").settings.data
    _, mapped, _ = sources._of_file("marked.jsonl", data.load["columns"], None)
    items = [item | {"answer": item["answer"].strip()} for _, item in mapped.items]
    marked = encoding.encode_all(bench.tokenizer, items, data.template, 512, pairs=True)
    model = copy.deepcopy(net)
    arguments = trl.KTOConfig(
        str(tmp_path), beta=BETA, per_device_train_batch_size=5, gradient_checkpointing=False, **SHARED
    )
    trainer = trl.KTOTrainer(
        *(model, copy.deepcopy(bench.net), arguments),
        train_dataset=Dataset.from_list(MARKED),
        processing_class=bench.tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(5)])
    assert batch["attention_mask"].sum(1).tolist() == [len(each.ids) for each in marked]
    loss = trainer.compute_loss(model.train(), batch)
    metrics = {key: values[0] for key, values in trainer._metrics["train"].items()}
    assert metrics["kl"] > 0
    check(Ours("kto", net, bench.net, marked), model, loss, metrics)


@pytest.mark.parametrize(("name", "alpha"), [("simpo", 0.0), ("cpo_simpo", 1.0)])
def test_simpo_is_trls(bench, net, begun, tmp_path, name, alpha):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model = copy.deepcopy(net)
    arguments = CPOConfig(
        *(str(tmp_path),),
        **{"beta": BETA, "loss_type": "simpo", "simpo_gamma": MARGIN, "cpo_alpha": alpha},
        **{"per_device_train_batch_size": 3, "gradient_checkpointing": False} | SHARED,
    )
    trainer = CPOTrainer(model, arguments, train_dataset=Dataset.from_list(ROWS), processing_class=bench.tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(pair.chosen.ids for pair in begun) == sorted(unpadded(batch, "chosen"))
    loss, metrics = trainer.get_batch_loss_metrics(model.train(), batch)
    check(Ours(name, net, bench.net, begun), model, loss, metrics)


def unpadded(batch: dict[str, torch.Tensor], kind: str) -> list[list[int]]:
    """The token ids of each sequence of TRL's `batch`; kind: chosen or rejected."""
    both = zip(batch[f"{kind}_input_ids"], batch[f"{kind}_attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in both]


def orpo(bench, model: torch.nn.Module, folder: str) -> tuple[torch.Tensor, dict[str, float], dict[str, torch.Tensor]]:
    """The loss and the metrics of TRL's ORPO on ROWS, and its batch."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    arguments = ORPOConfig(folder, beta=BETA, per_device_train_batch_size=3, gradient_checkpointing=False, **SHARED)
    trainer = ORPOTrainer(model, arguments, train_dataset=Dataset.from_list(ROWS), processing_class=bench.tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    return *trainer.get_batch_loss_metrics(model.train(), batch), batch


def test_orpo_trl_is_trls(bench, net, begun, tmp_path):
    model = copy.deepcopy(net)
    loss, metrics, _ = orpo(bench, model, str(tmp_path))
    check(Ours("orpo_trl", net, bench.net, begun), model, loss, metrics)


def test_the_articles_orpo_differs_in_its_cross_entropy_and_a_first_token(bench, net, pairs, begun, tmp_path):
    """TRL's cross-entropy is of prompts too, and a mean over tokens of all pairs; the article's is of answers, and a
    mean over pairs. And TRL puts a token before each prompt that the tokenizer would not."""
    loss, metrics, batch = orpo(bench, copy.deepcopy(net), str(tmp_path))
    article, trls = (Ours(name, net, bench.net, begun) for name in ("orpo", "orpo_trl"))
    odds = float(loss) - metrics["nll_loss"]
    by_pair = -float((article.rewards[:, 0] / BETA).mean())
    assert article.loss == pytest.approx(by_pair + odds, rel=CLOSE)
    assert article.loss != pytest.approx(trls.loss, rel=1e-4)
    assert article.norm != pytest.approx(trls.norm, rel=1e-2)
    assert article.metrics == pytest.approx(trls.metrics, rel=CLOSE)
    assert sorted(pair.chosen.ids for pair in pairs) == sorted(ids[1:] for ids in unpadded(batch, "chosen"))
    assert Ours("orpo_trl", net, bench.net, pairs).loss != pytest.approx(trls.loss, rel=1e-4)
