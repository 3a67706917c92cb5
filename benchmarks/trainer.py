"""Trainer of transformers, or of TRL, over ready batches: what most users would run in place of a bare loop."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from harness.settings import TrainSettings


def _classes(trl: bool) -> tuple[Any, Any]:
    """The Trainer and the class of its arguments, of TRL or of transformers, which have no types in common."""
    if trl:
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer, SFTConfig
    from transformers import Trainer, TrainingArguments

    return Trainer, TrainingArguments


def train(
    net: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    batches: list[dict[str, Tensor]],
    settings: TrainSettings,
    callback: TrainerCallback,
    *,
    bf16: bool,
    trl: bool = False,
    tokenizer: Any = None,
) -> float:
    """Train `net` on all `batches`, one a step. Returns the mean loss.

    bf16: autocast. callback: what its events call. tokenizer: required by TRL.
    """
    base: Any
    base, arguments_class = _classes(trl)

    class Ordered(base):
        def get_train_dataloader(self) -> DataLoader[Any]:
            # A list is a data set by its length and its items.
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # torch's type asks for its class

    arguments: dict[str, Any] = {
        "max_steps": len(batches),
        "per_device_train_batch_size": settings.batch_size,
        "bf16": bf16,
        "use_cpu": next(net.parameters()).device.type == "cpu",
        "max_grad_norm": settings.max_grad_norm or 0.0,
        "logging_steps": len(batches),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    wanted = settings.gradient_checkpointing  # on by default in TRL
    names = {field.name for field in dataclasses.fields(arguments_class)}
    arguments |= {name: wanted for name in ("gradient_checkpointing", "activation_checkpointing") if name in names}
    more: dict[str, Any] = {"train_dataset": batches}
    with tempfile.TemporaryDirectory() as folder:
        if trl:
            from datasets import Dataset

            # TRL requires a data set, and never reads it here.
            stand_in = Dataset.from_list([{"input_ids": [0], "labels": [0]}])
            arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
            more = {"train_dataset": stand_in, "processing_class": tokenizer}
        trainer = Ordered(net, arguments_class(output_dir=folder, **arguments), **more)
        trainer.optimizer, trainer.lr_scheduler = optimizer, schedule
        trainer.add_callback(callback)
        trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
