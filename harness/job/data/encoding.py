"""Tokenises items for training, with the prompts of the evaluation.

Items are as in harness.job.data.columns. The default prompt is that of lm-eval's gsm8k task. The loss is on the answer
alone, including the end-of-text token after it, so that a tuned model stops. In a conversation the loss is on all turns
of the assistant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from harness.errors import UserError
from harness.job.data import chat
from harness.job.data.columns import CHAT, Item, asked
from harness.settings import DataSettings

IGNORED = -100  # torch's ignore_index


@dataclass(frozen=True)
class Example:
    """A tokenised item: `ids` of prompt, answer and end-of-text. The first `prompt` ids have no loss.

    between: spans of further ids without loss, such as the user's turns between the answers of a conversation.
    """

    ids: list[int]
    prompt: int
    between: tuple[tuple[int, int], ...] = ()

    def whole(self) -> Example:
        """This example with loss on every token."""
        return Example(self.ids, prompt=0)

    @property
    def supervised(self) -> list[int]:
        """Positions of the tokens with loss. The first token is never predicted, however short the prompt is."""
        silent = {place for span in self.between for place in range(*span)}
        return [place for place in range(max(self.prompt, 1), len(self.ids)) if place not in silent]


def answer_bytes(tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> int:
    """Bytes of the answers of `examples` in UTF-8, without ends of text."""
    answers = ([example.ids[at] for at in example.supervised] for example in examples)
    keep = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return sum(len(tokenizer.decode(ids, **keep).encode()) for ids in answers)


Encoder = Callable[[list[Item]], list[Example]]


def encoder(tokenizer: PreTrainedTokenizerBase, data: DataSettings, max_length: int) -> Encoder:
    """A function that tokenises items by the settings `data`; it raises UserError as `encode_all`."""
    return lambda items: encode_all(tokenizer, items, data.prompt, max_length, data.prompt_if_empty)


def encode(
    tokenizer: PreTrainedTokenizerBase, item: Item, prompt: str, max_length: int, bare: str | None = None
) -> Example:
    """Tokenise prompt and answer separately, as in generation, joined by one space as in lm-eval.

    bare: the prompt if a field of the item is empty. A conversation is written by the tokenizer's chat template.
    """
    if CHAT in item:
        ids, spans = chat.encode(tokenizer, item[CHAT])
        between = zip([end for _, end in spans], [begin for begin, _ in spans[1:]] + [len(ids)], strict=True)
        first = spans[0][0] if spans else len(ids)
        return Example(ids[:max_length], first, tuple(span for span in between if span[0] < span[1]))
    before = tokenizer(asked(item, prompt, bare))["input_ids"]
    after = tokenizer(" " + item["answer"], add_special_tokens=False)["input_ids"]
    return Example((before + after + [tokenizer.eos_token_id])[:max_length], len(before))


def encode_all(
    tokenizer: PreTrainedTokenizerBase, items: list[Item], prompt: str, max_length: int, bare: str | None = None
) -> list[Example]:
    """Tokenise `items`. Raises UserError if there is none, or if truncation removes a whole answer."""
    if not items:
        raise UserError("The data set is empty.")
    if CHAT in items[0]:
        chat.require(tokenizer)
    examples = [encode(tokenizer, item, prompt, max_length, bare) for item in items]
    unanswered = sum(not example.supervised for example in examples)
    if unanswered:
        raise UserError(
            f"train.max_length={max_length} leaves no token of the answer in {unanswered} of {len(examples)} examples; "
            "raise it."
        )
    return examples
