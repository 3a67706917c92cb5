"""Documents of continued pretraining: texts without a question, joined and cut into blocks of train.max_length tokens.

A document is the item ``{"text": str}``. What is drawn is a block, ``{"block": [token ids], "documents": [str, …]}``:
the next tokens of all documents, one after another, each with the end-of-text token after it. So a block is full, may
hold several documents, which attend to each other, and no text is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

Item = dict[str, Any]
TEXT, BLOCK, DOCUMENTS = "text", "block", "documents"  # fields of items
TOGETHER = 64  # documents that are tokenised in one call
FEWEST_TOKENS = 2  # of a block, as its first token is not predicted


def blocks(documents: Sequence[Item], tokenizer: PreTrainedTokenizerBase, size: int) -> list[Item]:
    """Blocks of `size` tokens of `documents` in their order; the last one may be shorter."""
    cut: list[Item] = []
    ids: list[int] = []
    texts: list[str] = []
    for text, tokens in _tokenised(documents, tokenizer):
        texts.append(text)
        start = 0
        while len(ids) + len(tokens) - start >= size:
            room = size - len(ids)
            cut.append({BLOCK: ids + tokens[start : start + room], DOCUMENTS: texts})
            start += room
            ids, texts = [], [text]
        ids += tokens[start:]
        texts = texts if ids else []
    return cut + ([{BLOCK: ids, DOCUMENTS: texts}] if len(ids) >= FEWEST_TOKENS else [])


def _tokenised(documents: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[int]]]:
    """Each text and its tokens, with the end of text after them."""
    for start in range(0, len(documents), TOGETHER):
        texts = [document[TEXT] for document in documents[start : start + TOGETHER]]
        for text, tokens in zip(texts, tokenizer(texts)["input_ids"], strict=True):
            yield text, tokens if tokens[-1:] == [tokenizer.eos_token_id] else [*tokens, tokenizer.eos_token_id]


def texts_of(blocks: Iterable[Item]) -> list[str]:
    """The texts of all documents of `blocks`, each once."""
    return list(dict.fromkeys(text for block in blocks for text in block[DOCUMENTS]))
