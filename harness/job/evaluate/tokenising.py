"""Tokenises texts that begin alike, as questions with the same examples and choices of one question do.

What a text shares with a recent one is not tokenised again. A tokenizer cuts a text into words before it looks into
any, so tokens up to a word's end do not depend on what follows at some distance.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

IDENTITY = "sha256:"  # begins a tokenizer's identity
OVERLAP = 64  # characters before the first difference that are tokenised again, and compared
DISTANT = 16  # characters after a token within which a difference may change it


@dataclass
class Encoded:
    """A text's tokens.

    begin, end: special tokens around `ids`. words, starts, ends: of each token the number of its word (null where the
    tokenizer does not tell), its first character, and the one after its last.
    """

    text: str
    ids: list[int]
    words: list[int | None]
    starts: list[int]
    ends: list[int]
    begin: list[int]
    end: list[int]

    @property
    def whole(self) -> list[int]:
        """All tokens."""
        return [*self.begin, *self.ids, *self.end]


class SharedBeginnings:
    """Encodes texts as `encode` does, which may add special tokens at both ends.

    recent: texts that a new one is compared with: a question, and a choice of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]]):
        self._tokenizer, self._encode = tokenizer, encode
        self._recent: deque[Encoded] = deque(maxlen=2)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`."""
        nearest, depth = None, -1
        for earlier in self._recent:
            if (common := shared(text, earlier.text)) > depth:
                nearest, depth = earlier, common
        if nearest is not None and nearest.text == text:
            return nearest.whole
        after = None if nearest is None else self._after(nearest, depth, text)
        encoded = after or self._anew(text)
        self._recent.append(encoded)
        return encoded.whole

    def _anew(self, text: str) -> Encoded:
        whole = self._encode(text)
        if self._tokenizer.is_fast:
            plain = self._plain(text)
            ids = plain.ids
            at = next((i for i in range(len(whole) - len(ids) + 1) if whole[i : i + len(ids)] == ids), None)
            if at is not None and ids:
                starts, ends = map(list, zip(*plain.offsets, strict=True))
                return Encoded(text, ids, plain.word_ids, starts, ends, whole[:at], whole[at + len(ids) :])
        return Encoded(text, whole, [None] * len(whole), [0] * len(whole), [0] * len(whole), [], [])

    def _after(self, earlier: Encoded, depth: int, text: str) -> Encoded | None:
        """`text`, which begins with the first `depth` characters of `earlier`; None if it has to be encoded anew."""
        cut = self._cut(earlier, depth - OVERLAP)
        if cut is None:
            return None
        at = earlier.ends[cut - 1]
        rest = self._plain(text[at:])
        again = bisect_right([end for _, end in rest.offsets], depth - at - DISTANT)
        if not again or rest.ids[:again] != earlier.ids[cut : cut + again]:
            return None  # a text's beginning is encoded in another way than its middle
        words = rest.word_ids
        first, begin = words[0], earlier.words[cut]
        if first is None or begin is None:
            return None
        return Encoded(
            text,
            earlier.ids[:cut] + rest.ids,
            earlier.words[:cut] + [w if w is None else w - first + begin for w in words],
            earlier.starts[:cut] + [start + at for start, _ in rest.offsets],
            earlier.ends[:cut] + [end + at for _, end in rest.offsets],
            earlier.begin,
            earlier.end,
        )

    @staticmethod
    def _cut(earlier: Encoded, most: int) -> int | None:
        """The last token that begins a word of `earlier`, of those whose word before ends within `most` characters."""
        if most <= 0:
            return None
        for cut in range(bisect_right(earlier.ends, most), 0, -1):
            if cut < len(earlier.ids) and None not in (earlier.words[cut - 1], earlier.words[cut]):
                between = earlier.text[earlier.ends[cut - 1] : earlier.starts[cut]]
                if earlier.words[cut - 1] != earlier.words[cut] and between in ("", " "):
                    return cut
        return None

    def _plain(self, text: str) -> Encoding:
        return self._tokenizer(text, add_special_tokens=False).encodings[0]


def shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many first characters of two texts, or tokens of two lists, are the same."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A text that differs for tokenizers that give other tokens, or put chats in another way; None if it isn't known.

    A template that writes the date has another identity each day.
    """
    if not tokenizer.is_fast:
        return None
    backend = tokenizer.backend_tokenizer.to_str()
    backend = backend[backend.index('"added_tokens"') :]  # before it are truncation and padding of the last call
    parts = [backend, tokenizer.chat_template, tokenizer.special_tokens_map]
    if "strftime_now" in json.dumps(tokenizer.chat_template):
        parts.append(datetime.now().date())
    return IDENTITY + hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
