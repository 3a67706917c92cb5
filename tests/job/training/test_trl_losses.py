"""Our objectives of pairs against TRL's own trainers, on one batch."""

from __future__ import annotations

import copy

import pytest
import torch
import trl
from accelerate import Accelerator
from datasets import Dataset
from job_helpers import prepared, tiny

from harness.job.data import encoding
from harness.job.data.batching import Layout
from harness.job.training import objectives
from harness.settings import TrainSettings

BETA = 0.3
pytestmark = [pytest.mark.long, pytest.mark.slow]


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=full"))


def other(net: torch.nn.Module) -> torch.nn.Module:
    """A copy of `net` whose weights have moved, as training moves them."""
    torch.manual_seed(0)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for p in moved.parameters():
            p += 0.02 * torch.randn_like(p)
    return moved


def ours(name: str, net: torch.nn.Module, base: torch.nn.Module, pairs: list[encoding.Pair]) -> tuple[float, float]:
    """The loss of `pairs`, and the mean difference of their rewards."""
    layout, accelerator = Layout(flat=False, pad=0), Accelerator()
    of = objectives.of(TrainSettings(objective=name, preference_beta=BETA))
    of.refer_to(base, pairs, 2, layout, accelerator)
    with torch.no_grad():
        batch = of.batch(layout, pairs)
        logs = objectives.log_probabilities(net, batch)
        chosen, rejected = of.rewards(logs, batch).unbind(1)
        return float(of.losses(logs, batch).mean()), float((chosen - rejected).mean())


def test_dpo_is_trls(bench, tmp_path):
    rows = [
        {"prompt": f"Q: {i} + {i}?\nA:", "chosen": f" It is {2 * i}.", "rejected": f" It is {2 * i + 1}. I think."}
        for i in range(3)
    ]
    items = [
        {"question": row["prompt"], "answer": row["chosen"].strip(), "rejected": row["rejected"].strip()}
        for row in rows
    ]
    pairs = encoding.encode_all(bench.tokenizer, items, "{question}", 512, pairs=True)
    net = other(bench.net)
    expected = ours("dpo", net, bench.net, pairs)
    arguments = trl.DPOConfig(
        str(tmp_path),
        beta=BETA,
        per_device_train_batch_size=3,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_dropout=True,
    )
    trainer = trl.DPOTrainer(
        net,
        copy.deepcopy(bench.net),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=bench.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(map(len, (pair.chosen.ids for pair in pairs))) == sorted(batch["attention_mask"][:3].sum(1).tolist())
    with torch.no_grad():
        loss = trainer.compute_loss(net.eval(), batch)
    assert expected[0] == pytest.approx(float(loss), rel=1e-4)
    assert expected[1] == pytest.approx(trainer._metrics["eval"]["rewards/margins"][0], rel=1e-3)


def test_orpo_is_trls_where_the_prompt_is_one_token(bench):
    """TRL's cross-entropy is of the prompt as well, and a mean over the tokens of all pairs: here they are the same."""
    from trl.experimental.orpo import ORPOTrainer

    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in (9, 6, 9, 11, 9, 4)]
    for chosen, rejected in zip(drawn[::2], drawn[1::2], strict=True):
        rejected[0] = chosen[0]
    examples = [encoding.Example(ids, 1) for ids in drawn]
    pairs = [encoding.Pair(*both) for both in zip(examples[::2], examples[1::2], strict=True)]
    batch = {}
    for name, some in (("chosen", drawn[::2]), ("rejected", drawn[1::2])):
        rows = [torch.tensor(ids) for ids in some]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        labels = padded.masked_fill(mask == 0, -100)
        labels[:, 0] = -100
        batch |= {f"{name}_input_ids": padded, f"{name}_attention_mask": mask, f"{name}_labels": labels}
    trainer = ORPOTrainer.__new__(ORPOTrainer)  # without what loads data and prepares to train
    trainer.accelerator, trainer.beta, trainer.padding_value = Accelerator(), BETA, 0
    trainer.is_encoder_decoder = trainer.aux_loss_enabled = False
    net = other(bench.net)
    with torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(net, batch)
    assert ours("orpo", net, bench.net, pairs) == pytest.approx((float(loss), metrics["rewards/margins"]), rel=1e-4)
