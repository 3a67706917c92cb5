"""Looks at the lengths of all records that may be drawn, before any is: long ones are refused, dropped or cut."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from harness.errors import UserError
from harness.job.data import documents, encoding, sources
from harness.job.data.columns import Item
from harness.record import Lengths
from harness.settings import DataSettings


@dataclass(frozen=True)
class FittedItems:
    """The records that may be drawn, and those of the validation.

    lengths: of both together, before any is drawn; null where nobody looked, as the data are not the user's own.
    """

    train: list[Item]
    validation: list[Item]
    lengths: Lengths | None = None

    @property
    def dropped(self) -> int:
        """Records that are left out."""
        return 0 if self.lengths is None else self.lengths.dropped


def fitted(
    splits: dict[str, list[Item]],
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    pairs: bool,
    validation_items: int | None,
    data_root: str | None,
) -> FittedItems:
    """The items of `splits` that may be drawn, by data.too_long; of documents their blocks.

    pairs: whether rejected answers are read too. validation_items: how many are validated with. data_root: as of
    `encoding.encoder`. Raises UserError for long ones, unless they may be cut or dropped.
    """
    train, validation = splits["train"], splits["validation"]
    if data.documents:
        train, validation = (documents.blocks(part, tokenizer, max_length) for part in (train, validation))
        return FittedItems(train, _spread(validation, validation_items))
    if not data.own and data.too_long in (None, "cut"):
        return FittedItems(train, validation[:validation_items])
    encode = encoding.encoder(tokenizer, data, sys.maxsize, pairs, data_root)

    def longest(items: list[Item]) -> list[int]:
        examples = encode(items) if items else []
        return [max(len(sequence.ids) for sequence in one.sequences) for one in examples]

    if data.length_rule != "drop":
        validation = validation[:validation_items]
    sizes, others = longest(train), longest(validation)
    count, too_long = len(sizes) + len(others), [size for size in (*sizes, *others) if size > max_length]
    if too_long and data.length_rule == "error":
        _, item = max(zip((*sizes, *others), (*train, *validation), strict=True), key=lambda sized: sized[0])
        raise UserError(
            f"train.max_length={max_length} is too short for {len(too_long):,} of {count:,} records, the longest of "
            f"{max(too_long):,} tokens in {sources.place_of(item, data, data_root)}; raise it, or write "
            "data.too_long=cut or data.too_long=drop."
        )
    if data.length_rule == "cut":
        return FittedItems(train, validation, Lengths(count, cut=len(too_long), dropped=0))
    train = [item for item, size in zip(train, sizes, strict=True) if size <= max_length]
    validation = [item for item, size in zip(validation, others, strict=True) if size <= max_length]
    if not train or not validation:
        raise UserError(f"data.too_long=drop leaves no record within train.max_length={max_length}; raise that.")
    left = Lengths(len(train) + len(validation), cut=0, dropped=len(too_long))
    return FittedItems(train, validation[:validation_items], left)


def _spread(blocks: list[Item], number: int | None) -> list[Item]:
    """`number` of the `blocks`, evenly spread over all, so that a long document is not all of them; all for null."""
    if number is None or number >= len(blocks):
        return blocks
    return [blocks[i * len(blocks) // number] for i in range(number)]
