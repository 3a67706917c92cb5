"""The plain way to run a cell: a fresh process, a bare fp32 loop over the method's libraries, stock `simple_evaluate`.

    python benchmarks/plain.py CELL.json OUT.json    # CELL.json as speed.py writes it

What a user would script: padded batches, logits at every position, lm-eval's own model class over the tuned model as
it is. Weights, adapter, optimizer, examples and their order, schedule and questions are those of our cell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lm_eval
import torch
from hydra.utils import instantiate
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from harness.job.data import batching, encoding, sources
from harness.job.evaluate import scoring
from harness.job.evaluate.answer_batch import AnswerBatch
from harness.job.measure import device
from harness.job.models import adapting, loading
from harness.job.training import loop
from harness.record import Cell, decode
from harness.settings import AUTO


def built(cell: Cell) -> nn.Module:
    """The cell's model, seeded as ours."""
    torch.manual_seed(cell.seed or 0)
    return adapting.adapt(loading.load(cell, device.here()), cell)


def optimizer_of(cell: Cell, net: nn.Module) -> Optimizer:
    """The optimizer that the method of a tuned cell has for its model."""
    return instantiate(cell.settings.method.optim, _convert_="all")(net)


def sequences(drawn: Iterable[encoding.Drawn]) -> list[encoding.Example]:
    """What the model reads of items."""
    return [example for item in drawn for example in item.sequences]


def padded(examples: list[encoding.Example], pad: int) -> dict[str, Tensor]:
    """Right-padded input_ids, attention_mask and labels: (sequences, longest)."""
    longest = max(len(e.ids) for e in examples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for e in examples:
        rest = longest - len(e.ids)
        rows["input_ids"].append(e.ids + [pad] * rest)
        rows["attention_mask"].append([1] * len(e.ids) + [0] * rest)
        rows["labels"].append([-100] * e.prompt + e.ids[e.prompt :] + [-100] * rest)
    return {name: torch.tensor(values) for name, values in rows.items()}


def loss_of(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the supervised tokens."""
    logits = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def step(net: nn.Module, optimizer: Optimizer, batch: dict[str, Tensor], max_grad_norm: float | None) -> float:
    loss = loss_of(net, batch)
    loss.backward()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(net.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def main(cell: Cell) -> dict[str, Any]:
    """Train and score; the losses of the steps, and the score of each task by metric and filter."""
    net, tokenizer = built(cell), loading.tokenizer(cell.settings.model)
    losses = trained(cell, net, tokenizer) if cell.settings.method.tuned else []
    net.eval()
    asked = cell.settings.eval
    size = AnswerBatch(asked.batch_size or AUTO, device.here()).size  # null behind an API alone
    result = lm_eval.simple_evaluate(
        HFLM(pretrained=net, tokenizer=tokenizer, batch_size=size),
        tasks=asked.tasks,
        num_fewshot=asked.num_fewshot or 0,
        samples=scoring.Tasks(asked, None).sample,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(Path(scoring.__file__).parent / "tasks")),
    )
    return {"losses": losses, "scores": result["results"]}


def trained(cell: Cell, net: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """Train the cell's model; the losses of the steps."""
    settings, optimizer = cell.settings.train.tuned(), optimizer_of(cell, net)
    items = sources.splits(cell.settings.data, None)["train"]
    encode = encoding.encoder(tokenizer, cell.settings.data, settings.max_length)
    order = batching.scheduled(items, settings, cell.seed or 0, encode)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, loop.rate_factor(settings, len(order)))
    net.train()
    losses = []
    for (drawn,) in order:
        batch = padded(sequences(drawn), tokenizer.pad_token_id)
        on_device = {name: tensor.to(device.here()) for name, tensor in batch.items()}
        losses.append(step(net, optimizer, on_device, settings.max_grad_norm))
        schedule.step()
    return losses


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(main(decode(Cell, json.loads(source.read_text()))), default=str), encoding="utf-8")
