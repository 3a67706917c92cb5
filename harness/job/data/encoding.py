"""Tokenises items for training, with the prompts of the evaluation.

Items are as in harness.job.data.columns. The default prompt is that of lm-eval's gsm8k task. The loss is on the answer
alone, including the end-of-text token after it, so that a tuned model stops. In a conversation the loss is on all turns
of the assistant; of answers that are compared (harness/job/data/preferences.py) on the last turn, which is the answer.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError
from harness.job.data import chat, sources
from harness.job.data.columns import CHAT, Item, answering, asked, by_words
from harness.job.data.documents import BLOCK
from harness.job.data.places import naming
from harness.job.data.preferences import GOOD, MARK, REJECTED
from harness.job.data.turns import TOOLS
from harness.settings import DataSettings

IGNORED = -100  # torch's ignore_index


@dataclass(frozen=True)
class Example:
    """A tokenised item: `ids` of prompt, answer and end-of-text. The first `prompt` ids have no loss.

    between: spans of further ids without loss, such as the user's turns between the answers of a conversation. cut:
    tokens after `ids` that were left out, as there is no room for them.
    """

    ids: list[int]
    prompt: int
    between: tuple[tuple[int, int], ...] = ()
    cut: int = 0

    @property
    def sequences(self) -> tuple[Example, ...]:
        """What the model reads: itself."""
        return (self,)

    @property
    def right(self) -> tuple[Example, ...]:
        """Those of `sequences` with an answer to be learned."""
        return (self,)

    def whole(self) -> Example:
        """This example with loss on every token."""
        return Example(self.ids, prompt=0)

    @property
    def supervised(self) -> list[int]:
        """Positions of the tokens with loss. The first token is never predicted, however short the prompt is."""
        silent = {place for span in self.between for place in range(*span)}
        return [place for place in range(max(self.prompt, 1), len(self.ids)) if place not in silent]


class Compared(ABC):
    """Tokenised answers to one prompt, of which it is known whether each is good."""

    @property
    @abstractmethod
    def sequences(self) -> tuple[Example, ...]:
        """What the model reads: each answer after the prompt."""

    @property
    @abstractmethod
    def signs(self) -> tuple[int, ...]:
        """Of each of `sequences` 1 if its answer is good, else -1."""

    @abstractmethod
    def with_sequences(self, sequences: Iterable[Example]) -> Compared:
        """Answers of the same signs with other `sequences`."""

    @property
    def right(self) -> tuple[Example, ...]:
        """Those of `sequences` with a good answer."""
        return tuple(each for each, sign in zip(self.sequences, self.signs, strict=True) if sign > 0)

    @property
    def ids(self) -> list[int]:
        """The token ids of all sequences."""
        return [token for each in self.sequences for token in each.ids]


@dataclass(frozen=True)
class Pair(Compared):
    """Two tokenised answers to one prompt, of which the first was preferred."""

    chosen: Example
    rejected: Example

    @property
    def sequences(self) -> tuple[Example, ...]:
        return self.chosen, self.rejected

    @property
    def signs(self) -> tuple[int, ...]:
        return 1, -1

    def with_sequences(self, sequences: Iterable[Example]) -> Pair:
        return Pair(*sequences)


@dataclass(frozen=True)
class MarkedAnswer(Compared):
    """A single tokenised answer, marked as good or bad."""

    answer: Example
    good: bool

    @property
    def sequences(self) -> tuple[Example, ...]:
        return (self.answer,)

    @property
    def signs(self) -> tuple[int, ...]:
        return (1 if self.good else -1,)

    def with_sequences(self, sequences: Iterable[Example]) -> MarkedAnswer:
        (answer,) = sequences
        return MarkedAnswer(answer, self.good)


Drawn = Example | Compared  # one item of a batch
Encoder = Callable[[list[Item]], list[Drawn]]


def compared(items: Iterable[Drawn]) -> list[Compared]:
    """The `items` that are compared: all of a cell whose objective compares answers."""
    return [item for item in items if isinstance(item, Compared)]


def answer_bytes(tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example]) -> int:
    """Bytes of the answers of `examples` in UTF-8, without ends of text."""
    answers = ([example.ids[at] for at in example.supervised] for example in examples)
    return sum(len(decoded(tokenizer, ids, clean_up_tokenization_spaces=False).encode()) for ids in answers)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int] | Tensor, **keywords: Any) -> str:
    """The text of one sequence of token ids, without special tokens. keywords: of the tokenizer's `decode`."""
    text = tokenizer.decode(ids, skip_special_tokens=True, **keywords)
    assert isinstance(text, str)  # of one sequence
    return text


def encoder(
    tokenizer: PreTrainedTokenizerBase,
    data: DataSettings,
    max_length: int,
    pairs: bool = False,
    data_root: str | None = None,
) -> Encoder:
    """A function that tokenises items by the settings `data`; it raises UserError as `encode_all`.

    pairs: whether answers are tokenised to be compared: the rejected ones too, and with their marks. data_root: where
    `data` lie, to name the place of an item that is refused.
    """
    place = functools.partial(sources.place_of, data=data, data_root=data_root)
    bare = data.prompt_if_empty
    return lambda items: encode_all(tokenizer, items, data.template, max_length, bare, pairs, place)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    item: Item,
    prompt: str,
    max_length: int,
    bare: str | None = None,
    last: bool = False,
) -> Example:
    """Tokenise prompt and answer separately, as in generation, joined by one space as in lm-eval.

    bare: the prompt if a field of the item is empty. A conversation is written by the tokenizer's chat template; `last`
    says whether the loss is on its last answer alone. A block of documents is tokenised already.
    """
    if BLOCK in item:
        return Example(item[BLOCK], prompt=0)
    if CHAT in item:
        ids, spans = chat.encode(tokenizer, item[CHAT], item.get(TOOLS))
        spans = spans[-1:] if last else spans
        between = zip([end for _, end in spans], [begin for begin, _ in spans[1:]] + [len(ids)], strict=True)
        first = spans[0][0] if spans else len(ids)
        spans_between = tuple(span for span in between if span[0] < span[1])
        return Example(ids[:max_length], first, spans_between, max(len(ids) - max_length, 0))
    question = asked(item, prompt, bare)
    before = tokenizer(question)["input_ids"]
    after = _after(tokenizer, question, before, " " + item["answer"])
    ids = before + after + [tokenizer.eos_token_id]
    return Example(ids[:max_length], len(before), cut=max(len(ids) - max_length, 0))


def _after(tokenizer: PreTrainedTokenizerBase, question: str, before: list[int], answer: str) -> list[int]:
    """The token ids of `answer` where it follows `question`, whose ids are `before`.

    Some tokenizers (Mistral 7B v0.1, Phi-3) begin each text with a space of their own, so that an answer that is
    tokenised alone begins with two, and in generation with one.
    """
    if begins_with_space(tokenizer):
        whole = tokenizer(question + answer)["input_ids"]
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return tokenizer(answer, add_special_tokens=False)["input_ids"]


@functools.lru_cache(maxsize=1)  # each example asks
def begins_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `tokenizer` writes a text that begins with a space differently alone than after another text."""
    one, both, alone = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "a b", " b"))
    return both != one + alone


def encode_compared(
    tokenizer: PreTrainedTokenizerBase, item: Item, prompt: str, max_length: int, bare: str | None = None
) -> Compared:
    """Tokenise each answer of `item` as `encode` does, with loss on the last turn of a conversation alone."""
    answer = encode(tokenizer, item, prompt, max_length, bare, last=True)
    if MARK in item:
        return MarkedAnswer(answer, item[MARK] == GOOD)
    other = answering(item, item[REJECTED])
    return Pair(answer, encode(tokenizer, other, prompt, max_length, bare, last=True))


def encode_all(
    tokenizer: PreTrainedTokenizerBase,
    items: list[Item],
    prompt: str,
    max_length: int,
    bare: str | None = None,
    pairs: bool = False,
    place: Callable[[Item], str] = by_words,
) -> list[Drawn]:
    """Tokenise `items`. Raises UserError if there is none, or if truncation removes a whole answer.

    place: of an item in its file, for messages.
    """
    if not items:
        raise UserError(
            "Training or validation has no example; check the data, and sizes such as data.load.validation."
        )
    if CHAT in items[0]:
        chat.require(tokenizer)
    one = encode_compared if pairs else encode
    examples = []
    for item in items:
        try:
            examples.append(one(tokenizer, item, prompt, max_length, bare))
        except UserError as error:
            raise naming(error, place(item)) from None
    both = zip(items, examples, strict=True)
    unanswered = [item for item, example in both if not all(sequence.supervised for sequence in example.sequences)]
    if unanswered:
        raise UserError(
            f"train.max_length={max_length} leaves no token of the answer in {len(unanswered)} of {len(examples)} "
            f"examples, the first of them in {place(unanswered[0])}; raise it."
        )
    return examples
