"""Small models of many architectures, with random weights."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from job_helpers import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from harness.job.models import embedded
from harness.record import Cell

RANK = 4


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "initializer_range": 0.2,  # at their small initial weights the layers hardly matter
}


GROUPED = {"num_key_value_heads": 2, "head_dim": 8}


WINDOWED = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}


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
