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
    if trl:
        from trl import SFTConfig as Arguments
        from trl import SFTTrainer as Trainer
    else:
        from transformers import Trainer
        from transformers import TrainingArguments as Arguments

    class Ordered(Trainer):
        def get_train_dataloader(self) -> Any:
            return DataLoader(batches, batch_size=None)

    arguments = {
        "max_steps": len(batches),
        "per_device_train_batch_size": settings.batch_size,
        "bf16": bf16,
        "use_cpu": net.device.type == "cpu",
        "max_grad_norm": settings.max_grad_norm or 0.0,
        "logging_steps": len(batches),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    wanted = settings.gradient_checkpointing  # on by default in TRL
    names = {field.name for field in dataclasses.fields(Arguments)}
    arguments |= {name: wanted for name in ("gradient_checkpointing", "activation_checkpointing") if name in names}
    with tempfile.TemporaryDirectory() as folder:
        if trl:
            from datasets import Dataset

            # TRL requires a data set, and never reads it here.
            stand_in = Dataset.from_list([{"input_ids": [0], "labels": [0]}])
            arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
            more = {"train_dataset": stand_in, "processing_class": tokenizer}
        else:
            more = {"train_dataset": batches}
        trainer = Ordered(net, Arguments(output_dir=folder, **arguments), **more)
        trainer.optimizer, trainer.lr_scheduler = optimizer, schedule
        trainer.add_callback(callback)
        trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
