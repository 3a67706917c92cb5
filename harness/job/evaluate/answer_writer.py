"""Greedy answers to many prompts, written in slots of one cache: a slot is reused as soon as its answer ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from harness.job.evaluate import rows
from harness.job.evaluate.kv_cache import Slots
from harness.job.evaluate.row_model import RowModel, SharedPrefix
from harness.job.evaluate.rows import Segment, Tokens

IndexedAnswer = tuple[int, list[int]]  # the index of its prompt, and its tokens


class AnswerEnd:
    """When an answer ends: at a token of `eos`, at a text of `until`, or at `limit` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: int | list[int] | None, until: list[str], limit: int):
        self._tokenizer, self._until, self._limit = tokenizer, until, limit
        self._eos = set(eos) if isinstance(eos, list) else {eos}
        # As in lm-eval: generated tokens of a text may differ from its encoding.
        self._lookback = 2 + max(len(tokenizer.encode(text, add_special_tokens=False)) for text in until)

    def reached(self, tokens: list[int]) -> bool:
        """Whether the answer `tokens` ends with its last one."""
        return len(tokens) >= self._limit or self.finished(tokens)

    def finished(self, tokens: list[int]) -> bool:
        """Whether its last token or text ends the answer `tokens`, rather than the limit."""
        if not tokens or tokens[-1] in self._eos:
            return True
        end = self._tokenizer.decode(tokens[-self._lookback :])
        return any(text in end for text in self._until)


class AnswerWriter:
    """Has `model` answer `prompts`, at most `size` at a time. room: tokens of a row in which prompts begin."""

    def __init__(self, model: RowModel, prompts: list[Tokens], end: AnswerEnd, size: int, room: int):
        self._model, self._prompts, self._end, self._room = model, prompts, end, room
        stems = [prompt[:-1] for prompt in prompts]
        self._waiting = deque((prompts[m][:n], m) for n, group in rows.grouped(stems) for m in group)
        self._slots = Slots(size, model.device)
        self._writing: list[IndexedAnswer] = []  # in the order of their slots
        self._prefix = SharedPrefix(model)
        self._first = torch.zeros(1, dtype=torch.long, device=model.device)

    def answers(self) -> Iterator[IndexedAnswer]:
        """The answers as they end."""
        while self._waiting or self._writing:
            while self._may_begin():
                yield from self._append(self._begin())
            if self._writing:
                yield from self._append(self._go_on())

    def _may_begin(self) -> bool:
        return bool(self._waiting) and len(self._writing) < self._slots.size

    def _begin(self) -> torch.Tensor:
        """Fill free slots with a row of prompts that share a prefix. Returns their logits: (slots, vocabulary)."""
        head = self._waiting[0][0]
        prefix = self._prefix.cache(head)
        row: list[Segment] = []
        while self._may_begin() and self._waiting[0][0] == head:
            tail = self._prompts[self._waiting[0][1]][len(head) :]
            if row and rows.size(row) + len(tail) > self._room:
                break
            row.append(Segment(tail, len(head), 1))
            self._writing.append((self._waiting.popleft()[1], []))
        logits, new, _ = self._model.forward(row, prefix)
        self._slots.fill(prefix, new, [len(segment.tokens) for segment in row])
        return logits

    def _go_on(self) -> torch.Tensor:
        """Logits of the next token of each answer: (slots, vocabulary)."""
        slots, device = self._slots, self._model.device
        ids, ends = rows.uploaded([[tokens[-1] for _, tokens in self._writing], slots.lengths], device)
        positions = slots.extend(ends)
        mask = (torch.arange(max(slots.lengths), device=device) <= positions)[:, None, None]
        return self._model.logits(ids[:, None], positions, mask, self._first, slots)[:, 0]

    def _append(self, logits: torch.Tensor) -> Iterator[IndexedAnswer]:
        """Append the likeliest token to the last answers; yields answers that end, and frees their slots."""
        tokens, writing = logits.argmax(dim=-1).tolist(), self._writing
        for slot in reversed(range(len(writing) - len(tokens), len(writing))):
            answer = writing[slot]
            answer[1].append(tokens.pop())
            if self._end.reached(answer[1]):
                yield answer
                self._slots.drop(slot)
                writing[slot] = writing[-1]
                writing.pop()
