"""Encoders of a few weights, at random, with tokenizers of words and characters: what BERTScore is computed by."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "the a cat dog sat on mat runs quickly this is story of that goes for while and then ends well"
CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def saved_encoder(folder: Path, seed: int = 0) -> Path:
    """A BERT of three layers in `folder`, which reads up to 64 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = list(dict.fromkeys([*SPECIAL, *TEXT.split(), *CHARACTERS, *(f"##{one}" for one in CHARACTERS)]))
    tokenizer = BertTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, do_lower_case=False, model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = BertConfig(vocab_size=len(vocabulary), num_hidden_layers=3, initializer_range=0.5, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder
