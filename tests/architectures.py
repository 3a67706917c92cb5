"""Small models of many architectures, with random weights."""

from __future__ import annotations

import functools
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from job_helpers import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from harness.config import ROOT
from harness.job.models import embedded
from harness.record import Cell

sys.path.append(str(ROOT / "docs"))
from families import GROUPED, SIZES, WINDOWED

RANK = 4


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


ARCHITECTURES = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 24},
    "qwen3": GROUPED | {"tie_word_embeddings": True},
    "gemma3_text": GROUPED | WINDOWED,
    "gemma2": GROUPED | WINDOWED,
    "phi": {},
    "gpt2": {},
    "gpt_neox": {},
    "qwen3_moe": GROUPED | EXPERTS,
}


TIED = {"qwen3", "gemma3_text", "gemma2", "gpt2"}


PADDED = {"gemma2": "off: the model's attention is eager"}  # it caps attention's logits


MIXTURES = {"qwen3_moe"}


def built(folder: Path, kind: str, **settings) -> Path:
    """A random model of that kind in `folder`, with the tokenizer of the tiny one."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **settings)).save_pretrained(folder)
    for file in embedded.folder("tiny").glob("*token*"):
        shutil.copy(file, folder)
    return folder


@functools.cache  # to compose one takes longer than to train it
def composed(*overrides: str) -> Cell:
    return tiny(
        *(f"rank={RANK}", "lr_scale=50", "train.max_steps=2", "train.validation_items=2", "eval.limit=2"),
        *("infer.repeats=0", *overrides),
    )


def cell_of(path: Path, *overrides: str) -> Cell:
    cell = composed(*overrides)
    model = replace(cell.settings.model, path=str(path))
    return replace(cell, settings=replace(cell.settings, model=model))
