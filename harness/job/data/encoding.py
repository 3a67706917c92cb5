"""Training data: splits of items, tokenised as the evaluation asks, in batches equal for every method.

An item is ``{"question": str, "answer": str}`` or as harness.job.data.columns says. The default prompt is the one lm-eval's
gsm8k task shows; the loss is on the answer alone, and the end-of-text token after it is trained, so that a tuned model
stops. Of a conversation it is on all that the assistant says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.errors import UserError
from harness.job.data import chat
from harness.job.data.columns import CHAT, Item

IGNORED = -100  # torch's ignore_index


@dataclass(frozen=True)
class Example:
    """A tokenised item: `ids` of prompt, answer and end-of-text; the first `prompt` of them bear no loss.

    between: spans of further ids that bear none, as of what is said between the answers of a conversation.
    """

    ids: list[int]
    prompt: int
    between: tuple[tuple[int, int], ...] = ()

    @property
    def supervised(self) -> list[int]:
        """Positions of the tokens that bear loss. The first is never predicted, whatever the prompt's length."""
        silent = {with_data_root for span in self.between for with_data_root in range(*span)}
        return [
            with_data_root
            for with_data_root in range(max(self.prompt, 1), len(self.ids))
            if with_data_root not in silent
        ]


Encoder = Callable[[list[Item]], list[Example]]


def encoder(tokenizer: PreTrainedTokenizerBase, data: dict[str, Any], max_length: int) -> Encoder:
    """What tokenises items as the settings `data` say; UserError as in `encode_all`."""
    bare = data.get("prompt_if_empty")
    return lambda items: encode_all(tokenizer, items, data["prompt"], max_length, bare)


def encode(
    tokenizer: PreTrainedTokenizerBase, item: Item, prompt: str, max_length: int, bare: str | None = None
) -> Example:
    """Tokenise prompt and answer apart, as generation sees them, joined by lm-eval's one space.

    bare: the prompt where a field of the item is empty. A conversation is written by the tokenizer's own template.
    """
    if CHAT in item:
        ids, spans = chat.encode(tokenizer, item[CHAT])
        between = zip([end for _, end in spans], [begin for begin, _ in spans[1:]] + [len(ids)], strict=True)
        first = spans[0][0] if spans else len(ids)
        return Example(ids[:max_length], first, tuple(span for span in between if span[0] < span[1]))
    if bare is not None and not all(item.values()):
        prompt = bare
    before = tokenizer(prompt.format(**item))["input_ids"]
    after = tokenizer(" " + item["answer"], add_special_tokens=False)["input_ids"]
    return Example((before + after + [tokenizer.eos_token_id])[:max_length], len(before))


def encode_all(
    tokenizer: PreTrainedTokenizerBase, items: list[Item], prompt: str, max_length: int, bare: str | None = None
) -> list[Example]:
    """`items` tokenised; UserError if there is none, or if truncation leaves one without an answer."""
    if not items:
        raise UserError("The data set is empty; there is nothing to train or validate on.")
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
